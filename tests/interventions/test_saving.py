import json

import pytest
import torch

from emlens.foundation import InputError, IntegrityError
from emlens.foundation.intervention import Edit
from emlens.interventions import ablate, load_interventions, save_interventions, steer
from emlens.interventions.saving import intervention_from_record, intervention_to_record


def test_what_is_read_back_is_what_was_written(model, prompts, every_kind, tmp_path):
    save_interventions(tmp_path / "a", every_kind)
    back = load_interventions(tmp_path / "a")
    assert [made.describe() for made in back] == json.loads(
        json.dumps([made.describe() for made in every_kind])
    )
    for one, two in zip(every_kind, back, strict=True):
        assert type(one) is type(two) and one.targets(model.sites) == two.targets(model.sites)
        with model.intervene([one]):
            expected = model.logits(prompts)
        with model.intervene([two]):
            assert torch.equal(model.logits(prompts), expected)
    save_interventions(tmp_path / "b", back)
    assert all(
        (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        for name in ("interventions.json", "interventions.safetensors")
    )


def test_through_plain_json(every_kind):
    for one in every_kind:
        record, tensors = intervention_to_record(one)
        back = intervention_from_record(json.loads(json.dumps(record)), tensors)
        assert back.describe() == json.loads(json.dumps(one.describe()))


def test_every_tensor_is_in_the_record():
    u = torch.ones(4)
    made = (
        ablate(u),
        ablate(u, baseline=u),
        ablate(u, baseline=2 * u),
        ablate(u, at=[]),
        steer(u, 1.0, at=[]),
        steer(u, 2.0, at=[]),
    )
    seen = {json.dumps(one.describe()) for one in made}
    assert len(seen) == 6


def test_what_cannot_be_written_or_read(every_kind, tmp_path, unchecked):
    class Own(Edit):
        positions = "all"

        def __call__(self, activation, mask):
            return activation

    with pytest.raises(
        InputError,
        match=(
            "cannot write down a Own; pass what ablate, steer, mean_ablate,"
            " resample_ablate or swap returned"
        ),
    ):
        intervention_to_record(Own())
    with pytest.raises(
        InputError,
        match=(
            r"position chosen\[<lambda>\] is a callable, which cannot be written down; pass Index"
        ),
    ):
        save_interventions(tmp_path, [ablate(torch.ones(4), positions=lambda ids, mask: mask)])
    record, tensors = intervention_to_record(every_kind[0])
    with pytest.raises(
        InputError,
        match=(
            "record is of kind 'melt'; pass one of ablate, steer, mean_ablate, resample_ablate,"
            " swap"
        ),
    ):
        intervention_from_record({**record, "kind": "melt"}, tensors)
    with pytest.raises(
        InputError,
        match=(
            r"record of kind 'ablate' cannot be read \(TypeError: .*\); pass one that emlens wrote"
        ),
    ):
        intervention_from_record({**record, "positions": {"callable": "x"}}, tensors)
    with pytest.raises(
        InputError,
        match=(
            r"record of kind 'ablate' cannot be read \(KeyError: 'own_site'\);"
            r" pass one that emlens wrote"
        ),
    ):
        intervention_from_record(
            {name: value for name, value in record.items() if name != "own_site"}, tensors
        )
    with pytest.raises(
        IntegrityError,
        match=(
            "the tensors beside a record of kind 'ablate' are not those it describes; save it again"
        ),
    ):
        intervention_from_record(record, {"basis": 2 * tensors["basis"]})
    saved = save_interventions(tmp_path / "s", every_kind[:1])
    weights = saved / "interventions.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-3])
    with pytest.raises(
        IntegrityError, match="not readable as safetensors .*; save the interventions again"
    ):
        load_interventions(saved)
    weights.unlink()
    with pytest.raises(InputError, match="interventions.safetensors: no such file"):
        load_interventions(saved)
    (saved / "interventions.json").write_text("{}")
    with pytest.raises(
        InputError,
        match=(
            "interventions.json: its format is None, and this version of emlens reads"
            " 'emlens-interventions-1'; pass a directory written by save_interventions"
        ),
    ):
        load_interventions(saved)
