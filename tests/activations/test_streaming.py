"""Sums over a stream are those of the rows that a capture keeps."""

from dataclasses import replace

import pytest
import torch

from emlens.activations import (
    CaptureSpec,
    activation_deltas,
    capture,
    capture_pair,
    stream_moments,
    streaming,
)
from emlens.data import PromptSet
from emlens.foundation import InputError, UnknownNameError
from emlens.geometry import subspace_overlap, top_k_subspace

ROUNDING = {"rtol": 1e-12, "atol": 1e-12}
SITE = "resid_post.1"
SPEC = CaptureSpec(layers=[1, 2], batch_tokens=40)


@pytest.fixture(scope="module")
def labels(prompts):
    return {name: "odd" if i % 2 else "even" for i, name in enumerate(prompts.ids)}


@pytest.mark.parametrize("position", ["last_prompt", "mean_response", "all"])
def test_moments_are_those_of_the_kept_rows(model, prompts, labels, position):
    streamed = stream_moments(
        model, prompts, by=labels, spec=replace(SPEC, positions=position), progress=False
    )
    acts = capture(model, prompts, spec=replace(SPEC, positions=position), progress=False)
    assert streamed.labels == ("even", "odd") and streamed.sites == ("resid_post.1", "resid_post.2")
    scatter, count = 0, 0
    for label in ("even", "odd", None):
        chosen = acts.select([name for name in acts.ids if label in (None, labels[name])])
        rows = (chosen.tokens(SITE).values if position == "all" else chosen[SITE]).double()
        assert streamed.n(SITE, label) == len(rows)
        torch.testing.assert_close(streamed.mean(SITE, label), rows.mean(0), **ROUNDING)
        torch.testing.assert_close(streamed.covariance(SITE, label), rows.T.cov(), **ROUNDING)
        if label:
            scatter, count = scatter + rows.T.cov() * (len(rows) - 1), count + len(rows) - 1
    torch.testing.assert_close(streamed.within_covariance(SITE), scatter / count, **ROUNDING)
    assert not torch.allclose(streamed.within_covariance(SITE), streamed.covariance(SITE))
    assert streamed.provenance == acts.provenance


@pytest.mark.parametrize("center", [True, False])
def test_subspaces_agree_with_the_exact_ones(model, prompts, center):
    kept = (
        capture(model, prompts, spec=replace(SPEC, positions="all"), progress=False)
        .tokens(SITE)
        .values.double()
    )
    exact = top_k_subspace(kept, k=3, center=center)
    for second, sketch, tolerance in (
        ("covariance", 1, 1e-9),
        ("sketch", 128, 1e-7),
        ("sketch", 16, 0.05),
    ):
        streamed = stream_moments(
            model,
            prompts,
            by=None,
            spec=replace(SPEC, positions="all"),
            second=second,
            sketch=sketch,
            progress=False,
        )
        space = streamed.subspace(SITE, 3, center=center)
        assert float(subspace_overlap(space, exact)) == pytest.approx(1, abs=tolerance)
        torch.testing.assert_close(
            space.explained_variance_ratio,
            exact.explained_variance_ratio,
            rtol=10 * tolerance,
            atol=0,
        )
        torch.testing.assert_close(space.mean, exact.mean, **ROUNDING)
        assert (space.n, space.center) == (exact.n, exact.center)
    # 16 columns of 32 are an approximation, so equality above can fail
    assert float(subspace_overlap(space, exact)) < 0.999


def test_deltas_stream_too(family, prompts):
    before, after = capture_pair(
        family.instruct, family["one"], prompts, spec=replace(SPEC, positions="all"), progress=False
    )
    deltas = activation_deltas(before, after).tokens(SITE).values.double()
    streamed = stream_moments(
        family["one"],
        prompts,
        minus=family.instruct,
        by=None,
        spec=replace(SPEC, positions="all"),
        progress=False,
    )
    # kept deltas are rounded to float32
    torch.testing.assert_close(streamed.mean(SITE), deltas.mean(0), rtol=1e-5, atol=1e-6)
    assert (
        float(
            subspace_overlap(
                streamed.subspace(SITE, 2, center=False), top_k_subspace(deltas, k=2, center=False)
            )
        )
        > 1 - 1e-6
    )
    assert (
        streamed.provenance["before"] == before.provenance
        and streamed.provenance["after"] == after.provenance
    )


def test_a_cut_batch_changes_nothing_but_rounding(model, prompts, monkeypatch):
    whole = stream_moments(model, prompts, replace(SPEC, batch_tokens=1000), progress=False)
    run = type(model).run

    def scarce(self, batch, *args, **kwargs):
        if len(batch.rows) > 3:
            raise torch.OutOfMemoryError("full")
        return run(self, batch, *args, **kwargs)

    monkeypatch.setattr(type(model), "run", scarce)
    cut = stream_moments(model, prompts, replace(SPEC, batch_tokens=1000), progress=False)
    assert cut.n(SITE) == whole.n(SITE) == len(prompts) and cut.provenance["replanned"] == {"0": 4}
    torch.testing.assert_close(cut.mean(SITE), whole.mean(SITE), rtol=1e-5, atol=1e-5)


def test_variances_alone(model, prompts):
    streamed = stream_moments(model, prompts, second="variance", spec=SPEC, progress=False)
    rows = capture(model, prompts, spec=SPEC, progress=False)[SITE].double()
    torch.testing.assert_close(streamed.moments(SITE).variance, rows.var(0), **ROUNDING)
    with pytest.raises(
        InputError,
        match="only variances were kept; pass second='covariance' or 'sketch' to stream_moments",
    ):
        streamed.subspace(SITE, 1, center=True)
    with pytest.raises(InputError, match="made with covariance=False"):
        streamed.covariance(SITE)


def test_labels_come_in_four_ways(model, prompts, labels):
    by_id = stream_moments(model, prompts, by=labels, spec=SPEC, progress=False)
    in_order = stream_moments(
        model, prompts, by=[labels[name] for name in prompts.ids], spec=SPEC, progress=False
    )
    assert torch.equal(by_id.mean(SITE, "odd"), in_order.mean(SITE, "odd"))
    grouped = PromptSet([replace(p, group="x" if i < 4 else "y") for i, p in enumerate(prompts)])
    assert stream_moments(model, grouped, spec=SPEC, progress=False).labels == ("x", "y")
    assert stream_moments(model, grouped, by=None, spec=SPEC, progress=False).labels == ("",)


def test_what_cannot_be_streamed_is_said_before_a_pass(
    model, prompts, labels, monkeypatch, unchecked
):
    streamed = stream_moments(
        model, prompts, by=labels, spec=replace(SPEC, positions=["last", "all"]), progress=False
    )
    with pytest.raises(
        UnknownNameError, match="there are several positions, last, all; pass position="
    ):
        streamed.mean(SITE)
    with pytest.raises(UnknownNameError, match="label 'x' was not streamed; these were: even, odd"):
        streamed.mean(SITE, "x", "all")
    with pytest.raises(
        UnknownNameError,
        match="site 'resid_post.0' was not streamed; these were: resid_post.1, resid_post.2",
    ):
        streamed.mean("resid_post.0", position="all")
    with pytest.raises(InputError, match=r"k=9 must be a count of 1 to 8, the rank of 9 rows"):
        streamed.subspace(SITE, 9, center=True, position="last")
    single = stream_moments(model, prompts, by=prompts.ids, spec=SPEC, progress=False)
    with pytest.raises(
        InputError, match="no class has 2 rows, so there is no covariance within classes"
    ):
        single.within_covariance(SITE)
    monkeypatch.setattr(type(model), "run", lambda *a, **k: pytest.fail("a pass ran"))
    for options, match in (
        (
            {"by": "kind"},
            (
                "by='kind' is unknown; pass 'group', a mapping from id to label,"
                " one label per prompt, or None"
            ),
        ),
        ({"by": {"q0": "x"}}, r"by has no label for prompt 'q1' \(8 of 9 are missing\)"),
        ({"by": ["x"]}, "by has 1 labels for 9 prompts; pass one for each"),
        (
            {"second": "third"},
            "second='third' is unknown; pass 'covariance', 'sketch' or 'variance'",
        ),
        ({"second": "sketch", "sketch": 0}, "sketch=0 must be a count of 1 or more columns"),
    ):
        with pytest.raises(InputError, match=match):
            stream_moments(model, prompts, SPEC, **options)
    monkeypatch.setattr(streaming, "LARGE_BYTES", 1000)
    with pytest.raises(
        InputError,
        match=(
            r"the sums take .* GB \(1 classes × 2 sites and positions,"
            r" second='covariance'\).*pass large=True"
        ),
    ):
        stream_moments(model, prompts, SPEC, progress=False)
