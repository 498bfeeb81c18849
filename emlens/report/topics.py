"""What the page shows: sections, each with its method, its figures beside their controls, and the
tables behind them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import pandas as pd
import plotly.graph_objects as go

from emlens.figures.ablation_forest import ablation_forest
from emlens.figures.alignment_by_domain import alignment_by_domain
from emlens.figures.angle_spectra import angle_spectra
from emlens.figures.direction_by_layer import direction_by_layer
from emlens.figures.forecast_by_site import forecast_by_site
from emlens.figures.forecast_scatter import forecast_scatter
from emlens.figures.forecast_scores import forecast_scores
from emlens.figures.labels import position_name
from emlens.figures.models_overview import models_overview
from emlens.figures.overlap_against_shift import middle_layer, overlap_against_shift
from emlens.figures.overlap_by_layer import overlap_by_layer
from emlens.figures.overlap_heatmaps import overlap_heatmaps
from emlens.figures.question_changes import question_changes
from emlens.figures.relation_by_layer import relation_by_layer
from emlens.figures.steering_response import steering_response
from emlens.figures.transfer_matrix import transfer_matrix
from emlens.results import Plot

Tables = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Drawing:
    """One figure to draw: what tells it from its siblings (plain text), how to make it, and whether
    it needs the full width.
    """

    about: str
    make: Callable[[], go.Figure]
    wide: bool = False


@dataclass(frozen=True)
class Topic:
    """One question that figures answer.

    needs: tables without which there is no figure. draw: drawings from the tables. more: what is
    said of figures that are not drawn.
    """

    name: str
    title: str
    caption: str
    needs: tuple[str, ...]
    draw: Callable[[Tables], Iterator[Drawing]]
    more: Callable[[Tables], str] | None = None


@dataclass(frozen=True)
class Section:
    """A claim: `name` is that of its findings; `tables` are shown below its figures, with a
    description each.

    part: module of studies that it shows, whose name its findings may bear too. plots: records
    among its figures.
    """

    name: str
    title: str
    method: str
    reference: str
    topics: tuple[Topic, ...]
    tables: Mapping[str, str]
    part: str = ""
    plots: tuple[Plot, ...] = ()


def _values(table: pd.DataFrame, *columns: str) -> Iterator[tuple[str, ...]]:
    """Distinct combinations in order of appearance."""
    if not set(columns) <= set(table.columns):
        return iter([])
    return iter(
        dict.fromkeys(tuple(map(str, row)) for row in table[list(columns)].itertuples(index=False))
    )


def domains(t: Tables) -> Iterator[Drawing]:
    for model, kind in _values(t["domains"], "model", "kind"):
        if kind in ("harmful", "benign"):
            yield Drawing(model, partial(alignment_by_domain, t["domains"], models=[model]))


def questions(t: Tables) -> Iterator[Drawing]:
    for model, kind in _values(t["models"], "model", "kind"):
        if kind in ("harmful", "benign"):
            yield Drawing(
                model,
                partial(question_changes, t["questions"], model=model),
            )


def models(t: Tables) -> Iterator[Drawing]:
    yield Drawing("", partial(models_overview, t["models"]), wide=True)


def maps(t: Tables) -> Iterator[Drawing]:
    for (model,) in _values(t["overlap"], "model"):
        for center, word in (("true", "centred"), ("false", "uncentred")):
            yield Drawing(
                f"{model}, {word}",
                partial(overlap_heatmaps, t["overlap"], model=model, center=center),
            )


def lines(t: Tables) -> Iterator[Drawing]:
    for model, position in _values(t["overlap"], "model", "position"):
        yield Drawing(
            _at(model, position),
            partial(
                overlap_by_layer,
                t["overlap"],
                model=model,
                position=position,
            ),
        )


def angles(t: Tables) -> Iterator[Drawing]:
    for model, position in _values(t["angles"], "model", "position"):
        yield Drawing(
            _at(model, position),
            partial(angle_spectra, t["angles"], model=model, position=position),
        )


def shifts(t: Tables) -> Iterator[Drawing]:
    for (model,) in _values(t["shifts"], "model"):
        layer = middle_layer(t["shifts"], model)
        points = partial(
            overlap_against_shift,
            t["shifts"],
            t["overlap_shift"],
            model=model,
            layer=layer,
        )
        yield Drawing(f"{model}, layer {layer}", points)
        yield Drawing(
            f"{model}, all layers",
            partial(relation_by_layer, t["overlap_shift"], model=model),
        )


def directions(t: Tables) -> Iterator[Drawing]:
    for (model,) in _values(t["directions"], "model"):
        yield Drawing(model, partial(direction_by_layer, t["directions"], model=model))


def arms(t: Tables) -> Iterator[Drawing]:
    for (model,) in _values(t["arms"], "model"):
        yield Drawing(model, partial(ablation_forest, t["arms"], model=model), wide=True)


def steering(t: Tables) -> Iterator[Drawing]:
    for (model,) in _values(t["steering"], "model"):
        yield Drawing(model, partial(steering_response, t["steering"], model=model))


def transfer(t: Tables) -> Iterator[Drawing]:
    yield Drawing("", partial(transfer_matrix, t["transfer"]))


def points(t: Tables) -> Iterator[Drawing]:
    table = _with_answers(t["forecast_predictions"], t.get("questions"))
    for model, parent in _values(table, "model", "parent"):
        make = partial(
            forecast_scatter,
            table,
            model=model,
            parent=parent,
            summary=t.get("forecast"),
        )
        yield Drawing(f"{model} from {parent}", make)


def scores(t: Tables) -> Iterator[Drawing]:
    for model, parent in _values(t["forecast_baselines"], "model", "parent"):
        make = partial(
            forecast_scores,
            t["forecast_baselines"],
            model=model,
            parent=parent,
            summary=t.get("forecast"),
        )
        yield Drawing(f"{model} from {parent}", make)


def sites(t: Tables) -> Iterator[Drawing]:
    for model, parent in _values(t["forecast_sites"], "model", "parent"):
        yield Drawing(
            f"{model} from {parent}",
            partial(
                forecast_by_site,
                t["forecast_sites"],
                model=model,
                parent=parent,
            ),
        )


def _with_answers(points: pd.DataFrame, questions: pd.DataFrame | None) -> pd.DataFrame:
    """The points of a forecast with the fine-tune's most likely answer, where the profile has
    it.
    """
    if (
        questions is None
        or not {"model", "question", "answer"} <= set(questions.columns)
        or not {"model", "id"} <= set(points.columns)
    ):
        return points
    known = questions.drop_duplicates(["model", "question"]).set_index(["model", "question"])[
        "answer"
    ]
    answers = known.reindex(pd.MultiIndex.from_frame(points[["model", "id"]]))
    return points.assign(answer=answers.to_numpy())


def _at(model: str, position: str) -> str:
    return f"{model}, {position_name(position)}"
