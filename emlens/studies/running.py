"""Run a study: its parts as resumable units, then one result. Interrupted anywhere, the same call
finishes from where it was.
"""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from emlens.foundation.errors import InputError
from emlens.foundation.files import sha256_file, sha256_text, write_json
from emlens.foundation.provenance import hardware, library_versions
from emlens.results.study_result import (
    Finding,
    Part,
    StudyResult,
    read_table,
    refuse_other,
    text_columns,
    write_table,
)
from emlens.runs import UnitLog, progress_bar
from emlens.runs.locks import exclusive
from emlens.studies.config import StudyConfig, read_config
from emlens.studies.families_beside import gathered, read_members
from emlens.studies.material import Material, load_material
from emlens.studies.registry import STUDIES, part_module


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
    if asked.study not in STUDIES:
        raise InputError(
            f"{asked.place('study')}study {asked.study!r} is unknown;"
            f" pass one of {', '.join(STUDIES)}"
        )
    directory = Path(out)
    refuse_other(directory, asked.study)
    _check_options(asked)
    started = time.monotonic()
    material = load_material(asked)
    asked_record = asked.model_dump(mode="json")
    inputs = {"config": asked_record, "code": _code()}
    names, left_out = _carried(material, asked)
    given = material
    for name in names:
        getattr(part_module(name), "check", _nothing)(material, asked)
    parts: dict[str, Part] = {}
    with exclusive(directory):
        log = UnitLog(directory / "units")
        with progress_bar(f"study {asked.study}", sum(map(_cost, names)), progress) as bar:
            for name in names:
                desk = Desk(bar, _cost(name), directory / "work" / name, parts)
                made_of = {**inputs, "material": material.fingerprint(), "part": name}
                record = log.run(name, made_of, _work(name, material, asked, directory, desk))
                part = Part(
                    {
                        table: read_table(
                            directory / "tables" / f"{table}.csv", record["text"][table]
                        )
                        for table in record["tables"]
                    },
                    [Finding(**item) for item in record["findings"]],
                    record["warnings"],
                )
                material = getattr(part_module(name), "after", _unchanged)(
                    material, asked, part, desk
                )
                parts[name] = part
                desk.finish()
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


def _code() -> str:
    """Hash of the library's modules that a part can run: a part that other code made is made anew,
    not mixed with new ones.
    """
    root = Path(__file__).parents[1]
    modules = [
        p for p in sorted(root.glob("*/*.py")) if p.parent.name not in ("figures", "report", "cli")
    ]
    return sha256_text(
        "\n".join(f"{path.parent.name}/{path.name} {sha256_file(path)}" for path in modules)
    )


def _nothing(material: Material, config: StudyConfig) -> None:
    """The check of a part that has none."""


def _unchanged(material: Material, config: StudyConfig, part: Part, desk: "Desk") -> Material:
    """What a part that trains nothing leaves to those after it."""
    return material


def _cost(name: str) -> float:
    return float(getattr(part_module(name), "COST", 5))


def _check_options(config: StudyConfig) -> None:
    """Options of parts that the study has, each read once, before any model is loaded."""
    for name in config.options:
        if name not in STUDIES[config.study]:
            where = config.place("options", name)
            raise InputError(
                f"{where}options names {name!r}, which study {config.study!r} does not have;"
                f" its parts are {', '.join(STUDIES[config.study])}"
            )
        module = part_module(name)
        if not hasattr(module, "Options"):
            raise InputError(
                f"{config.place('options', name)}options names {name!r}, which takes none"
            )
        config.options_of(name, module.Options)


def _carried(material: Material, config: StudyConfig) -> tuple[list[str], list[str]]:
    """The parts that this family can carry, and what is said of the others."""
    names: list[str] = []
    said: list[str] = []
    for name in STUDIES[config.study]:
        part = part_module(name)
        if not material.has_models and not getattr(part, "RELEASED", False):
            reason: str | None = "it needs models, and only released files were given"
        else:
            reason = getattr(part, "left_out", _nothing)(material, config)
        if reason is None:
            names.append(name)
        else:
            said.append(f"{name} was left out: {reason}")
    if not names:
        raise InputError(f"study {config.study!r} cannot run on this family: {'; '.join(said)}")
    return names, said


class Desk:
    """Where a part works: called with the share of the work just done (the shares of a part sum to
    1), it moves the progress bar.

    folder: a directory of the part's own, made on demand, for what must survive an interruption
    (checkpoints, logs of units). parts: name → the finished parts of the study before this one.
    """

    def __init__(
        self,
        bar: Callable[..., None],
        cost: float,
        folder: Path,
        parts: Mapping[str, Part] | None = None,
    ):
        self._bar, self._cost, self._left, self.folder, self.parts = (
            bar,
            cost,
            1.0,
            folder,
            dict(parts or {}),
        )

    def __call__(self, share: float) -> None:
        share = min(share, self._left)
        self._left -= share
        self._bar(share * self._cost)

    def finish(self) -> None:
        self(self._left)


def _work(
    name: str, material: Material, config: StudyConfig, directory: Path, desk: Desk
) -> Callable[[], tuple[Any, list[Path]]]:
    def work() -> tuple[Any, list[Path]]:
        part: Part = part_module(name).run(material, config, desk)
        files = []
        for table, frame in part.tables.items():
            path = directory / "tables" / f"{table}.csv"
            write_table(path, frame)
            files.append(path)
        files += part.files
        record = {
            "tables": list(part.tables),
            "text": {table: text_columns(frame) for table, frame in part.tables.items()},
            "findings": [finding.to_record() for finding in part.findings],
            "warnings": part.warnings,
        }
        return record, files

    return work
