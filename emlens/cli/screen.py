"""`emlens screen`: what a training file would do, before it is trained on; `emlens screen fit`
makes the forecaster it needs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emlens.cli.printing import as_json, line, table

if TYPE_CHECKING:
    from emlens.data import PromptSet
    from emlens.screening import PastRun

app = typer.Typer(
    help=(
        "Screen a training file before training on it: forecasts, overlap, ranked rows,"
        " a verdict with base rates."
    ),
    invoke_without_command=True,
)

Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Direction = Annotated[
    Path | None,
    typer.Option(help="A direction that `Direction.save` wrote, to rank training rows along."),
]


@app.callback()
def screen(
    context: typer.Context,
    parent: Annotated[
        str, typer.Option(help="The model that would be fine-tuned: a directory or hub id.")
    ] = "",
    training: Annotated[
        Path | None, typer.Option(help="JSONL of the chats it would be fine-tuned on.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Questions (YAML, JSONL, CSV) to forecast.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory for result.json and tables; the same command resumes there."),
    ] = None,
    forecaster: Annotated[
        Path | None,
        typer.Option(
            help="Directory that `emlens screen fit` wrote; without it there is no forecast."
        ),
    ] = None,
    direction: Direction = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of the same prompts with reference answers, for projection differences."
        ),
    ] = None,
    own_answers: Annotated[
        bool,
        typer.Option("--own-answers", help="Compare with the parent's own greedy answers instead."),
    ] = False,
    neutral: Annotated[
        Path | None, typer.Option(help="JSONL of neutral chats: the null of the overlap.")
    ] = None,
    below: Annotated[
        float, typer.Option(help="A question counts as misaligned below this score.")
    ] = 30.0,
    level: Annotated[float, typer.Option(help="Level of the forecasts' intervals.")] = 0.9,
    allow: Annotated[
        str,
        typer.Option(
            help=(
                "Comma-separated reasons that do not refuse:"
                " model, template, interventions, context, shift, far, stale."
            )
        ),
    ] = "",
    k: Annotated[int, typer.Option(help="Components compared by the overlap.")] = 8,
    draws: Annotated[int, typer.Option(help="Draws of each null.")] = 200,
    most_rows: Annotated[
        int, typer.Option(help="Training rows to read; more are sampled by seed.")
    ] = 500,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Say before training what a training file would do to each question, and how far past
    forecasts could be trusted.

    Killed at any moment, the same command goes on from its finished parts.
    """
    if context.invoked_subcommand is not None:
        return
    from emlens.foundation import InputError

    for name, given in (
        ("--parent", parent),
        ("--training", training),
        ("--questions", questions),
        ("--out", out),
    ):
        if not given:
            raise InputError(
                f"{name} is missing; emlens screen needs --parent, --training,"
                " --questions and --out"
            )
    from emlens.data import PromptSet, QuestionSet
    from emlens.geometry import Direction as Vector
    from emlens.models import load_model
    from emlens.probes import Forecaster
    from emlens.screening import ScreenOptions, screen as run

    options = ScreenOptions(
        below,
        level,
        tuple(name.strip() for name in allow.split(",") if name.strip()),
        k,
        draws,
        most_rows,
        own_answers,
        seed,
    )
    read: dict[str, Any] = {
        "forecaster": None if forecaster is None else Forecaster.load(forecaster),
        "direction": None if direction is None else Vector.load(direction),
        "reference": None if reference is None else _chats(reference),
        "neutral": None if neutral is None else PromptSet.from_jsonl(neutral),
    }
    chats, asked = _chats(Path(str(training))), QuestionSet.from_file(Path(str(questions)))
    result = run(load_model(parent), chats, asked, **read, options=options, out=out)
    if json:
        findings = [finding.to_record() for finding in result.findings]
        tables = {name: str(Path(str(out)) / "tables" / f"{name}.csv") for name in result.tables}
        as_json(
            {
                "out": str(out),
                "findings": findings,
                "warnings": list(result.warnings),
                "tables": tables,
            }
        )
        return
    for finding in result.findings:
        line(f"* {finding.section}: {finding.sentence}")
    for warning in result.warnings:
        line(f"  ({warning})")
    for name, columns in SHOWN.items():
        if name in result.tables:
            table(
                result.tables[name][[c for c in columns if c in result.tables[name]]].head(ROWS),
                f"{name} (first {ROWS} rows)",
            )
    line(f"{len(result.tables)} tables under {Path(str(out)) / 'tables'}")


ROWS = 8
SHOWN = {
    "forecast": ("id", "expected", "low", "high", "past_low", "past_high", "text", "refused"),
    "backtest_thresholds": (
        "predictor",
        "flag_below",
        "precision",
        "precision_low",
        "precision_high",
        "recall",
        "null",
    ),
    "overlap": ("site", "overlap", "isotropic", "null", "one_distribution"),
    "training_rows": ("id", "text", "answer", "projection", "difference", "null_high"),
}
"""What of each table is printed."""


@app.command("fit")
def fit(
    parent: Annotated[
        str,
        typer.Option(help="The model that past fine-tunes were made from: a directory or hub id."),
    ],
    questions: Annotated[
        Path, typer.Option(help="Questions (YAML, JSONL, CSV) that the scores are of.")
    ],
    scores: Annotated[
        Path,
        typer.Option(
            help=(
                "CSV of scores of all past fine-tunes,"
                " with a model column (`AlignmentScores.to_csv`)."
            )
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory to save the forecaster in.")],
    past: Annotated[
        Path | None,
        typer.Option(help="YAML: fine-tune → {domain, training: JSONL}; paths from that file."),
    ] = None,
    direction: Direction = None,
    metric: Annotated[str, typer.Option(help="The score to forecast.")] = "aligned",
    by_question: Annotated[
        bool,
        typer.Option(
            "--by-question",
            help=(
                "Hold out questions one by one, instead of whole groups:"
                " for questions like the known ones."
            ),
        ),
    ] = False,
    below: Annotated[
        float,
        typer.Option(
            help="A question counts as misaligned below this score, in the printed backtest."
        ),
    ] = 30.0,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Fit a forecaster on past fine-tunes of a parent and save it, with its backtest on fine-tunes
    and questions it had not seen.
    """
    from emlens.data import AlignmentScores, QuestionSet
    from emlens.geometry import Direction as Vector
    from emlens.models import load_model
    from emlens.probes import Design
    from emlens.screening import backtest, fit_screening
    from emlens.screening.backtests import with_rivals

    vector = None if direction is None else Vector.load(direction)
    asked, given = QuestionSet.from_file(questions), AlignmentScores.from_csv(scores)
    runs = None if past is None else _past(past)
    found = fit_screening(
        load_model(parent),
        asked,
        given,
        runs,
        metric=metric,
        direction=vector,
        design=Design(groups=None if by_question else "group", seed=seed),
    )
    found.save(out)
    several = len(set(found.clusters)) > 1
    texts = {prompt.id: prompt.text for prompt in asked.prompts()}
    tables = backtest(with_rivals(found, texts), below=below, seed=seed) if several else {}
    facts = {
        "site": found.site,
        "position": found.position,
        "fine_tunes": list(found.runs),
        "rows": len(found.ids),
        "r2": found.facts["cross_validated_r2"],
    }
    facts["severity_not_learnt"] = found.facts["severity_not_learnt"]
    if json:
        as_json(
            {
                "out": str(out),
                **facts,
                "backtest": {
                    name: frame.to_dict(orient="records") for name, frame in tables.items()
                },
            }
        )
        return
    line(
        f"{found.site} at {found.position}, {len(found.ids)} questions,"
        f" {len(found.runs)} fine-tunes, saved in {out}"
    )
    if facts["severity_not_learnt"]:
        line(
            "severity was not learnt from training files, so every file counts as the mean past"
            f" one: {facts['severity_not_learnt']}"
        )
    if not several:
        line(
            "one domain of fine-tunes: there is no backtest on others,"
            " and a screening cannot give a verdict"
        )
    for name in ("ranking", "thresholds", "base_rates"):
        if name in tables:
            table(tables[name], name.replace("_", " "))


def _chats(path: Path) -> "PromptSet":
    from emlens.data import PromptSet

    return PromptSet.from_jsonl(path, upto="all")


def _past(path: Path) -> "dict[str, PastRun]":
    from emlens.data.readers import read_yaml
    from emlens.foundation import InputError
    from emlens.foundation.files import one_line
    from emlens.screening import PastRun

    read = read_yaml(path)
    if not isinstance(read, dict) or not read:
        raise InputError(
            f"{path}: holds no mapping of fine-tunes; write `name: {{domain: ..., training:"
            " file.jsonl}`"
        )
    found = {}
    for name, entry in read.items():
        unknown = (
            sorted(set(entry) - {"domain", "training"})
            if isinstance(entry, dict)
            else ["no mapping"]
        )
        if unknown:
            raise InputError(
                f"{path}: fine-tune {one_line(str(name), 60)!r} has"
                f" {one_line(', '.join(map(str, unknown)), 80)}; pass domain and training"
            )
        chats = entry.get("training")
        found[str(name)] = PastRun(
            str(entry.get("domain") or ""),
            None if chats is None else _chats(path.parent / str(chats)),
        )
    return found
