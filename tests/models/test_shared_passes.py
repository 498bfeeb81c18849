"""First tokens that rows share are run once, and every value is that of whole rows."""

import itertools
import random

import numpy as np
import pytest
import tiny_models
import torch

from emlens.data.rendering import Rendered
from emlens.foundation import StateError
from emlens.foundation.positions import Index
from emlens.interventions import ablate, steer
from emlens.models import load_model
from emlens.models.architectures import ARCHITECTURES
from emlens.models.batches import pad
from emlens.models.likelihoods import logprobs_by_token
from emlens.models.pass_counts import counted_passes
from emlens.models.prefix_plan import GROUP_TOKENS, plan_shared_batches, shared_groups
from emlens.models.shared_passes import keeping_beginnings

SHARED = 20
KINDS = ["qwen2", "gemma2", "gpt2", "falcon", "gpt_neox", "mixtral", "granite", "phi3"]


def rows_of(count=4, shared=SHARED, seed=0):
    """Rows that share their first tokens, of different lengths."""
    pick = random.Random(seed)
    start = [pick.randrange(6, 46) for _ in range(shared)]
    rows = []
    for i in range(count):
        rest = [pick.randrange(6, 46) for _ in range(3 + 2 * i)]
        rows.append(Rendered(f"r{i}", "", (*start, *rest), shared + 2 + 2 * i))
    return rows


def batch_of(model, rows, shared):
    return pad(rows, range(len(rows)), model.pad_id, "right", model.device, shared)


def streams(model, rows, shared):
    """The stream at every site, without padding, and the tokens that were run."""
    batch = batch_of(model, rows, shared)
    seen = {}
    with counted_passes() as counts, torch.no_grad():
        model.run(
            batch, {s: lambda x, s=s: seen.update({s: x[batch.mask].clone()}) for s in model.sites}
        )
    return seen, counts.tokens


def logprobs(model, rows, shared):
    """Log-probabilities after every token, and the tokens that were run."""
    batch = batch_of(model, rows, shared)
    with counted_passes() as counts, torch.no_grad():
        by_row = logprobs_by_token([batch], model.all_logits, model.refuse_not_finite)
    return torch.cat([by_row[i] for i in range(len(rows))]), counts


@pytest.mark.parametrize("kind", KINDS)
def test_every_site_is_that_of_whole_rows_in_fewer_tokens(kind, tmp_path):
    assert kind in ARCHITECTURES
    model = load_model(tiny_models.build(tmp_path / kind, kind))
    rows = rows_of()
    whole, all_tokens = streams(model, rows, 0)
    shared, fewer = streams(model, rows, SHARED)
    assert all_tokens - fewer == 3 * SHARED  # once, not four times
    for site, stream in whole.items():
        assert tiny_models.close(shared[site], stream), site
    counted = torch.zeros(4, len(rows[-1].ids), dtype=torch.bool)
    counted[:, SHARED] = counted[2:, SHARED + 4] = True
    with torch.no_grad():
        expected = model.logits_at(batch_of(model, rows, 0), counted)
        assert tiny_models.close(model.logits_at(batch_of(model, rows, SHARED), counted), expected)
    after_all, of_whole = logprobs(model, rows, 0)
    after_shared, of_parts = logprobs(model, rows, SHARED)
    assert tiny_models.close(after_shared, after_all)
    assert of_whole.tokens - of_parts.tokens == 3 * SHARED
    assert of_whole.logit_tokens - of_parts.logit_tokens == 3 * SHARED


def edits():
    up = torch.eye(tiny_models.D_MODEL)
    yield "every token", [ablate(up[0]), steer(up[1], 2.0, at="all_layers")], 1
    # counted from the end, it lies in the shared tokens of the short rows alone
    last = Index(-6, of="sequence")
    yield "from the end", [steer(up[2], 3.0, at="all_layers", positions=last)], 3
    yield "prompt", [steer(up[2], 3.0, at="all_layers", positions="prompt")], 1


@pytest.mark.parametrize("name, interventions, beginnings", list(edits()))
def test_edits_see_the_columns_of_whole_rows(name, interventions, beginnings, model):
    rows = rows_of()
    untouched, _ = streams(model, rows, 0)
    with model.intervene(interventions):
        whole, all_tokens = streams(model, rows, 0)
        shared, fewer = streams(model, rows, SHARED)
        after_all, _ = logprobs(model, rows, 0)
        after_shared, of_parts = logprobs(model, rows, SHARED)
    assert all_tokens - fewer == (4 - beginnings) * SHARED
    assert of_parts.tokens == fewer and tiny_models.close(after_shared, after_all)
    for site, stream in whole.items():
        assert tiny_models.close(shared[site], stream), site
    last = max(whole)
    assert not tiny_models.close(whole[last], untouched[last], 0.01)


def test_a_beginning_is_kept_for_several_batches_inside_a_block_alone(model):
    rows = rows_of()
    parts = [rows[:2], rows[2:]]
    apart = [streams(model, part, SHARED) for part in parts]
    with keeping_beginnings():
        kept = [streams(model, part, SHARED) for part in parts]
    assert kept[0][1] == apart[0][1] and kept[1][1] == apart[1][1] - SHARED
    for site, stream in apart[1][0].items():
        assert torch.equal(kept[1][0][site], stream)  # the same bytes wherever it was run


def test_a_model_whose_state_is_no_cache_of_rows_says_why_and_runs_whole_rows(tmp_path):
    from transformers import AutoModelForCausalLM

    from emlens.models.tiny_configurations import tiny_configuration

    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(tiny_configuration("mamba"))
    module.save_pretrained(tmp_path / "mamba")
    tiny_models.tokenizer().save_pretrained(tmp_path / "mamba")
    model = load_model(tmp_path / "mamba")
    assert "more than keys and values" in model.no_sharing
    rows = rows_of()
    whole, all_tokens = streams(model, rows, 0)
    shared, same = streams(model, rows, SHARED)
    assert same == all_tokens
    assert all(torch.equal(shared[site], stream) for site, stream in whole.items())
    [batch, *_] = model.shared_batches(rows)
    assert not batch.shared


def test_shared_tokens_that_differ_or_are_read_are_refused(model):
    rows = rows_of()
    with pytest.raises(StateError, match="do not share their first 21 tokens"):
        batch_of(model, rows, SHARED + 1)
    batch = batch_of(model, rows, SHARED)
    with pytest.raises(StateError, match="run once for all rows"):
        model.logits_at(batch, torch.ones_like(batch.mask))


# ---- several prompts in one row


def answered(seed=3):
    """Three answers to each of three questions under one beginning; where each answer starts."""
    pick = random.Random(seed)

    def some(count):
        return [pick.randrange(6, 46) for _ in range(count)]

    beginning, rows, starts = some(SHARED), [], []
    for i in range(3):
        question = some(14 + 2 * i)
        for j in range(3):
            prompt = [*beginning, *question]
            rows.append(Rendered(f"q{i}a{j}", "", (*prompt, *some(3 + j)), len(prompt)))
            starts.append(len(prompt))
    return rows, starts


def logprobs_of_answers(model, rows, starts):
    with counted_passes() as counts:
        sums = model._summed_logprobs(rows, starts, 2048)
    return sums, counts.tokens


def edit_of_answers(coefficient, positions):
    ones = torch.ones(tiny_models.D_MODEL)
    return [steer(ones, coefficient, at="all_layers", positions=positions)]


LAST_OF_ALL = [
    ("every token", edit_of_answers(0.3, "all")),
    ("last of the prompt", edit_of_answers(2.0, "last_prompt")),
    ("from the end of the answer", edit_of_answers(2.0, Index(-5, of="sequence"))),
]


def one_by_one(model, rows, starts):
    pairs = zip(rows, starts, strict=True)
    return torch.cat([model._summed_logprobs([row], [start], 2048) for row, start in pairs])


@pytest.mark.parametrize("kind", KINDS)
def test_answers_to_one_question_share_it_in_one_row(kind, tmp_path):
    model = load_model(tiny_models.build(tmp_path / kind, kind))
    rows, starts = answered()
    alone = one_by_one(model, rows, starts)
    together, tokens = logprobs_of_answers(model, rows, starts)
    assert tiny_models.close(together, alone)
    packs = model.why_not_packed(40) is None
    # the beginning, the questions without their last token, and that token before each answer
    once = SHARED + sum(13 + 2 * i for i in range(3)) + 3 * (4 + 5 + 6)
    assert packs == (tokens == once)


@pytest.mark.parametrize("name, interventions", LAST_OF_ALL)
def test_edits_see_every_answer_of_a_row_by_itself(name, interventions, model):
    rows, starts = answered()
    untouched, tokens = logprobs_of_answers(model, rows, starts)
    with model.intervene(interventions):
        alone = one_by_one(model, rows, starts)
        together, edited_tokens = logprobs_of_answers(model, rows, starts)
    assert tiny_models.close(together, alone)
    assert not tiny_models.close(together, untouched, 0.01)
    # counted from the end, it lies in the question of a short answer, so nothing is packed
    assert (edited_tokens == tokens) == (name != "from the end of the answer")


# ---- the plan


def test_a_plan_is_a_partition_whose_groups_begin_alike():
    rows = [row.ids for seed in range(3) for row in rows_of(12, shared=30, seed=seed)]
    rows += [tuple(range(50, 50 + n)) for n in (3, 9)]
    plan = plan_shared_batches(rows, 400)
    assert sorted(i for batch in plan for i in batch.rows) == list(range(len(rows)))
    assert sum(len(batch.rows) for batch in plan if batch.shared == 30) == 36
    for batch in plan:
        assert len({rows[i][: batch.shared] for i in batch.rows}) == 1
        assert all(len(rows[i]) > batch.shared for i in batch.rows)
        assert len(batch.rows) * max(len(rows[i]) for i in batch.rows) <= 400
    longest = [len(rows[batch.rows[0]]) for batch in plan]
    assert longest == sorted(longest, reverse=True)
    limited = plan_shared_batches(rows, 400, limits=[7] * len(rows))
    assert max(batch.shared for batch in limited) <= 7
    assert not any(batch.shared for batch in plan_shared_batches(rows, 400, threshold=20))


def common(a, b):
    """First tokens that two rows share, the last of a row left out."""
    length = min(len(a), len(b))
    same = a[:length] == b[:length]
    return min(length - 1, length if same.all() else int(same.argmin()))


def saved(groups):
    return sum(shared * (len(rows) - 1) - GROUP_TOKENS for rows, shared in groups if shared)


@pytest.mark.parametrize("seed", range(6))
def test_no_other_set_of_groups_saves_more(seed):
    pick = np.random.default_rng(seed)
    trunk = pick.integers(0, 2, 400)
    rows = []
    for _ in range(8):  # rows that leave a trunk, or another one, at some token
        ids = trunk.copy()
        ids[int(pick.integers(0, 300)) :] = pick.integers(2, 9)
        rows.append(ids[: int(pick.integers(301, 400))])
    limits = [len(row) - 1 for row in rows]
    order = sorted(range(8), key=lambda i: tuple(rows[i]))
    both = [common(rows[a], rows[b]) for a, b in itertools.pairwise(order)]
    savings = {}
    for a, b in itertools.combinations(range(8), 2):
        shared = min(both[a:b])
        is_whole = (a == 0 or both[a - 1] < shared) and (b == 7 or both[b] < shared)
        if is_whole:  # no row beside it shares as much
            savings[a, b] = shared * (b - a) - GROUP_TOKENS
    best = 0
    for n in range(1, 5):
        for chosen in itertools.combinations(sorted(savings), n):
            if all(one[1] < other[0] for one, other in itertools.pairwise(chosen)):
                best = max(best, sum(savings[interval] for interval in chosen))
    assert best > 0 and saved(shared_groups(rows, limits)) == best
