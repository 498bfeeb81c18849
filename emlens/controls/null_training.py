"""What any training on these prompts gives: the null of an overlap of shifts.

Adapters are trained by the fine-tune's own recipe, on its own questions and for as many steps, but
on *careful* answers that were permuted between the questions (`permuted_answers`). What their
shifts on training and evaluation prompts share is what training on such prompts gives without the
content. A fine-tune's overlap is more than that where it lies above these draws.

There is no cheaper null. One with the covariance of the activations before draws both sides from
one population, but training and evaluation prompts are two. And anything that was trained lies
above a random update of the weights (docs/nulls.md has the figures).

Cost: a training run and two captures per adapter. An adapter is forgotten once it was measured,
unless it is to be kept. Each is a unit of work: a killed call goes on from the finished ones, and
ranks or Ray actors share them.
"""

import copy
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from emlens.activations import Activations, CaptureSpec, capture
from emlens.controls.permuted_answers import permuted_answers
from emlens.controls.shift_statistics import DESCRIBED, TESTED, Pair, shift_statistics
from emlens.data import PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.provenance import hash_json
from emlens.foundation.seeds import derive_seed
from emlens.interventions.applied_adapter import applied_adapter
from emlens.interventions.lora import LoraAdapter
from emlens.models import load_model
from emlens.models.checkpoint_files import checkpoint_hashes
from emlens.models.hooked import HookedModel
from emlens.runs import Executor, LocalExecutor, Unit, Worker
from emlens.runs.units import UnitResult
from emlens.stats import NullDistribution, adjust_p_values
from emlens.stats.nulls import Side
from emlens.training import Recipe, fit
from emlens.training.fitting import Parent, load_parent

ADAPTERS: Final = 19
"""The fewest adapters with which a p-value can be .05. Holm asks .025 of the smaller of two
p-values, which needs 39.
"""
_ADAPTERS_FOLDER: Final = "adapters"


@dataclass(frozen=True, eq=False)
class TrainingNull:
    """Overlaps of adapters that were trained on permuted careful answers.

    Args:
        cells: adapter, site, position, statistic, value (`shift_statistics`).
        runs: adapter, its seed, steps and last loss.
        recipe: what each was trained by.
        k: dimension of the subspaces.
        rendered: hashes of the rendered training and evaluation prompts.
    """

    cells: pd.DataFrame
    runs: pd.DataFrame
    recipe: Recipe
    k: int
    rendered: tuple[str, str]

    @property
    def positions(self) -> list[str]:
        return list(self.cells["position"].unique())

    def draws(self, position: str, sites: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per adapter, one column per statistic: means over sites.

        Args:
            sites: over which the mean is taken; None: those that every adapter has.

        Raises:
            InputError: a position that was not captured, or no site that all adapters have.
        """
        if position not in self.positions:
            raise InputError(
                f"position={position!r} was not captured for this null;"
                f" it has {', '.join(self.positions)}"
            )
        cells = self.cells[self.cells["position"] == position]
        common = self._common_sites(cells)
        if sites is not None:
            common = [site for site in common if site in set(sites)]
        if not common:
            raise InputError(
                f"at position {position!r} no site has shifts with two components in all of"
                f" {len(self.runs)} adapters, so there is no null"
            )
        cells = cells[cells["site"].isin(common)]
        return cells.pivot_table(index="adapter", columns="statistic", values="value")

    def _common_sites(self, cells: pd.DataFrame) -> list[str]:
        adapters_of_site = cells.groupby("site", sort=False)["adapter"].nunique()
        return [str(site) for site, n in adapters_of_site.items() if n == len(self.runs)]

    def distribution(
        self, statistic: str, position: str, sites: Sequence[str] | None = None
    ) -> NullDistribution:
        """The draws of one statistic as a null.

        Raises:
            InputError: an unknown statistic; as `draws`.
        """
        if statistic not in (*TESTED, *DESCRIBED):
            raise InputError(
                f"statistic={statistic!r} is unknown; pass one of"
                f" {', '.join((*TESTED, *DESCRIBED))}"
            )
        values = self.draws(position, sites)[statistic].to_numpy(np.float64)
        label = f"{statistic} of {len(values)} adapters trained on permuted careful answers"
        return NullDistribution(values, label, self.recipe.seed)

    def test(self, train: Pair, evaluation: Pair) -> pd.DataFrame:
        """A fine-tune's overlaps beside this null: one row per position and statistic.

        Each is the mean over the sites that the fine-tune and all adapters have, so that no layer
        is chosen. `p` is that of a value above the draws (of `first_angle` below them), with the +1
        rule; `p_holm` is corrected for the two tested statistics; `smallest_p_holm` is what these
        draws can reach. The two described statistics have a `p` and none that is corrected.

        Args:
            train, evaluation: the fine-tune's activations before and after, on the same prompts,
                sites and positions as the null.

        Raises:
            InputError: other prompts than those of the null; as `shift_statistics` and `draws`.
        """
        for name, side, own in (
            ("train", train, self.rendered[0]),
            ("evaluation", evaluation, self.rendered[1]),
        ):
            rendered = _rendered(side[0])
            if rendered != own:
                raise InputError(
                    f"{name} holds other prompts than the null was made for (rendered as"
                    f" {rendered[:12]}, the null's as {own[:12]}); make the null with these prompts"
                )
        cells = shift_statistics(train, evaluation, self.k)
        rows: list[dict[str, Any]] = []
        for position, at_position in cells.groupby("position", sort=False):
            rows += self._rows(str(position), at_position)
        return pd.DataFrame(rows)

    def _rows(self, position: str, cells: pd.DataFrame) -> list[dict[str, Any]]:
        sites = list(cells["site"].unique())
        counted = self._common_sites(self.cells[self.cells["position"] == position])
        counted = [site for site in counted if site in set(sites)]
        means = cells[cells["site"].isin(counted)].groupby("statistic")["value"].mean()
        rows = []
        for statistic in (*TESTED, *DESCRIBED):
            null = self.distribution(statistic, position, sites)
            value = float(means[statistic])
            side: Side = "less" if statistic == "first_angle" else "greater"
            rows.append(
                {
                    "position": position,
                    "statistic": statistic,
                    "value": value,
                    "null_mean": null.mean,
                    "null_low": null.quantile(0.05),
                    "null_high": null.quantile(0.95),
                    "p": null.p_value(value, side),
                    "p_holm": np.nan,
                    "smallest_p_holm": np.nan,
                    "adapters": len(self.runs),
                    "sites": len(counted),
                }
            )
        corrected = adjust_p_values([row["p"] for row in rows[: len(TESTED)]], "holm")
        for row, p_holm in zip(rows, corrected, strict=False):
            row["p_holm"] = float(p_holm)
            row["smallest_p_holm"] = len(TESTED) / (1 + len(self.runs))
        return rows


def _rendered(activations: Activations) -> str:
    """Hash of the rendered prompts."""
    return str(activations.provenance["rendered_sha256"])


def training_null(
    parent: str | Path,
    recipe: Recipe,
    careful: PromptSet,
    prompts: tuple[PromptSet, PromptSet],
    *,
    spec: CaptureSpec | None = None,
    adapters: int = ADAPTERS,
    k: int = 8,
    out: str | Path | None = None,
    keep: bool = False,
    executor: Executor | None = None,
    device: str = "auto",
    progress: bool = True,
) -> TrainingNull:
    """Train adapters on permuted careful answers, and measure what their shifts share.

    Args:
        parent: checkpoint directory of the model that was fine-tuned.
        recipe: the fine-tune's own, with the steps it took. Each adapter has a seed of its own,
            from `recipe.seed`.
        careful: the fine-tune's training questions with careful answers (`with_careful_answers`);
            they are permuted for each adapter (`permuted_answers`).
        prompts: training and evaluation prompts, on which shifts are compared; as many of each.
        spec: what is captured; by default `resid_post` of every layer at `last_prompt`. Blocks
            before the first adapted one do not move and are left out.
        adapters: how many are trained; p-values lie at 1 / (adapters + 1) and above.
        k: dimension of the subspaces of `first_angle` and `mean_cos2`.
        out: directory of the finished units; the same call goes on there. None: a temporary one.
        keep: keep the adapters, below `out`.
        executor: who trains: `LocalExecutor()` by default.
        device: where the parent is loaded to.

    Raises:
        InputError: fewer than 2 adapters, other numbers of prompts on the two sides, a recipe that
            trains neither an adapter nor weights, `keep` without `out`; as `permuted_answers` and
            `fit`.
        IntegrityError: `out` holds the null of other inputs.
        StateError: adapters failed as often as the executor allows; the others are kept.
    """
    if adapters < 2:
        raise InputError(f"adapters={adapters} must be 2 or more; p is at least 1 / (adapters + 1)")
    train, evaluation = prompts
    if len(train) != len(evaluation):
        raise InputError(
            f"prompts has {len(train)} training and {len(evaluation)} evaluation prompts;"
            " overlap depends on their number, so pass as many of each"
        )
    if recipe.method not in ("lora", "full"):
        raise InputError(
            f"recipe has method={recipe.method!r}; a training null needs 'lora' or 'full'"
        )
    if keep and out is None:
        raise InputError("keep=True needs out=: a directory in which the adapters stay")
    permuted_answers(careful, seed=recipe.seed)  # refuses rows now, not in every worker
    setting = _Setting(Path(parent), recipe, careful, train, evaluation, spec or CaptureSpec(), k)

    with _directory(out) as directory:

        def open_worker() -> _NullWorker:
            return _NullWorker(setting, adapters, directory, keep, device)

        report = (executor or LocalExecutor()).run(
            open_worker, directory, title="training null", progress=progress
        )
    return _null_of(setting, report.answers)


@contextmanager
def _directory(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@dataclass(frozen=True)
class _Setting:
    """Everything that the draws depend on."""

    parent: Path
    recipe: Recipe
    careful: PromptSet
    train: PromptSet
    evaluation: PromptSet
    spec: CaptureSpec
    k: int

    def recipe_of(self, number: int) -> Recipe:
        return self.recipe.changed(seed=derive_seed(self.recipe.seed, "training null", number))

    def to_record(self) -> dict[str, Any]:
        return {
            "parent": checkpoint_hashes(self.parent),
            "recipe": self.recipe.to_record(),
            "careful": self.careful.content_hash,
            "train": self.train.content_hash,
            "evaluation": self.evaluation.content_hash,
            "spec": hash_json(repr(self.spec)),
            "k": self.k,
        }


class _NullWorker(Worker):
    """One process: trains adapters on its own copy of the parent, and measures each."""

    def __init__(self, setting: _Setting, adapters: int, out: Path, keep: bool, device: str):
        self.setting = setting
        self.adapters = adapters
        self.out = out
        self.keep = keep
        self.device = device
        self.module, self.tokenizer = load_parent(setting.parent, device)
        self.model = load_model(setting.parent, device=device, dtype="float32")
        self._before: tuple[Activations, Activations] | None = None

    def plan(self) -> Sequence[Unit]:
        record = self.setting.to_record()
        return [
            Unit(f"adapter {number}", {**record, "number": number, "kept": self.keep})
            for number in range(self.adapters)
        ]

    def run(self, unit: Unit) -> UnitResult:
        number = int(unit.inputs["number"])
        recipe = self.setting.recipe_of(number)
        rows = permuted_answers(self.setting.careful, seed=recipe.seed)
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / "adapter"
            if self.keep:
                target = self.out / _ADAPTERS_FOLDER / f"{number:03d}"
                shutil.rmtree(target, ignore_errors=True)
            log = self._trained(recipe, rows, target)
            cells = self._measured(target)
            files = sorted(target.rglob("*")) if self.keep else []
        result = {
            "rendered": [_rendered(activations) for activations in self._before_training()],
            "seed": recipe.seed,
            "steps": len(log),
            "final_loss": float(log["loss"].iloc[-1]),
            "cells": cells.to_dict("list"),
        }
        return result, [path for path in files if path.is_file()]

    def _trained(self, recipe: Recipe, rows: PromptSet, target: Path) -> pd.DataFrame:
        has_adapter = recipe.method == "lora"
        module = self.module if has_adapter else copy.deepcopy(self.module)
        parent = Parent(module, directory=self.setting.parent)
        try:
            fitted = fit(recipe, parent, rows, target, tokenizer=self.tokenizer)
            if has_adapter:
                self.module = fitted.model.unload()
        except BaseException:
            # The model in memory may hold half an adapter.
            self.module, self.tokenizer = load_parent(self.setting.parent, self.device)
            raise
        return fitted.log

    def _measured(self, directory: Path) -> pd.DataFrame:
        before_train, before_evaluation = self._before_training()
        with self._tuned(directory) as model:
            after_train, after_evaluation = self._both_sides(model)
        return shift_statistics(
            (before_train, after_train), (before_evaluation, after_evaluation), self.setting.k
        )

    def _tuned(self, directory: Path) -> AbstractContextManager[HookedModel]:
        """The parent as it is after this training."""
        if self.setting.recipe.method == "lora":
            return applied_adapter(self.model, LoraAdapter.load(directory))
        return nullcontext(load_model(directory, device=self.device, dtype="float32"))

    def _before_training(self) -> tuple[Activations, Activations]:
        """The parent's activations on both sides, captured once."""
        if self._before is None:
            self._before = self._both_sides(self.model)
        return self._before

    def _both_sides(self, model: HookedModel) -> tuple[Activations, Activations]:
        spec = self.setting.spec
        return (
            capture(model, self.setting.train, spec=spec, progress=False),
            capture(model, self.setting.evaluation, spec=spec, progress=False),
        )


def _null_of(setting: _Setting, results: Mapping[str, Any]) -> TrainingNull:
    cells, runs = [], []
    for number, result in enumerate(results.values()):
        cells.append(pd.DataFrame(result["cells"]).assign(adapter=number))
        runs.append({"adapter": number, **{n: result[n] for n in ("seed", "steps", "final_loss")}})
    first = next(iter(results.values()))
    return TrainingNull(
        pd.concat(cells, ignore_index=True)[["adapter", "site", "position", "statistic", "value"]],
        pd.DataFrame(runs),
        setting.recipe,
        setting.k,
        tuple(first["rendered"]),
    )
