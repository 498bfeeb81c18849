"""Prompts of one row as a tree of tokens: every value is that of rows of their own."""

import random

import pytest
import tiny_models
import torch
from chats_that_share import SYSTEM, after_every_token, chats

from emlens.data.rendering import Rendered
from emlens.foundation.positions import Index
from emlens.interventions import steer
from emlens.models import load_model
from emlens.models.pass_counts import counted_passes
from emlens.models.token_trees import ROW_TOKENS, plan_rows, tree_batches


def distinct(rows, limits):
    """Tokens of a tree in which each row shares no more than its limit."""
    shared, own = set(), 0
    for row, limit in zip(rows, limits, strict=True):
        shared |= {row.ids[:n] for n in range(1, limit + 1)}
        own += len(row.ids) - limit
    return len(shared) + own


def edit(positions):
    vector = torch.linspace(-1, 1, tiny_models.D_MODEL)
    return [steer(vector, 2.0, at="all_layers", positions=positions)]


EDITS = [
    ("none", []),
    ("every token", edit("all")),
    ("last of the prompt", edit("last_prompt")),
    ("from the end", edit(Index(-5, of="sequence"))),
]


@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "gpt2", "falcon"])
@pytest.mark.parametrize("name, interventions", EDITS)
def test_values_are_those_of_rows_of_their_own(kind, name, interventions, tmp_path, monkeypatch):
    model = load_model(tiny_models.build(tmp_path / kind, kind))
    rows, starts = chats()
    with model.intervene(interventions):
        with counted_passes() as counts:
            sums = model._summed_logprobs(rows, starts, 2048)
        apart = [
            model._summed_logprobs([row], [n], 64) for row, n in zip(rows, starts, strict=True)
        ]
        found, of_texts = after_every_token(model, rows, monkeypatch)
        alone = [after_every_token(model, [row], monkeypatch)[0][0] for row in rows]
    assert tiny_models.close(sums, torch.cat(apart))
    assert tiny_models.close(torch.cat(found), torch.cat(alone))
    if model.why_not_packed(60) is None and name != "from the end":
        assert (counts.passes, of_texts.passes) == (1, 1)
        assert counts.tokens == distinct(rows, [n - 1 for n in starts])
        assert (
            of_texts.tokens
            == of_texts.logit_tokens
            == distinct(rows, [len(row.ids) for row in rows])
        )


def test_tokens_that_an_edit_tells_apart_are_not_shared():
    rows, _ = chats(questions=1)
    limits = [len(row.ids) for row in rows]
    [tree] = plan_rows(rows, limits)
    [edited] = plan_rows(rows, limits, edit(Index(-5, of="sequence")))
    assert tree.width == distinct(rows, [SYSTEM + 14] * 3) < edited.width
    columns = dict(zip(edited.members, edited.columns, strict=True))
    touched = {n: int(columns[n][len(rows[n].ids) - 5]) for n in range(3)}
    assert len(set(touched.values())) == 3  # each row's own, wherever it lies


def test_a_row_is_no_wider_than_it_may_be():
    rows, starts = chats(questions=12, answers=4, question=30)
    trees = plan_rows(rows, [n - 1 for n in starts])
    assert sorted(n for tree in trees for n in tree.members) == list(range(len(rows)))
    assert len(trees) > 1 and all(tree.width <= ROW_TOKENS for tree in trees)
    for tree in trees:
        for number, columns in zip(tree.members, tree.columns, strict=True):
            assert len(columns) == len(rows[number].ids) and (columns[1:] > columns[:-1]).all()
    long, _ = chats(questions=1, answers=9, question=400)
    [tree] = plan_rows(long, [420] * 9)  # the question once, though it is longer than a row
    assert ROW_TOKENS < tree.width == distinct(long, [420] * 9)
    apart, _ = chats(questions=2, answers=1, question=400)
    assert len(plan_rows(apart, [420] * 2)) == 2  # each would be weighed against both
    assert plan_rows([], []) == []


def test_rows_that_share_nothing_run_as_before(model):
    pick = random.Random(0)
    rows = [
        Rendered(f"r{i}", "", tuple(pick.randrange(6, 46) for _ in range(200)), 100)
        for i in range(3)
    ]
    assert tree_batches(model, rows, 2048, [99] * 3) is None
    assert tree_batches(model, [], 2048, []) is None


def test_a_value_that_is_not_finite_names_its_prompt(model, monkeypatch):
    rows, starts = chats(questions=2)
    lost = torch.full((tiny_models.D_MODEL,), float("inf"))
    seen = []

    def refuse(row, *_args):
        seen.append(row.id)
        raise RuntimeError

    monkeypatch.setattr(model, "refuse_not_finite", refuse)
    with model.intervene([steer(lost.clamp(max=1e38), 1e30, at="all_layers")]):
        with pytest.raises(RuntimeError):
            model._summed_logprobs(rows, starts, 2048)
        with pytest.raises(RuntimeError):
            after_every_token(model, rows, monkeypatch)
    assert len(seen) == 2 and set(seen) <= {row.id for row in rows}
