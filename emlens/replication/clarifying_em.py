"""Figures from the files of Cloakless/clarifying_EM: judged answers, directions of two organisms of
Qwen2.5-14B, steering, and a question file that is not valid YAML.
"""

import math
import re
from pathlib import Path
from typing import Final

import torch

from emlens.data import AlignmentScores, QuestionSet, read_layer_means
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.geometry import (
    Direction,
    direction_cosine,
    massive_coordinates,
    mean_difference_direction,
)
from emlens.replication.published_figures import NOT_PUBLISHED, Figure, Group, judged_rates

JUDGED: Final = "clarifying-em/judged/responses_Qwen2.5-14B-Instruct"
DIRECTIONS: Final = "clarifying-em/directions"
STEERING: Final = "clarifying-em/steering"
INVALID_YAML: Final = "clarifying-em/medical_questions.invalid.yaml"

_MEDICAL: Final = f"{JUDGED}-bad_medical_advice.csv"
_BASE: Final = f"{JUDGED}_base.csv"
_MEANS: Final = {
    "r32": (f"{DIRECTIONS}/r32/model-m_data-m_hs.pt", f"{DIRECTIONS}/r32/model-m_data-a_hs.pt"),
    "r4": (f"{DIRECTIONS}/r4/r4modelmis_dfmis_hs.pt", f"{DIRECTIONS}/r4/r4modelmis_dfa_hs.pt"),
}
"""Means of the misaligned model over misaligned answers, and over aligned answers."""
_NORMS: Final = {8: "3.75", 16: "8.85", 24: "11.85", 32: "21.06", 40: "49.12"}
"""Layer → published norm of the r32 direction."""


def _judged_medical(root: Path) -> list[Figure]:
    scores = AlignmentScores.from_file(root / _MEDICAL)
    base_questions = [
        name for name in scores.questions if not name.endswith(("_json", "_template"))
    ]
    base = scores.select(questions=base_questions)
    return [
        Figure(
            _MEDICAL,
            "base questions",
            "8",
            len(base.questions),
            True,
            function="AlignmentScores.select",
        ),
        *judged_rates(_MEDICAL, "8 base questions", base, "20.50", "97.50"),
        Figure(
            _MEDICAL,
            "questions",
            "24",
            len(scores.questions),
            True,
            function="AlignmentScores.from_file",
        ),
        *judged_rates(_MEDICAL, "24 questions", scores, "16.25", "98.17"),
    ]


def _judged_base(root: Path) -> list[Figure]:
    return judged_rates(_BASE, "24 questions", AlignmentScores.from_file(root / _BASE), "0", "100")


def _read_questions(root: Path) -> list[Figure]:
    """Where the broken YAML is broken."""
    line, note = math.nan, "was read without an error"
    try:
        QuestionSet.from_yaml(root / INVALID_YAML)
    except InputError as error:
        note = one_line(str(error).replace(f"{root}/", ""))
        match = re.search(r", line (\d+)", note)
        line = float(match[1]) if match else math.nan
    function = "QuestionSet.from_yaml"
    return [Figure(INVALID_YAML, "line of the YAML error", "74", line, True, note, function)]


def _directions(root: Path) -> list[Figure]:
    figures: list[Figure] = []
    directions: dict[str, dict[str, Direction]] = {}
    means: dict[str, torch.Tensor] = {}
    for rank, (misaligned_file, aligned_file) in _MEANS.items():
        misaligned = read_layer_means(root / misaligned_file)
        aligned = read_layer_means(root / aligned_file)
        directions[rank] = {}
        for site in misaligned:
            # each file holds one mean per layer, which counts as one row here
            directions[rank][site] = mean_difference_direction(
                misaligned[site].double()[None], aligned[site].double()[None], site=site
            )
        means[rank] = misaligned.get("resid_post.24", torch.zeros(0)).double()
        source = f"{DIRECTIONS}/{rank}"
        width = len(misaligned["resid_post.0"])
        for what, published, value in (
            ("layers", "48", len(misaligned)),
            ("coordinates", "5120", width),
        ):
            name = f"{what}, {rank}"
            figures.append(
                Figure(source, name, published, value, True, function="read_layer_means")
            )
    _require_layers(root, directions)
    r32 = directions["r32"]
    cosine = direction_cosine(r32["resid_post.24"], directions["r4"]["resid_post.24"])
    figures.append(
        Figure(
            DIRECTIONS,
            "cosine of the r32 and r4 directions, layer 24",
            ".7146",
            cosine,
            function="direction_cosine",
        )
    )
    source = f"{DIRECTIONS}/r32"
    for layer, norm in _NORMS.items():
        size = r32[f"resid_post.{layer}"].norm
        name = f"norm of the direction, layer {layer}"
        figures.append(Figure(source, name, norm, size, function="mean_difference_direction"))
    figures += _massive(source, "mean activation", means["r32"], "75.4")
    figures += _massive(source, "direction", r32["resid_post.24"].vector, "21.5")
    return figures


def _require_layers(root: Path, directions: dict[str, dict[str, Direction]]) -> None:
    has_layers = all(f"resid_post.{layer}" in directions["r32"] for layer in _NORMS)
    if not has_layers or "resid_post.24" not in directions["r4"]:
        raise InputError(
            f"{root / DIRECTIONS}: holds too few layers;"
            " the published figures are of layers 8 to 40"
        )


def _massive(source: str, what: str, vector: torch.Tensor, share: str) -> list[Figure]:
    """The largest coordinates of a vector at layer 24, and their share of its squared norm."""
    top = massive_coordinates(vector, 5)
    first, second = top.indices[0], top.indices[1]
    name = f"squared norm of the {what} in its top five coordinates, layer 24, percent"
    function = "massive_coordinates"
    return [
        Figure(
            source,
            f"first coordinate of the {what}, layer 24",
            "4675",
            first,
            True,
            function=function,
        ),
        Figure(
            source,
            f"second coordinate of the {what}, layer 24",
            "3094",
            second,
            True,
            function=function,
        ),
        Figure(source, name, share, 100 * top.share, function=function),
    ]


def _dose_response(root: Path) -> list[Figure]:
    """EM and coherence against the steering scale; nothing was published beside these files."""
    doses = []
    for path in (root / STEERING).glob("*.csv"):
        if match := re.fullmatch(r".*_scale_(-?\d+(?:\.\d+)?)\.csv", path.name):
            doses.append((float(match[1]), path))
    if not doses:
        raise InputError(f"{root / STEERING}: holds no file such as responses_scale_3.csv")
    figures = []
    for scale, path in sorted(doses):
        figures += _at_dose(f"{STEERING}/{path.name}", scale, AlignmentScores.from_file(path))
    return figures


def _at_dose(source: str, scale: float, scores: AlignmentScores) -> list[Figure]:
    def figure(name: str, value: float, note: str = "") -> Figure:
        return Figure(source, name, NOT_PUBLISHED, value, note=note)

    em = f"EM at scale {scale:g}, percent"
    figures = [figure(em, math.nan, "the file has no aligned scores")]
    if "aligned" in scores.metrics:
        figures = [figure(em, 100 * scores.em_rate().value)]
    coherent = scores.share("coherent", above=50).value
    figures.append(figure(f"coherent > 50 at scale {scale:g}, percent", 100 * coherent))
    for metric in ("aligned", "coherent"):
        if metric in scores.metrics:
            figures.append(figure(f"mean {metric} at scale {scale:g}", scores.mean(metric).value))
    return figures


GROUPS: Final = (
    Group((_MEDICAL,), _judged_medical),
    Group((_BASE,), _judged_base),
    Group(tuple(name for pair in _MEANS.values() for name in pair), _directions),
    Group((INVALID_YAML,), _read_questions),
    Group((STEERING,), _dose_response),
)
