"""What the checkpoints of one run show, on one time axis: parameters, activations, behaviour.

Adapters are read from the folder that `fit(..., saving=Saving(keep_every=n))` leaves
(`checkpoints/step-00001`) or from that of a Hugging Face trainer (`checkpoint-100`). Step 0 is the
parent: an update of 0. The final shift and its subspace come from one half of the questions, what
is projected on them from the other half, so that they share no noise. Refused: checkpoints that are
no LoRA adapters, or not all of one shape. Cost: a capture and a scoring per checkpoint.
"""

import re
import warnings
from collections import Counter
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
from emlens.data import Question, QuestionSet
from emlens.data.base_questions import base_question, by_base_question
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.files import read_json
from emlens.foundation.notebooks import Brief
from emlens.geometry import Subspace, projection_fraction, top_k_subspace, weight_update
from emlens.geometry.components import ComponentCount
from emlens.geometry.trajectories import (
    cosine_to_final,
    path_gram,
    path_norms,
    spectrum_flatness,
    summed,
    update_gram,
)
from emlens.interventions.lora import LoraAdapter
from emlens.judging.score_source import ScoreSource
from emlens.models import HookedModel
from emlens.models.adapter_files import CONFIG
from emlens.models.attaching import attach
from emlens.results.study_result import columns_of
from emlens.stats import t_interval
from emlens.training.adapters import kept_adapters
from emlens.training.fitting import LOG

_TRAINER_STATE = "trainer_state.json"
_HF_NAME: Final = re.compile(r"checkpoint-(\d+)")
_PLAIN_START: Final = (True, "gaussian", "true", "True", None)
"""`init_lora_weights` with which B starts at 0."""


def checkpoints_of(folder: str | Path) -> dict[int, Path]:
    """Step → adapter directory, in the order of the steps; empty where a folder has none.

    Args:
        folder: the run's directory, which `fit` made, or a trainer's output directory; one of the
            trainer's checkpoints stands for the run.
    """
    path = _run_directory(folder)
    adapters = kept_adapters(path)
    if adapters:
        return adapters
    for checkpoint in path.glob("checkpoint-*"):
        name = _HF_NAME.fullmatch(checkpoint.name)
        if name and (checkpoint / CONFIG).is_file():
            adapters[int(name[1])] = checkpoint
    return dict(sorted(adapters.items()))


def _run_directory(folder: str | Path) -> Path:
    path = Path(folder)
    return path.parent if _HF_NAME.fullmatch(path.name) else path


def cumulative_rates(folder: str | Path, steps: Sequence[int]) -> np.ndarray | None:
    """Sum of the learning rates of all steps up to each of `steps`, from the run's log; None where
    it has none.

    Steps between two logged ones are interpolated.
    """
    path = _run_directory(folder)
    logged = _rates_of_fit(path) if (path / LOG).is_file() else _rates_of_trainer(path)
    if not logged:
        return None
    logged_steps, rates = zip(*sorted(logged), strict=True)
    per_step = np.interp(np.arange(1, max(steps) + 1), logged_steps, rates)
    return np.concatenate([[0.0], per_step.cumsum()])[list(steps)]


def _rates_of_fit(path: Path) -> list[tuple[int, float]]:
    """(step, learning rate) from the table that `fit` writes."""
    table = pd.read_csv(path / LOG)
    if not {"step", "learning_rate"} <= set(table.columns):
        return []
    steps, rates = table["step"].astype(int), table["learning_rate"].astype(float)
    return list(zip(steps, rates, strict=True))


def _rates_of_trainer(path: Path) -> list[tuple[int, float]]:
    """(step, learning rate) from the state that a trainer wrote into its last checkpoint."""
    states = [checkpoint / _TRAINER_STATE for checkpoint in checkpoints_of(path).values()]
    states = [state for state in states if state.is_file()]
    if not states:
        return []
    state = read_json(states[-1])
    try:
        history = state.get("log_history", [])
        # the last entry sums the run up and has no rate
        return [
            (int(row["step"]), float(row["learning_rate"]))
            for row in history
            if "learning_rate" in row and "step" in row
        ]
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise InputError(
            f"{states[-1]}: log_history is no list of steps with numbers; remove the file, and the"
            " rates are left out"
        ) from None


@dataclass(frozen=True, eq=False, repr=False)
class Parameters(Brief):
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
    _require_one_run(adapters)
    first = next(iter(adapters.values()))
    paths, updates, flatness = [], [], []
    squares_a, squares_b = np.zeros(len(adapters)), np.zeros(len(adapters))
    for module, factors in first.modules.items():
        a = torch.stack([adapter[module].a.double() for adapter in adapters.values()])
        b = torch.stack([adapter[module].b.double() for adapter in adapters.values()])
        # ⟨B₁A₁, B₂A₂⟩ = tr(A₁ᵀB₁ᵀB₂A₂): inner products of updates without forming one
        updates.append(update_gram(a, b, factors.scale))
        paths.append(path_gram(b.flatten(1)))
        squares_a += a.square().sum((1, 2)).numpy()
        squares_b += b.square().sum((1, 2)).numpy()
        if a.shape[1] > 1:
            flatness.append([_flatness(*pair) for pair in zip(a, b, strict=True)])
    mean_flatness = np.full(len(adapters), np.nan)
    if flatness:
        mean_flatness = np.mean(flatness, axis=0)
    path, update = _with_zero(summed(paths)), _with_zero(summed(updates))
    norms = pd.DataFrame(
        {
            "step": [0, *checkpoints],
            "norm_A": [np.nan, *np.sqrt(squares_a)],
            "norm_B": [0.0, *np.sqrt(squares_b)],
            "norm_BA": path_norms(update).tolist(),
            "flatness": [np.nan, *mean_flatness],
            "cosine_to_final": cosine_to_final(update).tolist(),
        }
    )
    return Parameters((0, *checkpoints), norms, path, update)


def _require_one_run(adapters: Mapping[int, LoraAdapter]) -> None:
    """Raises:
    InputError: adapters that differ in more than their values, or that do not start at 0.
    """
    first = next(iter(adapters.values()))
    for step, adapter in adapters.items():
        if _shapes(adapter) != _shapes(first):
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


def _shapes(adapter: LoraAdapter) -> dict[str, tuple[object, ...]]:
    return {
        module: (tuple(factors.a.shape), tuple(factors.b.shape), factors.scale)
        for module, factors in adapter.modules.items()
    }


def _flatness(a: Tensor, b: Tensor) -> float:
    """Entropy measure of the singular values of BA; `nan` where B is 0."""
    if not bool(b.any()):
        return np.nan
    return float(spectrum_flatness(weight_update(a, b).singular_values))


def _with_zero(gram: Tensor) -> Tensor:
    """A Gram matrix with the update 0 of step 0 before it."""
    return torch.nn.functional.pad(gram, (1, 0, 1, 0))


@dataclass(frozen=True, eq=False, repr=False)
class Halves(Brief):
    """The parent's activations on both halves of the questions, and where the run ended, by layer
    (from the first half).

    Args:
        before: layer × row × d, of the second half.
        direction: layer × d, the mean final shift; a row of zeros where nothing moved.
        bases: one per layer, (d, k): the top uncentred directions of the final shifts; None where
            nothing moved, or where k is the elbow and they have none.
        ordinary: share of the parent's own spread that lies in that subspace, by layer: the control
            of the overlap.
        layers: the block that each of them is read after.
    """

    layers: tuple[int, ...]
    first: QuestionSet
    second: QuestionSet
    before: Tensor
    direction: Tensor
    bases: tuple[Subspace | None, ...]
    ordinary: tuple[float, ...]


def final_shift(
    parent: HookedModel,
    final: Path,
    questions: QuestionSet,
    *,
    k: ComponentCount,
    position: str,
    layers: Sequence[int] | None = None,
) -> Halves:
    """Where a run ended, by layer, from half of the questions.

    Args:
        k: dimension of the final subspaces; a share or the elbow is that of this half's shifts.
        layers: blocks whose output is read; None: all of them.
    """
    first, second = halved(questions)
    read = tuple(range(parent.n_layers) if layers is None else layers)
    before_first = _states(parent, first, position, read)
    before_second = _states(parent, second, position, read)
    with applied_adapter(parent, final) as model:
        shifts = _states(model, first, position, read) - before_first
    bases: list[Subspace | None] = []
    ordinary: list[float] = []
    for number, rows in enumerate(shifts):
        if not bool(rows.any()):
            bases.append(None)
            ordinary.append(np.nan)
            continue
        # uncentred: the common shift is what the run is followed along
        space = _final_subspace(rows, k)
        if space is None:
            bases.append(None)
            ordinary.append(np.nan)
            continue
        before = before_second[number]
        shares = projection_fraction(before - before.mean(0), space, centred=False)
        bases.append(space)
        ordinary.append(float(shares.mean()))
    return Halves(read, first, second, before_second, shifts.mean(1), tuple(bases), tuple(ordinary))


def _final_subspace(shifts: Tensor, k: ComponentCount) -> Subspace | None:
    """The top uncentred directions of final shifts; None where k is the elbow and there is none."""
    try:
        rank = top_k_subspace(shifts, 1, center=False).rank
        return top_k_subspace(shifts, min(k, rank) if isinstance(k, int) else k, center=False)
    except InputError:
        return None


def halved(questions: QuestionSet) -> tuple[QuestionSet, QuestionSet]:
    """Two halves of the questions: within a group, every second base question goes into the second
    half, with all its forms. Groups of one base question are taken together.

    Raises:
        InputError: one base question.
    """
    of_base: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        of_base.setdefault((question.group, base_question(question.id)), []).append(question)
    sizes = Counter(group for group, _ in of_base)
    halves: tuple[list[Question], list[Question]] = ([], [])
    counts: Counter[str | None] = Counter()
    for (group, _), forms in of_base.items():
        together = group if sizes[group] > 1 else None
        halves[counts[together] % 2].extend(forms)
        counts[together] += 1
    if not halves[1]:
        raise InputError("one base question cannot be halved; pass two or more")
    return QuestionSet(halves[0]), QuestionSet(halves[1])


def measure_activations(
    model: HookedModel, halves: Halves, *, position: str
) -> list[dict[str, Any]]:
    """One row per layer: length of the mean shift, its projection on the final one (1: as far as
    it), overlap with the final subspace.

    `projection` and `overlap` carry 95 % t intervals over questions; `overlap` is the mean share of
    a question's shift that lies in the final subspace, `overlap_null` the same of the parent's own
    spread.
    """
    shifts = _states(model, halves.second, position, halves.layers) - halves.before
    rows: list[dict[str, Any]] = []
    for number, moved in enumerate(shifts):
        space, final = halves.bases[number], halves.direction[number]
        if not bool(final.any()):
            continue
        # coefficient of the final shift: 1 where a question has moved as far along it
        projection = moved @ final / final.square().sum()
        rows.append(
            {
                "layer": halves.layers[number],
                "delta_norm": float(moved.mean(0).norm()),
                "final_norm": float(final.norm()),
                "overlap_k": np.nan if space is None else space.k,
                **_columns("projection", _mean(projection.numpy())),
                **_columns("overlap", _mean(_shares_inside(moved, space))),
                "overlap_null": halves.ordinary[number],
            }
        )
    return rows


def _shares_inside(shifts: Tensor, space: Subspace | None) -> np.ndarray:
    """Share of each shift that lies in a subspace; shifts of length 0 have none."""
    nonzero = shifts[shifts.norm(dim=1) > 0]
    if space is None or len(nonzero) < 2:
        return np.empty(0)
    return projection_fraction(nonzero, space, centred=False).numpy()


def measure_behaviour(
    model: HookedModel, questions: QuestionSet, domain: str, source: ScoreSource
) -> list[dict[str, Any]]:
    """One row per metric and group of questions: each domain, `own`, and `others` (all domains but
    the own, interval over domains).

    Scores on 0 to 100; 95 % t intervals over questions elsewhere.
    """
    scores = source.scores(model, questions)
    groups = pd.Series(questions.groups, index=questions.ids)
    rows: list[dict[str, Any]] = []
    for metric in ("aligned", "coherent"):
        values = scores.per_question(metric)
        by_domain = {}
        for name, members in groups.groupby(groups):
            # forms of one base question are one value
            of_domain = by_base_question(values[members.index]).to_numpy()
            if len(of_domain):
                by_domain[str(name)] = of_domain
        for name, of_domain in by_domain.items():
            rows.append(_behaviour_row(metric, "domain", name, of_domain))
        if domain in by_domain:
            rows.append(_behaviour_row(metric, "own", domain, by_domain[domain]))
        elsewhere = [of_domain for name, of_domain in by_domain.items() if name != domain]
        if len(elsewhere) > 2:
            means = np.array([of_domain.mean() for of_domain in elsewhere])
            rows.append(_behaviour_row(metric, "others", "", means))
        elif elsewhere:
            # two domains give no interval over domains: questions are the units
            rows.append(_behaviour_row(metric, "others", "", np.concatenate(elsewhere)))
    return rows


def _behaviour_row(metric: str, of: str, domain: str, values: np.ndarray) -> dict[str, Any]:
    return {"metric": metric, "of": of, "domain": domain, **_columns("value", _mean(values))}


@contextmanager
def applied_adapter(parent: HookedModel, path: Path) -> Iterator[HookedModel]:
    """The parent with an adapter on it inside the block; one whose B is 0 is the parent itself."""
    if not any(bool(factors.b.any()) for factors in LoraAdapter.load(path).modules.values()):
        yield parent
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted")
        model = attach(parent, f"{path.parent.parent.name}/{path.name}", path, own_chats=False)
        try:
            yield model
        finally:
            model.bank.detach(str(model.adapter))


def _states(
    model: HookedModel, questions: QuestionSet, position: str, layers: Sequence[int]
) -> Tensor:
    """Stream after these blocks, (layer, row, d) in float64."""
    acts = capture(model, questions, layers=layers, positions=position, progress=False)
    return acts.stacked().double()


def _mean(values: np.ndarray) -> Estimate:
    """Mean with a t interval; without one where there are too few values, or no spread."""
    if len(values) > 1 and np.ptp(values) > 0:
        return t_interval(values)
    mean = float(values.mean()) if len(values) else np.nan
    return Estimate(
        mean, np.nan, np.nan, len(values), "mean, too few values or no spread for an interval"
    )


def _columns(name: str, estimate: Estimate) -> dict[str, float | None]:
    """An estimate as three columns that JSON can hold: `nan` becomes None."""
    columns = columns_of(name, estimate)
    return {key: None if np.isnan(value) else float(value) for key, value in columns.items()}
