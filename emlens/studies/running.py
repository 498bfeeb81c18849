"""Run a study: its parts as resumable units, then one result. Interrupted anywhere, the same call
finishes from where it was.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from emlens.activations.kept_captures import keeping_captures
from emlens.activations.stored_captures import MOST_BYTES, StoredCaptures
from emlens.foundation.errors import InputError
from emlens.foundation.files import sha256_file, sha256_text
from emlens.foundation.provenance import hardware, library_versions, peak_memory
from emlens.models.pass_counts import counted_passes
from emlens.results.finished_parts import finished_part
from emlens.results.study_result import Finding, Part, StudyResult, refuse_other, write_run
from emlens.results.tables import Table, check_tables
from emlens.runs import UnitLog
from emlens.runs.locks import exclusive
from emlens.runs.progress import Advance, progress_bar
from emlens.studies.config import Options, StudyConfig, read_config
from emlens.studies.families_beside import gathered, read_members
from emlens.studies.material import Material
from emlens.studies.material_loading import load_material
from emlens.studies.registry import get_study, is_own, outside_code, parts_of, study_names
from emlens.studies.streams import check_layers, not_captured
from emlens.studies.study import NoOptions, Study, StudyContext

CHECKS = "before the parts"
"""Name of what the check of the scores reads, in the record of a run."""
CAPTURES = "activations"
"""Folder of what parts captured; it may be deleted."""


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
    directory = Path(out)
    members = read_members(config)
    if members is None:
        return _run_family(read_config(config), directory, progress)
    refuse_other(directory, "families_beside")
    results = {}
    for name, member in members.items():
        folder = directory / "families" / name
        results[name] = _run_family(member, folder, progress, MOST_BYTES // len(members))
    return StudyResult.load(gathered(results).save(directory))


def _run_family(
    config: StudyConfig, directory: Path, progress: bool, most_captures: int = MOST_BYTES
) -> StudyResult:
    """Run the study of one family; everything that can be refused early is, before any work.

    Args:
        most_captures: bytes of captures that it may leave for its parts.
    """
    check_names(config)
    refuse_other(directory, config.study)
    started = time.monotonic()
    material = load_material(config, directory)
    contexts, reasons = contexts_of(config, material, directory)
    measured: dict[str, Any] = {}
    if reads_scores(contexts):
        with counted_passes() as counts:
            material.score_source.check()
        measured[CHECKS] = counts.to_record()
    with exclusive(directory):
        log = UnitLog(directory / "units")
        captures = StoredCaptures(directory / CAPTURES, most_captures, code=_library_code())
        parts, last_material = _run_parts(contexts, log, directory, progress, measured, captures)
        warnings = [
            *material.left_out,
            *(f"{name} was left out: {reason}" for name, reason in reasons.items()),
        ]
        _joined(config, parts, warnings, last_material).write(directory)
        run = {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 1),
            "hardware": hardware(),
            "parts_reused": log.reused,
            "parts": measured,
        }
        write_run(directory, run)
    return StudyResult.load(directory)


def contexts_of(
    config: StudyConfig, material: Material, directory: Path
) -> tuple[dict[str, StudyContext], dict[str, str]]:
    """Part → what it works on, for the parts that can run, each checked; and part → why not.

    Raises:
        InputError: what cannot work; no part that can.
    """
    options = _options(config)
    if material.has_models and not config.without_models:
        check_layers(config, material.family.instruct.n_layers)
    contexts = {}
    for name in config_parts(config):
        contexts[name] = StudyContext(material, config, options[name], directory / "work" / name)
    reasons = _reasons_to_leave_out(config.study, contexts)
    for name in reasons:
        del contexts[name]
    for name, context in contexts.items():
        get_study(name).check(context)
    return contexts, reasons


def config_parts(config: StudyConfig) -> tuple[str, ...]:
    """The parts of a configuration's study, in their order."""
    return parts_of(config.study, triggers=bool(config.triggers))


def reads_scores(parts: Iterable[str]) -> bool:
    """Whether any of these parts reads scores, so that their source has to be checked."""
    return any(get_study(name).wants for name in parts)


def _run_parts(
    contexts: Mapping[str, StudyContext],
    log: UnitLog,
    directory: Path,
    progress: bool,
    measured: dict[str, Any],
    captures: StoredCaptures,
) -> tuple[dict[str, Part], Material]:
    """Every part in its order, and what the last one leaves; a part finds those before it.

    Args:
        measured: gets, for each part that ran, what it read and how long it took.
        captures: what parts share.
    """
    config, material = _shared(contexts)
    parts: dict[str, Part] = {}
    total = sum(get_study(name).cost for name in contexts)
    with progress_bar(f"study {config.study}", total, progress) as bar:
        for name, early_context in contexts.items():
            study = get_study(name)
            share = PartProgress(bar, study.cost)
            context = replace(early_context, material=material, parts=dict(parts), progress=share)
            inputs = {
                "config": config.model_dump(mode="json"),
                "code": _code(study),
                "material": material.fingerprint(),
                "part": name,
            }
            found_before = captures.found
            began, cpu_began = time.monotonic(), time.process_time()
            with counted_passes() as counts, bar.part(name):
                work = partial(_checked, study, context, captures)
                part = finished_part(log, name, inputs, work, directory)
            if name in log.done:
                measured[name] = {
                    **counts.to_record(),
                    "captures_found": captures.found - found_before,
                    "seconds": round(time.monotonic() - began, 1),
                    "cpu_seconds": round(time.process_time() - cpu_began, 1),
                    "peak_memory": peak_memory(),
                }
            material = study.after(context, part)
            parts[name] = part
            share.finish(found=name not in log.done)
    return parts, material


def _shared(contexts: Mapping[str, StudyContext]) -> tuple[StudyConfig, Material]:
    """What the contexts of all parts have in common before any part ran."""
    first = next(iter(contexts.values()))
    return first.config, first.material


def _joined(
    config: StudyConfig, parts: Mapping[str, Part], warnings: list[str], material: Material
) -> StudyResult:
    """One result of the parts.

    Args:
        warnings: what is missing before any part. material: after the last part.
    """
    tables: dict[str, pd.DataFrame] = {}
    declared: dict[str, Table] = {}
    findings: list[Finding] = []
    warnings = list(warnings)
    for name, part in parts.items():
        tables |= part.tables
        findings += part.findings
        warnings += part.warnings
        section = get_study(name).section
        if section is not None:
            declared |= section.tables
    facts = {
        **material.facts(),
        "versions": library_versions(),
        "threads": torch.get_num_threads(),
    }
    return StudyResult(
        study=config.study,
        config=config.model_dump(mode="json"),
        tables=tables,
        findings=findings,
        warnings=warnings,
        facts=facts,
        note=material.note,
        declared=declared,
    )


def _code(study: Study) -> str:
    """Hash of the modules that a part can run: a part that other code made is made again, not mixed
    with new ones.
    """
    return sha256_text("\n".join([_library_code(), *outside_code(study)]))


def _library_code() -> str:
    """Hash of the modules of this library that do more than show results."""
    root = Path(__file__).parents[1]
    modules = [
        path
        for path in sorted(root.glob("*/*.py"))
        if path.parent.name not in ("figures", "report", "cli")
    ]
    lines = [f"{path.parent.name}/{path.name} {sha256_file(path)}" for path in modules]
    return sha256_text("\n".join(lines))


def check_names(config: StudyConfig) -> None:
    """Refuse an unknown study, or options of no part, before any model is loaded.

    Raises:
        InputError: names what there is.
    """
    _refuse_unknown(config)
    _options(config)


def _refuse_unknown(config: StudyConfig) -> None:
    if config.study not in study_names():
        raise InputError(
            f"{config.place('study')}study {config.study!r} is unknown;"
            f" pass one of {', '.join(study_names())}",
            name=config.study,
            known=study_names(),
        )


def _options(config: StudyConfig) -> dict[str, Options]:
    """The options of every part, checked before any model is loaded."""
    parts = config_parts(config)
    for name in config.options:
        where = config.place("options", name)
        if name not in parts:
            raise InputError(
                f"{where}options names {name!r}, which study {config.study!r} does not have;"
                f" its parts are {', '.join(parts)}",
                name=name,
                known=parts,
            )
        if get_study(name).options is NoOptions:
            raise InputError(f"{where}options names {name!r}, which takes none")
    return {name: config.options_of(name, get_study(name).options) for name in parts}


def _reasons_to_leave_out(study: str, contexts: Mapping[str, StudyContext]) -> dict[str, str]:
    """Part → why this family cannot carry it; the parts that it can carry are not named.

    Raises:
        InputError: no part can be carried.
    """
    reasons: dict[str, str] = {}
    for name, context in contexts.items():
        part = get_study(name)
        if part.needs_models and not context.material.has_models:
            reasons[name] = "it needs models, and only released files were given"
            continue
        is_captured = context.material.captured and part.needs_models
        if is_captured and not part.runs_on_captures:
            what = "judged files" if context.config.without_models else "captures"
            reasons[name] = f"it needs the models, and the study runs on {what}"
            continue
        reason = (
            _missing_fine_tunes(part, context)
            or _missing_scores(part, context)
            or _missing_questions(part, context)
            or part.left_out(context)
        )
        if reason is None and context.material.captured and part.needs_streams:
            family = {model: context.family[model] for model in context.family}
            reason = not_captured(part.readings(context), family, context.config)
        if reason is not None:
            reasons[name] = reason
    if len(reasons) == len(contexts):
        sentences = "; ".join(f"{name} was left out: {reason}" for name, reason in reasons.items())
        raise InputError(f"study {study!r} cannot run on this family: {sentences}")
    return reasons


def _missing_fine_tunes(part: Study, context: StudyContext) -> str | None:
    """That there is no fine-tune, where the part needs one."""
    material = context.material
    is_needed = part.needs_models and part.needs_fine_tunes
    if not is_needed or not material.has_models or material.family.finetuned:
        return None
    return "finetuned is empty; give at least one fine-tune under family"


def _missing_questions(part: Study, context: StudyContext) -> str | None:
    """Why a fine-tune in focus has no question that the part needs; None where all have."""
    if not part.needs_outside:
        return None
    return context.material.lacks_outside(context.material.focus(context.config))


def _missing_scores(part: Study, context: StudyContext) -> str | None:
    """Why the source cannot give the scores that a part wants; None where it can."""
    for wanted in part.wants:
        reason = context.source.can(wanted)
        if reason is not None:
            return reason
    if part.wants:
        for model, asked_as in part.scored(context):
            reason = context.material.lacks_scores(model, asked_as)
            if reason is not None:
                return reason
    return None


def _checked(study: Study, context: StudyContext, captures: StoredCaptures) -> Part:
    """What the study's run gives, with its tables as they were declared."""
    with keeping_captures(captures):
        part = study.run(context)
    declared = {} if study.section is None else study.section.tables
    check_tables(part.tables, declared, own=is_own(study))
    return part


class PartProgress:
    """Moves the progress bar for one part: called with the share of its work just done.

    The shares of a part sum to 1; what is over is cut off, and `finish` adds what is missing.
    """

    def __init__(self, bar: Advance, cost: float):
        self._bar = bar
        self._cost = cost
        self._remaining = 1.0

    def __call__(self, share: float) -> None:
        share = min(share, self._remaining)
        self._remaining -= share
        self._bar(share * self._cost)

    def finish(self, *, found: bool = False) -> None:
        """The part is done, whatever it reported.

        Args:
            found: it was finished before, which says nothing about the rate.
        """
        if found:
            self._bar.found(self._remaining * self._cost)
            self._remaining = 0.0
        else:
            self(self._remaining)
