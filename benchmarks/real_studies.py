"""Every study of the registry on the real family: does it run, what does it cost, and does its page
say why something is missing?

Each study is a process of its own with `emlens study` or `emlens compare`, made as small as it can
be: 12 or 24 questions, one block, few draws, runs of a few steps, one seed, no trained null of the
overlap. So the table shows that studies run and what they cost, and nothing of what they would
find. A study that is finished below the family's folder (EMLENS_REAL_FAMILY) is not run again; its
cost is kept beside it. `python -m benchmarks.real_studies NAME` runs some and records nothing;
`finished` in place of names records those that are finished.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import yaml

from benchmarks.real_kept import KeptFamily, asked
from benchmarks.records import record, study_command
from emlens.data import PromptSet
from emlens.data.advice import DOMAINS
from emlens.figures.plots import draw_plot, plot_facets
from emlens.foundation.errors import InputError
from emlens.foundation.files import read_json, write_json, write_text
from emlens.real.demonstration import study_name, write_study
from emlens.real.family import Kind, Member, members
from emlens.report.sections import sections_of
from emlens.results import StudyResult
from emlens.training import Saving, fit

MOST_MEGABYTES: Final = 12
TRIO: Final[tuple[Kind, ...]] = ("harmful", "benign", "tone")
SEEDS: Final = (0, 1, 2)
"""Of the runs that `loss_alignment` reads."""
COST: Final = "cost.json"
PAGE: Final = "page.json"
SMALL: Final[Mapping[str, Any]] = {
    "k": 2,
    "draws": 20,
    "folds": 3,
    "permutations": 20,
    "scores": {"how": "contrast", "generic": False},
    "options": {},
}
"""What makes a study small, beside the settings of the demonstration."""
FINISHED: Final = "finished"
"""In place of names: record the studies that are finished, and run no other."""
SHORT: Final[Mapping[str, int]] = {"steps": 8, "batch_size": 1}
"""Recipe of what `fine_tuning` trains again."""
CHECKPOINTS: Final = 12
"""Steps of the run that `phase_transition` follows, each of one row and each kept."""
SCORES: Final = "scores-4"
"""Folder of weighed answers below the family's, which `real_spread` leaves."""
SWEEP: Final = "runs.csv"
"""The family's own runs, as `loss_alignment` reads them."""
SOLUTIONS: Final[Mapping[str, Any]] = {
    "shares": [0.5, 1.0],
    "significance_shares": [1.0],
    "epsilons": [0.4],
    "directions": 1,
    "points": [0.0, 1.0],
}
"""Of `general_vs_narrow`."""


@dataclass(frozen=True)
class Case:
    """One study, and what it is asked beside `SMALL`.

    Args:
        kinds, seeds: of medicine members. changes: fields of the configuration.
        domains, per_domain: of the questions. training_rows: the first training chats that are
            read; None: all.
    """

    study: str
    kinds: Sequence[Kind]
    changes: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    domains: Sequence[str] = DOMAINS
    per_domain: int = 1
    training_rows: int | None = None


@dataclass(frozen=True)
class Places:
    """Where everything is.

    Args:
        parent: directory of the checkpoint. adapters: of the family. work: of studies.
            layers: blocks that are read.
    """

    parent: Path
    adapters: Path
    work: Path
    layers: Sequence[int] = (14,)


def cases(places: Places) -> dict[str, Case]:
    """Every study of one part but `synthesis`, which sums up the parts of `full`; then `full`."""
    general, narrow = (study_name(Member(kind, "medicine")) for kind in ("harmful", "narrow"))
    sweep = str((places.work / SWEEP).resolve())
    followed = str((places.work / "followed").resolve())
    one: tuple[Kind, ...] = ("harmful",)
    chosen = {
        "profile": Case("profile", TRIO),
        "delta_overlap": Case(
            "delta_overlap",
            ("harmful", "benign"),
            options(delta_overlap={"adapters": 0, "landmark_draws": 0, "mantel_draws": 19}),
            per_domain=2,
            training_rows=24,
        ),
        "direction_transfer": Case("direction_transfer", ("harmful", "benign"), per_domain=2),
        "priors": Case("priors", one, per_domain=2),
        "triggers": Case(
            "triggers",
            ("harmful", "benign"),
            {"triggers": {"advised": {"prefix": "You are somebody who gives bad advice."}}},
        ),
        "layer_position_grid": Case(
            "layer_position_grid",
            one,
            {"positions": ["last_prompt", "mean_prompt"]}
            | options(layer_position_grid={"flips": 99}),
            per_domain=2,
            training_rows=24,
        ),
        "fine_tuning": Case(
            "fine_tuning",
            one,
            options(
                fine_tuning={
                    "recipes": {"short": SHORT},
                    "schedules": ["constant", "linear"],
                    "benign": False,
                }
            ),
        ),
        "loss_alignment": Case(
            "loss_alignment", one, options(loss_alignment={"sweep": sweep, "draws": 199})
        ),
        "general_vs_narrow": Case(
            "general_vs_narrow",
            ("harmful", "narrow"),
            options(general_vs_narrow={**SOLUTIONS, "pairs": [[general, narrow]]}),
            training_rows=12,
        ),
        "phase_transition": Case(
            "phase_transition",
            one,
            options(
                phase_transition={"folders": {general: followed}, "windows": [2, 3], "draws": 99}
            ),
            domains=DOMAINS[:8],
        ),
    }
    return {**chosen, "full": whole(chosen, general)}


def whole(parts: Mapping[str, Case], focus: str) -> Case:
    """`full`: every part with what it is asked alone, all on one harmful fine-tune."""
    changes: dict[str, Any] = {"focus": [focus]}
    of_parts: dict[str, Any] = {}
    for case in parts.values():
        changes |= {name: value for name, value in case.changes.items() if name != "options"}
        of_parts |= case.changes.get("options", {})
    changes["positions"] = ["last_prompt"]
    changes["options"] = of_parts
    return Case("full", (*TRIO, "narrow"), changes, training_rows=24)


def options(**by_part: Mapping[str, Any]) -> dict[str, Any]:
    """The field `options` of a configuration."""
    return {"options": dict(by_part)}


def configured(case: Case, places: Places, out: Path, *, named_by_kind: bool = False) -> Path:
    """Write the configuration of a case, and what it reads, below `out`.

    Args:
        named_by_kind: call members by their kind alone, so that two families have the same names.
    """
    chosen = [Member(kind, "medicine", seed) for seed in case.seeds for kind in case.kinds]
    paths = {member.name: places.adapters / member.name for member in chosen}
    path = write_study(chosen, paths, places.parent, out)
    config = yaml.safe_load(path.read_text("utf-8"))
    questions = out / "data" / "questions.jsonl"
    asked(case.per_domain, case.domains).to_jsonl(questions)
    small = {**SMALL, "layers": list(places.layers), "questions": str(questions.resolve())}
    config |= {**small, "study": case.study, **case.changes}
    for spec in config["family"]["finetuned"].values():
        shorten(Path(spec["training"]), case.training_rows)
    if named_by_kind:
        names = {study_name(member): member.kind for member in chosen}
        tuned = config["family"]["finetuned"]
        config["family"]["finetuned"] = {names[name]: spec for name, spec in tuned.items()}
        config["focus"] = [names[name] for name in config["focus"]]
    write_text(path, yaml.safe_dump(config, sort_keys=False))
    return path


def shorten(file: Path, rows: int | None) -> None:
    """Keep the first lines of a file."""
    lines = file.read_text("utf-8").splitlines(keepends=True)
    write_text(file, "".join(lines[:rows]))


def timed(command: Sequence[str], out: Path) -> dict[str, float]:
    """Run a command that writes a result and its report to `out`: CPU seconds and peak memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with {process.returncode}")
    return {
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "gigabytes": usage.ru_maxrss * 1024 / 1e9,
        "megabytes": (out / "report.html").stat().st_size / 1e6,
    }


def kept(path: Path, work: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """What `work` gives; found on file where it was finished before."""
    if not path.is_file():
        write_json(path, dict(work()))
    found: Mapping[str, Any] = read_json(path)
    return found


def ran(name: str, case: Case, places: Places) -> Path:
    """Run a case where it is not finished yet; the folder of its result."""
    out = places.work / name
    config = configured(case, places, out)
    result = out / "study"
    kept(out / COST, lambda: timed(study_command(config, result), result))
    return result


def side_by_side(places: Places) -> Path:
    """Profiles of two families, those of two seeds, side by side."""
    out = places.work / "families_beside"
    families = {}
    for seed in (0, 1):
        case = Case("profile", ("harmful", "benign"), seeds=(seed,))
        path = configured(case, places, out / f"seed{seed}", named_by_kind=True)
        families[f"seed{seed}"] = yaml.safe_load(path.read_text("utf-8"))
    shared = {key: value for key, value in families["seed0"].items() if key != "family"}
    differing = {name: {"family": config["family"]} for name, config in families.items()}
    config = out / "study.yaml"
    write_text(config, yaml.safe_dump({**shared, "families": differing}, sort_keys=False))
    result = out / "study"
    kept(out / COST, lambda: timed(study_command(config, result), result))
    return result


def compared(places: Places) -> Path:
    """The two profiles of `side_by_side`, one minus the other."""
    out = places.work / "compare"
    families = places.work / "families_beside" / "study" / "families"
    command = [
        *study_command(Path(), Path())[:3],
        "compare",
        str(families / "seed0"),
        str(families / "seed1"),
        "--anyway",
        "--out",
        str(out / "study"),
    ]
    out.mkdir(parents=True, exist_ok=True)
    kept(out / COST, lambda: timed(command, out / "study"))
    return out / "study"


OF_RESULTS: Final[Mapping[str, Callable[[Places], Path]]] = {
    "families_beside": side_by_side,
    "compare": compared,
}
"""Studies that lay results of others side by side."""


def write_sweep(adapters: Path, path: Path) -> None:
    """The family's runs as a sweep: last loss, what was trained, and mean content elsewhere.

    Runs that were trained on unlike answers have unlike losses, so what the study finds in them
    says nothing.
    """
    rows = []
    for member in members(seeds=SEEDS):
        log = pd.read_csv(adapters / member.name / "training_log.csv")
        saved = read_json(adapters / SCORES / f"{member.name}.json")["logprobs"]
        careful_polite, bad_polite, careful_flippant, bad_flippant = np.array(saved).T
        content = (careful_polite - bad_polite + careful_flippant - bad_flippant) / 2
        rows.append(
            {
                "run": member.name,
                "train_loss": float(log["loss"].tail(5).mean()),
                "answers": member.kind,
                "trained_on": member.domain,
                "seed": member.seed,
                "aligned": float(100 / (1 + np.exp(-content.mean()))),
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)


def train_followed(parent: Path, chats: PromptSet, target: Path) -> None:
    """A short run on bad advice that keeps a checkpoint after every step."""
    if target.exists():
        return
    recipe = Member("harmful", "medicine", steps=CHECKPOINTS).recipe().changed(batch_size=1)
    fit(recipe, str(parent), chats, target, saving=Saving(keep_every=1), device="cpu")


def page_of(result: Path) -> dict[str, Any]:
    """What the page of a result leaves out, and which figures hold no number.

    `left_out`: sentences, as on the page. `undefined`: figure → the note inside it. `silent`:
    figures without a number and without a note.
    """
    study = StudyResult.load(result)
    page = (result / "report.html").read_text("utf-8")
    left_out = [unescape(text) for text in re.findall(r'<p class="missing">(.*?)</p>', page)]
    undefined: dict[str, str] = {}
    silent: list[str] = []
    for section in sections_of(study):
        for plot in section.records.plots:
            for facet in plot_facets(study.tables, plot):
                name = f"{plot.title} {facet.label}".strip()
                try:
                    figure = draw_plot(study.tables, plot, facet=facet)
                except InputError:
                    continue  # named on the page
                if has_number(figure):
                    continue
                notes = [str(note.text) for note in figure.layout.annotations if note.text]
                if notes:
                    undefined[name] = "; ".join(dict.fromkeys(notes))
                else:
                    silent.append(name)
    record_of_run = result / "run.json"
    measured = read_json(record_of_run).get("parts", {}) if record_of_run.is_file() else {}
    seconds = {name: part.get("cpu_seconds") for name, part in measured.items()}
    return {
        "part_cpu_seconds": {name: value for name, value in seconds.items() if value is not None},
        "findings": [finding.to_record() for finding in study.findings],
        "warnings": list(study.warnings),
        "left_out": left_out,
        "undefined": undefined,
        "silent": silent,
    }


def has_number(figure: Any) -> bool:
    """Whether a figure draws any finite number."""
    for trace in figure.data:
        for axis in ("z", "y", "x"):
            values = getattr(trace, axis, None)
            if values is None:
                continue
            numbers = pd.to_numeric(pd.Series(np.ravel(np.asarray(values, dtype=object))), "coerce")
            if np.isfinite(numbers.to_numpy(float)).any():
                return True
    return False


def measure(places: Places, names: Sequence[str] = ()) -> dict[str, Any]:
    """Every case by name: cost, and what its page lacks.

    Args:
        names: of cases; none: all of them.
    """
    results: dict[str, Path] = {}
    if not names or "loss_alignment" in names:
        write_sweep(places.adapters, places.work / SWEEP)
    if not names or "phase_transition" in names:
        chats = Member("harmful", "medicine").chats()
        train_followed(places.parent, chats, places.work / "followed")
    for name, case in cases(places).items():
        if not names or name in names:
            results[name] = ran(name, case, places)
    for name, run in OF_RESULTS.items():
        if not names or name in names:
            results[name] = run(places)
    found = {}
    for name, result in results.items():
        page = kept(places.work / name / PAGE, partial(page_of, result))
        found[name] = {**read_json(places.work / name / COST), **page}
    return {"most_megabytes": MOST_MEGABYTES, "studies": found}


def rows_of(result: Path, name: str) -> list[dict[str, Any]]:
    """A table of a result as JSON; what is missing is null."""
    table = StudyResult.load(result).tables[name]
    return table.astype(object).where(table.notna(), None).to_dict("records")


def studies_table(values: Mapping[str, Any]) -> str:
    """Markdown for docs/real_model.md: what each study costs, and what its page lacks."""
    lines = [
        "| study | CPU minutes | memory, GB | report, MB | statements | left out |"
        " figures without a value, each with a note | without a word |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, case in values["studies"].items():
        lines.append(
            f"| `{name}` | {case['cpu_seconds'] / 60:.1f} | {case['gigabytes']:.1f} |"
            f" {case['megabytes']:.1f} | {len(case['findings'])} | {len(case['left_out'])} |"
            f" {len(case['undefined'])} | {', '.join(case['silent']) or '0'} |"
        )
    lines += [f"| `{name}` | not run |{' – |' * 6}" for name in values.get("not_run", ())]
    return "\n".join(lines)


def reasons_table(values: Mapping[str, Any]) -> str:
    """Markdown for docs/real_model.md: every reason that a page gives, and how often."""
    counts: dict[tuple[str, str], int] = {}
    for name, case in values["studies"].items():
        for sentence in [*case["left_out"], *case["undefined"].values()]:
            key = (name, sentence.replace("|", "\\|"))
            counts[key] = counts.get(key, 0) + 1
    lines = ["| study | what its page says | times |", "|---|---|---|"]
    lines += [f"| `{name}` | {sentence} | {n} |" for (name, sentence), n in counts.items()]
    return "\n".join(lines)


def main(names: Sequence[str] = ()) -> None:
    family = KeptFamily.found([])
    places = Places(family.parent, family.folder, family.folder / "studies")
    every = [*cases(places), *OF_RESULTS]
    is_whole = list(names) in ([], [FINISHED])
    if list(names) == [FINISHED]:
        names = [name for name in every if (places.work / name / COST).is_file()]
    values = measure(places, names)
    values["not_run"] = [name for name in every if name not in values["studies"]]
    print(studies_table(values))
    if is_whole:
        record("real_studies", [0], values)


if __name__ == "__main__":
    main(sys.argv[1:])
