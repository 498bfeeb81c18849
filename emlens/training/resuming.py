"""The state of a run in the middle, on disk: trained weights, optimiser, random states, log, what
callbacks remember.

Tensors as safetensors, the rest as JSON with the tensors' checksum; no pickle. A snapshot is
published whole and replaces the one before, so there is a whole one at any moment. A run that goes
on from it ends with the same bytes as one that was never stopped (same machine, same
thread count): that includes the optimiser's moments and dropout's random numbers.

Disk: three numbers per trained weight (AdamW). Time: one write of that per snapshot.
"""

import logging
import math
import os
import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import canonical_json, one_line, sha256_file
from emlens.foundation.provenance import made_with, warn_if_made_otherwise
from emlens.foundation.records import read_checked, write_checked
from emlens.training.stopping import TrainingCallback

FORMAT: Final = 1
STATE: Final = "state.json"
TENSORS: Final = "state.safetensors"
_log = logging.getLogger("emlens")


def resume_directory(out: Path) -> Path:
    """Where the snapshots of the run that will become `out` lie: hidden, beside it."""
    return out.with_name(f".{out.name}.resume")


class Snapshots:
    """Snapshots of one run, taken after every `every` steps.

    Args:
        run: fingerprint of everything the run depends on; snapshots of another run are refused.

    Raises:
        InputError: the directory holds snapshots of another run.
    """

    def __init__(self, directory: Path, every: int, run: str):
        self.directory = directory
        self.every = every
        self.run = run
        self.directory.mkdir(parents=True, exist_ok=True)
        self._newest = self._read_newest()
        if self._newest is not None and self._newest["run"] != run:
            raise InputError(
                f"{directory}: holds the middle of another run (other recipe, data, model,"
                " objectives, loss, wrap or callbacks); remove it, or pass another out"
            )

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def take(
        self,
        step: int,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        rows: Sequence[Mapping[str, Any]],
        callbacks: Sequence[TrainingCallback],
    ) -> None:
        """Write the state after a step, then drop the older ones.

        Raises:
            InputError: a log row or a callback's state holds what JSON cannot.
        """
        weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
        tensors = {f"weight/{name}": p.detach() for name, p in weights.items()}
        state = optimiser.state_dict()
        plain_state = _take_tensors(state["state"], tensors)
        tensors["random/torch"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        body = {
            "format": FORMAT,
            "run": self.run,
            "step": step,
            "made_with": made_with(),
            "rows": [[[name, _written(value)] for name, value in row.items()] for row in rows],
            "optimiser": plain_state,
            "group_steps": [group.get("step") for group in state["param_groups"]],
            "python": random.getstate(),
            "numpy": _numpy_state(),
            "callbacks": [_state_of(callback) for callback in callbacks],
        }
        try:
            canonical_json(body)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"step {step} cannot be kept for resuming: a callback gave what JSON cannot hold"
                f" ({one_line(str(error))})"
            ) from None
        target = self._write(step, body, tensors)
        self._remove_all_but(target)

    def _write(self, step: int, body: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
        """Publish a snapshot by a rename."""
        from safetensors.torch import save_file

        part = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=self.directory))
        # Cloned: safetensors refuses tensors that share memory, as tied weights do.
        copies = {name: value.cpu().clone().contiguous() for name, value in tensors.items()}
        save_file(copies, part / TENSORS)
        write_checked(part / STATE, {**body, "sha256": sha256_file(part / TENSORS)})
        target = self.directory / _name(step)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(part, target)
        return target

    def _remove_all_but(self, newest: Path) -> None:
        for path in self.directory.iterdir():
            is_snapshot = path.name.endswith(".part") or path.name.startswith("step-")
            if path.is_dir() and path != newest and is_snapshot:
                shutil.rmtree(path, ignore_errors=True)

    def restore(
        self,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        callbacks: Sequence[TrainingCallback],
    ) -> tuple[int, list[dict[str, Any]]]:
        """Put weights, optimiser and callbacks in the newest whole state.

        Returns:
            The step of that state and the log until then; 0 and none where there is no state.
        """
        from safetensors.torch import load_file

        if self._newest is None:
            return 0, []
        body = self._newest
        tensors = load_file(self.directory / _name(body["step"]) / TENSORS)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(tensors[f"weight/{name}"])
        _restore_optimiser(optimiser, body, tensors)
        for callback, state in zip(callbacks, body["callbacks"], strict=True):
            if hasattr(callback, "restore"):
                callback.restore(state)
        warn_if_made_otherwise(self.directory, body.get("made_with"))
        _log.info("going on from step %d of %s", body["step"], self.directory)
        rows = [{name: _restored(value) for name, value in row} for row in body["rows"]]
        return int(body["step"]), rows

    def restore_random(self) -> None:
        """Put the global random states where they were when the state was taken."""
        from safetensors.torch import load_file

        if self._newest is None:
            return
        version, numbers, gauss = self._newest["python"]
        random.setstate((version, tuple(numbers), gauss))
        numpy = self._newest["numpy"]
        key = np.asarray(numpy["state"]["key"], dtype=np.uint32)
        np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
        tensors = load_file(self.directory / _name(self._newest["step"]) / TENSORS)
        torch.set_rng_state(tensors["random/torch"])
        if "random/cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random/cuda"])

    def _read_newest(self) -> dict[str, Any] | None:
        for path in sorted(self.directory.glob("step-*"), reverse=True):
            try:
                body = read_checked(
                    path / STATE,
                    fields={"sha256": str, "run": str, "step": int},
                    version=("format", FORMAT),
                )
                if sha256_file(path / TENSORS) == body["sha256"]:
                    return body
            except (InputError, IntegrityError, OSError):
                pass
            _log.warning("%s is not whole and is left out", path)
        return None


def _take_tensors(
    state: Mapping[int, Mapping[str, Any]], tensors: dict[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """The plain values of an optimiser's state; its tensors join `tensors`."""
    plain_state: dict[str, dict[str, Any]] = {}
    for index, values in state.items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser/{index}/{name}"] = value
            else:
                plain_state.setdefault(str(index), {})[name] = value
    return plain_state


def _restore_optimiser(
    optimiser: torch.optim.Optimizer, body: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    state = optimiser.state_dict()
    state["state"] = {int(index): dict(values) for index, values in body["optimiser"].items()}
    for name, value in tensors.items():
        if name.startswith("optimiser/"):
            _, index, key = name.split("/", 2)
            state["state"].setdefault(int(index), {})[key] = value
    for group, step in zip(state["param_groups"], body["group_steps"], strict=True):
        if step is not None:  # some optimisers of pytorch_optimizer count steps in their groups
            group["step"] = step
    optimiser.load_state_dict(state)


def _numpy_state() -> dict[str, Any]:
    state: dict[str, Any] = dict(np.random.get_state(legacy=False))
    return {**state, "state": {**state["state"], "key": state["state"]["key"].tolist()}}


def _state_of(callback: TrainingCallback) -> Any:
    return callback.state() if hasattr(callback, "state") else None


def _written(value: Any) -> Any:
    """JSON has no NaN and no infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"float"}:
        return float(value["float"])
    return value


def _name(step: int) -> str:
    return f"step-{step:08d}"
