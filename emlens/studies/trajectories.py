"""What one run's kept checkpoints show, on one time axis: parameters, activations, behaviour.

Adapters are read from the folder that `fit(..., saving=Saving(keep_every=n))` leaves
(`checkpoints/step-00001`) or from that of a Hugging Face trainer (`checkpoint-100`). Step 0 is the
parent: an update of 0. Activations and behaviour are measured checkpoint by checkpoint, and each is
kept once it is measured. The final shift and its subspace come from one half of the questions, what
is projected on them from the other, so that they share no noise. Refused: checkpoints that are no
LoRA adapters, or not all of one shape. Cost: a capture and a scoring a checkpoint.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.activations import capture
from emlens.data import QuestionSet
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.files import read_json
from emlens.geometry import path_gram, projection_fraction, top_k_subspace, weight_update
from emlens.geometry.trajectories import (
    cosine_to_final,
    path_norms,
    spectrum_flatness,
    summed,
    update_gram,
)
from emlens.interventions.lora import CONFIG, LoraAdapter
from emlens.judging import score_by_likelihood
from emlens.models import FineTune, HookedModel
from emlens.models.families import attach
from emlens.stats import t_interval
from emlens.training.adapters import kept_adapters
from emlens.training.fitting import LOG

_TRAINER_STATE = "trainer_state.json"
_HF_NAME: Final = re.compile(r"checkpoint-(\d+)")
_PLAIN_START: Final = (True, "gaussian", "true", "True", None)
"""`init_lora_weights` with which B starts at 0."""


def checkpoints_of(folder: str | Path) -> dict[int, Path]:
    """Step → adapter directory, in order; empty where a folder keeps none.

    `folder` is the run's: that which `fit` made, or a trainer's output directory; one of its own
    checkpoints stands for it.
    """
    path = Path(folder)
    if _HF_NAME.fullmatch(path.name):
        path = path.parent
    found = kept_adapters(path)
    if not found:
        named = {
            int(match[1]): p
            for p in path.glob("checkpoint-*")
            if (match := _HF_NAME.fullmatch(p.name))
        }
        found = {step: p for step, p in sorted(named.items()) if (p / CONFIG).is_file()}
    return found


def cumulative_rates(folder: str | Path, steps: Sequence[int]) -> np.ndarray | None:
    """Sum of the learning rates of all steps up to each of `steps`, from the run's own log; None
    where it has none.

    Steps between two logged ones are interpolated.
    """
    path = Path(folder)
    if _HF_NAME.fullmatch(path.name):
        path = path.parent
    logged: list[tuple[int, float]] = []
    if (path / LOG).is_file():
        table = pd.read_csv(path / LOG)
        if {"step", "learning_rate"} <= set(table.columns):
            logged = [
                (int(s), float(r))
                for s, r in zip(table["step"], table["learning_rate"], strict=True)
            ]
    else:
        last = next(
            (
                p
                for p in reversed(list(checkpoints_of(path).values()))
                if (p / _TRAINER_STATE).is_file()
            ),
            None,
        )
        history = [] if last is None else read_json(last / _TRAINER_STATE).get("log_history", [])
        logged = [
            (int(row["step"]), float(row["learning_rate"]))
            for row in history
            if "learning_rate" in row and "step" in row
        ]
    if not logged:
        return None
    at, rates = zip(*sorted(logged), strict=True)
    each = np.interp(np.arange(1, max(steps) + 1), at, rates)
    return np.concatenate([[0.0], each.cumsum()])[list(steps)]


@dataclass(frozen=True, eq=False)
class Parameters:
    """The adapter along a run; row 0 is step 0.

    Args:
        steps: of the rows.
        norms: table with columns step, norm_A (`nan` at step 0, which was not kept), norm_B,
            norm_BA, flatness, cosine_to_final.
        b, update: Gram matrices of the path of all B, stacked, and of all scale · BA.
    """

    steps: tuple[int, ...]
    norms: pd.DataFrame
    b: Float[Tensor, "step step"]
    update: Float[Tensor, "step step"]


def read_parameters(checkpoints: Mapping[int, Path]) -> Parameters:
    """Norms, flatness and the Gram matrices of a run's adapters; BA is never formed.

    The norms of A and B are those of the run's own gauge; only that of BA does not depend on it.
    flatness: mean over modules of the entropy measure, `nan` for rank 1.

    Raises:
        InputError: fewer than 2 checkpoints, adapters of other modules or shapes, or an adapter
            that does not start at 0.
        LoadError: a directory that holds no LoRA adapter.
    """
    if len(checkpoints) < 2:
        raise InputError(
            f"checkpoints holds {len(checkpoints)}; a trajectory needs 2 or more,"
            " kept with fit(..., saving=Saving(keep_every=n))"
        )
    adapters = {step: LoraAdapter.load(path) for step, path in checkpoints.items()}
    first = next(iter(adapters.values()))
    shapes = {
        name: (tuple(f.a.shape), tuple(f.b.shape), f.scale) for name, f in first.modules.items()
    }
    for step, adapter in adapters.items():
        if {
            name: (tuple(f.a.shape), tuple(f.b.shape), f.scale)
            for name, f in adapter.modules.items()
        } != shapes:
            raise InputError(
                f"the adapter at step {step} has other modules, shapes or scales than the first;"
                " pass the checkpoints of one run"
            )
    if first.config.get("init_lora_weights", True) not in _PLAIN_START:
        raise InputError(
            f"init_lora_weights={first.config.get('init_lora_weights')!r}:"
            " such an adapter does not start at 0, so its update is not what training did;"
            " convert it to plain LoRA"
        )
    paths, updates, flat = [], [], []
    squares = {"A": np.zeros(len(adapters)), "B": np.zeros(len(adapters))}
    for name, (_, _, scale) in shapes.items():
        a = torch.stack([adapter[name].a.double() for adapter in adapters.values()])
        b = torch.stack([adapter[name].b.double() for adapter in adapters.values()])
        updates.append(update_gram(a, b, scale))
        paths.append(path_gram(b.flatten(1)))
        for side, factor in (("A", a), ("B", b)):
            squares[side] += factor.square().sum((1, 2)).numpy()
        if a.shape[1] > 1:
            flat.append(
                [
                    (
                        float(spectrum_flatness(weight_update(x, y).singular_values))
                        if bool(y.any())
                        else np.nan
                    )
                    for x, y in zip(a, b, strict=True)
                ]
            )
    path, update = _with_zero(summed(paths)), _with_zero(summed(updates))
    columns = {
        "step": [0, *checkpoints],
        "norm_A": [np.nan, *np.sqrt(squares["A"])],
        "norm_B": [0.0, *np.sqrt(squares["B"])],
        "norm_BA": path_norms(update).tolist(),
        "flatness": [np.nan, *(np.mean(flat, axis=0) if flat else np.full(len(adapters), np.nan))],
        "cosine_to_final": cosine_to_final(update).tolist(),
    }
    return Parameters((0, *checkpoints), pd.DataFrame(columns), path, update)


def _with_zero(gram: Tensor) -> Tensor:
    return torch.nn.functional.pad(gram, (1, 0, 1, 0))


@dataclass(frozen=True, eq=False)
class Halves:
    """The parent's activations on both halves of the questions, and where the run ended, by layer
    (from the first half).

    Args:
        before: layer × row × d, of the second half.
        direction: layer × d, the mean final shift; a row of zeros where nothing moved.
        bases: one a layer, (d, k): the top uncentred directions of the final shifts; None where
            nothing moved.
        ordinary: share of the parent's own spread that lies in that subspace, by layer: the control
            of the overlap.
    """

    first: QuestionSet
    second: QuestionSet
    before: Tensor
    direction: Tensor
    bases: tuple[Any, ...]
    ordinary: tuple[float, ...]


def final_shift(
    parent: HookedModel, final: Path, questions: QuestionSet, *, k: int, position: str
) -> Halves:
    """Where a run ended, by layer. Every second question of a group goes into either half."""
    seen: dict[str, int] = {}
    halves: tuple[list[Any], list[Any]] = ([], [])
    for question in questions:
        halves[seen.get(question.group, 0) % 2].append(question)
        seen[question.group] = seen.get(question.group, 0) + 1
    first, second = QuestionSet(halves[0]), QuestionSet(halves[1])
    before = {
        half: _states(parent, questions, position)
        for half, questions in (("first", first), ("second", second))
    }
    with applied_adapter(parent, final) as model:
        shifts = _states(model, first, position) - before["first"]
    bases: list[Any] = []
    ordinary: list[float] = []
    for layer, rows in enumerate(shifts):
        if not bool(rows.any()):
            bases.append(None)
            ordinary.append(np.nan)
            continue
        rank = top_k_subspace(rows, 1, center=False).rank
        space = top_k_subspace(rows, min(k, rank), center=False)
        held = before["second"][layer]
        bases.append(space)
        ordinary.append(
            float(projection_fraction(held - held.mean(0), space, centred=False).mean())
        )
    return Halves(first, second, before["second"], shifts.mean(1), tuple(bases), tuple(ordinary))


def measure_activations(
    model: HookedModel, halves: Halves, *, position: str
) -> list[dict[str, Any]]:
    """One row a layer: length of the mean shift, its projection on the final one (1: as far as it),
    overlap with the final subspace.

    `projection` and `overlap` carry 95 % t intervals over questions; `overlap` is the mean share of
    a question's shift that lies in the final subspace, `overlap_null` the same of the parent's own
    spread.
    """
    shifts = _states(model, halves.second, position) - halves.before
    rows: list[dict[str, Any]] = []
    for layer, moved in enumerate(shifts):
        space, final = halves.bases[layer], halves.direction[layer]
        if space is None:
            continue
        along = moved @ final / final.square().sum()
        row: dict[str, Any] = {
            "layer": layer,
            "delta_norm": float(moved.mean(0).norm()),
            "final_norm": float(final.norm()),
            "k": space.k,
        }
        row |= _columns("projection", _mean(along.numpy()))
        some = moved[moved.norm(dim=1) > 0]
        inside = (
            projection_fraction(some, space, centred=False).numpy()
            if len(some) > 1
            else np.empty(0)
        )
        row |= _columns("overlap", _mean(inside)) | {"overlap_null": halves.ordinary[layer]}
        rows.append(row)
    return rows


def measure_behaviour(
    model: HookedModel, questions: QuestionSet, domain: str
) -> list[dict[str, Any]]:
    """One row a metric and group of questions: each domain, `own`, and `others` (all domains but
    the own, interval over domains).

    Scores on 0 to 100; 95 % t intervals over questions elsewhere.
    """
    scores = score_by_likelihood(model, questions)
    groups = pd.Series(questions.groups, index=questions.ids)
    rows: list[dict[str, Any]] = []
    for metric in ("aligned", "coherent"):
        values = scores.per_question(metric)
        by_domain = {
            str(name): values[part.index].to_numpy() for name, part in groups.groupby(groups)
        }
        rows += [
            {"metric": metric, "of": "domain", "domain": name, **_columns("value", _mean(found))}
            for name, found in by_domain.items()
        ]
        others = [found for name, found in by_domain.items() if name != domain]
        if domain in by_domain:
            rows.append(
                {
                    "metric": metric,
                    "of": "own",
                    "domain": domain,
                    **_columns("value", _mean(by_domain[domain])),
                }
            )
        if others:
            means = (
                np.array([found.mean() for found in others])
                if len(others) > 2
                else np.concatenate(others)
            )
            rows.append(
                {"metric": metric, "of": "others", "domain": "", **_columns("value", _mean(means))}
            )
    return rows


@contextmanager
def applied_adapter(parent: HookedModel, path: Path) -> Iterator[HookedModel]:
    """The parent with an adapter on it inside the block; one whose B is 0 is the parent itself."""
    if not any(bool(factors.b.any()) for factors in LoraAdapter.load(path).modules.values()):
        yield parent
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted")
        model = attach(
            parent, f"{path.parent.parent.name}/{path.name}", FineTune(path, check_base=False)
        )
        try:
            yield model
        finally:
            model.bank.detach(str(model.adapter))


def _states(model: HookedModel, questions: QuestionSet, position: str) -> Tensor:
    """Stream after every block, (layer, row, d) in float64."""
    return (
        capture(model, questions, sites="resid_post", positions=position, progress=False)
        .stacked()
        .double()
    )


def _mean(values: np.ndarray) -> Estimate:
    """Mean with a t interval; without one where a single value, or values without spread, give
    none.
    """
    if len(values) < 2 or np.ptp(values) == 0:
        value = float(values.mean()) if len(values) else np.nan
        return Estimate(
            value, np.nan, np.nan, len(values), "mean, too few values or no spread for an interval"
        )
    return t_interval(values)


def _columns(name: str, found: Estimate) -> dict[str, float | None]:
    """JSON-ready: `nan` becomes None."""
    values = {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return {key: None if np.isnan(value) else float(value) for key, value in values.items()}
