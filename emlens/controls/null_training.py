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

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from safetensors.torch import load_file
from torch import Tensor

from emlens.controls.null_adapters import NullSetting, NullWorker, rendered_hash, shifts_file
from emlens.controls.permuted_answers import permuted_answers
from emlens.controls.shift_statistics import DESCRIBED, TESTED, Pair, shift_statistics
from emlens.foundation.errors import InputError
from emlens.foundation.notebooks import Brief
from emlens.runs import Executor, LocalExecutor
from emlens.stats import NullDistribution, adjust_p_values
from emlens.stats.nulls import Side
from emlens.training import Recipe

ADAPTERS: Final = 19
"""The fewest adapters with which a p-value can be .05. Holm asks .025 of the smaller of two
p-values, which needs 39.
"""


@dataclass(frozen=True, eq=False, repr=False)
class TrainingNull(Brief):
    """Overlaps of adapters that were trained on permuted careful answers.

    Args:
        cells: adapter, site, position, statistic, value (`shift_statistics`).
        runs: adapter, its seed, steps and last loss.
        recipe: what each was trained by.
        k: dimension of the subspaces.
        rendered: hashes of the rendered training and evaluation prompts.
        shift_files: each adapter's shifts on all prompts (`shifts`).
    """

    cells: pd.DataFrame
    runs: pd.DataFrame
    recipe: Recipe
    k: int
    rendered: tuple[str, str]
    shift_files: tuple[Path, ...] = ()

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
                f" it has {', '.join(self.positions)}",
                name=position,
                known=self.positions,
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

    def shifts(
        self, adapter: int, side: Literal["train", "evaluation", "further"] = "further"
    ) -> dict[tuple[str, str], Tensor]:
        """Site and position → an adapter's shifts on one set of prompts (row, d).

        Sites where the shifts have fewer than two components are left out. float32; the files hold
        bfloat16.

        Raises:
            InputError: the null was made without shifts, or with fewer adapters.
        """
        if not 0 <= adapter < len(self.shift_files):
            raise InputError(
                f"adapter={adapter} has no shifts; there are those of {len(self.shift_files)}"
                " adapters: give write_shifts in the NullSetting"
            )
        shifts = {}
        for key, rows in load_file(self.shift_files[adapter]).items():
            of_side, site, position = key.split(" ")
            if of_side == side:
                shifts[site, position] = rows.float()
        return shifts

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
                f" {', '.join((*TESTED, *DESCRIBED))}",
                name=statistic,
                known=(*TESTED, *DESCRIBED),
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
        self.require_prompts(rendered_hash(train[0]), rendered_hash(evaluation[0]))
        return self.test_cells(shift_statistics(train, evaluation, self.k))

    def require_prompts(self, train: str, evaluation: str) -> None:
        """Refuse prompts that the null was not made for.

        Args:
            train, evaluation: hashes of the rendered prompts.

        Raises:
            InputError: names the side and both hashes.
        """
        rendered = {"train": train, "evaluation": evaluation}
        for (name, given), own in zip(rendered.items(), self.rendered, strict=True):
            if given != own:
                raise InputError(
                    f"{name} holds other prompts than the null was made for (rendered as"
                    f" {given[:12]}, the null's as {own[:12]}); make the null with these prompts"
                )

    def test_cells(self, cells: pd.DataFrame) -> pd.DataFrame:
        """`test` of statistics that were computed already, on the prompts of this null.

        Args:
            cells: as `shift_statistics` gives them.
        """
        rows: list[dict[str, Any]] = []
        for position, at_position in cells.groupby("position", sort=False):
            rows += self._rows(str(position), at_position)
        return pd.DataFrame(rows)

    def common_sites(self, position: str, cells: pd.DataFrame) -> list[str]:
        """The sites that all adapters and what is tested have at a position."""
        sites = set(cells.loc[cells["position"] == position, "site"])
        of_adapters = self._common_sites(self.cells[self.cells["position"] == position])
        return [site for site in of_adapters if site in sites]

    def _rows(self, position: str, cells: pd.DataFrame) -> list[dict[str, Any]]:
        sites = list(cells["site"].unique())
        counted = self.common_sites(position, cells)
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


def training_null(
    setting: NullSetting,
    *,
    adapters: int = ADAPTERS,
    out: str | Path | None = None,
    keep: bool = False,
    executor: Executor | None = None,
    device: str = "auto",
    progress: bool = True,
    after_each: Callable[[], None] | None = None,
) -> TrainingNull:
    """Train adapters on permuted careful answers, and measure what their shifts share.

    Args:
        setting: everything that the draws depend on: the parent, the fine-tune's own recipe, its
            training questions with careful answers (`with_careful_answers`), and the prompts on
            which shifts are compared. Each adapter has a seed of its own, from the recipe's.
        adapters: how many are trained; p-values lie at 1 / (adapters + 1) and above.
        out: directory of the finished units; the same call goes on there. None: a temporary one.
        keep: keep the adapters, below `out`.
        executor: who trains: `LocalExecutor()` by default.
        device: where the parent is loaded to.
        after_each: called after every adapter that this process trained; for a bar of the caller's.

    Raises:
        InputError: fewer than 2 adapters, other numbers of prompts on the two sides, a recipe that
            trains neither an adapter nor weights, adapters or shifts that are to stay without
            `out`; as `permuted_answers` and `fit`.
        IntegrityError: `out` holds the null of other inputs.
        StateError: adapters failed as often as the executor allows; the others are kept.
    """
    if adapters < 2:
        raise InputError(f"adapters={adapters} must be 2 or more; p is at least 1 / (adapters + 1)")
    if len(setting.train) != len(setting.evaluation):
        raise InputError(
            f"setting has {len(setting.train)} training and {len(setting.evaluation)} evaluation"
            " prompts; overlap depends on their number, so pass as many of each"
        )
    method = setting.recipe.method
    if method not in ("lora", "full"):
        raise InputError(f"recipe has method={method!r}; a training null needs 'lora' or 'full'")
    if out is None and (keep or setting.write_shifts):
        name = "keep" if keep else "write_shifts"
        raise InputError(f"{name}=True needs out=: a directory in which the adapters stay")
    # refuses rows now, not in every worker
    permuted_answers(setting.careful, seed=setting.recipe.seed)

    with _directory(out) as directory:

        def open_worker() -> NullWorker:
            return NullWorker(setting, adapters, directory, keep, device, after_each)

        report = (executor or LocalExecutor()).run(
            open_worker, directory, title="training null", progress=progress
        )
        files: list[Path] = []
        if setting.write_shifts:
            files = [shifts_file(directory, number) for number in range(adapters)]
    return _null_of(setting, report.answers, files)


@contextmanager
def _directory(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _null_of(
    setting: NullSetting, results: Mapping[str, Any], shift_files: Sequence[Path]
) -> TrainingNull:
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
        tuple(shift_files),
    )
