"""Which studies there are: those of this library, those of other packages, and those of several
parts.

Another package adds a study by `register_study`, or by an entry point of the group
`emlens.studies`, which is loaded only when its study is used or the options of all studies are
listed.
"""

import inspect
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from uuid import uuid4

from emlens.foundation.errors import InputError, LoadError
from emlens.foundation.files import one_line, safe_name, sha256_file
from emlens.results.sections import Section
from emlens.studies.config import Options
from emlens.studies.study import Study

GROUP = "emlens.studies"
"""The entry-point group by which other packages add studies."""

TRIGGERS = "triggers"
"""The part that every study has whose configuration has triggers."""

INCLUDED: dict[str, str] = {
    "profile": "emlens.studies.profile:Profile",
    "triggers": "emlens.studies.triggers:TriggerStudy",
    "fine_tuning": "emlens.studies.fine_tuning:FineTuning",
    "loss_alignment": "emlens.studies.loss_alignment:LossAlignment",
    "delta_overlap": "emlens.studies.delta_overlap:DeltaOverlap",
    "direction_transfer": "emlens.studies.direction_transfer:DirectionTransfer",
    "priors": "emlens.studies.priors:Priors",
    "layer_position_grid": "emlens.studies.layer_position_grid:LayerPositionGrid",
    "general_vs_narrow": "emlens.studies.general_vs_narrow:GeneralVsNarrow",
    "phase_transition": "emlens.studies.phase_transition:PhaseTransition",
    "synthesis": "emlens.studies.synthesis:Synthesis",
    "compare": "emlens.studies.comparing:Compare",
    "families_beside": "emlens.studies.families_beside:FamiliesBeside",
}
"""Name → class of the studies of this library. Each is imported when it is first used."""

COMPOSITES: dict[str, tuple[str, ...]] = {
    "full": (
        "profile",
        "fine_tuning",
        "loss_alignment",
        "delta_overlap",
        "direction_transfer",
        "priors",
        "layer_position_grid",
        "general_vs_narrow",
        "phase_transition",
        "synthesis",
    ),
    "overview": ("profile", "delta_overlap", "direction_transfer", "priors"),
}
"""Study of several parts → the names of its parts, in the order in which they run."""

_REGISTERED: dict[str, Study] = {}
_LOADED: dict[str, Study] = {}


def register_study(study: type[Study]) -> type[Study]:
    """Add a study, for this process. Also works as a decorator of the class.

    The same class may be registered again, as in a notebook cell that runs twice.

    Args:
        study: a subclass of `Study` with `name`, `title` and `run`.

    Raises:
        InputError: not such a class, or a name that another study holds.
    """
    instance = _instance(study, "register_study")
    holder = _holder(instance.name, study)
    if holder is not None:
        raise InputError(
            f"register_study: the study {instance.name!r} is already held by {holder};"
            " pass a class with another name"
        )
    _REGISTERED[instance.name] = instance
    return study


def study_names() -> list[str]:
    """Every name that `study:` of a configuration can hold. No study is loaded."""
    outside = [point.name for point in _points()]
    return list(dict.fromkeys([*COMPOSITES, *INCLUDED, *_REGISTERED, *outside]))


def parts_of(study: str, *, triggers: bool = False) -> tuple[str, ...]:
    """The parts of a study, in the order in which they run; a study of one part is its own part.

    Args:
        triggers: whether its configuration has triggers: each study then has the part of that name
            too, after the profile where there is one.
    """
    parts = COMPOSITES.get(study, (study,))
    if not triggers or TRIGGERS in parts:
        return parts
    at = parts.index("profile") + 1 if "profile" in parts else len(parts)
    return (*parts[:at], TRIGGERS, *parts[at:])


def find_study(name: str) -> Study | None:
    """The study of one part that has this name, or None.

    Raises:
        LoadError: its entry point cannot be loaded.
        InputError: its entry point gives no such study, or its name is taken twice.
    """
    points = _points(name)
    if name in _REGISTERED:
        _refuse_twice(name, points, type(_REGISTERED[name]))
        return _REGISTERED[name]
    if name in INCLUDED:
        points.insert(0, EntryPoint(name, INCLUDED[name], GROUP))
    if len(points) > 1:
        holders = " and ".join(_distribution(point) for point in points)
        raise InputError(
            f"the study {name!r} is given by {holders}; uninstall one, or rename its study"
        )
    if points and name not in _LOADED:
        _LOADED[name] = _load(points[0])
    return _LOADED[name] if points else None


def get_study(name: str) -> Study:
    """The study of one part that has this name.

    Raises:
        InputError: there is none, or it cannot be used; see `find_study`.
    """
    study = find_study(name)
    if study is None:
        raise InputError(
            f"study {name!r} is unknown; pass one of {', '.join(study_names())}",
            name=name,
            known=study_names(),
        )
    return study


def all_studies() -> dict[str, Study]:
    """Every study of one part, by name; loads all of them."""
    return {name: get_study(name) for name in study_names() if name not in COMPOSITES}


def _points(name: str | None = None) -> list[EntryPoint]:
    """The entry points of other packages, by name and distribution."""
    points = entry_points(group=GROUP) if name is None else entry_points(group=GROUP, name=name)
    # a package that lies twice on the path lists its entry points twice
    unlike = {(_distribution(point), point.name, point.value): point for point in points}
    return [unlike[key] for key in sorted(unlike)]


def _distribution(point: EntryPoint) -> str:
    """Who gives an entry point, for messages."""
    if point.dist is None:
        return "emlens"
    return f"distribution {point.dist.name!r} {point.dist.version}"


def _load(point: EntryPoint) -> Study:
    source = f"entry point {point.value!r} of {_distribution(point)}"
    try:
        loaded = point.load()
    except Exception as error:
        raise LoadError(
            f"study {point.name!r}: {source} cannot be loaded"
            f" ({type(error).__name__}: {one_line(str(error))}); update or uninstall it"
        ) from error
    study = _instance(loaded, source)
    if study.name != point.name:
        raise InputError(
            f"{source} is named {point.name!r}, but its study {study.name!r}; both must be one name"
        )
    return study


def _instance(study: object, source: str) -> Study:
    """An instance of a class that is a complete study."""
    if not (isinstance(study, type) and issubclass(study, Study)) or inspect.isabstract(study):
        raise InputError(
            f"{source}: {one_line(repr(study))} is not a complete study;"
            " pass a subclass of emlens.Study that implements run"
        )
    for field in ("name", "title"):
        value = getattr(study, field, None)
        if not isinstance(value, str) or not value:
            raise InputError(f"{source}: class {study.__name__} has no {field}; set it to a text")
    if safe_name(study.name) != study.name:
        raise InputError(
            f"{source}: name={one_line(study.name)!r} cannot name a folder;"
            " use letters, digits and underscores"
        )
    if not (isinstance(study.options, type) and issubclass(study.options, Options)):
        raise InputError(
            f"{source}: options of {study.name!r} must be a subclass of emlens.studies.Options"
        )
    if not isinstance(study.section, Section | None):
        raise InputError(f"{source}: section of {study.name!r} must be an emlens.results.Section")
    return study()


def _holder(name: str, study: type[Study]) -> str | None:
    """Who else holds the name of a study that is to be registered; None where it is free."""
    if name in COMPOSITES or name in INCLUDED:
        return "emlens"
    if name in _REGISTERED and not _is_same(type(_REGISTERED[name]), study):
        other = type(_REGISTERED[name])
        return f"{other.__module__}.{other.__qualname__}"
    for point in _points(name):
        if point.value != _value(study):
            return _distribution(point)
    return None


def _refuse_twice(name: str, points: list[EntryPoint], registered: type[Study]) -> None:
    for point in points:
        if point.value != _value(registered):
            raise InputError(
                f"the study {name!r} is registered by {_value(registered)} and given by"
                f" {_distribution(point)}; rename one"
            )


def _is_same(first: type[Study], second: type[Study]) -> bool:
    return _value(first) == _value(second)


def _value(study: type[Study]) -> str:
    """A class as an entry point writes it."""
    return f"{study.__module__}:{study.__qualname__}"


def is_own(study: Study) -> bool:
    """Whether a study is of this library."""
    return type(study).__module__.partition(".")[0] == "emlens"


def outside_code(study: Study) -> list[str]:
    """Hashes of the code of a study from outside this library, for resuming; empty for its own.

    A study in a package is hashed with the whole package, one in a single module with that file.
    Code that lies in no file (a notebook) counts as changed, so that the study is made again.
    """
    if is_own(study):
        return []
    kind = type(study)
    package = sys.modules[kind.__module__.partition(".")[0]]
    try:
        source = Path(inspect.getfile(kind))
    except (TypeError, OSError):
        return [f"no file: {uuid4().hex}"]
    folder, files = source.parent, [source]
    if hasattr(package, "__path__") and package.__file__ is not None:
        folder = Path(package.__file__).parent
        files = sorted(folder.rglob("*.py"))
    return [f"{path.relative_to(folder).as_posix()} {sha256_file(path)}" for path in files]
