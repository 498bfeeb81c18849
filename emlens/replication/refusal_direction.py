"""Figures from the files of andyrdt/refusal_direction: which of 90 candidate directions of
gemma-2b-it the selection rule of Arditi et al. (2024) picks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from emlens.data import read_tensors
from emlens.evaluation import select_candidate
from emlens.foundation.errors import InputError
from emlens.foundation.files import read_json
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.replication.published_figures import Figure, Group

REFUSAL: Final = "refusal-direction/gemma-2b-it"
_KEYS: Final = ("position", "layer", "refusal_score", "steering_score", "kl_div_score")


def select_ablation_direction(
    evaluations: Sequence[Mapping[str, Any]], n_layers: int
) -> tuple[Mapping[str, Any], int]:
    """The candidate that the rule of Arditi et al. (2024) picks, and how many it leaves.

    Dropped are layers from 0.8·`n_layers`, rounded down, on, a KL on harmless prompts > 0.1 and a
    steering score < 0; among the others the one with the lowest refusal score under ablation is
    taken (the first of equals).

    Raises:
        InputError: a candidate lacks a number, or none is left.
    """
    rows = []
    for number, candidate in enumerate(evaluations):
        missing = _missing_numbers(candidate)
        if missing:
            raise InputError(
                f"evaluations[{number}] has no number under {missing}; pass {', '.join(_KEYS)}"
            )
        rows.append({key: candidate[key] for key in _KEYS})
    selection = select_candidate(
        pd.DataFrame(rows, columns=list(_KEYS)),
        lowest="refusal_score",
        below={"layer": 4 * n_layers // 5},
        at_most={"kl_div_score": 0.1},
        at_least={"steering_score": 0},
    )
    return evaluations[int(str(selection.label))], selection.allowed


def _missing_numbers(candidate: Any) -> list[str]:
    if not isinstance(candidate, Mapping):
        return list(_KEYS)
    return [key for key in _KEYS if not isinstance(candidate.get(key), int | float)]


def _refusal(root: Path) -> list[Figure]:
    differences = read_tensors(root / REFUSAL / "mean_diffs.pt").get("tensor")
    saved = read_tensors(root / REFUSAL / "direction.pt").get("tensor")
    has_shapes = (
        differences is not None
        and saved is not None
        and differences.ndim == 3
        and saved.shape == differences.shape[2:]
    )
    if differences is None or saved is None or not has_shapes:
        raise InputError(
            f"{root / REFUSAL}: mean_diffs.pt must hold one (position, layer, d_model) tensor"
            " and direction.pt one vector"
        )
    positions, layers, width = differences.shape
    path = f"{REFUSAL}/direction_evaluations.json"
    candidates = read_json(root / path)
    if not isinstance(candidates, list):
        raise InputError(
            f"{root / path}: holds a {type(candidates).__name__}; pass a list of candidates"
        )
    picked, n_allowed = select_ablation_direction(candidates, layers)
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
    gap = float((saved - direction.vector).abs().max())
    source, saved_source = f"{REFUSAL}/mean_diffs.pt", f"{REFUSAL}/direction.pt"
    shape = (
        ("positions", "5", positions),
        ("layers", "18", layers),
        ("coordinates", "2048", width),
    )
    choice = (
        ("candidates", "90", len(candidates)),
        ("candidates that the rule leaves", "13", n_allowed),
        ("position picked", "-2", position),
        ("layer picked", "10", layer),
    )
    return [
        *(Figure(source, *figure, True, function="read_tensors") for figure in shape),
        *(Figure(path, *figure, True, function="select_candidate") for figure in choice),
        Figure(
            saved_source,
            "largest difference from the picked slice",
            "0",
            gap,
            True,
            function="read_tensors",
        ),
        Figure(saved_source, "norm", "10.064", direction.norm, function="Direction.norm"),
    ]


GROUPS: Final = (
    Group(
        (
            f"{REFUSAL}/mean_diffs.pt",
            f"{REFUSAL}/direction.pt",
            f"{REFUSAL}/direction_evaluations.json",
        ),
        _refusal,
    ),
)
