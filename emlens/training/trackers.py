"""Trackers that a run reports to while it trains: TensorBoard, Weights & Biases, trackio, MLflow
and what else accelerate knows.

A tracker is told what the log holds, step by step, and nothing is read back from it: a run with
trackers writes the same bytes as one without. What trackers write lies beside the checkpoint, in
the folder `tracked`, since it holds times. A run that is resumed opens its trackers anew and goes
on at its step. Servers, keys and modes are those that the tracker's own variables name
(`WANDB_MODE=offline`, `MLFLOW_TRACKING_URI`); the project is `emlens`, or `WANDB_PROJECT`.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from emlens.foundation.errors import InputError, MissingExtraError
from emlens.training.launchers import one_process
from emlens.training.recipes import Recipe

TRACKED: Final = "tracked"
"""Folder beside a checkpoint in which trackers write."""
PROJECT: Final = "emlens"
PACKAGES: Final[Mapping[str, str]] = {"comet_ml": "comet-ml"}
"""Tracker → name of its package on the index, where it is another one."""
Report = Callable[[int, Mapping[str, Any]], None]
"""Tells every tracker the numbers of a step."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot be told anything here.

    Raises:
        InputError: a name that accelerate does not know, or one that comes twice.
        MissingExtraError: the package of a tracker is not installed.
    """
    if not names:
        return
    from accelerate.tracking import (  # type: ignore[import-untyped]
        LOGGER_TYPE_TO_CLASS,
        get_available_trackers,
    )

    if isinstance(names, str):
        raise InputError(f"report_to={names!r} is one string; pass a list of names")
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise InputError(
                f"report_to holds {name!r}; pass some of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}",
                name=name,
                known=LOGGER_TYPE_TO_CLASS,
            )
    if len(set(names)) != len(names):
        raise InputError(f"report_to={list(names)} names a tracker twice")
    available = {str(getattr(each, "value", each)) for each in get_available_trackers()}
    for name in names:
        if name not in available:
            package = PACKAGES.get(name, name)
            raise MissingExtraError(
                f"report_to holds {name!r}, whose package is not installed;"
                f" run: pip install {package}"
            )


@contextmanager
def reporting(names: Sequence[str], recipe: Recipe, out: Path) -> Iterator[Report | None]:
    """Trackers of one run, told its recipe, open until the block ends; None without any.

    Args:
        out: of the run; its name is that of the run in every tracker.
    """
    if not names:
        yield None
        return
    _make_state()
    folder = out.parent / TRACKED
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        trackers = []
        for name in names:
            tracker = _opened(name, out.name, folder)
            stack.callback(tracker.finish)
            tracker.store_init_configuration(_plain(recipe.to_record()))
            trackers.append(tracker)

        def report(step: int, row: Mapping[str, Any]) -> None:
            values = _plain(row)
            for tracker in trackers:
                tracker.log(values, step=step)

        yield report


def _make_state() -> None:
    """What accelerate's trackers log through, where no training in this process made it yet."""
    from accelerate.state import PartialState  # type: ignore[import-untyped]

    if not PartialState._shared_state:
        with one_process():
            PartialState()


def _opened(name: str, run: str, folder: Path) -> Any:
    """A tracker of accelerate's that writes into a folder where it writes files."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    kind = LOGGER_TYPE_TO_CLASS[name]
    if name == "wandb":
        tracker = kind(project, name=run, dir=str(folder))
    elif name == "trackio":
        tracker = kind(project, name=run)
    elif name == "mlflow":
        tracker = kind(project, run_name=run)
    elif kind.requires_logging_directory:
        tracker = kind(run, str(folder))
    else:
        tracker = kind(project)
    if hasattr(tracker, "start"):
        tracker.start()
    return tracker


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and words as they are, anything else as text, as every tracker takes them."""
    plain = {}
    for name, value in record.items():
        if value is None or isinstance(value, bool | int | float | str):
            plain[name] = value
        else:
            plain[name] = str(value)
    return plain
