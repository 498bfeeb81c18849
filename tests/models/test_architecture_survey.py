"""One architecture of each kind, against plain transformers, in all columns: loads, reads, edits,
generates. All of them: `python -m benchmarks architectures`.
"""

import pytest
import torch

from benchmarks.architectures import CASES
from emlens.models import architecture_survey
from emlens.models.architecture_survey import build_tiny, causal_model_types, survey, survey_one
from emlens.models.loading import load_model

ALL = ("attn_out", "mlp_out", "resid_mid")


@pytest.mark.parametrize(
    ("kind", "level", "way", "missing"),
    [
        ("deepseek_v3", 1, "rows", ()),  # latent attention, experts
        ("phi", 1, "rows", ("resid_mid",)),  # parallel
        ("gpt_oss", 1, "rows", ()),  # sliding windows, sinks
        ("opt", 2, "rows", ALL),
        ("mamba", 2, "batches", ALL),  # its hidden states follow the blocks
        ("qwen3_next", 2, "batches", ALL),  # hybrid
        ("jamba", 2, "batches", ALL),  # blocks of several kinds
        ("recurrent_gemma", 2, "batches", ALL),  # keeps its state in its modules
        ("rwkv", 2, "batches", ALL),
        ("openai-gpt", 2, "again", (*ALL, "final_norm")),  # no cache, no final norm
    ],
)
def test_one_of_each_kind(kind, level, way, missing):
    found = survey_one(kind)
    assert found.right, found
    assert (found.level, found.way, set(found.missing)) == (level, way, set(missing))
    assert found.reads < 5e-5 and found.edits < 5e-5 and found.tokens > 10


def test_a_survey_that_is_wrong_says_so(monkeypatch):
    """A planted defect in each column is seen."""
    monkeypatch.setattr(architecture_survey, "_vector", lambda model: torch.ones(model.d_model))
    added = architecture_survey._forward_and_add

    def skewed(forward, vector, *rest, **kwargs):
        return added(forward, vector * 1.01, *rest, **kwargs)

    monkeypatch.setattr(architecture_survey, "_forward_and_add", skewed)
    found = survey_one("arcee")
    assert not found.right and "logits under an edit differ" in found.wrong


def test_what_is_refused_says_why():
    found = survey_one("hrm_text")
    assert not found.right and found.level == 0
    assert "block 0 runs 6 times in one pass" in found.refused


@pytest.mark.parametrize("case", CASES)
def test_cases_that_no_single_type_shows(case, tmp_path):
    assert CASES[case](tmp_path / "model") in ("right", "refused")


def test_a_process_that_dies_is_reported():
    (row,) = survey(["no_such_type"])
    assert row.builds == "KeyError: 'no_such_type'" and not row.right


def test_every_causal_type_is_listed_once():
    kinds = causal_model_types()
    assert len(kinds) > 150 and len(set(kinds)) == len(kinds)
    assert "llama" in kinds and "qwen3_5_text" in kinds and "qwen3_5" not in kinds


def test_rows_on_either_side_of_a_threshold_share_no_batch(tmp_path):
    from benchmarks.architectures import LONGROPE, THRESHOLD, words

    model = load_model(build_tiny("phi3", tmp_path / "model", **LONGROPE))
    assert model.threshold == THRESHOLD
    prompts = words((40, 24, 25, 6))
    together = model.logits(prompts)
    alone = torch.cat([model.logits([prompt]) for prompt in prompts])
    assert torch.allclose(together, alone, rtol=0, atol=1e-4)
    model.threshold = None  # positive control: in one batch the short rows are others
    assert not torch.allclose(model.logits(prompts), alone, rtol=0, atol=1e-2)
