"""Runs that a study trains from a fine-tune's own chats, and the family with them in it."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any, Final, Literal

import torch

from emlens.data import PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.provenance import hash_json
from emlens.models import FineTune
from emlens.organisms.building import one_thread
from emlens.studies.material import Material
from emlens.studies.schedule_runs import shape
from emlens.studies.study import StudyContext
from emlens.training import Recipe
from emlens.training.fitting import read_record
from emlens.training.sweeps import Sweep, SweepResult, run_sweep

PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LOSS_STEPS: Final = 5
"""Last steps whose mean is the loss of a run."""
LEAST_STEPS: Final = 8
PLAIN: Final[Mapping[str, Any]] = {"schedule": "constant", "warmup_steps": 0}
"""What every schedule of a grid starts from."""


def parent_directory(material: Material, name: str) -> str:
    """Where the parent of a fine-tune was loaded from."""
    return material.parents[material.family.specs[name].parent]


def grid_of_runs(
    material: Material,
    source: str,
    recipes: Mapping[str, Mapping[str, Any]],
    schedules: Sequence[str],
    seeds: Sequence[int],
    *,
    recipe_of: str | None = None,
) -> Sweep:
    """Recipes × schedules × seeds on the chats of one fine-tune.

    Args:
        recipes: label → fields that differ from the fine-tune's own recipe.
        recipe_of: the fine-tune whose recipe is taken; by default the source's.

    Raises:
        InputError: a recipe or a schedule that cannot be.
    """
    path = material.family.specs[recipe_of or source].path
    base = _own_recipe(path, material.training[source])
    shapes = {}
    for name in schedules:
        shapes[name] = {**PLAIN, **shape(name, base.steps, base.learning_rate)}
    axes: dict[str, Any] = {"recipe": dict(recipes), "schedule": shapes, "seed": list(seeds)}
    return Sweep(base.varied(**PLAIN), axes)


def _own_recipe(path: str | Path, chats: PromptSet) -> Recipe:
    """The recipe recorded beside a checkpoint, with the steps it took; else that of the paper: rank
    32, one epoch in batches of 16.
    """
    try:
        record = read_record(path)
        steps = max(LEAST_STEPS, int(record["steps_done"]))
        return Recipe.from_record({**record["recipe"], "steps": steps})
    except InputError:
        return Recipe(
            rank=32,
            alpha=64,
            rslora=True,
            target_modules=PROJECTIONS,
            learning_rate=1e-5,
            steps=max(LEAST_STEPS, ceil(len(chats) / 16)),
            batch_size=min(16, len(chats)),
            warmup_steps=5,
        )


class Trainer:
    """Trains grids of runs in the folder of a part; what is there already is not trained again."""

    def __init__(self, context: StudyContext):
        self._context = context
        device = "cpu"
        if context.config.family is not None:
            device = context.config.family.device or "auto"
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = device

    def train(self, source: str, grid: Sweep) -> SweepResult:
        """The runs of a grid on the chats of one fine-tune, from its parent."""
        material = self._context.material
        chats = material.training[source]
        made_of = {
            "runs": [run.recipe.to_record() for run in grid.runs],
            "chats": chats.content_hash,
            "parent": material.parent(source).provenance,
        }
        with one_thread():  # the same bytes, whatever else the machine does
            result = run_sweep(
                grid,
                parent_directory(material, source),
                chats,
                self._context.folder / hash_json(made_of)[:16],
                progress=False,
                device=self._device,
            )
        self._context.progress(0.4)
        return result


class TrainedFamily:
    """A family and the runs that were trained from its fine-tunes' chats.

    runs: name → what was trained, its steps and its loss. files: what the runs left on disk.
    studied: harmful runs of the first recipe and schedule of their grid.
    """

    def __init__(self, material: Material):
        self._before = material
        self._specs: dict[str, FineTune] = {}
        self._sources: dict[str, str] = {}
        self._controls: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.files: list[Path] = []
        self.studied: list[str] = []

    def add(
        self, source: str, kind: Literal["harmful", "benign"], grid: Sweep, result: SweepResult
    ) -> list[str]:
        """Take the runs of a grid into the family; returns those of its first recipe and
        schedule.
        """
        spec = self._before.family.specs[source]
        first_cell = _cell(grid.runs[0].labels)
        of_first_cell = []
        for run in grid.runs:
            cell = _cell(run.labels)
            name = _name_of_run(source, run.labels, run.recipe.seed)
            self._specs[name] = FineTune(
                result.paths[run.id],
                parent=spec.parent,
                group=f"{source} {cell}",
                seed=run.recipe.seed,
                benign=spec.benign,
                domain=spec.domain,
                check_base=False,
            )
            self._sources[name] = source
            self.runs[name] = {
                "source": source,
                "cell": f"{source}, {cell}" if kind == "benign" else cell,
                "kind": kind,
                **run.labels,
                "seed": run.recipe.seed,
                **_steps_and_loss(result, run.id),
            }
            files = result.paths[run.id].rglob("*")
            self.files += sorted(path for path in files if path.is_file())
            if cell == first_cell:
                of_first_cell.append(name)
        if kind == "harmful":
            self.studied += of_first_cell
        return of_first_cell

    def pair(self, harmful: Sequence[str], benign: Sequence[str]) -> None:
        """Make each benign run the control of the harmful run of the same seed."""
        control_of_seed = {self.runs[name]["seed"]: name for name in benign}
        for name in harmful:
            self._controls[name] = control_of_seed[self.runs[name]["seed"]]

    @property
    def material(self) -> Material:
        """The family with the runs, which later parts study."""
        return self._before.with_runs(
            self._specs, self._sources, studied=self.studied, controls=self._controls
        )


def _cell(labels: Mapping[str, Any]) -> str:
    """Recipe and schedule of a run."""
    return f"{labels['recipe']} {labels['schedule']}"


def _name_of_run(source: str, labels: Mapping[str, Any], seed: int) -> str:
    name = f"{source}-{labels['recipe']}-{labels['schedule']}@{seed}"
    return name.replace("-own-", "-").replace(".", "_")


def _steps_and_loss(result: SweepResult, run: str) -> dict[str, Any]:
    steps_done = result.table.set_index("run").loc[run, "steps_done"]
    losses = result.steps.loc[result.steps["run"] == run, "loss"]
    return {"steps": int(str(steps_done)), "loss": float(losses.tail(LOSS_STEPS).mean())}
