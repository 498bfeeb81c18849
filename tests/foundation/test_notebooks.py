"""Results show themselves short: no tensor in full, names and texts never as markup."""

import numpy as np
import pytest
import torch

import emlens
from emlens.activations import Activations
from emlens.foundation.notebooks import as_table, in_a_line

HOSTILE = "<script>alert(1)</script>\x1b[2J"


def shown() -> dict[str, object]:
    vectors = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    values = {(f"resid_post.{i}", HOSTILE): vectors for i in range(4)}
    ids = [f"q{i}" for i in range(20)]
    acts = Activations(
        values,
        ids=ids,
        groups=["a", "b"] * 10,
        sites=[f"resid_post.{i}" for i in range(4)],
        positions=[HOSTILE],
        provenance={},
    )
    return {
        "Subspace": emlens.top_k_subspace(vectors, k=3, center="mean"),
        "Direction": emlens.Direction(
            vectors[0], emlens.Site.parse("resid_post.3"), HOSTILE, ids={HOSTILE: ids}
        ),
        "NullDistribution": emlens.stats.NullDistribution(np.arange(1000.0), HOSTILE, 7),
        "Activations": acts,
    }


@pytest.mark.parametrize("name", ["Subspace", "Direction", "NullDistribution", "Activations"])
def test_results_are_short_and_escaped(name: str) -> None:
    result = shown()[name]
    line, table = repr(result), result._repr_html_()  # type: ignore[attr-defined]
    assert line.startswith(f"{name}(") and len(line) < 400 and "\n" not in line
    assert table.startswith("<table>") and name in table and len(table) < 1500
    assert "<script" not in table and "\x1b" not in table
    if name != "Subspace":
        assert "&lt;script&gt;" in table


def test_the_numbers_are_those_of_the_result() -> None:
    found = shown()
    assert repr(found["Subspace"]).startswith(
        "Subspace(k=3, d_model=64, n=20, rank=19, center=mean, explained=0."
    )
    assert "mean=499.5, sd=288.8, q95=949, draws=1000, seed=7" in repr(found["NullDistribution"])
    assert "rows &lt;script" in found["Direction"]._repr_html_()  # type: ignore[attr-defined]
    assert "<th>rows</th><td>20</td>" in found["Activations"]._repr_html_()  # type: ignore[attr-defined]
    batched = emlens.top_k_subspace(torch.randn(2, 20, 8), k=2, center="mean")
    assert "batch=(2,)" in repr(batched) and "explained" not in repr(batched)


def test_values_are_cut_to_one_line() -> None:
    assert in_a_line("A", {"b": "x\ny" * 100}).count("…") == 1
    assert (
        as_table("<A>", {"<b>": "<c>"})
        == '<table><thead><tr><th colspan="2">&lt;A&gt;</th></tr></thead>'
        "<tbody><tr><th>&lt;b&gt;</th><td>&lt;c&gt;</td></tr></tbody></table>"
    )


def test_a_forecast_shows_its_numbers_with_null_and_gains() -> None:
    rng = np.random.default_rng(0)
    values = torch.tensor(rng.normal(size=(24, 4)), dtype=torch.float32)
    ids = [f"q{i}" for i in range(24)]
    acts = Activations(
        {("resid_post.0", "last_prompt"): values},
        ids=ids,
        groups=["a"] * 24,
        sites=["resid_post.0"],
        positions=["last_prompt"],
        provenance={},
    )
    scores = dict(zip(ids, 50 + 10 * values[:, 0].numpy().astype(float), strict=True))
    forecast = emlens.cross_validate_forecast(
        acts,
        scores,
        design=emlens.probes.Design(folds=3, inner_folds=3, repeats=1, permutations=20),
        baselines=emlens.probes.Baselines(texts={q: HOSTILE + q for q in ids}),
    )
    line, table = repr(forecast), forecast._repr_html_()
    assert (
        line.startswith(f"Forecast(R²={forecast.r2}")
        and "gain over text=" in line
        and len(line) < 700
    )
    assert "R² under the null, 95 %" in table and "<script" not in table
