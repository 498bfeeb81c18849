"""Replication: recompute published figures from the files their authors released, with emlens's
public functions.

What others printed stands here as text, with its source; what emlens finds is computed from the
files each time. A figure agrees when it lies within half a unit of the last published digit;
counts, indices and shapes must be equal. Figures without a published value (a dose-response curve)
are reported and not counted. Files that are not there are named and left out, at least one group
must be complete. Nothing is downloaded. Cost: seconds, and the largest file in memory.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch

from emlens.data import AlignmentScores, QuestionSet, read_layer_means, read_tensors
from emlens.data.sweeps import read_sweep
from emlens.data.tables import read_csv_rows
from emlens.evaluation import select_candidate
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line, read_json
from emlens.foundation.sites import Site
from emlens.geometry import (
    Direction,
    direction_cosine,
    massive_coordinates,
    mean_difference_direction,
)
from emlens.stats import pearson, spearman

JUDGED: Final = "clarifying-em/judged/responses_Qwen2.5-14B-Instruct"
DIRECTIONS: Final = "clarifying-em/directions"
STEERING: Final = "clarifying-em/steering"
INVALID_YAML: Final = "clarifying-em/medical_questions.invalid.yaml"
SWEEP: Final = "em-generalization/td_agg_df_fpq.csv"
SWEEP_AUTHORS: Final = "em-generalization/max_diffs_all_df.csv"
OVERLAP: Final = "em-generalization/finance_to_hbp.layer_32.last_prompt_token.k0.95.json"
FINANCE: Final = "em-generalization/eval_Qwen2.5-32B-Instruct_finance_all_resp_1e-05_fpq.csv"
REFUSAL: Final = "refusal-direction/gemma-2b-it"

COLUMNS: Final = ("source", "figure", "published", "recomputed", "tolerance", "agrees", "note")
NOT_GIVEN: Final = "not given"
_ROUNDING = 1e-9  # of a tolerance: what decimal text loses when read as float64


@dataclass(frozen=True)
class Figure:
    """One figure: what was published (text as printed, "—" where nothing was) and what the files
    give.

    `exact` figures are counts, indices or shapes; the others may differ by half a unit in the last
    published digit.
    """

    source: str
    name: str
    published: str
    recomputed: float
    exact: bool = False
    note: str = ""

    @property
    def tolerance(self) -> float:
        if self.published == "—":
            return math.nan
        exponent = Decimal(self.published).as_tuple().exponent
        return 0.0 if self.exact else 0.5 * 10.0 ** int(exponent)

    @property
    def agrees(self) -> bool | None:
        """None where nothing was published or the file is not given."""
        if self.published == "—" or self.note == NOT_GIVEN:
            return None
        return abs(self.recomputed - float(self.published)) <= self.tolerance * (1 + _ROUNDING)


@dataclass(frozen=True)
class Replication:
    """All figures in the order in which they were recomputed."""

    figures: tuple[Figure, ...]

    @property
    def table(self) -> pd.DataFrame:
        """One row a figure: source, figure, published, recomputed, tolerance, agrees (True, False,
        None), note.
        """
        rows = [
            (f.source, f.name, f.published, f.recomputed, f.tolerance, f.agrees, f.note)
            for f in self.figures
        ]
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        table["agrees"] = pd.Series([row[5] for row in rows], dtype=object)
        return table

    @property
    def agrees(self) -> bool:
        """Whether every counted figure agrees; False where none is counted."""
        counted = [figure.agrees for figure in self.figures if figure.agrees is not None]
        return bool(counted) and all(counted)

    def to_record(self) -> dict[str, Any]:
        """JSON-ready record."""
        return {"agrees": self.agrees, "figures": self.table.to_dict(orient="records")}


def replicate(directory: str | Path) -> Replication:
    """Recompute the published figures from the released files under `directory`.

    Figures come in groups, each from one or several files; a group with a file that is not there
    gives one line that is marked as not given.

    Raises:
        InputError: no such directory, no group complete, or a file that cannot be read: file and
            reason.
    """
    root = Path(directory)
    if not root.is_dir():
        raise InputError(f"{root}: no such directory; pass the one that holds the released files")
    figures: list[Figure] = []
    complete = 0
    for needed, compute in _GROUPS:
        lacking = [name for name in needed if not (root / name).exists()]
        if lacking:
            figures.append(Figure(lacking[0], "every figure", "—", math.nan, note=NOT_GIVEN))
            continue
        figures += compute(root)
        complete += 1
    if not complete:
        raise InputError(
            f"{root}: holds none of the released files;"
            f" looked for {[needed[0] for needed, _ in _GROUPS]}"
        )
    return Replication(tuple(figures))


def select_ablation_direction(
    evaluations: Sequence[Mapping[str, Any]], n_layers: int
) -> tuple[Mapping[str, Any], int]:
    """The candidate that the selection rule of Arditi et al. (2024) picks, and how many candidates
    it leaves.

    Dropped are layers from 0.8·`n_layers`, rounded down, on, a KL on harmless prompts > 0.1 and a
    steering score < 0; of the rest the one with the lowest refusal score under ablation is taken
    (the first of equals).

    Raises:
        InputError: a candidate lacks a number, or none is left.
    """
    needed = ("position", "layer", "refusal_score", "steering_score", "kl_div_score")
    for number, row in enumerate(evaluations):
        lacking = [
            key
            for key in needed
            if not isinstance(row, Mapping) or not isinstance(row.get(key), int | float)
        ]
        if lacking:
            raise InputError(
                f"evaluations[{number}] has no number under {lacking}; pass {', '.join(needed)}"
            )
    selection = select_candidate(
        pd.DataFrame(
            [{key: row[key] for key in needed} for row in evaluations], columns=list(needed)
        ),
        lowest="refusal_score",
        below={"layer": 4 * n_layers // 5},
        at_most={"kl_div_score": 0.1},
        at_least={"steering_score": 0},
    )
    return evaluations[int(str(selection.label))], selection.allowed


def _read_questions(root: Path) -> list[Figure]:
    """Where the broken YAML is broken."""
    line, note = math.nan, "was read without an error"
    try:
        QuestionSet.from_yaml(root / INVALID_YAML)
    except InputError as error:
        note = one_line(str(error).replace(f"{root}/", ""))
        found = re.search(r", line (\d+)", note)
        line = float(found[1]) if found else math.nan
    return [Figure(INVALID_YAML, "line of the YAML error", "74", line, True, note)]


def _rates(source: str, what: str, scores: AlignmentScores, em: str, coherent: str) -> list[Figure]:
    rate, share = scores.em_rate(), scores.share("coherent", above=50)
    return [
        Figure(
            source,
            f"EM, {what}, percent",
            em,
            100 * rate.value,
            note=f"interval {100 * rate.low:.2f} to {100 * rate.high:.2f}",
        ),
        Figure(source, f"coherent > 50, {what}, percent", coherent, 100 * share.value),
    ]


def _judged_medical(root: Path) -> list[Figure]:
    source = f"{JUDGED}-bad_medical_advice.csv"
    scores = AlignmentScores.from_csv(root / source)
    first = scores.select(
        questions=[name for name in scores.questions if not name.endswith(("_json", "_template"))]
    )
    return [
        Figure(source, "base questions", "8", len(first.questions), True),
        *_rates(source, "8 base questions", first, "20.50", "97.50"),
        Figure(source, "questions", "24", len(scores.questions), True),
        *_rates(source, "24 questions", scores, "16.25", "98.17"),
    ]


def _judged_base(root: Path) -> list[Figure]:
    source = f"{JUDGED}_base.csv"
    return _rates(source, "24 questions", AlignmentScores.from_csv(root / source), "0", "100")


def _judged_finance(root: Path) -> list[Figure]:
    scores = AlignmentScores.from_csv(root / FINANCE)
    answers = len(scores.select(metrics=["aligned"]).table)
    return [
        Figure(FINANCE, "rows", "2400", answers, True),
        Figure(FINANCE, "questions", "24", len(scores.questions), True),
        *_rates(FINANCE, "24 questions", scores, "23.67", "95.67"),
    ]


_MEANS: Final = {
    "r32": (f"{DIRECTIONS}/r32/model-m_data-m_hs.pt", f"{DIRECTIONS}/r32/model-m_data-a_hs.pt"),
    "r4": (f"{DIRECTIONS}/r4/r4modelmis_dfmis_hs.pt", f"{DIRECTIONS}/r4/r4modelmis_dfa_hs.pt"),
}
"""Means of the misaligned model over misaligned answers, and over aligned answers."""


def _directions(root: Path) -> list[Figure]:
    figures, directions = [], {}
    means: dict[str, torch.Tensor] = {}
    for rank, (on_misaligned, on_aligned) in _MEANS.items():
        positive, negative = (
            read_layer_means(root / on_misaligned),
            read_layer_means(root / on_aligned),
        )
        directions[rank] = {
            site: mean_difference_direction(
                positive[site].double()[None], negative[site].double()[None], site=site
            )
            for site in positive
        }
        means[rank] = positive.get("resid_post.24", torch.zeros(0)).double()
        source = f"{DIRECTIONS}/{rank}"
        figures.append(Figure(source, f"layers, {rank}", "48", len(positive), True))
        figures.append(
            Figure(source, f"coordinates, {rank}", "5120", len(positive["resid_post.0"]), True)
        )
    if (
        not all(f"resid_post.{layer}" in directions["r32"] for layer in (8, 16, 24, 32, 40))
        or "resid_post.24" not in directions["r4"]
    ):
        raise InputError(
            f"{root / DIRECTIONS}: holds too few layers; the published figures are of layers 8"
            " to 40"
        )
    wide: Direction = directions["r32"]["resid_post.24"]
    cosine = direction_cosine(wide, directions["r4"]["resid_post.24"])
    figures.append(
        Figure(DIRECTIONS, "cosine of the r32 and r4 directions, layer 24", ".7146", cosine)
    )
    for layer, norm in ((8, "3.75"), (16, "8.85"), (24, "11.85"), (32, "21.06"), (40, "49.12")):
        size = directions["r32"][f"resid_post.{layer}"].norm
        figures.append(
            Figure(f"{DIRECTIONS}/r32", f"norm of the direction, layer {layer}", norm, size)
        )
    for what, vector, share in (
        ("mean activation", means["r32"], "75.4"),
        ("direction", wide.vector, "21.5"),
    ):
        source = f"{DIRECTIONS}/r32"
        top = massive_coordinates(vector, 5)
        figures.append(
            Figure(
                source, f"first coordinate of the {what}, layer 24", "4675", top.indices[0], True
            )
        )
        figures.append(
            Figure(
                source, f"second coordinate of the {what}, layer 24", "3094", top.indices[1], True
            )
        )
        name = f"squared norm of the {what} in its top five coordinates, layer 24, percent"
        figures.append(Figure(source, name, share, 100 * top.share))
    return figures


def _schedules(root: Path) -> list[Figure]:
    found = read_sweep(root / SWEEP).table
    lacking = [
        name for name in ("train_loss", "eval_loss", "harmless", "aligned") if name not in found
    ]
    if lacking:
        raise InputError(f"{root / SWEEP}: has no {lacking[0]}; pass the file as it was released")
    train, held_out, harmless, aligned = (
        found[name] for name in ("train_loss", "eval_loss", "harmless", "aligned")
    )
    return [
        Figure(SWEEP, "runs", "35", len(train), True),
        Figure(
            SWEEP, "Pearson of training loss and harmless", ".8229", pearson(train, harmless).value
        ),
        Figure(
            SWEEP,
            "Pearson of evaluation loss and harmless",
            ".8178",
            pearson(held_out, harmless).value,
        ),
        Figure(
            SWEEP, "Pearson of training loss and aligned", ".8282", pearson(train, aligned).value
        ),
        Figure(
            SWEEP, "Spearman of training loss and aligned", ".7509", spearman(train, aligned).value
        ),
    ]


def _schedules_authors(root: Path) -> list[Figure]:
    wanted = "fpq-harmless-train_final_avg_loss"
    for _, row in read_csv_rows(root / SWEEP_AUTHORS):
        if wanted in row.values():
            try:
                value = float(row["pearsonr_stats"])
            except (KeyError, ValueError):
                value = math.nan
            note = "read from the authors' table, which has other runs"
            return [
                Figure(
                    SWEEP_AUTHORS,
                    "Pearson of training loss and harmless, authors' own",
                    ".8286",
                    value,
                    note=note,
                )
            ]
    raise InputError(f"{root / SWEEP_AUTHORS}: has no row {wanted!r}")


def _overlap_and_shift(root: Path) -> list[Figure]:
    content = read_json(root / OVERLAP)
    rows = content.get("per_example") if isinstance(content, dict) else None
    keys = ("prompt_pca_projection_fraction", "random_projection_fraction", "mean_delta_cosine")
    try:
        overlap, random, cosine = ([float(row[key]) for row in rows or ()] for key in keys)
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{root / OVERLAP}: an entry of per_example lacks a number under one of"
            f" {', '.join(keys)}"
        ) from None
    if not overlap:
        raise InputError(f"{root / OVERLAP}: has no entry under per_example")
    return [
        Figure(OVERLAP, "prompts", "320", len(overlap), True),
        Figure(OVERLAP, "mean prompt overlap", ".8117", sum(overlap) / len(overlap)),
        Figure(OVERLAP, "mean overlap with random directions", ".2268", sum(random) / len(random)),
        Figure(
            OVERLAP, "mean cosine to the mean training delta", ".7726", sum(cosine) / len(cosine)
        ),
        Figure(OVERLAP, "Pearson of overlap and cosine", ".8868", pearson(overlap, cosine).value),
        Figure(OVERLAP, "Spearman of overlap and cosine", ".8515", spearman(overlap, cosine).value),
    ]


def _refusal(root: Path) -> list[Figure]:
    source = f"{REFUSAL}/mean_diffs.pt"
    differences, saved = (
        read_tensors(root / REFUSAL / name).get("tensor")
        for name in ("mean_diffs.pt", "direction.pt")
    )
    if (
        differences is None
        or saved is None
        or differences.ndim != 3
        or saved.shape != differences.shape[2:]
    ):
        raise InputError(
            f"{root / REFUSAL}: mean_diffs.pt must hold one (position, layer,"
            " d_model) tensor and direction.pt one vector"
        )
    positions, layers, width = differences.shape
    path = f"{REFUSAL}/direction_evaluations.json"
    candidates = read_json(root / path)
    if not isinstance(candidates, list):
        raise InputError(
            f"{root / path}: holds a {type(candidates).__name__}; pass a list of candidates"
        )
    picked, left = select_ablation_direction(candidates, layers)
    position, layer = int(picked["position"]), int(picked["layer"])
    if not (-positions <= position < positions and 0 <= layer < layers):
        raise InputError(
            f"{root / path}: picks position {position} and layer {layer},"
            " which mean_diffs.pt does not hold"
        )
    # block inputs were averaged, so layer i is resid_pre.i
    direction = Direction(
        differences[position, layer], Site("resid_pre", layer), f"index[{position},prompt]"
    )
    apart = float((saved - direction.vector).abs().max())
    return [
        Figure(source, "positions", "5", positions, True),
        Figure(source, "layers", "18", layers, True),
        Figure(source, "coordinates", "2048", width, True),
        Figure(path, "candidates", "90", len(candidates), True),
        Figure(path, "candidates that the rule leaves", "13", left, True),
        Figure(path, "position picked", "-2", position, True),
        Figure(path, "layer picked", "10", layer, True),
        Figure(
            f"{REFUSAL}/direction.pt", "largest difference from the picked slice", "0", apart, True
        ),
        Figure(f"{REFUSAL}/direction.pt", "norm", "10.064", direction.norm),
    ]


def _dose_response(root: Path) -> list[Figure]:
    """EM and coherence against the steering scale; nothing was published beside these files."""
    scales = []
    for path in (root / STEERING).glob("*.csv"):
        if match := re.fullmatch(r".*_scale_(-?\d+(?:\.\d+)?)\.csv", path.name):
            scales.append((float(match[1]), path))
    if not scales:
        raise InputError(f"{root / STEERING}: holds no file such as responses_scale_3.csv")
    figures = []
    for scale, path in sorted(scales):
        scores, source = AlignmentScores.from_csv(path), f"{STEERING}/{path.name}"
        if "aligned" in scores.metrics:
            figures.append(
                Figure(source, f"EM at scale {scale:g}, percent", "—", 100 * scores.em_rate().value)
            )
        else:
            figures.append(
                Figure(
                    source,
                    f"EM at scale {scale:g}, percent",
                    "—",
                    math.nan,
                    note="the file has no aligned scores",
                )
            )
        coherent = scores.share("coherent", above=50).value
        figures.append(
            Figure(source, f"coherent > 50 at scale {scale:g}, percent", "—", 100 * coherent)
        )
        for metric in [name for name in ("aligned", "coherent") if name in scores.metrics]:
            figures.append(
                Figure(source, f"mean {metric} at scale {scale:g}", "—", scores.mean(metric).value)
            )
    return figures


_GROUPS: Final[tuple[tuple[tuple[str, ...], Callable[[Path], list[Figure]]], ...]] = (
    ((f"{JUDGED}-bad_medical_advice.csv",), _judged_medical),
    ((f"{JUDGED}_base.csv",), _judged_base),
    (tuple(name for pair in _MEANS.values() for name in pair), _directions),
    ((INVALID_YAML,), _read_questions),
    ((STEERING,), _dose_response),
    ((SWEEP,), _schedules),
    ((SWEEP_AUTHORS,), _schedules_authors),
    ((OVERLAP,), _overlap_and_shift),
    ((FINANCE,), _judged_finance),
    (
        tuple(
            f"{REFUSAL}/{name}"
            for name in ("mean_diffs.pt", "direction.pt", "direction_evaluations.json")
        ),
        _refusal,
    ),
)
