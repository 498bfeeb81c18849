"""`.plot()` of every result: one call gives a figure that shows itself, can be saved, and draws the
numbers of the result; where there is nothing to draw it says so.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from emlens.activations import Activations
from emlens.data import AlignmentScores
from emlens.directions.row_contrasts import Contrasts
from emlens.evaluation.measured import Arms, Doses, Transfers
from emlens.figures.drawing import Drawing
from emlens.foundation.errors import InputError, MissingExtraError, UnknownNameError
from emlens.foundation.estimate import Estimate
from emlens.foundation.notebooks import Picture
from emlens.foundation.sites import Site
from emlens.geometry import Direction, delta_summary, top_k_subspace
from emlens.geometry.contrast_sums import ContrastSums
from emlens.geometry.trajectories import path_components, path_gram
from emlens.probes import Design, Forecast, cross_validate_forecast, fit_forecaster
from emlens.probes.across import AcrossForecast
from emlens.probes.run_forecasts import RunForecasts
from emlens.studies.followed_runs import Trajectory
from emlens.studies.trajectories import Parameters
from emlens.training.fitting import Fitted

LAYERS, D = 3, 6
ROWS = 24


def rows(n: int = ROWS, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def activations(n: int = ROWS, *, delta: bool = False) -> Activations:
    sites = [f"resid_post.{i}" for i in range(LAYERS)]
    provenance: dict[str, Any] = {}
    if delta:
        floors = {site: {"last_prompt": 1e-6} for site in sites}
        provenance = {"delta": True, "rounding_floor": floors}
    return Activations(
        {(site, "last_prompt"): rows(n, i) + i for i, site in enumerate(sites)},
        ids=[f"q{i}" for i in range(n)],
        groups=["a"] * n,
        sites=sites,
        positions=["last_prompt"],
        provenance=provenance,
    )


def scores(n: int = 6, models: int = 2) -> AlignmentScores:
    table = [
        {
            "model": f"m{m}",
            "question": f"q{q}",
            "sample": 1,
            "metric": metric,
            "score": 10.0 * q + m,
            "status": "ok",
        }
        for m in range(models)
        for q in range(n)
        for metric in ("aligned", "coherent")
    ]
    return AlignmentScores.from_table(pd.DataFrame(table))


def forecast(target: str = "score") -> Forecast:
    values = {f"q{i}": 50 + 4.0 * i % 37 for i in range(ROWS)}
    design = Design(permutations=0, repeats=1, folds=3)
    made = cross_validate_forecast(activations(), values, design=design, features="resid_post.1")
    return replace(made, target=target)


def doses(n: int = 3) -> Doses:
    grid = [-1.0, 0.0, 1.0][:n]
    table = pd.DataFrame({"coefficient": grid, "n": 4})
    for name in ("aligned", "coherent", "coherent_change"):
        table[name] = [-20.0, 0.0, 0.0][:n] if name == "coherent_change" else 60.0
        table[f"{name}_low"], table[f"{name}_high"] = table[name] - 1, table[name] + 1
    return Doses(table)


def arms(n: int = 2, on: str = "finetuned") -> Arms:
    names = ["direction", "random"][:n]
    table = pd.DataFrame({"arm": names, "on": on, "control": [False, True][:n], "n": 4})
    for name, value in (("restoration", 0.5), ("aligned", 60.0)):
        table[name] = value
        table[f"{name}_low"], table[f"{name}_high"] = value - 0.1, value + 0.1
    return Arms(table)


def transfers(n: int = 2) -> Transfers:
    names = ["one", "two"][:n]
    pairs = [{"direction_of": a, "ablated_in": b} for a in names for b in names]
    columns = {"restoration": 0.4, "low": 0.1, "high": 0.7, "n": 5}
    return Transfers([{**pair, **columns} for pair in pairs])


def contrasts() -> Contrasts:
    units = [f"u{i}" for i in range(ROWS)]
    sites = tuple(f"resid_post.{i}" for i in range(LAYERS))
    sums = {}
    for i, site in enumerate(sites):
        key = (site, "mean_response")
        sums[key] = ContrastSums.from_rows(
            rows(seed=i) + 1, rows(seed=i + 9), positive_units=units, negative_units=units
        )
    return Contrasts(sites, ("mean_response",), {"positive": units}, {}, sums, {})


def trajectory(steps: int = 3) -> Trajectory:
    gram = torch.eye(3, dtype=torch.float64)
    behaviour = pd.DataFrame(
        [
            {"step": s, "metric": m, "of": of, "value": 50.0, "value_low": 40.0, "value_high": 60.0}
            for s in range(steps)
            for m in ("aligned", "coherent")
            for of in ("own", "others", "domain")
        ]
    )
    parameters = Parameters((0, 1, 2), pd.DataFrame({"step": [0, 1, 2]}), gram, gram)
    return Trajectory("run", parameters, np.array([0.0, 0.1, 0.2]), True, behaviour, behaviour)


def across() -> AcrossForecast:
    table = pd.DataFrame({"finetune": ["a", "b"], "score": [1.0, 2.0], "predicted": [1.5, 1.0]})
    undefined = Estimate.undefined("none", 0)
    return AcrossForecast(table, undefined, table, forecast().calibration, (), "finetune")


def run_forecasts(n: int = 1) -> RunForecasts:
    table = pd.DataFrame(
        {"predictor": ["loss"], "estimator": "ridge", "r2": 0.1, "null_mean": -0.2}
    ).assign(r2_low=0.0, r2_high=0.2)
    return RunForecasts(table[:n], None, {})


def fitted(n: int = 4) -> Fitted:
    log = pd.DataFrame({"step": range(n), "loss": np.linspace(2, 1, n)})
    return Fitted(Path("run"), log, None, None)


def forecaster() -> Any:
    values = {f"q{i}": 50 + 4.0 * i % 37 for i in range(ROWS)}
    return fit_forecaster(activations(), values)


RESULTS: dict[str, Callable[[], Any]] = {
    "activations": activations,
    "one row of activations": lambda: activations(1),
    "deltas": lambda: activations(delta=True),
    "a subspace": lambda: top_k_subspace(rows(), 3, center=True),
    "a subspace of one axis": lambda: top_k_subspace(rows(), 1, center=False),
    "subspaces of a batch": lambda: top_k_subspace(rows().reshape(2, 12, D), 2, center=True),
    "a direction": lambda: Direction(rows()[0], Site.parse("resid_post.1"), "last_prompt"),
    "a direction of one coordinate": lambda: Direction(torch.ones(1), Site.parse("resid_post.0")),
    "contrasts": contrasts,
    "a summary of deltas": lambda: delta_summary(rows(), floor=rows(seed=3) * 1e-3),
    "a summary of a batch": lambda: delta_summary(rows().reshape(2, 12, D)),
    "a path": lambda: path_components(path_gram(rows(5))),
    "a path of one component": lambda: path_components(path_gram(rows(5)), 1),
    "doses": doses,
    "one dose": lambda: doses(1),
    "arms": arms,
    "one arm": lambda: arms(1),
    "arms on the parent": lambda: arms(2, on="instruct"),
    "a matrix of transfer": transfers,
    "one pair": lambda: transfers(1),
    "scores": scores,
    "scores of one question": lambda: scores(1, 1),
    "a forecast": forecast,
    "a forecast of logits": lambda: forecast("logit, clamped 1 from the ends"),
    "a forecaster": forecaster,
    "a forecast of held-out fine-tunes": across,
    "forecasts of runs": run_forecasts,
    "a training run": fitted,
    "a trajectory": trajectory,
}
NOTHING: dict[str, tuple[Callable[[], Any], str]] = {
    "activations": (lambda: activations(0), "no rows were captured"),
    "doses": (lambda: doses(0), "no coefficient was measured"),
    "arms": (lambda: arms(0), "no arm was measured"),
    "transfers": (lambda: transfers(0), "no pair was measured"),
    "a forecast": (
        lambda: replace(forecast(), predictions=forecast().predictions[:0]),
        "no question was forecast",
    ),
    "a training run": (lambda: fitted(0), "the run took no step"),
    "forecasts of runs": (lambda: run_forecasts(0), "no set of predictors was tried"),
    "a trajectory": (lambda: trajectory(0), "no scores were measured"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_draws_itself(name: str) -> None:
    result = RESULTS[name]()
    figure = result.plot()
    assert isinstance(figure, Picture) and isinstance(figure, go.Figure)
    drawn = [trace for trace in figure.data if trace.y is not None or trace.z is not None]
    assert drawn and figure.layout.title.text
    assert len(repr(result).splitlines()) == 1 or isinstance(result, pd.DataFrame)


@pytest.mark.parametrize("name", NOTHING)
def test_what_is_empty_says_so(name: str) -> None:
    make, words = NOTHING[name]
    figure = make().plot()
    assert not figure.data
    assert words in figure.layout.annotations[0].text


def test_unscored_answers_give_a_sentence() -> None:
    table = scores(2, 1).table.assign(score=np.nan, status="refused")
    figure = AlignmentScores.from_table(table).plot()
    assert "no answer has a score" in figure.layout.annotations[0].text


def test_scores_are_drawn_as_means_with_intervals() -> None:
    judged = scores()
    trace = judged.plot("aligned").data[0]
    assert list(trace.x) == [judged.mean("aligned", model=m).value for m in judged.models]
    with pytest.raises(UnknownNameError, match="did you mean 'aligned'"):
        judged.plot("alligned")


def test_deltas_are_drawn_with_their_rounding() -> None:
    deltas = activations(delta=True)
    traces = {trace.name: trace for trace in deltas.plot().data if trace.mode != "lines"}
    lengths = torch.linalg.vector_norm(deltas["resid_post.1"].double(), dim=-1)
    assert traces["median row (quartiles)"].y[1] == pytest.approx(float(lengths.quantile(0.5)))
    assert list(traces["rounding alone"].y) == [1e-6] * LAYERS


def test_a_direction_of_one_massive_coordinate_holds_all_in_it() -> None:
    vector = torch.full((100,), 1e-4)
    vector[7] = 1
    figure = Direction(vector, Site.parse("resid_post.0")).plot()
    by_dash = {trace.line.dash: trace for trace in figure.data}
    share, random = by_dash["solid"], by_dash["dot"]
    assert share.y[0] > 0.999 and random.y[0] < 0.1
    assert share.y[-1] == pytest.approx(1) and random.y[-1] == pytest.approx(1)
    assert "coordinate: 7" in share.customdata[0]


def test_doses_outside_the_window_are_grey() -> None:
    names = {trace.name for trace in doses().plot().data}
    assert "outside the usable doses" in names
    within = {trace.name for trace in doses().plot(max_coherence_loss=50.0).data}
    assert "outside the usable doses" not in within


def test_a_table_keeps_its_kind_through_pandas() -> None:
    table = doses()
    assert isinstance(table[table["coefficient"] > 0], Doses)
    assert isinstance(table.assign(model="m"), Doses)


def test_a_figure_is_saved_by_its_ending(tmp_path: Path) -> None:
    figure = scores().plot()
    page = figure.save(tmp_path / "new" / "f.html").read_text(encoding="utf-8")
    assert "<html>" in page and 'src="http' not in page
    assert json.loads(figure.save(tmp_path / "f.json").read_text())["data"]
    with pytest.raises(InputError, match=r"ends in '.htm'; pass .* did you mean 'html'"):
        figure.save(tmp_path / "f.htm")


def test_an_image_without_kaleido_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, *arguments: Any, **options: Any) -> None:
        raise ValueError("Image export requires kaleido\nmore")

    monkeypatch.setattr(go.Figure, "write_image", fails)
    with pytest.raises(MissingExtraError, match=r"requires kaleido\); run pip install kaleido"):
        Drawing().save(tmp_path / "f.svg")


def test_a_figure_in_a_notebook_needs_no_network() -> None:
    page = scores().plot()._repr_html_()
    assert "plotly" in page and 'src="http' not in page


def test_what_a_model_wrote_is_text_in_a_figure() -> None:
    table = scores(2, 1).table.assign(model="<img src=x onerror=alert(1)>")
    figure = AlignmentScores.from_table(table).plot()
    assert "<img" not in json.dumps(figure.to_dict(), default=str)


def test_a_log_names_the_column_that_was_meant() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'loss'"):
        fitted().plot("los")
