"""Bytes are exact; time comes from the capture's own batches."""

import pytest
import torch

from emlens.activations import CaptureSpec, capture, estimate_capture, estimating
from emlens.foundation import InputError


@pytest.mark.parametrize("positions", ["last_prompt", ["mean_prompt", "all"], "all"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_bytes_are_those_that_are_kept(model, prompts, positions, dtype):
    spec = CaptureSpec(positions=positions, dtype=dtype, layers=[0, 2], batch_tokens=40)
    found = estimate_capture(model, prompts, spec)
    kept = capture(model, prompts, spec=spec, progress=False)
    assert (
        found.bytes
        == sum(value.nbytes for value in kept._values.values())
        == sum(found.by_position.values())
    )
    for position, size in found.by_position.items():
        assert size == sum(
            value.nbytes for (_, name), value in kept._values.items() if name == position
        )
    assert (found.rows, found.batches) == (len(kept), kept.provenance["batches"])
    assert found.tokens == sum(len(row.ids) for row in model.render(prompts)) <= found.padded_tokens


def test_time_is_that_of_all_batches(model, prompts, monkeypatch):
    """On a clock that only passes move: a long row costs more a token than a short one."""
    run, clock, took = type(model).run, [0.0], []

    def timed(self, batch, *args, **kwargs):
        took.append(batch.ids.numel() * (1 + batch.ids.shape[1]))
        clock[0] += took[-1]
        return run(self, batch, *args, **kwargs)

    monkeypatch.setattr(type(model), "run", timed)
    monkeypatch.setattr(estimating.time, "perf_counter", lambda: clock[0])
    one_row = CaptureSpec(batch_tokens=1)
    found = estimate_capture(model, prompts, one_row, sample=3)
    # three batches, each once to warm up and once timed
    assert len(took) == 6 and found.seconds.n == 3
    every = estimate_capture(model, prompts, one_row, sample=100)
    took.clear()
    capture(model, prompts, spec=one_row, progress=False)
    assert len(took) == found.batches == every.batches == 9
    assert float(every.seconds) == pytest.approx(sum(took))
    assert float(found.seconds) == pytest.approx(sum(took), rel=0.15)
    assert found.seconds.low < sum(took) < found.seconds.high
    assert "9 prompts" in str(found) and "GB" in str(found)


def test_what_does_not_fit_is_cut_in_the_estimate_too(model, prompts, monkeypatch):
    run = type(model).run

    def scarce(self, batch, *args, **kwargs):
        if len(batch.rows) > 3:
            raise torch.OutOfMemoryError("full")
        return run(self, batch, *args, **kwargs)

    monkeypatch.setattr(type(model), "run", scarce)
    assert estimate_capture(model, prompts, CaptureSpec(batch_tokens=1000)).batches == 1


def test_a_sample_needs_a_batch(model, prompts, unchecked):
    for sample in (0, True, 1.5):
        with pytest.raises(InputError, match="must be a count of 1 or more batches"):
            estimate_capture(model, prompts, sample=sample)
