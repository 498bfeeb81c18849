"""A capture that is asked for once more inside a block is taken from memory, and only that one."""

import pytest
import torch

from emlens.activations import CaptureSpec, activation_deltas, capture, capture_many, kept_captures
from emlens.activations.kept_captures import keeping_captures
from emlens.foundation import InputError
from emlens.interventions import ablate
from emlens.models.pass_counts import counted_passes

SPEC = CaptureSpec("resid_post", positions=("last_prompt", "mean_prompt"), batch_tokens=64)


def passes(run):
    with counted_passes() as counts:
        found = run()
    return found, counts.passes


def pair(family, prompts, spec=SPEC, after="one"):
    models = {"before": family.instruct, "after": family[after]}
    return capture_many(models, prompts, spec=spec, progress=False)


def test_a_second_pair_runs_the_other_model_alone(family, prompts):
    whole, of_pair = passes(lambda: pair(family, prompts))
    with keeping_captures():
        pair(family, prompts)
        again, none = passes(lambda: pair(family, prompts))
        full, of_one = passes(lambda: pair(family, prompts, after="full"))
    assert none == 0 and 0 < of_one == of_pair / 2
    for name in whole:
        for key in whole[name].keys:
            assert torch.equal(again[name].value(key), whole[name].value(key))
    outside, of_full = passes(lambda: pair(family, prompts, after="full"))
    assert of_full == of_pair  # nothing is kept outside
    expected = activation_deltas(outside["before"], outside["after"])
    found = activation_deltas(full["before"], full["after"])
    for key in expected.keys:
        assert torch.equal(found.value(key), expected.value(key))
    again["before"].provenance["changed"] = True
    assert "changed" not in full["before"].provenance


def test_what_differs_is_run(family, prompts, monkeypatch):
    model = family["full"]

    def count(spec=SPEC, rows=prompts):
        return passes(lambda: capture(model, rows, spec=spec, progress=False))

    with keeping_captures():
        first, all_passes = count()
        assert count()[1] == 0
        assert count(CaptureSpec("resid_post", layers=[0], positions="last_prompt"))[1] > 0
        assert count(rows=prompts.select(prompts.ids[:3]))[1] > 0
        with model.intervene(ablate(torch.eye(model.d_model)[0])):
            edited, under_edit = count()
            assert under_edit == all_passes == count()[1]
        assert not torch.equal(edited.stacked("last_prompt"), first.stacked("last_prompt"))
        weight = next(model.module.parameters())
        with torch.no_grad():
            weight.add_(0.5)
            changed, after_change = count()
            weight.sub_(0.5)
        assert after_change == all_passes
        assert not torch.equal(changed.stacked("last_prompt"), first.stacked("last_prompt"))
    monkeypatch.setattr(kept_captures, "MOST_VECTORS", 3)
    with keeping_captures():
        assert count()[1] == count()[1] == all_passes  # more than is kept


def test_other_token_ids_are_still_refused(family, prompts, monkeypatch):
    other = family["full"].__copy__()
    other.name = "other"
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    other.speak_by(family.instruct.tokenizer, template)
    with keeping_captures():
        capture(family.instruct, prompts, spec=SPEC, progress=False)
        with pytest.raises(InputError):
            models = {"before": family.instruct, "after": other}
            capture_many(models, prompts, spec=SPEC, progress=False)
