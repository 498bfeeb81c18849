"""Random programs of nested interventions with planted failures: nothing stays behind."""

from contextlib import contextmanager

import pytest
import tiny_models
import torch

from benchmarks import intervention_programs
from benchmarks.intervention_programs import PROGRAMS, Failing, hooks_of, measure
from emlens.foundation import Site
from emlens.models import HookedModel, load_model

CLEAN = {"hooks_left": 0, "interventions_left": 0, "weights_changed": 0, "logits_changed": 0}


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


def test_five_hundred_programs_leave_nothing_behind(small):
    assert PROGRAMS == 500
    assert run(load_model(small), PROGRAMS) == CLEAN


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_the_other_backends_leave_nothing_behind(small, backend):
    assert run(load_model(small, backend=tiny_models.need_backend(backend)), 20) == CLEAN


@contextmanager
def forgetful(self, stack):
    """Leaves interventions in force, but for those that fail."""
    self._local.stack = stack
    try:
        yield
    finally:
        self._local.stack = tuple(entry for entry in stack if not isinstance(entry[0], Failing))


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
    monkeypatch.setattr(HookedModel, "_under", forgetful)
    monkeypatch.setattr(intervention_programs, "DEPTH", 2)
    found = measure(model, tiny_models.prompts(2), 12)
    assert all(found[name] > 0 for name in CLEAN)
    assert hooks_of(model) > 0 and Failing(Site("final_norm"), 1, 32).describe() == {}
