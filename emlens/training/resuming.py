"""The state of a run in the middle, on disk: trained weights, optimiser, random states, log, what
callbacks remember.

Tensors as safetensors, the rest as JSON with the tensors' checksum; no pickle. A snapshot is
published whole and replaces the one before, so at any moment the newest whole one stands. A run
that goes on from it ends with the same bytes as one that was never stopped (same machine, same
thread count): that includes the optimiser's moments and dropout's random numbers.

Disk: three numbers a trained weight (AdamW). Time: one write of that a snapshot.
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

from emlens.foundation.errors import InputError
from emlens.foundation.files import canonical_json, one_line, read_json, sha256_file, write_json
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
        self.directory, self.every, self.run = directory, every, run
        self.directory.mkdir(parents=True, exist_ok=True)
        self._found = self._newest()
        if self._found is not None and self._found["run"] != run:
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
        from safetensors.torch import save_file

        tensors = {
            f"weight/{name}": p.detach() for name, p in module.named_parameters() if p.requires_grad
        }
        plain: dict[str, dict[str, Any]] = {}
        state = optimiser.state_dict()
        for index, values in state["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser/{index}/{name}"] = value
                else:
                    plain.setdefault(str(index), {})[name] = value
        tensors["random/torch"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        numpy = np.random.get_state(legacy=False)
        body = {
            "format": FORMAT,
            "run": self.run,
            "step": step,
            "rows": [[[name, _written(value)] for name, value in row.items()] for row in rows],
            "optimiser": plain,
            "group_steps": [group.get("step") for group in state["param_groups"]],
            "python": random.getstate(),
            "numpy": {**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].tolist()}},
            "callbacks": [
                callback.state() if hasattr(callback, "state") else None for callback in callbacks
            ],
        }
        try:
            canonical_json(body)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"step {step} cannot be kept for resuming: a callback gave what JSON cannot hold"
                f" ({one_line(str(error))})"
            ) from None
        part = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=self.directory))
        save_file(
            {name: value.cpu().clone().contiguous() for name, value in tensors.items()},
            part / TENSORS,
        )
        write_json(part / STATE, {**body, "sha256": sha256_file(part / TENSORS)})
        target = self.directory / _name(step)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(part, target)
        for other in self.directory.iterdir():
            if (
                other.is_dir()
                and other != target
                and (other.name.endswith(".part") or other.name.startswith("step-"))
            ):
                shutil.rmtree(other, ignore_errors=True)

    def restore(
        self,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        callbacks: Sequence[TrainingCallback],
    ) -> tuple[int, list[dict[str, Any]]]:
        """Put weights, optimiser and callbacks in the newest whole state; the step it stood at and
        the log until then, or 0 and none.
        """
        from safetensors.torch import load_file

        if self._found is None:
            return 0, []
        body = self._found
        tensors = load_file(self.directory / _name(body["step"]) / TENSORS)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(tensors[f"weight/{name}"])
        state = optimiser.state_dict()
        state["state"] = {int(index): dict(values) for index, values in body["optimiser"].items()}
        for name, value in tensors.items():
            if name.startswith("optimiser/"):
                _, index, key = name.split("/", 2)
                state["state"].setdefault(int(index), {})[key] = value
        for group, step in zip(state["param_groups"], body["group_steps"], strict=True):
            if step is not None:
                group["step"] = step
        optimiser.load_state_dict(state)
        for callback, remembered in zip(callbacks, body["callbacks"], strict=True):
            if hasattr(callback, "restore"):
                callback.restore(remembered)
        _log.info("going on from step %d of %s", body["step"], self.directory)
        return int(body["step"]), [
            {name: _restored(value) for name, value in row} for row in body["rows"]
        ]

    def restore_random(self) -> None:
        """Put the global random states where they were when the state was taken."""
        from safetensors.torch import load_file

        if self._found is None:
            return
        version, numbers, gauss = self._found["python"]
        random.setstate((version, tuple(numbers), gauss))
        numpy = self._found["numpy"]
        np.random.set_state(
            {
                **numpy,
                "state": {
                    **numpy["state"],
                    "key": np.asarray(numpy["state"]["key"], dtype=np.uint32),
                },
            }
        )
        tensors = load_file(self.directory / _name(self._found["step"]) / TENSORS)
        torch.set_rng_state(tensors["random/torch"])
        if "random/cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random/cuda"])

    def _newest(self) -> dict[str, Any] | None:
        for path in sorted(self.directory.glob("step-*"), reverse=True):
            try:
                body = read_json(path / STATE)
                if body.get("format") == FORMAT and sha256_file(path / TENSORS) == body["sha256"]:
                    return dict(body)
            except (InputError, OSError, KeyError, AttributeError):
                pass
            _log.warning("%s is not whole and is left out", path)
        return None


def _written(value: Any) -> Any:
    """JSON has no NaN and no infinities."""
    return (
        {"float": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value
    )


def _restored(value: Any) -> Any:
    return float(value["float"]) if isinstance(value, dict) and set(value) == {"float"} else value


def _name(step: int) -> str:
    return f"step-{step:08d}"
