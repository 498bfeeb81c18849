"""Run a study: its parts as resumable units, then one result. Interrupted anywhere, the same call
finishes from where it was.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from emlens.foundation.errors import InputError
from emlens.foundation.files import sha256_file, sha256_text, write_json
from emlens.foundation.provenance import hardware, library_versions
from emlens.results.finished_parts import finished_part
from emlens.results.study_result import Part, StudyResult, refuse_other
from emlens.results.tables import Table, check_tables
from emlens.runs import UnitLog, progress_bar
from emlens.runs.locks import exclusive
from emlens.studies.config import Options, StudyConfig, read_config
from emlens.studies.families_beside import gathered, read_members
from emlens.studies.material import load_material
from emlens.studies.registry import get_study, is_own, outside_code, parts_of, study_names
from emlens.studies.study import NoOptions, Study, StudyContext


def run_study(
    config: str | Path | Mapping[str, Any] | StudyConfig,
    out: str | Path = "runs/study",
    progress: bool = True,
) -> StudyResult:
    """Run a study into a directory.

    Args:
        config: a YAML file, a mapping, or a `StudyConfig`; with `families` in it, each is run below
            `out/families` and their numbers are laid side by side.
        out: results go here; parts that are finished there for the same configuration are kept.

    Raises:
        InputError: a configuration that cannot be used, or an `out` that holds another study's
            result.
        LoadError: a model that cannot be loaded.
    """
    members = read_members(config)
    if members is not None:
        refuse_other(Path(out), "families_beside")
        results = {
            name: run_study(member, Path(out) / "families" / name, progress)
            for name, member in members.items()
        }
        return StudyResult.load(gathered(results).save(out))
    asked = read_config(config)
    _refuse_unknown(asked)
    directory = Path(out)
    refuse_other(directory, asked.study)
    options = _options(asked)
    started = time.monotonic()
    given = load_material(asked)
    asked_record = asked.model_dump(mode="json")
    contexts = {
        name: StudyContext(given, asked, options[name], directory / "work" / name)
        for name in parts_of(asked.study)
    }
    names, left_out = _carried(asked.study, contexts)
    for name in names:
        get_study(name).check(contexts[name])
    material = given
    parts: dict[str, Part] = {}
    with exclusive(directory):
        log = UnitLog(directory / "units")
        total = sum(get_study(name).cost for name in names)
        with progress_bar(f"study {asked.study}", total, progress) as bar:
            for name in names:
                study = get_study(name)
                share = PartProgress(bar, study.cost)
                context = replace(
                    contexts[name], material=material, parts=dict(parts), progress=share
                )
                made_of = {
                    "config": asked_record,
                    "code": _code(study),
                    "material": material.fingerprint(),
                    "part": name,
                }
                part = finished_part(
                    log, name, made_of, partial(_checked, study, context), directory
                )
                material = study.after(context, part)
                parts[name] = part
                share.finish()
        result = StudyResult(
            study=asked.study,
            config=asked_record,
            tables={name: table for part in parts.values() for name, table in part.tables.items()},
            findings=[finding for part in parts.values() for finding in part.findings],
            warnings=[
                *given.left_out,
                *left_out,
                *(warning for part in parts.values() for warning in part.warnings),
            ],
            facts={
                **material.facts(),
                "versions": library_versions(),
                "threads": torch.get_num_threads(),
            },
            note=given.note,
            declared=_declared_tables(names),
        )
        run = {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 1),
            "hardware": hardware(),
            "parts_reused": log.reused,
        }
        result.write(directory)
        write_json(directory / "run.json", run)
    return StudyResult.load(directory)


def _code(study: Study) -> str:
    """Hash of the modules that a part can run: a part that other code made is made anew, not mixed
    with new ones.
    """
    root = Path(__file__).parents[1]
    modules = [
        path
        for path in sorted(root.glob("*/*.py"))
        if path.parent.name not in ("figures", "report", "cli")
    ]
    lines = [f"{path.parent.name}/{path.name} {sha256_file(path)}" for path in modules]
    return sha256_text("\n".join([*lines, *outside_code(study)]))


def _refuse_unknown(config: StudyConfig) -> None:
    if config.study not in study_names():
        raise InputError(
            f"{config.place('study')}study {config.study!r} is unknown;"
            f" pass one of {', '.join(study_names())}"
        )


def _options(config: StudyConfig) -> dict[str, Options]:
    """The options of every part, checked before any model is loaded."""
    parts = parts_of(config.study)
    for name in config.options:
        where = config.place("options", name)
        if name not in parts:
            raise InputError(
                f"{where}options names {name!r}, which study {config.study!r} does not have;"
                f" its parts are {', '.join(parts)}"
            )
        if get_study(name).options is NoOptions:
            raise InputError(f"{where}options names {name!r}, which takes none")
    return {name: config.options_of(name, get_study(name).options) for name in parts}


def _carried(study: str, contexts: Mapping[str, StudyContext]) -> tuple[list[str], list[str]]:
    """The parts that this family can carry, and why the others are left out."""
    names: list[str] = []
    reasons: list[str] = []
    for name, context in contexts.items():
        part = get_study(name)
        if part.needs_models and not context.material.has_models:
            reason: str | None = "it needs models, and only released files were given"
        else:
            reason = part.left_out(context)
        if reason is None:
            names.append(name)
        else:
            reasons.append(f"{name} was left out: {reason}")
    if not names:
        raise InputError(f"study {study!r} cannot run on this family: {'; '.join(reasons)}")
    return names, reasons


def _declared_tables(parts: Iterable[str]) -> dict[str, Table]:
    declared: dict[str, Table] = {}
    for name in parts:
        section = get_study(name).section
        if section is not None:
            declared |= section.tables
    return declared


def _checked(study: Study, context: StudyContext) -> Part:
    """What the study's run gives, with its tables as they were declared."""
    part = study.run(context)
    declared = {} if study.section is None else study.section.tables
    check_tables(part.tables, declared, own=is_own(study))
    return part


class PartProgress:
    """Moves the progress bar for one part: called with the share of its work just done.

    The shares of a part sum to 1; what is over is cut off, and `finish` adds what is missing.
    """

    def __init__(self, bar: Callable[[float], None], cost: float):
        self._bar = bar
        self._cost = cost
        self._remaining = 1.0

    def __call__(self, share: float) -> None:
        share = min(share, self._remaining)
        self._remaining -= share
        self._bar(share * self._cost)

    def finish(self) -> None:
        """The part is done, whatever it reported."""
        self(self._remaining)
