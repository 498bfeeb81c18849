"""The rounding floor of a delta, and the float32 path that avoids it."""

import logging

import numpy as np
import pytest
import tiny_models
import torch

from emlens.activations import (
    ActivationStore,
    CaptureSpec,
    activation_deltas,
    capture_many,
    capture_pair,
    stream_moments,
)
from emlens.activations.capture_job import CaptureJob
from emlens.activations.capturing import plan_capture
from emlens.activations.rounding import _squared_steps, rounding_floor
from emlens.foundation import InputError, IntegrityError, StateError
from emlens.models import load_family

WIDE = CaptureSpec(compute_dtype="float32")
MONTE_CARLO = 0.15  # of a walk of 8 roundings over 64 × 256 numbers; measured .03


@pytest.fixture(scope="module")
def families(files, tmp_path_factory):
    """The same weights, each a value of bfloat16, in two dtypes; a fine-tune that moves little."""
    root = tmp_path_factory.mktemp("rounding")
    adapter = tiny_models.build_adapter(root / "small", files / "instruct", seed=3)
    shrink(adapter)
    family = load_family(files / "instruct", dtype="bfloat16", device="cpu")
    family.instruct.module.save_pretrained(root / "instruct")
    family.instruct.tokenizer.save_pretrained(root / "instruct")
    return {
        dtype: load_family(
            root / "instruct", finetuned={"small": adapter}, dtype=dtype, device="cpu"
        )
        for dtype in ("bfloat16", "float32")
    }


def shrink(adapter):
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    factors = load_file(path)
    smaller = {name: x * (0.003 if "lora_B" in name else 1) for name, x in factors.items()}
    save_file(smaller, path, metadata={"format": "pt"})


def pair(family, prompts, spec=None):
    return capture_pair(family.instruct, family["small"], prompts, spec=spec, progress=False)


def test_steps_are_those_of_numpy():
    values = torch.randn(5, 40) * 10 ** torch.linspace(-3, 3, 40)
    by_numpy = (np.spacing(np.abs(values.numpy())).astype(float) ** 2).sum(-1)
    assert np.allclose(_squared_steps(values, 24).numpy(), by_numpy, rtol=1e-12)
    half = values.half()
    by_numpy = (np.spacing(np.abs(half.numpy())).astype(float) ** 2).sum(-1)
    normal = half.abs() > 1e-4  # below it float16 has steps of one size
    assert np.allclose(_squared_steps(half * normal, 11)[0], by_numpy[0], rtol=1e-2)
    assert float(_squared_steps(torch.zeros(1, 3), 8)) == 0


def test_the_floor_is_the_error_of_a_stream_that_is_rounded_after_every_addition():
    generator = torch.Generator().manual_seed(0)

    def stream(start, parts):
        exact, rounded = start.double(), start.clone()
        for part in parts:
            exact = exact + part.double()
            rounded = rounded + part
        return exact, rounded

    start = (8 * torch.randn(64, 256, generator=generator)).bfloat16()
    sides = []
    for _ in range(2):
        parts = (0.3 * torch.randn(8, 64, 256, generator=generator)).bfloat16()
        sides.append(stream(start, parts))
    (exact_before, before), (exact_after, after) = sides
    error = (after.double() - before.double()) - (exact_after - exact_before)
    measured = float(error.pow(2).sum(-1).mean().sqrt())
    provenance = {"model": {"dtype": "bfloat16"}}
    floor = rounding_floor(before, after, ("resid_post.3", "last_prompt"), provenance)
    assert abs(measured / floor - 1) < MONTE_CARLO
    # one rounding at a mean; the last norm of 4 blocks comes after a ninth
    once = rounding_floor(before, after, ("resid_post.3", "mean_prompt"), provenance)
    last = rounding_floor(before, after, ("final_norm", "all"), {**provenance, "n_layers": 4})
    assert np.isclose(floor / once, 8**0.5) and np.isclose(last / once, 3)
    # kept in bfloat16 by a model that computes in float32: only that rounding counts
    kept = rounding_floor(before, after, ("resid_post.3", "all"), {"model": {"dtype": "float32"}})
    assert np.isclose(kept, once, rtol=1e-6)


def test_deltas_lost_in_rounding_are_said_once_and_float32_finds_them(families, prompts, caplog):
    with caplog.at_level(logging.WARNING, "emlens"):
        narrow = activation_deltas(*pair(families["bfloat16"], prompts))
    assert len(caplog.records) == 1
    assert "places are below 3 times what rounding to bfloat16 alone gives" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "emlens"):
        wide = activation_deltas(*pair(families["bfloat16"], prompts, WIDE))
        reference = activation_deltas(*pair(families["float32"], prompts))
    assert not caplog.records
    for site in reference.sites:
        true, site_floor = reference[site], narrow.rounding_floor[site, "last_prompt"]
        if not true.any():  # below the adapter nothing moves
            continue
        assert float((wide[site] - true).norm() / true.norm()) < 1e-5
        cosine = torch.nn.functional.cosine_similarity(narrow[site].float(), true)
        assert float(cosine.mean()) < 0.9 and float(true.norm(dim=-1).mean()) < 3 * site_floor
    model = wide.provenance["before"]["model"]
    assert (model["dtype"], model["weights_dtype"]) == ("float32", "bfloat16")
    assert wide.select([prompts.ids[0]]).rounding_floor == wide.rounding_floor
    assert wide.provenance["before"].keys() == reference.provenance["before"].keys()


def test_one_model_read_twice_is_no_shift_and_warns_of_nothing(families, prompts, caplog):
    model = families["bfloat16"].instruct
    with caplog.at_level(logging.WARNING, "emlens"):
        deltas = activation_deltas(*capture_pair(model, model, prompts, progress=False))
    assert not caplog.records and deltas.rounding_floor["resid_post.0", "last_prompt"] > 0


def test_widened_weights_are_as_they_were_also_after_an_error(families, prompts, monkeypatch):
    family = families["bfloat16"]
    module, tuned = family.instruct.module, family["small"]
    before = [(name, value.dtype, value.clone()) for name, value in module.named_parameters()]
    prints = family.instruct.weights_fingerprint(), tuned.weights_fingerprint()

    def state():
        return all(
            value.dtype == dtype and torch.equal(value, kept)
            for (_, value), (_, dtype, kept) in zip(module.named_parameters(), before, strict=True)
        )

    with tuned.computing_in(torch.float32):
        assert {value.dtype for value in module.parameters()} == {torch.float32}
        assert (family.instruct.weights_fingerprint(), tuned.weights_fingerprint()) == prints
        with (
            pytest.raises(StateError, match="widened to torch.float32 already"),
            tuned.computing_in(torch.float64),
        ):
            pass
        with tuned.computing_in(torch.float32):
            pass
        assert next(module.parameters()).dtype == torch.float32
    assert state()
    with pytest.raises(RuntimeError, match="planted"), tuned.computing_in(torch.float32):
        raise RuntimeError("planted")
    assert state()


def test_every_way_to_read_runs_in_float32(families, prompts, tmp_path):
    narrow, wide = families["bfloat16"], families["float32"]
    whole = capture_many({"m": wide["small"]}, prompts, progress=False)["m"]
    stores = {"m": tmp_path / "store"}
    spec = CaptureSpec(compute_dtype=torch.float32)
    plan_capture({"m": narrow["small"]}, prompts, spec, stores=stores)
    job = CaptureJob.open(stores)
    for unit in job.units:
        job.run(unit, narrow["small"])
    stored = job.finish()["m"]
    assert stored["resid_post.2"].dtype == torch.float32
    assert torch.equal(stored["resid_post.2"], whole["resid_post.2"])
    with pytest.raises(IntegrityError, match="begun for another model"):
        capture_many({"m": narrow["small"]}, prompts, stores=stores, progress=False)
    assert ActivationStore.open(stores["m"]).provenance["model"]["weights_dtype"] == "bfloat16"
    sums = [
        stream_moments(family["small"], prompts, spec, minus=family.instruct, progress=False)
        for family in (narrow, wide)
    ]
    means = [moments.mean("resid_post.2") for moments in sums]
    assert torch.allclose(means[0], means[1], rtol=1e-4, atol=1e-7)


def test_dtypes_that_passes_cannot_run_in(families, prompts):
    with pytest.raises(InputError, match=r"compute_dtype='int8' is no dtype that passes can run"):
        CaptureSpec(compute_dtype="int8")
    for dtype in ("float16", "bfloat16"):
        with pytest.raises(InputError, match=rf"compute_dtype=torch.{dtype} cannot hold the weigh"):
            pair(families["float32"], prompts, CaptureSpec(compute_dtype=dtype))
