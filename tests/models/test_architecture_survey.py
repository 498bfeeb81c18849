"""One architecture of each kind, against plain transformers, in all columns: loads, reads, edits,
generates. All of them: `python -m benchmarks architectures`.
"""

import multiprocessing
import os
import time

import pytest
import torch

from benchmarks.architectures import CASES
from emlens.foundation import LoadError
from emlens.models import architecture_survey, plain_answers, plain_edits
from emlens.models.architecture_survey import (
    build_tiny,
    causal_model_types,
    survey,
    survey_one,
)
from emlens.models.loading import load_model

ALL = ("attn_out", "mlp_out", "resid_mid")
ALL_COLUMNS = [
    ("gpt_oss", 1, "rows", ()),  # sliding windows, sinks
    ("qwen3_next", 2, "batches", ALL),  # hybrid
]
OTHERS = [
    ("deepseek_v3", 1, "rows", ()),  # latent attention, experts
    ("phi", 1, "rows", ("resid_mid",)),  # parallel
    ("opt", 2, "rows", ALL),
    ("mamba", 2, "batches", ALL),  # its hidden states follow the blocks
    ("recurrent_gemma", 2, "batches", ALL),  # keeps its state in its modules
    ("openai-gpt", 2, "again", (*ALL, "final_norm")),  # no cache, no final norm
]
WHOLE = [
    *ALL_COLUMNS,
    *OTHERS,
    ("moshi", 1, "rows", ()),  # whole passes without the window of its cache
    ("jamba", 2, "batches", ALL),  # blocks of several kinds
    ("rwkv", 2, "batches", ALL),
    ("zaya", 2, "batches", ALL),
]


def agrees(found, level, way, missing):
    assert found.right, found
    assert (found.level, found.way, set(found.missing)) == (level, way, set(missing))
    assert found.reads < 5e-5 and found.edits < 5e-5


@pytest.mark.parametrize(("kind", "level", "way", "missing"), ALL_COLUMNS)
def test_one_of_each_level_in_all_columns(kind, level, way, missing):
    found = survey_one(kind, new_tokens=4)
    agrees(found, level, way, missing)
    assert found.tokens > 10


@pytest.mark.parametrize(("kind", "level", "way", "missing"), OTHERS)
def test_one_of_each_kind_loads_reads_and_edits(kind, level, way, missing):
    """The way to generate is proved too, by its scores."""
    agrees(survey_one(kind, new_tokens=0), level, way, missing)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "level", "way", "missing"), WHOLE)
def test_one_of_each_kind_in_all_columns(kind, level, way, missing):
    found = survey_one(kind)
    agrees(found, level, way, missing)
    assert found.tokens > 10
    # its cache forgets what whole passes read
    assert bool(found.note) == (kind == "moshi")


def test_a_survey_that_is_wrong_says_so(monkeypatch):
    """A planted defect in each column is seen."""
    monkeypatch.setattr(plain_edits, "_vector", lambda model: torch.ones(model.d_model))
    added = plain_edits._forward_and_add

    def skewed(forward, vector, *rest, **kwargs):
        return added(forward, vector * 1.01, *rest, **kwargs)

    monkeypatch.setattr(plain_edits, "_forward_and_add", skewed)
    found = survey_one("arcee", new_tokens=0)
    assert not found.right and "logits under an edit differ" in found.wrong


def answers_of_stubs(monkeypatch, ours, by_generate, by_passes):
    class Model:
        def generate(self, prompts, **options):
            return [ours]

        def render(self, prompts):
            return [type("Row", (), {"ids": (5, 6)})]

    monkeypatch.setattr(plain_answers, "_text", lambda model, text: text)
    monkeypatch.setattr(plain_answers, "_by_generate", lambda *a: by_generate)
    monkeypatch.setattr(plain_answers, "_by_whole_passes", lambda *a: by_passes)
    comparison = plain_answers.AnswerComparison(length=2)
    plain_answers._compare_answers(comparison, Model(), None, None, "")
    return comparison


def test_answers_are_right_where_whole_passes_give_them(monkeypatch):
    """A type whose `generate` and whole passes differ (moshi) is noted; other answers are wrong."""
    same = answers_of_stubs(monkeypatch, "w5 w6", "w5 w6", "w5 w6")
    noted = answers_of_stubs(monkeypatch, "w5 w6", "w5 w7", "w5 w6")
    neither = answers_of_stubs(monkeypatch, "w5 w8", "w5 w7", "w5 w6")
    assert not same.wrong and not same.note
    assert not noted.wrong and "than its own whole passes" in noted.note
    assert "generates 'w5 w8'" in neither.wrong


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("hrm_text", "block 0 runs 6 times in one pass"),
        # four streams side by side
        ("qwen4_exp_text", "what enters block 0 is 256 wide and hidden_size is 64"),
        ("blt", "has no hidden_size in its configuration"),
    ],
)
def test_what_is_refused_says_why(kind, reason):
    found = survey_one(kind)
    assert not found.right and found.level == 0
    assert reason in found.refused


def test_a_projection_after_the_last_block_is_no_final_norm(tmp_path):
    """As in OPT-350m: what it gives has another width than the stream."""
    changes = {"do_layer_norm_before": False, "word_embed_proj_dim": 32}
    with pytest.raises(LoadError, match="project_out' gives .* another width than hidden_size, 64"):
        load_model(build_tiny("opt", tmp_path / "model", **changes), device="cpu")


@pytest.mark.parametrize("case", CASES)
def test_cases_that_no_single_type_shows(case, tmp_path):
    assert CASES[case](tmp_path / "model") in ("right", "refused")


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        ((os._exit, (3,)), "its process died (exit code 3)"),
        ((time.sleep, (60,)), "took more than 0 seconds"),
    ],
)
def test_a_process_that_dies_or_hangs_is_reported(work, reason):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work[0], args=work[1])
    process.start()
    sender.close()
    seconds = 60 if work[0] is os._exit else 0.2
    found = architecture_survey._received("a_type", receiver, process, seconds)
    assert found.wrong == reason and not found.right
    assert not process.is_alive()


@pytest.mark.slow
def test_a_survey_runs_each_type_in_a_process_of_its_own():
    broken, whole = survey(["no_such_type", "arcee"])
    assert broken.builds == "KeyError: 'no_such_type'" and not broken.right
    assert whole.right


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
