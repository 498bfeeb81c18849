"""Random programs of nested interventions with planted failures: nothing stays behind."""

from contextlib import contextmanager

import pytest
import tiny_models
import torch

from benchmarks import interleaved_programs, intervention_programs
from benchmarks.intervention_programs import Failing, hooks_of, measure
from emlens.foundation import Site
from emlens.models import edit_blocks, load_model
from emlens.models.edit_blocks import EditBlocks, _Block

CLEAN = {"hooks_left": 0, "interventions_left": 0, "weights_changed": 0, "logits_changed": 0}

OVERLAPPING = {
    "passes_under_other_edits": 0,
    "hooks_left": 0,
    "edits_left": 0,
    "weights_changed": 0,
    "logits_changed": 0,
}
NO_STACK_CHANGES = ("hooks_left", "weights_changed")
"""Counts that an edit left in force cannot raise."""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return tiny_models.build(tmp_path_factory.mktemp("programs") / "model", num_hidden_layers=2)


def run(model, programs):
    found = measure(model, tiny_models.prompts(2), programs)
    assert (
        found["programs"] == programs
        and 0.15 < (found["ended_by_a_failure"] + found["ended_by_an_interrupt"]) / programs < 0.7
    )
    return {name: found[name] for name in CLEAN}


def test_nested_programs_leave_nothing_behind(small):
    assert run(load_model(small), 150) == CLEAN


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_the_other_backends_leave_nothing_behind(small, backend):
    assert run(load_model(small, backend=tiny_models.need_backend(backend)), 20) == CLEAN


@contextmanager
def forgetful(self, edits, *, alone=False):
    """Leaves edits in force, but for those that fail."""
    before = edit_blocks._BLOCKS.get()
    edit_blocks._BLOCKS.set((*before, _Block(self._key, tuple(edits), alone)))
    try:
        yield
    finally:
        kept = tuple(edit for edit in edits if not isinstance(edit.intervention, Failing))
        edit_blocks._BLOCKS.set((*before, _Block(self._key, kept, alone)))


def test_overlapping_programs_leave_nothing_behind_and_see_their_own_edits(small):
    programs = 24
    found = interleaved_programs.measure(load_model(small), tiny_models.prompts(2), programs)
    assert found["programs"] == programs and found["passes"] > 5 * programs
    assert 0.1 < found["ended_by_a_failure"] / programs < 0.6
    assert {name: found[name] for name in OVERLAPPING} == OVERLAPPING


def test_a_stack_that_is_restored_whole_is_seen_to_leave_edits(small, monkeypatch):
    """What the stack of a thread did before: the last to leave puts back what it found."""
    stack = []

    @contextmanager
    def restoring(self, edits, *, alone=False):
        before = list(stack)
        stack[:] = [*([] if alone else before), *edits]
        try:
            yield
        finally:
            stack[:] = before

    monkeypatch.setattr(EditBlocks, "opened", restoring)
    monkeypatch.setattr(EditBlocks, "active", property(lambda self: tuple(stack)))
    found = interleaved_programs.measure(load_model(small), tiny_models.prompts(2), 8)
    assert all(found[name] > 0 for name in OVERLAPPING if name not in NO_STACK_CHANGES)


def test_what_stays_behind_is_seen(small, monkeypatch):
    """Each count can rise: a hook, an intervention and a weight that a failure leaves behind are
    found.
    """
    model = load_model(small)
    fails = Failing.__call__

    def leaks(self, activation, mask):
        model.module.model.layers[0].register_forward_hook(lambda *_: None)
        with torch.no_grad():
            model.module.model.norm.weight[0] += 1
        return fails(self, activation, mask)

    monkeypatch.setattr(Failing, "__call__", leaks)
    monkeypatch.setattr(EditBlocks, "opened", forgetful)
    monkeypatch.setattr(intervention_programs, "DEPTH", 2)
    found = measure(model, tiny_models.prompts(2), 12)
    assert all(found[name] > 0 for name in CLEAN)
    assert hooks_of(model) > 0 and Failing(Site("final_norm"), 1, 32).describe() == {}
