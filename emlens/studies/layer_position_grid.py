"""At which layer and token position do which measures speak? A grid of cheap measures, each beside
its null in every cell.

Nothing is generated and nothing ablated: how far the stream moved, how alike the mean shifts on
training and on unrelated prompts are, how much their subspaces overlap, whether the shift's
direction tells the questions that became misaligned (on questions it was not extracted from), and
how well activations *before* fine-tuning forecast scores. The grid is exploratory: p is corrected
over all cells, and no cell is chosen here for a claim elsewhere. Cost: captures of both models, and
a few dozen small eigendecompositions per cell.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from emlens.activations import Activations, activation_deltas
from emlens.data import PromptSet
from emlens.foundation.seeds import numpy_rng
from emlens.probes import Design, Forecast, cross_validate_forecast
from emlens.results.columns import Measure
from emlens.results.sections import Plot, Section
from emlens.results.study_result import Finding, Part, columns_of, p_text
from emlens.results.tables import Table
from emlens.results.vocabulary import BESIDE, measures, word
from emlens.results.wording import counted
from emlens.studies.cell_measures import (
    cosine_columns,
    overlap_columns,
    overlap_p_max,
    shift_columns,
)
from emlens.studies.config import Options as PartOptions, StudyConfig
from emlens.studies.direction_auroc import auroc_by_cell
from emlens.studies.material import Material
from emlens.studies.null_columns import null_spread
from emlens.studies.streams import Reading, read_streams
from emlens.studies.study import Study, StudyContext
from emlens.studies.verdicts import verdict

FORECAST_COLUMNS = {
    "r2": "forecast_r2",
    "null_max_q95": "forecast_null_max_q95",
    "p_max": "forecast_p_max",
}
"""Column of a forecast's table by site → column here."""


class Options(PartOptions):
    """What only this part reads."""

    sites: tuple[str, ...] = ("resid_post",)
    """Kinds of site: `resid_pre`, `resid_mid`, `resid_post`, `attn_out`, `mlp_out`."""
    flips: int = 999
    """Draws of the null of mean shifts and of the direction's AUROC."""


def _heat(y: str, title: str, caption: str) -> Plot:
    return Plot("heatmap", "cells", "position", y, title, caption, colour="site", facet="model")


SECTION = Section(
    method=(
        "Every site and position is measured alike. Shift:"
        " mean length of after minus before on evaluation prompts,"
        " as a share of the mean length before. Cosine:"
        " of the mean shifts on training and on evaluation prompts, noise taken out,"
        " with a jackknife interval; its null turns each shift's sign at random. Overlap:"
        " centred top-k subspaces of both sets of shifts, beside a null with the covariance before"
        " at the same k, which is chosen on the training shifts where it is a share or the elbow;"
        " p is against the greatest overlap of all cells, each in standard deviations of its null."
        " AUROC: the mean shift of half of the questions,"
        " read on the other half, tells questions below the median score from the others;"
        " the null permutes scores within domains, and p is of the largest cell. Forecast:"
        " out-of-fold R² of ridge on activations before, with p as there."
    ),
    reference=(
        "Grid of layers and positions: arXiv 2606.20814; maximum statistic:"
        " Westfall and Young (1993)."
    ),
    tables={
        "cells": Table(
            "One row per model, site and position: each measure with its interval or null.",
            [
                "model site position",
                *measures("shift"),
                Measure(word("cosine"), null="cosine_null"),
                "cosine_null cosine_p",
                "overlap_k overlap overlap_null overlap_null_q95 overlap_p overlap_p_max",
                Measure(word("auroc"), null="auroc_null"),
                "auroc_null auroc_p_max forecast_r2 forecast_null_max_q95",
                "forecast_p_max n n_per_side",
            ],
        ),
        "grid_forecasts": Table(
            "One row per model: the forecast with site and position chosen on inner folds.",
            ["model", Measure(word("r2"), null="null_mean"), BESIDE, "n chosen_place"],
        ),
    },
    plots=(
        _heat(
            "overlap",
            "Overlap of shifts",
            "Read it beside the null: unrelated samples as anisotropic overlap too.",
        ),
        _heat(
            "overlap_null",
            "The same under the null",
            "Mean overlap of unrelated samples with the covariance of activations before.",
        ),
        _heat("cosine", "Cosine of mean shifts", "Training against evaluation prompts."),
        _heat(
            "auroc",
            "Does the shift's direction tell misaligned questions?",
            "0.5 is chance; on questions it was not extracted from.",
        ),
        _heat(
            "forecast_r2", "Forecast from activations before", "Out of fold; exploratory by cell."
        ),
    ),
)


class LayerPositionGrid(Study):
    """Which layer, which token position?"""

    name = "layer_position_grid"
    title = "Which layer, which token position?"
    options = Options
    section = SECTION
    needs_outside = True
    wants = ("plain",)
    runs_on_captures = True
    cost = 4

    def left_out(self, context: StudyContext) -> str | None:
        """It needs training prompts."""
        if _with_training(context):
            return None
        return "no fine-tune in focus has training prompts"

    def readings(self, context: StudyContext) -> Iterator[Reading]:
        material, config = context.material, context.config
        for name in _with_training(context):
            models = material.parent(name).name, name
            train, outside = _prompts(material, name, config)
            for prompts in (train, outside):
                yield Reading(models, prompts, context.options.sites)

    def scored(self, context: StudyContext) -> Iterator[tuple[str, str]]:
        for name in _with_training(context):
            yield name, ""

    def run(self, context: StudyContext) -> Part:
        material, config = context.material, context.config
        names, part = _with_training(context), Part()
        for name in material.focus(config):
            if name not in names:
                part.warnings.append(f"{name} has no training prompts: it is not in the grid")
        tables, nested = [], []
        for name in names:
            cells = cells_of(material, name, config, context.options)
            tables.append(cells.table)
            part.warnings += _without_overlap(name, cells.table, config)
            part.warnings += _without_auroc(name, cells.table)
            if cells.forecast is not None:
                nested.append(_nested(name, cells.forecast))
            context.progress(1 / len(names))
        part.tables["cells"] = pd.concat(tables, ignore_index=True)
        if nested:
            part.tables["grid_forecasts"] = pd.DataFrame(nested)
        _add_findings(part)
        return part


def _with_training(context: StudyContext) -> list[str]:
    """The fine-tunes in focus whose training prompts are known."""
    material = context.material
    return [name for name in material.focus(context.config) if name in material.training]


def _without_overlap(name: str, cells: pd.DataFrame, config: StudyConfig) -> list[str]:
    """In how many cells no subspaces are compared, and why."""
    missing = int(cells["overlap"].isna().sum())
    if not missing:
        return []
    reason = "nothing moved there"
    if not isinstance(config.k, int):
        reason = f"nothing moved there, or k={config.k} has no value"
    return [f"{name}: no overlap in {missing} of {len(cells)} cells: {reason}"]


def _without_auroc(name: str, cells: pd.DataFrame) -> list[str]:
    """Why the direction's AUROC has no value; the reasons are those of `auroc_by_cell`."""
    if cells["auroc"].notna().any():
        return []
    return [
        f"{name}: no AUROC: its null permutes scores within domains, which needs more than two"
        " questions of some domain and two of each; or no question lies below the median score"
    ]


@dataclass(frozen=True, eq=False)
class Cells:
    """The grid of one fine-tune.

    Args:
        table: one row per site and position.
        forecast: from all of them, the place chosen on inner folds; None where nothing varies.
    """

    table: pd.DataFrame
    forecast: Forecast | None


def cells_of(material: Material, name: str, config: StudyConfig, options: Options) -> Cells:
    """Every measure of one fine-tune at every site and position."""
    grid = _captured(material, name, config, options)
    cells = list(product(grid.deltas.sites, config.positions))
    auroc = auroc_by_cell(material, name, grid.deltas, cells, options.flips, config.seed)
    rows, nulls = [], []
    for cell in cells:
        train, deltas = grid.train[cell].double(), grid.deltas[cell].double()
        before = grid.before[cell]  # its dtype says what rounding is
        equal = deltas[grid.equal_rows]
        overlap, null = overlap_columns(train, equal, before, config.k, config.draws, config.seed)
        nulls.append(null)
        rows.append(
            {
                "model": name,
                "site": cell[0],
                "position": cell[1],
                **shift_columns(deltas, before.double(), config.seed),
                **cosine_columns(train, deltas, options.flips, config.seed),
                **overlap,
                **auroc[cell],
                "n": len(deltas),
                "n_per_side": len(train),
            }
        )
    table = pd.DataFrame(rows)
    table["overlap_p_max"] = overlap_p_max(list(table["overlap"]), nulls, config.seed)
    forecast = _forecast(material, name, grid.before, config)
    table = table.merge(_by_cell(forecast), on=["site", "position"], how="left")
    return Cells(table, forecast)


@dataclass(frozen=True, eq=False)
class _Captured:
    """One fine-tune's shifts at every site and position.

    Args:
        train: deltas on training prompts, as many as the smaller side has. deltas: on every prompt
            outside its domain. before: the parent's activations there.
        equal_rows: of `deltas`, as many as `train` has.
    """

    train: Activations
    deltas: Activations
    before: Activations
    equal_rows: list[int]


def _captured(material: Material, name: str, config: StudyConfig, options: Options) -> _Captured:
    models = {"before": material.parent(name), "after": material.family[name]}

    def before_and_deltas(prompts: PromptSet) -> tuple[Activations, Activations]:
        captured = read_streams(models, prompts, config, sites=options.sites)
        return captured["before"], activation_deltas(captured["before"], captured["after"])

    train, outside = _prompts(material, name, config)
    _, train_deltas = before_and_deltas(train)
    before, deltas = before_and_deltas(outside)
    equal = numpy_rng(config.seed, "equal n", name).permutation(len(deltas))[: len(train)]
    return _Captured(train_deltas, deltas, before, sorted(equal))


def _prompts(material: Material, name: str, config: StudyConfig) -> tuple[PromptSet, PromptSet]:
    """Training prompts, at most as many as there are questions outside its domain, and those."""
    outside = material.outside(name)
    train = material.training[name].without_responses()
    n = min(len(train), len(outside))
    order = numpy_rng(config.seed, "layer and position grid", name).permutation(len(train))[:n]
    return train.select([train.ids[i] for i in sorted(order)]), outside.prompts()


def _forecast(
    material: Material, name: str, before: Activations, config: StudyConfig
) -> Forecast | None:
    """The forecast of all cells; None where every question has the same score."""
    scored = material.scored(material.outside(name), name)
    if np.ptp(material.per_question(name)[scored.ids]) == 0:
        return None
    design = Design(
        folds=config.folds,
        inner_folds=config.folds,
        repeats=config.repeats,
        permutations=config.permutations,
        seed=config.seed,
    )
    rows = before.select(scored.prompts().ids)
    return cross_validate_forecast(rows, material.scores(name), design=design)


def _by_cell(forecast: Forecast | None) -> pd.DataFrame:
    """Out-of-fold R² by site and position; no row without a forecast."""
    if forecast is None:
        return pd.DataFrame(columns=["site", "position", *FORECAST_COLUMNS.values()])
    by_site = forecast.by_site[["site", "position", *FORECAST_COLUMNS]]
    return by_site.rename(columns=FORECAST_COLUMNS)


def _nested(name: str, forecast: Forecast) -> dict[str, object]:
    """The row of `grid_forecasts`: the forecast with its place chosen on inner folds."""
    return {
        "model": name,
        **columns_of("r2", forecast.r2),
        **null_spread(forecast.null),
        "p": forecast.p_value,
        "n": len(forecast.predictions),
        "chosen_place": Counter(forecast.chosen).most_common(1)[0][0],
    }


@dataclass(frozen=True)
class _Measure:
    """A measure that findings are about: its column, that of its corrected p, and the words."""

    column: str
    p: str
    words: str
    claim: str


MEASURES = (
    _Measure(
        "overlap",
        "overlap_p_max",
        "overlap of shifts",
        "exceeds unrelated samples as anisotropic",
    ),
    _Measure(
        "auroc", "auroc_p_max", "AUROC of the shift's direction", "tells misaligned questions"
    ),
    _Measure("forecast_r2", "forecast_p_max", "forecast R²", "is beyond shuffled scores"),
)


def _add_findings(part: Part) -> None:
    """One finding per fine-tune and measure, and a summary before them."""
    table = part.tables["cells"]
    nested = part.tables.get("grid_forecasts")
    for name, rows in table.groupby("model", sort=False):
        for measure in MEASURES:
            if measure.column not in rows:
                continue
            tested = rows[rows[measure.column].notna() & rows[measure.p].notna()]
            if len(tested):
                beside = _range(tested[measure.column])
                if measure.column == "forecast_r2" and nested is not None:
                    beside = _nested_words(nested.set_index("model").loc[name])
                part.findings.append(_finding(str(name), tested, measure, beside))
    everywhere = []
    for measure in MEASURES:
        statuses = [f.status for f in part.findings if f": {measure.words} " in f.sentence]
        count = f"in {statuses.count('shown')} of {counted(len(statuses), 'fine-tune')}"
        everywhere.append(f"{measure.words} {count if statuses else 'not tested'}")
    places = len(table) // table["model"].nunique()
    summary = (
        f"Over {counted(places, 'layer and position', 'layers and positions')},"
        f" measures beyond their nulls everywhere: {', '.join(everywhere)}."
    )
    part.findings.insert(0, Finding(LayerPositionGrid.name, summary, "summary"))


def _range(values: pd.Series) -> str:
    """What a measure is over all cells; no place is named, since none was chosen on other data."""
    return f"its median is {values.median():.2f}, from {values.min():.2f} to {values.max():.2f}"


def _nested_words(row: Any) -> str:
    """The forecast whose place was chosen on inner folds, in place of the best cell."""
    return (
        f"with site and position chosen on inner folds it is {row['r2']:.2f}"
        f" [{row['r2_low']:.2f}, {row['r2_high']:.2f}] (p {p_text(float(row['p']))});"
        " no baseline stands beside it here, so it says nothing of the model's prior"
    )


def _finding(name: str, tested: pd.DataFrame, measure: _Measure, beside: str) -> Finding:
    """In how many cells a measure is beyond its null.

    Args:
        beside: what is said of its size.
    """
    clear = int((tested[measure.p] < 0.05).sum())
    cells = counted(len(tested), "cell")
    sentence = (
        f"{name}: {measure.words} {measure.claim} in {clear} of {cells} (p corrected over the grid"
        f" below .05; exploratory); {beside}."
    )
    return Finding(
        LayerPositionGrid.name, sentence, verdict(shown=clear == len(tested), not_shown=clear == 0)
    )
