"""At which layer and token position do which measures speak? A grid of cheap measures, each beside
its null in every cell.

Nothing is generated and nothing ablated: how far the stream moved, how alike the mean shifts on
training and on unrelated prompts are, how much their subspaces overlap, whether the shift's
direction tells the questions that became misaligned (on questions it was not extracted from), and
how well activations *before* fine-tuning forecast scores. The grid is exploratory: p is corrected
over all cells, and no cell is chosen here for a claim elsewhere. Cost: a capture of three models
and a few dozen small eigendecompositions a cell.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor

from emlens.activations import Activations, activation_deltas, capture_many
from emlens.data import PromptSet, QuestionSet
from emlens.foundation.seeds import numpy_rng
from emlens.geometry import covariance_overlap_null, subspace_overlap, top_k_subspace
from emlens.geometry.permutations import sign_flip_null
from emlens.geometry.shifts import components_above_rounding
from emlens.probes import Design, cross_validate_forecast
from emlens.results.sections import Plot, Section
from emlens.results.study_result import Advance, Finding, Part, columns_of, p_text
from emlens.stats import adjust_p_values, bootstrap_mean, cosine_of_means, max_statistic_p
from emlens.stats.effects import rank_biserial
from emlens.studies.config import Options as _Options, StudyConfig
from emlens.studies.material import Material, split_questions
from emlens.studies.study import Study, StudyContext


class Options(_Options):
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
        " centred top-k subspaces of both sets of shifts, beside a null with the covariance before;"
        " p is Holm's over the grid. AUROC: the mean shift of half of the questions,"
        " read on the other half, tells questions below the median score from the others;"
        " the null deals scores out anew within domains, and p is of the largest cell. Forecast:"
        " out-of-fold R² of ridge on activations before, with p as there."
    ),
    reference=(
        "Grid of layers and positions: arXiv 2606.20814; maximum statistic:"
        " Westfall and Young (1993)."
    ),
    tables={"cells": "One row a model, site and position: each measure with its interval or null."},
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


def left_out(material: Material, config: StudyConfig) -> str | None:
    """It needs training prompts."""
    return (
        None
        if any(name in material.training for name in material.focus(config))
        else "no fine-tune in focus has training prompts"
    )


def run(material: Material, config: StudyConfig, advance: Advance) -> Part:
    settings = config.options_of("layer_position_sweep", Options)
    part = Part()
    chosen = [name for name in material.focus(config) if name in material.training]
    for name in material.focus(config):
        if name not in chosen:
            part.warnings.append(f"{name} has no training prompts: it is not in the grid")
    tables = []
    for name in chosen:
        tables.append(cells_of(material, name, config, settings))
        advance(1 / len(chosen))
    part.tables["cells"] = pd.concat(tables, ignore_index=True)
    _findings(part)
    return part


def cells_of(material: Material, name: str, config: StudyConfig, settings: Options) -> pd.DataFrame:
    """One row a site and position of one fine-tune."""
    models = {"before": material.parent(name), "after": material.family[name]}
    outside = material.outside(name)
    train = material.training[name].without_responses()
    n = min(len(train), len(outside))

    def pair(prompts: PromptSet | QuestionSet) -> tuple[Activations, Activations]:
        found = capture_many(
            models, prompts, sites=list(settings.sites), positions=config.positions, progress=False
        )
        return found["before"], activation_deltas(found["before"], found["after"])

    order = numpy_rng(config.seed, "layer and position grid", name).permutation(len(train))[:n]
    train_deltas = pair(train.select([train.ids[i] for i in sorted(order)]))[1]
    before, deltas = pair(outside)
    equal = sorted(numpy_rng(config.seed, "equal n", name).permutation(len(deltas))[:n])
    auroc = _auroc(material, name, deltas, config, settings)
    rows = []
    for site in deltas.sites:
        for position in config.positions:
            own, other = train_deltas[site, position].double(), deltas[site, position].double()
            rows.append(
                {
                    "model": name,
                    "site": site,
                    "position": position,
                    **_shift(other, before[site, position].double(), config),
                    **_cosine(own, other, settings, config),
                    **_overlap(own, other[equal], before[site, position].double(), config),
                    **auroc[site, position],
                    "n": len(other),
                    "n_a_side": n,
                }
            )
    table = pd.DataFrame(rows)
    known = table["overlap_p"].notna()
    table["overlap_p_holm"] = np.nan
    if known.any():
        table.loc[known, "overlap_p_holm"] = adjust_p_values(
            table.loc[known, "overlap_p"].to_numpy(), "holm"
        )
    return table.merge(
        _forecast(material, name, before, config), on=["site", "position"], how="left"
    )


def _shift(deltas: Tensor, before: Tensor, config: StudyConfig) -> dict[str, float]:
    lengths = deltas.norm(dim=1) / before.norm(dim=1).mean()
    return columns_of("shift", bootstrap_mean(lengths.numpy(), seed=config.seed))


def _cosine(own: Tensor, other: Tensor, settings: Options, config: StudyConfig) -> dict[str, float]:
    found = cosine_of_means(own.numpy(), other.numpy())
    null = sign_flip_null(
        own, other, statistic="cosine_of_means", draws=settings.flips, seed=config.seed
    )
    raw = float(torch.nn.functional.cosine_similarity(own.mean(0), other.mean(0), dim=0))
    return {
        **columns_of("cosine", found),
        "cosine_null": null.quantile(0.95),
        "cosine_p": null.p_value(raw),
    }


def _overlap(own: Tensor, other: Tensor, before: Tensor, config: StudyConfig) -> dict[str, float]:
    """Centred overlap at equal numbers; k is lowered to what both sets hold, and missing where
    nothing moved.
    """
    k = min(
        config.k,
        components_above_rounding(own, before),
        components_above_rounding(other, before),
        len(own) - 1,
    )
    if k < 1:
        return dict.fromkeys(
            ("k", "overlap", "overlap_null", "overlap_null_q95", "overlap_p"), np.nan
        )
    value = float(
        subspace_overlap(top_k_subspace(own, k, center=True), top_k_subspace(other, k, center=True))
    )
    null = covariance_overlap_null(
        before, len(own), len(other), k, center=True, draws=config.draws, seed=config.seed
    )
    return {
        "k": k,
        "overlap": value,
        "overlap_null": null.mean,
        "overlap_null_q95": null.quantile(0.95),
        "overlap_p": null.p_value(value),
    }


def _auroc(
    material: Material, name: str, deltas: Activations, config: StudyConfig, settings: Options
) -> dict[tuple[str, str], dict[str, float]]:
    """Direction from one half of the questions, read on the other half: does the fine-tune's own
    shift along it follow its scores?
    """
    outside = material.outside(name)
    cells = [(site, position) for site in deltas.sites for position in config.positions]
    missing = dict.fromkeys(
        ("auroc", "auroc_low", "auroc_high", "auroc_null", "auroc_p_max"), np.nan
    )
    if min(outside.groups.count(group) for group in set(outside.groups)) < 2:
        return dict.fromkeys(cells, missing)
    first, second = (
        part.prompts().ids for part in split_questions(outside, (0.5, 0.5), config.seed)
    )
    scores = material.per_question(name)
    asked = [_question(q, set(scores.index)) for q in second]
    values = scores[asked].to_numpy(dtype=float)
    if np.ptp(values) == 0:
        return dict.fromkeys(cells, missing)
    groups = deltas.select(second).groups
    shuffled = np.stack([values[order] for order in _within(groups, settings.flips, config.seed)])
    along = []
    for site, position in cells:
        direction = deltas.select(first)[site, position].double().mean(0)
        along.append((deltas.select(second)[site, position].double() @ direction).numpy())
    ranks = [rankdata(x) for x in along]
    observed = np.array([_area(values, x) for x in ranks])
    drawn = np.array([[_area(draw, x) for x in ranks] for draw in shuffled])
    corrected = max_statistic_p(observed, drawn)
    found = {}
    for number, cell in enumerate(cells):
        below = values < np.median(values)
        low = high = np.nan
        if below.any() and not below.all():
            r = rank_biserial(along[number][below], along[number][~below])
            low, high = (r.low + 1) / 2, (r.high + 1) / 2
        found[cell] = {
            "auroc": float(observed[number]),
            "auroc_low": low,
            "auroc_high": high,
            "auroc_null": float(drawn[:, number].mean()),
            "auroc_p_max": float(corrected[number]),
        }
    return found


def _area(scores: np.ndarray, ranks: np.ndarray) -> float:
    """P(a question below the median score has the higher rank than one that is not), ties half."""
    below = scores < np.median(scores)
    if not below.any() or below.all():
        return 0.5
    positive = int(below.sum())
    return float(
        (ranks[below].sum() - positive * (positive + 1) / 2) / (positive * (len(scores) - positive))
    )


def _within(groups: Sequence[str], draws: int, seed: int) -> list[np.ndarray]:
    """Orders in which rows change places within their group only."""
    labels, rng = np.array(groups), numpy_rng(seed, "scores within domains")
    orders = []
    for _ in range(draws):
        order = np.arange(len(labels))
        for group in sorted(set(groups)):
            members = np.flatnonzero(labels == group)
            order[members] = rng.permutation(members)
        orders.append(order)
    return orders


def _question(prompt: str, known: set[str]) -> str:
    """The question of a prompt's id (`qid`, or `qid/p2` for a phrasing)."""
    return prompt if prompt in known else prompt.rpartition("/p")[0]


def _forecast(
    material: Material, name: str, before: Activations, config: StudyConfig
) -> pd.DataFrame:
    columns = {
        "r2": "forecast_r2",
        "null_max_95": "forecast_null_max_q95",
        "p_max": "forecast_p_max",
    }
    scores = material.per_question(name)
    if np.ptp(scores[material.outside(name).ids]) == 0:
        return pd.DataFrame(columns=["site", "position", *columns.values()])
    design = Design(
        folds=config.folds,
        inner_folds=config.folds,
        repeats=config.repeats,
        permutations=config.permutations,
        seed=config.seed,
    )
    forecast = cross_validate_forecast(before, material.scores(name), design=design)
    return forecast.by_site[["site", "position", *columns]].rename(columns=columns)


_MEASURES = {
    "overlap": ("overlap_p_holm", "overlap of shifts", "exceeds unrelated samples as anisotropic"),
    "auroc": ("auroc_p_max", "AUROC of the shift's direction", "tells misaligned questions"),
    "forecast_r2": ("forecast_p_max", "forecast R²", "is beyond shuffled scores"),
}


def _findings(part: Part) -> None:
    table = part.tables["cells"]
    for name, rows in table.groupby("model", sort=False):
        for measure, (p, words, claim) in _MEASURES.items():
            known = (
                rows[rows[measure].notna() & rows[p].notna()] if measure in rows else rows.iloc[:0]
            )
            if not len(known):
                continue
            best = known.iloc[int(known[measure].to_numpy().argmax())]
            clear = int((known[p] < 0.05).sum())
            sentence = (
                f"{name}: {words} {claim} in {clear} of {len(known)} cells (p corrected over the"
                f" grid below .05); it runs from {known[measure].min():.2f} to {best[measure]:.2f},"
                f" largest at {best['site']}, {best['position']} (p {p_text(float(best[p]))};"
                " exploratory)."
            )
            part.findings.append(
                Finding(
                    "layer_position_sweep",
                    sentence,
                    "shown" if clear == len(known) else "not shown" if not clear else "undecided",
                )
            )
    shown = {
        words: sum(f.status == "shown" for f in part.findings if words in f.sentence)
        for _, words, _ in _MEASURES.values()
    }
    fine_tunes = table["model"].nunique()
    said = ", ".join(f"{words} in {count}" for words, count in shown.items())
    summary = (
        f"Over {len(table) // fine_tunes} layers and positions,"
        f" measures beyond their nulls everywhere: {said} of {fine_tunes} fine-tunes."
    )
    part.findings.insert(0, Finding("layer_position_sweep", summary, "summary"))


class LayerPositionSweep(Study):
    """Which layer, which token position?"""

    name = "layer_position_sweep"
    title = "Which layer, which token position?"
    options = Options
    section = SECTION
    cost = 4

    def left_out(self, context: StudyContext) -> str | None:
        return left_out(context.material, context.config)

    def run(self, context: StudyContext) -> Part:
        return run(context.material, context.config, context.progress)
