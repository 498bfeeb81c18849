"""How much memory and disk there is."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

_CONTROL_GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Room:
    """Bytes of memory and of disk that a study may take; None where the system does not say.

    Args:
        memory: what this process may hold in all, on the accelerator and in main memory together;
            what other processes hold is not counted.
    """

    memory: int | None
    disk: int | None


def free_room(out: Path, device: torch.device) -> Room:
    """The room on this machine for a study that is written to `out`."""
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    return Room(_memory(device), shutil.disk_usage(folder).free)


def _memory(device: torch.device) -> int | None:
    main = _available()
    if main is None:
        return None
    held = _held()
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return main + held + free + torch.cuda.memory_reserved(device)
    return main + held


def _available() -> int | None:
    """Main memory that is free for this process: of the machine, and within its control group."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    free = None
    for line in lines:
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit = _number(_CONTROL_GROUP / "memory.max")
    used = _number(_CONTROL_GROUP / "memory.current")
    if free is not None and limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    return free


def _number(path: Path) -> int | None:
    """The number in a file of the system; None where there is none, as for "max"."""
    try:
        text = path.read_text("utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _held() -> int:
    """Main memory that this process holds now."""
    try:
        pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def held_memory() -> int:
    """Bytes that this process holds now, on an accelerator and in main memory together."""
    return _held() + (torch.cuda.memory_allocated() if torch.cuda.is_available() else 0)
