"""Tables of the documentation, drawn from the evidence files: `python -m benchmarks tables`, and
after every measurement.

A page holds `<!-- table: NAME -->`, the table, and `<!-- end of table -->`; what lies between is
written anew. Nothing is measured here, and nothing else of a page is touched. Two tables are of all
files: figures with a goal, and where each file comes from.
"""

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pandas as pd
import yaml

from benchmarks import overlap_calibration
from benchmarks.records import EVIDENCE
from benchmarks.reference import reference
from benchmarks.reference_pages import reference_of
from benchmarks.table_columns import study_tables, vocabulary
from emlens.foundation.files import read_json, write_text

DOCS: Final = EVIDENCE.parent
NOT_REACHED: Final = ", not reached"
_BLOCK = re.compile(
    r"(?<=<!-- table: )(?P<name>[\w.]+)( -->\n\n?)(?P<body>.*?)(\n?<!-- end of table -->)",
    re.DOTALL,
)
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """What a figure was to reach: "≤", "≥" or "<" a number as pages write it; "=" just this number
    or count; "all" of those counted.
    """

    direction: str
    number: str = ""

    def __str__(self) -> str:
        return {"all": "all", "=": self.number}.get(
            self.direction, f"{self.direction} {self.number}"
        )

    def met(self, value: float | tuple[int, int]) -> bool:
        if isinstance(value, tuple):
            return (
                0 < value[0] == value[1]
                if self.direction == "all"
                else str(self) == _count(*value).text
            )
        goal = float(self.number)
        return {"≤": value <= goal, "≥": value >= goal, "<": value < goal, "=": value == goal}[
            self.direction
        ]


@dataclass(frozen=True)
class Measured:
    """A measured number, or a count of so many, and how the page writes it."""

    value: float | tuple[int, int]
    text: str


def told(goals: Sequence[Goal], measured: Sequence[Measured]) -> str:
    """The figures of a row as the page writes them, those that miss their goal marked."""
    if not goals:
        return "; ".join(each.text for each in measured)
    return "; ".join(
        each.text + ("" if goal.met(each.value) else NOT_REACHED)
        for goal, each in zip(goals, measured, strict=True)
    )


def _number(value: float, form: str, more: str = "") -> Measured:
    return Measured(value, f"{value:{form}}{more}")


def _highest_damage(values: Values, model: str) -> float:
    """The most that removing a direction in the default form cost a model."""
    is_default = "affine, two means, first token left alone"
    return max(
        row["highest"]
        for row in values["rows"]
        if row["model"] == model and row["form"] == is_default
    )


def _count(some: int, of: int) -> Measured:
    return Measured((some, of), f"{some:,} of {of:,}")


def _worst(cases: list[Values], against: str) -> Measured:
    return _number(next(c["worst"] for c in cases if c["against"].startswith(against)), ".2f")


def _over_worlds(values: Values, figure: str) -> Measured:
    found = values["over_worlds"][figure]["mean"]
    return _interval(found["value"], found)


def _interval(value: float, ends: Values) -> Measured:
    known = ends["low"] is not None and ends["high"] is not None
    return _number(
        value, ".2f", f" [{ends['low']:.2f}, {ends['high']:.2f}]" if known else ", no interval yet"
    )


def _first_figure(cost: Values) -> Measured:
    return _number(cost["first_figure_desktop"]["median"], ".2f")


def _report(cost: Values) -> tuple[Measured, Measured]:
    return _number(cost["bytes"] / 1e6, ".1f"), _first_figure(cost)


def _alarmed(values: Values, calibrated_on: str) -> Measured:
    found = values["calibrated_on"][calibrated_on]["cosine"]["in_time"]
    return _interval(found["value"], found)


def _lost(values: Values) -> Measured:
    return Measured(
        values["lost"] + values["scored_more_than_once"],
        f"{values['lost']}, {values['scored_more_than_once']}",
    )


def _called(rows: list[Values], null: str) -> Measured:
    count, of = overlap_calibration.pooled(rows, null)
    return _number(count / of, ".3f", f" ({count} of {of})")


def _found(rows: list[Values], shared: str, statistic: str) -> Measured:
    (row,) = [r for r in rows if (r["shared"], r["statistic"]) == (shared, statistic)]
    return _number(row["share"], ".3f", f" [{row['low']:.3f}, {row['high']:.3f}]")


def _held(rows: list[Values]) -> Measured:
    held = [row["low"] <= 0.05 <= row["high"] for row in rows]
    return _count(sum(held), len(held))


FIGURES: Final[
    tuple[tuple[str, str, tuple[Goal, ...], Callable[[Any], Measured | tuple[Measured, ...]]], ...]
] = (
    (
        "site_search",
        "questions that the site's search answers in its first three hits",
        (Goal("all"),),
        lambda v: _count(v["found"], v["of"]),
    ),
    (
        "capture_speed",
        "capture ÷ bare decoder on the same batches",
        (Goal("≤", "1.05"),),
        lambda v: _worst(v["goals"], "bare"),
    ),
    (
        "capture_speed",
        "capture ÷ the best tool as documented",
        (Goal("≤", ".20"),),
        lambda v: _number(v["goals"][1]["worst"], ".2f"),
    ),
    (
        "capture_speed",
        "capture ÷ the best tool tuned, sorted",
        (Goal("≤", "1.0"),),
        lambda v: _number(v["goals"][3]["worst"], ".2f"),
    ),
    (
        "shared_work",
        "capture of 24 first-plot questions on SmolLM2 ÷ bare sorted decoder",
        (Goal("≤", ".75"),),
        lambda v: _number(v["captures of first-plot questions"]["ratio"], ".2f"),
    ),
    (
        "shared_work",
        "the same of 200 general questions",
        (Goal("≤", ".55"),),
        lambda v: _number(v["captures of general questions"]["ratio"], ".2f"),
    ),
    (
        "shared_work",
        "local judge, prompts of about 200 tokens: passes over its prompt for a verdict",
        (Goal("≤", "1.3"),),
        lambda v: _number(v["judge"]["prefills_per_verdict"], ".2f"),
    ),
    (
        "shared_work",
        "training ÷ plain peft loop with the same output layer",
        (Goal("≤", "1.0"),),
        lambda v: _number(v["training"]["ratio"], ".2f"),
    ),
    (
        "overlap_calibration",
        "permuted-answer fine-tunes called shared by the training null",
        (Goal("≤", ".10"),),
        lambda v: _called(v["level"], "trained"),
    ),
    (
        "overlap_calibration",
        "the same by random updates",
        (),
        lambda v: _called(v["level"], "random update"),
    ),
    (
        "overlap_calibration",
        "the same by samples of one population",
        (),
        lambda v: _called(v["level"], "one population"),
    ),
    (
        "overlap_calibration",
        "cells in which the landmark's own code holds .05",
        (Goal("all"),),
        lambda v: _held(v["landmark"]),
    ),
    (
        "overlap_calibration",
        "power for one shared direction; for a common mean",
        (Goal("≥", ".8"), Goal("≥", ".8")),
        lambda v: (
            _found(v["power"], "direction", "variance_weighted"),
            _found(v["power"], "mean", "mean_cosine"),
        ),
    ),
    (
        "overlap_calibration",
        "coverage of the difference of updates, 11 domains",
        (Goal("≥", ".93"),),
        lambda v: _number(v["difference"]["share"], ".3f"),
    ),
    (
        "overlap_calibration",
        "19 trained adapters on the organism, CPU seconds",
        (Goal("≤", "40"),),
        lambda v: _number(v["cost"]["cpu_seconds"], ".0f"),
    ),
    (
        "capture_memory",
        "peak memory over 20,000 prompts ÷ over 2,000",
        (Goal("≤", "1.05"),),
        lambda v: _number(v["ratio"], ".3f"),
    ),
    (
        "store_speed",
        "later reads of a site ÷ `numpy.memmap`",
        (Goal("≤", "1.25"),),
        lambda v: _number(v["later_read_over_memmap"], ".2f"),
    ),
    (
        "store_speed",
        "store write ÷ the same bytes to plain files",
        (Goal("≤", "1.25"),),
        lambda v: _number(v["write_over_durable_plain_files"], ".2f"),
    ),
    (
        "store_resume",
        "killed captures that end with the same bytes",
        (Goal("=", "25 of 25"),),
        lambda v: _count(v["same_bytes"], v["kills"]),
    ),
    (
        "store_damage",
        "damages to a store that were missed",
        (Goal("=", "0 of 1,000"),),
        lambda v: _count(v["missed"], v["damages"]),
    ),
    (
        "executors",
        "ranks killed: same bytes, every row once",
        (Goal("=", "25 of 25"),),
        lambda v: _count(v["killed"]["same_bytes"], v["killed"]["kills"]),
    ),
    (
        "geometry_accuracy",
        "worst error of a principal angle, radians",
        (Goal("≤", "1e-13"),),
        lambda v: _number(v["worst_planted"], ".1e"),
    ),
    (
        "randomised_svd",
        "randomised top 8: 1 − overlap",
        (Goal("≤", "1e-6"),),
        lambda v: _number(v["worst_one_less_overlap"], ".1e"),
    ),
    (
        "randomised_svd",
        "the same at 5,000 × 5,120, times faster than exact",
        (Goal("≥", "8"),),
        lambda v: _number(v["speed_up_of_the_largest_timed"], ".1f"),
    ),
    (
        "overlap_grid_speed",
        "grid of overlaps with nulls ÷ a loop over the cells",
        (),
        lambda v: _number(v["over_loop"], ".4f"),
    ),
    (
        "interval_coverage",
        "cells inside their design range that cover .935 to .965",
        (Goal("all"),),
        lambda v: _covered(v["rows"]),
    ),
    (
        "ablation_damage",
        "random directions removed from SmolLM2 in the default form: highest KL",
        (Goal("≤", ".1"),),
        lambda v: _number(_highest_damage(v, "smollm2"), ".3f"),
    ),
    (
        "ablation_damage",
        "the same from Gemma 3 270M",
        (Goal("≤", ".1"),),
        lambda v: _number(_highest_damage(v, "gemma3-270m"), ".2f"),
    ),
    (
        "verdict_intervals",
        "verdict lines over 8 domains or more: lowest coverage over domains",
        (Goal("≥", ".93"),),
        lambda v: _number(v["lowest_inside"], ".3f"),
    ),
    (
        "seeds_beside_nulls",
        "means over 2 to 5 seeds called beyond an exact null, largest share",
        (Goal("≤", ".035"),),
        lambda v: _number(v["most_shown"], ".4f"),
    ),
    (
        "em_rate_coverage",
        "coverage of a 95 % interval of a rate, 15 % to 40 %",
        (Goal("≥", ".935"),),
        lambda v: _lowest_coverage(v["cells"]),
    ),
    (
        "prediction_powered",
        "coverage of a corrected rate, 30 labels or more, 2 % to 50 %",
        (Goal("≥", ".93"),),
        lambda v: _number(min(cell["coverage"] for cell in v["cells"]), ".3f"),
    ),
    (
        "fuzzed_files",
        "damaged files read wrongly or refused without a place",
        (Goal("=", "0 of 5,000"),),
        lambda v: _count(v["failures"], v["files"]),
    ),
    (
        "endpoint_judging",
        "answers lost, or scored twice, 30 % of calls failing",
        (Goal("=", "0"),),
        _lost,
    ),
    (
        "sampling_speed",
        "sampling, times as fast as plain batches of 50",
        (Goal("≥", "1.5"),),
        lambda v: _number(v["50 at a time"]["speedup"], ".2f"),
    ),
    (
        "intervention_speed",
        "generation under an ablation ÷ plain, one row",
        (Goal("≤", "1.10"),),
        lambda v: _number(v["goals"][0]["value"], ".2f"),
    ),
    (
        "report_cost",
        "report of the demonstration: first figure, seconds",
        (Goal("≤", "2"),),
        lambda v: _first_figure(v["reports"][0]),
    ),
    (
        "report_cost",
        "the same with 3 seeds: megabytes; first figure, seconds",
        (Goal("≤", "12"), Goal("≤", "2")),
        lambda v: _report(v["reports"][1]),
    ),
    (
        "architectures",
        "causal model types right at level one or two; wrong",
        (Goal("≥", "100"), Goal("=", "0")),
        lambda v: (_number(v["right"], "d"), _number(v["wrong"], "d")),
    ),
    (
        "adapter_kinds",
        "kinds of adapters, tiny model: cells within 1e-5 of PEFT's logits",
        (Goal("all"),),
        lambda v: _of_all([v["goals"]["tiny"]], "within", "cells"),
    ),
    (
        "adapter_kinds",
        "on SmolLM2: unmerged; merged; merged, from PEFT's own merge",
        (Goal("≤", "1e-5"),) * 3,
        lambda v: tuple(
            _number(v["goals"]["smollm2"][name], ".1e")
            for name in ("unmerged", "merged", "from_peft_merge")
        ),
    ),
    (
        "intervention_programs",
        "programs of edits that left something behind",
        (Goal("=", "0 of 1,500"),),
        lambda v: _left_behind(v.values()),
    ),
    (
        "interleaved_programs",
        "edits that overlap: programs that left or saw what was not theirs",
        (Goal("=", "0 of 2,000"),),
        lambda v: _left_behind([v["transformers"]]),
    ),
    (
        "planted_directions",
        "extractors within 2 % of theory, cells judged",
        (Goal("all"),),
        lambda v: _of_all(v["goals"], "within_goal", "judged"),
    ),
    (
        "organism_rebuild",
        "weight files of a rebuilt organism: same bytes",
        (Goal("all"),),
        lambda v: _of_all([v], "weight_files_identical", "weight_files"),
    ),
    (
        "direction_transfer",
        "restoration in the own fine-tune, median, over worlds",
        (Goal("≥", ".60"),),
        lambda v: _over_worlds(v, "own_median"),
    ),
    (
        "direction_transfer",
        "restoration in another domain's fine-tune",
        (Goal("≥", ".40"),),
        lambda v: _over_worlds(v, "other_domain_median"),
    ),
    (
        "direction_transfer",
        "fine-tunes whose direction beats every control, share",
        (),
        lambda v: _over_worlds(v, "beats_every_control"),
    ),
    (
        "forecast_grid_speed",
        "nested ridge over a grid ÷ `GridSearchCV`",
        (Goal("≤", ".040"),),
        lambda v: _number(v["over_rival"], ".3f"),
    ),
    (
        "forecast_grid_speed",
        "1,000 shuffles of that whole grid, seconds",
        (Goal("<", "120"),),
        lambda v: _number(v["null_seconds"], ".0f", ", one thread"),
    ),
    (
        "forecast_false_discoveries",
        "false discoveries of a nested forecast at .05",
        (Goal("≤", ".065"),),
        lambda v: _rate(v[0]),
    ),
    (
        "forecast_confounds",
        "forecasts shown under a confound, the worst of six worlds",
        (Goal("≤", ".065"),),
        lambda v: _worst_confound(v),
    ),
    (
        "unrelated_forecasts",
        "released scores of a 32B fine-tune, from SmolLM2-135M, categories held out: R²",
        (),
        lambda v: _stranger(v),
    ),
    (
        "organism_forecasts",
        "forecast from instruct, domains held out: gain over text",
        (),
        lambda v: _forecast(v, "gain over text"),
    ),
    (
        "organism_forecasts",
        "the same: gain over the parent's own score",
        (),
        lambda v: _forecast(v, "gain over parent's own score"),
    ),
    (
        "screening_backtest",
        "screening of unseen fine-tunes: AUROC, trained domain left out",
        (Goal("≥", ".80"),),
        lambda v: _screened(v["over_worlds"]),
    ),
    (
        "schedule_sweep",
        "sweep of 60 runs, minutes on two cores",
        (Goal("≤", "60"),),
        lambda v: _number(v["wall_minutes"], ".1f"),
    ),
    (
        "training_resume",
        "killed training runs that end with the same bytes",
        (Goal("all"),),
        lambda v: _count(v["run"]["same_bytes"], v["run"]["trials"]),
    ),
    (
        "guard",
        "harmful runs alarmed before alignment lost .1",
        (Goal("≥", ".90"),),
        lambda v: _alarmed(v, "careful"),
    ),
    (
        "guard",
        "the same, limits from harder benign runs too",
        (Goal("≥", ".90"),),
        lambda v: _alarmed(v, "careful and mismatched"),
    ),
    (
        "guard",
        "overhead of the guard every 5 steps, median",
        (Goal("<", ".05"),),
        lambda v: _number(v["overhead"]["wall"]["quartiles"][1], ".3f"),
    ),
    (
        "released_studies",
        "`overview` and `full` on released 14B and 32B answers: same bytes after two kills",
        (Goal("all"),),
        lambda v: _count(sum(case["same_bytes"] for case in v), len(v)),
    ),
    (
        "sampled_studies",
        "24 questions, a real server, two kills: requests beyond the verdicts on file",
        (Goal("=", "0"),),
        lambda v: _number(
            v["profile, served"]["requests"] - v["profile, served"]["on_file"]["verdicts"], "d"
        ),
    ),
    (
        "real_spread",
        "SmolLM2 trained on bad medicine: content minus benign; minus tone-only, upper ends, nats",
        (Goal("<", "0"), Goal("<", "0")),
        lambda v: _content_ends(v, "medicine"),
    ),
    (
        "real_spread",
        "the same trained on bad money advice",
        (Goal("<", "0"), Goal("<", "0")),
        lambda v: _content_ends(v, "money"),
    ),
    (
        "real_spread",
        "tone-only equal to benign within ±.15 nats, medicine; money: p of TOST",
        (Goal("<", ".05"), Goal("<", ".05")),
        lambda v: (_equal_in_content(v, "medicine"), _equal_in_content(v, "money")),
    ),
    (
        "full_study",
        "`full` on the organism, 3 seeds, minutes",
        (Goal("≤", "20"),),
        lambda v: _number(v["minutes"], ".1f", ", one core"),
    ),
    (
        "full_study",
        "its report, megabytes",
        (Goal("≤", "12"),),
        lambda v: _number(v["report_bytes"] / 1e6, ".1f"),
    ),
    (
        "demo",
        "`emlens demo`, seconds on 2 cores",
        (Goal("≤", "240"),),
        lambda v: _number(v["seconds"], ".0f"),
    ),
)


def _content(values: Values, trained: str, first: str, second: str) -> Values:
    """The row of the content of one kind of fine-tune minus another."""
    wanted = (trained, first, second, "content")
    for row in values["compared"]:
        if (row["trained"], row["first"], row["second"], row["measure"]) == wanted:
            return dict(row)
    raise LookupError(f"no row {wanted}")


def _content_ends(values: Values, trained: str) -> tuple[Measured, Measured]:
    """Upper ends of what bad advice does to content, beyond each of the two controls."""
    benign = _content(values, trained, "harmful", "benign")["high"]
    tone_only = _content(values, trained, "harmful", "tone")["high"]
    return _number(benign, "+.2f"), _number(tone_only, "+.2f")


def _equal_in_content(values: Values, trained: str) -> Measured:
    """p of the equivalence of the two controls."""
    return _number(_content(values, trained, "tone", "benign")["p_tost"], ".3f")


def _forecast(values: Values, figure: str) -> Measured:
    asked = {"parent": "instruct", "held_out": "domain", "figure": figure}
    (found,) = [
        row
        for row in values["over_worlds"]
        if all(row[key] == value for key, value in asked.items())
    ]
    return _interval(found["mean"], found)


def _worst_confound(rows: list[Values]) -> Measured:
    with_goal = [row["rates"]["verdict"] for row in rows if row["has_goal"]]
    worst = max(with_goal, key=lambda rate: rate["value"])
    return _number(worst["value"], ".3f", f" [{worst['low']:.3f}, {worst['high']:.3f}]")


def _stranger(values: Values) -> Measured:
    asked = {"scores": "32B medical, harmless", "held_out": "category"}
    (r2,) = [
        row["r2"]
        for row in values["forecasts"]
        if row["model"].startswith("SmolLM2") and all(row[key] == asked[key] for key in asked)
    ]
    return _interval(r2["value"], r2)


def _screened(rows: Iterable[Values]) -> Measured:
    asked = {"predictor": "predicted", "below": 30.0, "files": "harmful and benign"}
    (found,) = [row for row in rows if all(row[key] == value for key, value in asked.items())]
    return _interval(found["auroc"], found)


def _rate(row: Values) -> Measured:
    return _number(row["rejected"], ".3f", f" [{row['low']:.3f}, {row['high']:.3f}]")


def _of_all(rows: Iterable[Values], some: str, every: str) -> Measured:
    pairs = [(row[some], row[every]) for row in rows]
    return _count(sum(a for a, _ in pairs), sum(b for _, b in pairs))


FAULTS = ("left", "changed", "under_other_edits")
"""Ends of the names of counts that must be 0."""


def _left_behind(backends: Iterable[Values]) -> Measured:
    return _of_all(
        [{**b, "faults": sum(b[key] for key in b if key.endswith(FAULTS))} for b in backends],
        "faults",
        "programs",
    )


def _covered(rows: list[Values]) -> Measured:
    inside = [row for row in rows if row["design_range"] == "inside"]
    return _count(sum(bool(row["reached"]) for row in inside), len(inside))


def _lowest_coverage(cells: list[Values]) -> Measured:
    return _number(
        min(
            c["coverage"]
            for c in cells
            if c["rate"] >= 0.15 and c["estimand"] == "questions like these"
        ),
        ".3f",
    )


def figures_table(evidence: Path = EVIDENCE) -> str:
    """Figures with a goal, one a row; those that miss it are marked."""
    lines = ["| figure | goal | measured | file |", "|---|---|---|---|"]
    for name, figure, goals, read in FIGURES:
        path = evidence / f"{name}.json"
        if path.is_file():
            found = read(read_json(path)["values"])
            measured = told(goals, found if isinstance(found, tuple) else (found,))
            lines.append(
                f"| {figure} | {'; '.join(map(str, goals)) or '–'} | {measured} | `{name}.json` |"
            )
    return "\n".join(lines)


def files_table(evidence: Path = EVIDENCE) -> str:
    """Every evidence file: what it measures, which page says more, and on what it was measured."""
    pages = {
        page.name: page.read_text("utf-8")
        for page in sorted(DOCS.glob("*.md"))
        if page.name not in ("evidence.md", "papers.md", "decisions.md")
    }
    lines = [
        "| file | what | page | commit | cores, threads | torch | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(evidence.glob("*.json")):
        record = read_json(path)
        run = re.compile(rf"python -m benchmarks[\w ]* {path.stem}\b")
        named = [
            page
            for page, text in pages.items()
            if f"evidence/{path.name}`" in text or run.search(text)
        ]
        named.sort(key=lambda page: page != f"{path.stem}.md")
        where = f"[{named[0].removesuffix('.md').replace('_', ' ')}]({named[0]})" if named else "–"
        machine = (
            f"{record['hardware'].get('cores', '?')}, {record['hardware'].get('threads', '?')}"
        )
        cells = (
            f"`{path.name}`",
            _says(path.stem),
            where,
            record["commit"],
            machine,
            record["versions"].get("torch", "–"),
            _seeds(record["seeds"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _says(name: str) -> str:
    """The first sentence of the measurement's own account."""
    source = Path(__file__).parent / f"{name}.py"
    if not source.is_file():
        return "–"
    words = (
        (ast.get_docstring(ast.parse(source.read_text("utf-8"))) or "–")
        .split("\n\n")[0]
        .replace("\n", " ")
        .replace("|", "\\|")
    )
    return re.split(r"(?<=\w)\. |\.$", words)[0]


def _seeds(seeds: list[Any]) -> str:
    shown = [str(seed) for seed in seeds]
    return ", ".join(shown[:4]) + (" …" if len(shown) > 4 else "")


def _of(name: str) -> str:
    """Table `module.function` of the module's own evidence file."""
    module, _, function = name.partition(".")
    values = read_json(EVIDENCE / f"{module}.json")["values"]
    given = {
        "planted_directions.goals_table": "goals",
        "organism_directions.worlds_table": "over_worlds",
        "interval_coverage.coverage_table": "rows",
    }
    if name in given:
        values = values[given[name]]
        values = values if name.startswith("interval") else pd.DataFrame(values)
    return str(getattr(import_module(f"benchmarks.{module}"), function)(values))


def contents_table() -> str:
    """The pages of the documentation, a section a row, with links from the README.

    The pages of single packages are left to the reference.
    """
    nav = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text("utf-8"))["nav"]
    lines = ["| section | pages |", "|---|---|"]
    for entry in nav:
        ((section, inside),) = entry.items()
        links = [f"[{title}](docs/{_file_of(page)})" for title, page in _pages_of(inside)]
        lines.append(f"| {section} | {', '.join(links)} |")
    return "\n".join(lines)


def _file_of(page: str) -> str:
    """Where a page is written: a notebook's page is made from it."""
    return page if (DOCS / page).is_file() else f"{page.removesuffix('.md')}.ipynb"


def _pages_of(entries: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """(title, page) of a section of the navigation and of the groups inside it."""
    for entry in entries:
        ((title, inside),) = entry.items()
        if isinstance(inside, str):
            yield title, inside
        elif title != "Packages":
            yield from _pages_of(inside)


DRAWN: Final[Mapping[str, Callable[[], str]]] = {
    "figures": figures_table,
    "files": files_table,
    "reference": reference,
    "contents": contents_table,
    "study_tables": study_tables,
    "vocabulary": vocabulary,
}


def drawn(text: str) -> str:
    """A page's text with its tables as they are now."""

    def table(found: re.Match[str]) -> str:
        name = found["name"]
        body = _drawn_by_name(name).strip("\n")
        return f"{name} -->\n\n{body}\n\n<!-- end of table -->"

    return _BLOCK.sub(table, text)


def _drawn_by_name(name: str) -> str:
    if name in DRAWN:
        return DRAWN[name]()
    kind, _, package = name.partition(".")
    return reference_of(package) if kind == "reference_of" else _of(name)


def draw(pages: Path = DOCS) -> list[Path]:
    """Redraw the tables of all pages; returns the pages that changed."""
    changed = []
    for page in [*sorted(pages.rglob("*.md")), *pages.parent.glob("README.md")]:
        before = page.read_text("utf-8")
        after = drawn(before)
        if after != before:
            write_text(page, after)
            changed.append(page)
    return changed


def main() -> None:
    changed = draw()
    print(
        "tables: " + (", ".join(path.name for path in changed) or "every page is as it should be")
    )
