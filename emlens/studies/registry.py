"""Which studies there are, and of which parts each is made.

A part is a module of this package with

* `run(material, config, desk) -> Part`: the work. `desk(share)` tells how much of it was done;
  `desk.folder` is a directory of its own for what must survive an interruption; `desk.parts` has
  the parts that ran before it in this study.
* `ABOUT`: an `About`, its section of the report.

and, where it has them,

* `Options`: a subclass of `emlens.studies.config.Options`, read from `options: {<part>: ...}` of
  the configuration.
* `check(material, config)`: raises what can be refused before any work.
* `left_out(material, config) -> str | None`: why this family cannot carry the part; a study of
  several parts then goes on without it and says so, a study of this part alone is refused.
* `after(material, config, part, desk) -> Material`: what the parts after it work on, where this one
  trained models.
* `RELEASED = True`: it can run where only released files were given (`material.has_models` is
  False, `material.released` the folder).
* `COST`: its time in units of a profile; only the progress bar reads it.
"""

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

STUDIES: Mapping[str, tuple[str, ...]] = {
    "full": (
        "profile",
        "fine_tuning",
        "loss_alignment",
        "delta_overlap",
        "direction_transfer",
        "priors",
        "layer_position_sweep",
        "general_vs_narrow",
        "phase_transition",
        "synthesis",
    ),
    "overview": ("profile", "delta_overlap", "direction_transfer", "priors"),
    "profile": ("profile",),
    "delta_overlap": ("delta_overlap",),
    "direction_transfer": ("direction_transfer",),
    "priors": ("priors",),
    "layer_position_sweep": ("layer_position_sweep",),
    "compare": ("comparing",),
    "loss_alignment": ("loss_alignment",),
    "general_vs_narrow": ("general_vs_narrow",),
    "phase_transition": ("phase_transition",),
}
"""Study → its parts, in the order in which they run."""


def part_module(name: str) -> ModuleType:
    """The module of a part."""
    return import_module(f"emlens.studies.{name}")
