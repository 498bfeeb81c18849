"""Tables on which the sentences of overlaps, of the grid, of forecasts, of the synthesis and of two
results beside each other are true and false.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
from studies.claim import Claim, said

from emlens.controls.shift_statistics import TESTED
from emlens.foundation.estimate import Estimate
from emlens.models import FineTune
from emlens.probes import Forecast
from emlens.probes.baselines import OWN_SCORE, TEXT, UNRELATED
from emlens.probes.calibration import Calibration
from emlens.results import Finding
from emlens.results.study_result import Part
from emlens.stats import NullDistribution
from emlens.studies import (
    comparing,
    layer_position_grid,
    overlap_findings,
    prior_findings,
    synthesis,
)

AT = "last_prompt"


def _overlapping(
    answer: str = "more",
    pair: str = "specific to harm",
    values: Sequence[float] = (0.6,),
    null: float = 0.5,
    benign: bool = True,
    benign_p: float = 0.4,
    landmark: bool = True,
    scale: float = 2.0,
    nats: float = 3.2,
    comparable: bool = True,
    no_third: str = "",
) -> list[Finding]:
    """Findings of fine-tunes of one answer each, and of one pair of harmful ones."""
    why = "they are one direction" if answer == "identity" else "no recipe"
    tests, landmarks = [], []
    for number, value in enumerate(values):
        model = {"model": f"m{number}", "position": AT}
        beside = {"null_mean": null, "null_low": null - 0.1, "null_q95": null + 0.1, "p_holm": 0.03}
        control = {"benign_value": 0.5, "benign_p": benign_p, "layers": 4, "adapters": 39}
        answered = {"answered": answer, "why": why}
        for measure in TESTED:
            row = {**model, "measure": measure, "value": value, **beside, **control, **answered}
            tests.append(row)
        update = {"landmark": "random update", "measure": "variance_weighted", "value": 0.4}
        damage = {"scale": scale, "nats": nats, "parent_nats": 3.1, "comparable": comparable}
        landmarks.append({**model, **update, **damage})
    across = {
        "kind": "harmful",
        "model": "m0",
        "second_model": "m1",
        "domain_pair": "a × b",
        "position": AT,
        "value": 0.47,
        "null_mean": null,
        "null_q95": null + 0.1,
        "null_pairs": 19,
        "p": 0.05,
        "p_holm": 0.05,
        "layers": 4,
        "answered": pair,
        "why": "9 pairs cannot reach it",
    }
    good = {**across, "kind": "benign", "value": 0.16, "p": benign_p}
    part = Part()
    comparisons = ["train–evaluation", "benign train–evaluation"][: 1 + benign]
    part.tables["overlap"] = pd.DataFrame({"comparison": comparisons})
    part.tables["overlap_test"] = pd.DataFrame(tests)
    part.tables["overlap_domains"] = pd.DataFrame([across, good][: (1 + benign) * bool(pair)])
    if not pair:
        del part.tables["overlap_domains"]
    if landmark:
        part.tables["overlap_landmarks"] = pd.DataFrame(landmarks)
    overlap_findings.add_findings(part, [f"m{i}" for i in range(len(values))], AT, no_third)
    return said(part)


def _grid(
    p: float = 0.01,
    models: int = 1,
    places: int = 2,
    overlap: float = 0.6,
    forecast: float = 0.3,
    nested: bool = True,
) -> list[Finding]:
    """Findings of a grid whose cells all have this p."""
    rows, chosen = [], []
    for model in range(models):
        for layer in range(places):
            cell = {"model": f"m{model}", "site": f"resid_post.{layer}", "position": AT}
            measured = {"overlap": overlap, "auroc": 0.8, "forecast_r2": forecast}
            tests = dict.fromkeys(("overlap_p_max", "auroc_p_max", "forecast_p_max"), p)
            rows.append({**cell, **measured, **tests})
        chosen.append({"model": f"m{model}", "r2": 0.3, "r2_low": 0.1, "r2_high": 0.5, "p": p})
    part = Part()
    part.tables["cells"] = pd.DataFrame(rows)
    if nested:
        part.tables["grid_forecasts"] = pd.DataFrame(chosen)
    layer_position_grid._add_findings(part)
    return said(part)


def _gain(value: float) -> Estimate:
    return Estimate(value, value - 0.05, value + 0.05, 400, "")


def _forecast(
    rivals: dict[str, float] | None = None,
    *,
    p: float = 0.005,
    draws: int = 399,
    tests: int = 2,
    ceiling: bool = True,
    missing: tuple[str, ...] = (),
) -> Forecast:
    """A forecast that gains so much over its rivals."""
    gains = {UNRELATED: 0.2, TEXT: 0.2, OWN_SCORE: 0.2, "mean": 0.4} if rivals is None else rivals
    return Forecast(
        predictions=pd.DataFrame({"id": range(400)}),
        r2=_gain(0.4),
        r2_fold_mean=_gain(0.4),
        spearman=_gain(0.6),
        rmse=1.0,
        null=NullDistribution(np.zeros(draws)) if draws else None,
        p_value=p if draws else float("nan"),
        baseline_r2={name: _gain(0.4 - gain) for name, gain in gains.items()},
        gain_over={name: _gain(gain) for name, gain in gains.items()},
        by_site=pd.DataFrame(),
        chosen=(),
        held_out="question",
        estimator="ridge",
        calibration=Calibration(_gain(1.0), _gain(0.0)),
        target="score",
        shuffle="question",
        ceiling=_gain(0.8) if ceiling else None,
        missing=missing,
        tests=tests,
        p_holm=p * tests,
    )


def _forecast_said(
    held_out: str = "domain", r2: Sequence[float] = (0.4,), **changes: Any
) -> list[Finding]:
    """Findings of one forecast and of the page that has it."""
    forecast, part = _forecast(**changes), Part()
    finding = prior_findings.forecast_finding(forecast, "bad", "instruct", held_out)
    part.findings.append(finding)
    predictors = list(forecast.gain_over)
    part.tables["forecast_baselines"] = pd.DataFrame({"predictor": predictors})
    table = pd.DataFrame({"r2": r2, "spearman": 0.6, "held_out": held_out})
    prior_findings.add_summary(part, table)
    return said(part)


def _without(*names: str) -> dict[str, float]:
    gains = {UNRELATED: 0.2, TEXT: 0.2, OWN_SCORE: 0.2, "mean": 0.4}
    return {name: gain for name, gain in gains.items() if name not in names}


def _chosen(
    best: tuple[str, str] | None = ("loss", "linear"),
    loss: Sequence[float] = (1, 2, 3, 4, 5, 6, 7, 8),
    over_loss: float = np.nan,
    seeds: int = 1,
) -> list[Finding]:
    """What is said of runs of which `best` forecasts alignment."""
    n = len(loss)
    cells = [f"recipe {i // seeds}" for i in range(n)]
    runs = pd.DataFrame(
        {
            "run": [f"r{i}" for i in range(n)],
            "source": "bad",
            "cell": cells,
            "kind": "harmful",
            "loss": list(loss),
            "steps": 8,
            "own": 50.0,
            "others": np.arange(n, dtype=float),
        }
    )
    ends = {"r2": 0.4, "r2_low": 0.2, "r2_high": 0.6, "p": 0.01}
    beside = {"over_loss": over_loss, "over_loss_low": 0.1, "over_loss_high": 0.3}
    forecasts = SimpleNamespace(table=pd.DataFrame([ends | beside]), best=best)
    choice = {"by": ["linear"], "regret": 2.0, "regret_low": 1.0, "regret_high": 3.0, "null": 5.0}
    ranking = SimpleNamespace(table=pd.DataFrame(), choices=pd.DataFrame(choice))
    part = Part()
    with (
        patch.object(synthesis, "forecast_runs", return_value=forecasts),
        patch.object(synthesis, "rank_configurations", return_value=ranking),
    ):
        synthesis._judge_choosing(part, runs, {}, 0)
    return said(part)


def _laid(seeds: Sequence[int] = (0, 1), names: Sequence[str] = ("a", "b")) -> list[Finding]:
    """What is said of fine-tunes of one group with these seeds."""
    specs = {n: FineTune("x", group="g", seed=s) for n, s in zip(names, seeds, strict=True)}
    material: Any = SimpleNamespace(has_models=True, family=SimpleNamespace(specs=specs))
    numbers = pd.DataFrame(
        {
            "number": "overlap",
            "model": list(names),
            "value": [0.5 + 0.01 * i for i in range(len(names))],
            "low": np.nan,
            "high": np.nan,
            "null": 0.3,
            "null_is": "chance",
            "shared_noise": 0.0,
            "side": "greater",
        }
    )
    part = Part()
    part.tables["numbers"] = synthesis._with_seeds(numbers, material)
    synthesis._lay_over_seeds(part)
    return said(part)


def _compared(
    difference: float = 5.0, numbers: Sequence[float] = (0.2, 0.0), interval: float = 0.1
) -> list[Finding]:
    """What is said of two results with these differences."""
    scores = {
        "what": "bad, other domains",
        "metric": "aligned",
        "a": 60.0,
        "b": 60.0 + difference,
        "difference": difference,
        "difference_low": difference - 1,
        "difference_high": difference + 1,
        "n": 40,
    }
    figures = pd.DataFrame({"difference": numbers, "key": "k"}, columns=comparing.FIGURE_COLUMNS)
    figures["difference_low"] = figures["difference"].astype(float) - interval
    figures["difference_high"] = figures["difference"].astype(float) + interval
    part = Part(tables={"paired": pd.DataFrame([scores]), "figures": figures})
    comparing._add_findings(part)
    return said(part)


OVERLAPS = [
    Claim("prompts share more than any", _overlapping, lambda: _overlapping("not more")),
    Claim("are not shown to share more than", lambda: _overlapping("not more"), _overlapping),
    Claim("the ceiling lies below", lambda: _overlapping("cannot be shown"), _overlapping),
    Claim("gives is undecided: no recipe", lambda: _overlapping("undecided"), _overlapping),
    Claim("m0: they are one direction.", lambda: _overlapping("identity"), _overlapping),
    Claim("since it is an identity: m0", lambda: _overlapping("identity"), _overlapping),
    Claim("prompts overlap by 0.60 in", _overlapping, lambda: _overlapping("identity")),
    Claim("by 0.60–0.70 in", lambda: _overlapping(values=(0.6, 0.7)), _overlapping),
    Claim("prompts was tested.", lambda: _overlapping("identity"), _overlapping),
    Claim(
        "Whether that is more",
        lambda: _overlapping("cannot be shown"),
        lambda: _overlapping("identity"),
    ),
    Claim("gives in 1 of 1 fine-tune that", _overlapping, lambda: _overlapping("not more")),
    Claim("beside 39 adapters of", _overlapping, lambda: _overlapping("undecided")),
    Claim(" against 0.50 [", _overlapping, lambda: _overlapping(null=np.nan)),
    Claim("the benign fine-tune 0.50", _overlapping, lambda: _overlapping(benign_p=np.nan)),
    Claim("Landmarks of the", _overlapping, lambda: _overlapping(landmark=False)),
    Claim("ΔW × 2.0", _overlapping, lambda: _overlapping(scale=np.nan)),
    Claim("damage not measured", lambda: _overlapping(nats=np.nan), _overlapping),
    Claim("3.20 nats against 3.10", _overlapping, lambda: _overlapping(nats=np.nan)),
    Claim("not comparable", lambda: _overlapping(comparable=False), _overlapping),
    Claim("m1 share something specific", _overlapping, lambda: _overlapping(pair="not more")),
    Claim("in 1 of 1 pair that", _overlapping, lambda: _overlapping(pair="not more")),
    Claim(
        "but benign fine-tunes do too",
        lambda: _overlapping(pair="shared by benign fine-tunes too"),
        _overlapping,
    ),
    Claim("more across domains than", lambda: _overlapping(pair="not more"), _overlapping),
    Claim("undecided: 9 pairs cannot", lambda: _overlapping(pair="undecided"), _overlapping),
    Claim("across domains is undecided.", lambda: _overlapping(pair="undecided"), _overlapping),
    Claim("19 pairs on permuted", _overlapping, lambda: _overlapping(null=np.nan)),
    Claim("; the benign pair 0.16", _overlapping, lambda: _overlapping(benign=False)),
    Claim("there is no benign pair", lambda: _overlapping(benign=False), _overlapping),
    Claim("benign control is missing", lambda: _overlapping(benign=False), _overlapping),
    Claim("undecided: one domain", lambda: _overlapping(no_third="one domain"), _overlapping),
    Claim("Two harmful fine-tunes", _overlapping, lambda: _overlapping(pair="")),
]
GRID = [
    Claim("overlap of shifts in 1 of 1 fine-tune,", _grid, lambda: _grid(p=0.2)),
    Claim("in 2 of 2 fine-tunes", lambda: _grid(models=2), _grid),
    Claim("forecast R² not tested", lambda: _grid(forecast=np.nan), _grid),
    Claim("Over 1 layer and position,", lambda: _grid(places=1), _grid),
    Claim("as anisotropic in 2 of 2 cells", _grid, lambda: _grid(p=0.2)),
    Claim("tells misaligned questions in 2", _grid, lambda: _grid(p=0.2)),
    Claim("is beyond shuffled scores in 2", _grid, lambda: _grid(p=0.2)),
    Claim("chosen on inner folds it is 0.30", _grid, lambda: _grid(nested=False)),
    Claim("no baseline stands beside it here", _grid, lambda: _grid(forecast=np.nan)),
    Claim("its median is 0.60, from 0.60 to 0.60", _grid, lambda: _grid(overlap=0.7)),
]
PRIORS = [
    Claim("is shown in 1 of 1 forecast", _forecast_said, lambda: _forecast_said(p=0.2)),
    Claim(
        "the question text and the parent's own score among them",
        _forecast_said,
        lambda: _forecast_said(rivals=_without(TEXT)),
    ),
    Claim(
        "not among the baselines: a model of another family",
        lambda: _forecast_said(rivals=_without(UNRELATED)),
        _forecast_said,
    ),
    Claim(
        "the question text and the parent's own score.",
        lambda: _forecast_said(rivals=_without(TEXT, OWN_SCORE)),
        _forecast_said,
    ),
    Claim("(domains held out)", _forecast_said, lambda: _forecast_said("question")),
    Claim("(questions held out)", lambda: _forecast_said("question"), _forecast_said),
    Claim("R² 0.40 to 0.50", lambda: _forecast_said(r2=(0.4, 0.5)), _forecast_said),
    Claim("seed's noise leaves possible", _forecast_said, lambda: _forecast_said(ceiling=False)),
    Claim(
        "; the smallest gain is +0.01 [-0.04, +0.06], over length",
        lambda: _forecast_said(rivals=_without() | {"length": 0.01}),
        _forecast_said,
    ),
    Claim(
        "over the mean", lambda: _forecast_said(rivals=_without() | {"mean": 0.0}), _forecast_said
    ),
    Claim("not compared with length", lambda: _forecast_said(missing=("length",)), _forecast_said),
    Claim("not permuted", lambda: _forecast_said(draws=0), _forecast_said),
    Claim(
        "too few permutations for 50 forecasts", lambda: _forecast_said(tests=50), _forecast_said
    ),
    Claim("corrected over 2 forecasts", _forecast_said, lambda: _forecast_said(tests=50)),
]
SYNTHESIS = [
    Claim("is forecast better than by the mean", _chosen, lambda: _chosen(None)),
    Claim("No predictor is named best", lambda: _chosen(None), _chosen),
    Claim("the loss is the only predictor", _chosen, lambda: _chosen(over_loss=0.2)),
    Claim("against the loss alone 0.20", lambda: _chosen(over_loss=0.2), _chosen),
    Claim("recipe 7 has the highest mean alignment", _chosen, lambda: _chosen(None)),
    Claim("No configuration is named best", lambda: _chosen(None), _chosen),
    Claim("costs 2.0 [1.0, 3.0] points", _chosen, lambda: _chosen(loss=(1, 2))),
    Claim("2 runs are too few to choose", lambda: _chosen(loss=(1, 2)), _chosen),
    Claim("do not differ in their loss", lambda: _chosen(loss=(1,) * 8), _chosen),
    Claim("cannot be judged: 8 runs are 4 recipes", lambda: _chosen(seeds=2), _chosen),
    Claim("hold seeds of one", lambda: _chosen(seeds=2), _chosen),
    Claim("g (harmful), overlap: ", _laid, lambda: _laid((0, 0))),
    Claim("share seed 0 (a, b)", lambda: _laid((0, 0)), _laid),
    Claim("no group of fine-tunes has several seeds", lambda: _laid((0, 0)), _laid),
]
COMPARED = [
    Claim("B minus A is 5.00 [4.00, 6.00]", _compared, lambda: _compared(-5.0)),
    Claim("2 numbers, of which 1 is equal.", _compared, lambda: _compared(numbers=(0.2,))),
    Claim("1 number, of which 0 are equal.", lambda: _compared(numbers=(0.2,)), _compared),
    Claim("2 have intervals in both", _compared, lambda: _compared(interval=np.nan)),
    Claim("excludes 0 in 1 of these", _compared, lambda: _compared(numbers=(0.0, 0.0))),
    Claim("None has an interval in both", lambda: _compared(interval=np.nan), _compared),
    Claim("The largest difference is 0.2.", _compared, lambda: _compared(numbers=(0.1,))),
    Claim("and no number of their tables", lambda: _compared(numbers=()), _compared),
]
CLAIMS = {
    overlap_findings: OVERLAPS,
    layer_position_grid: GRID,
    prior_findings: PRIORS,
    synthesis: SYNTHESIS,
    comparing: COMPARED,
}
