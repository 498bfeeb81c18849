"""Work that somebody else's file asks for, in a process that may take so much time and memory.

A regular expression or a chat template is a program. One that never ends would hold the whole
process, and no thread can be stopped from outside. So what looks expensive is tried first in a
small Python of its own, under limits of the operating system.
"""

import json
import subprocess
import sys
from typing import Any, Final

CPU_SECONDS: Final = 0.25
MEMORY: Final = 160 * 2**20
"""Above what the process takes before its work."""
_WALL_SECONDS: Final = 30.0
"""For a machine whose cores are taken; the limit is on processor time."""
_LIMITS: Final = """
import json, sys
def limited(seconds, memory):
    try:
        import resource, signal
        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
    except (ImportError, OSError, ValueError):
        pass
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    except (NameError, AttributeError):
        pass
work = json.loads(sys.stdin.read())
"""
_OUT_OF_MEMORY: Final = 86


def too_expensive(code: str, work: Any, seconds: float = CPU_SECONDS) -> str | None:
    """What a piece of Python runs out of; None where it ends within its limits.

    Args:
        code: reads `work`; calls `limited(*limits)` after its imports; errors of its own count as
            an end.
        work: JSON-ready.
        seconds: of processor time.
    """
    program = (
        f"{_LIMITS}\nlimits = ({seconds}, {MEMORY})\ntry:\n"
        + "".join(f"    {line}\n" for line in code.strip().splitlines())
        + f"except MemoryError:\n    sys.exit({_OUT_OF_MEMORY})\nexcept Exception:\n    pass\n"
    )
    try:
        ended = subprocess.run(
            [sys.executable, "-I", "-c", program],
            input=json.dumps(work).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=max(_WALL_SECONDS, 2 * seconds),
        )
    except subprocess.TimeoutExpired:
        return "time"
    if ended.returncode == 0:
        return None
    # a limit on memory can also end it inside the allocator
    return "memory" if ended.returncode in (_OUT_OF_MEMORY, -6, -11, 1) else "time"
