"""`emlens screen fit`: a forecaster from past fine-tunes of a parent, with its backtest."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emlens.cli.printing import print_json, print_line, print_table

if TYPE_CHECKING:
    import pandas as pd

    from emlens.data import PromptSet, QuestionSet
    from emlens.geometry import Direction
    from emlens.probes import Forecaster
    from emlens.screening import PastRun

JsonOption = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
DirectionOption = Annotated[
    Path | None,
    typer.Option(help="A direction that `Direction.save` wrote, to rank training rows along."),
]


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
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to save the forecaster in.")],
    past: Annotated[
        Path | None,
        typer.Option(help="YAML: fine-tune → {domain, training: JSONL}; paths from that file."),
    ] = None,
    direction: DirectionOption = None,
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
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    json: JsonOption = False,
) -> None:
    """Fit a forecaster on past fine-tunes of a parent and save it, with its backtest on fine-tunes
    and questions it had not seen.
    """
    from emlens.data import AlignmentScores, QuestionSet
    from emlens.foundation.files import require_writable
    from emlens.models import load_model
    from emlens.probes import Design
    from emlens.screening import fit_screening

    require_writable(out)
    vector = read_direction(direction)
    question_set, score_table = QuestionSet.from_file(questions), AlignmentScores.from_file(scores)
    runs = None if past is None else _past_runs(past)
    forecaster = fit_screening(
        load_model(parent),
        question_set,
        score_table,
        runs,
        metric=metric,
        direction=vector,
        design=Design(groups=None if by_question else "group", seed=seed),
    )
    forecaster.save(out)
    tables = _backtest(forecaster, question_set, below, seed)
    if json:
        print_json(_record(forecaster, tables, out))
    else:
        _print(forecaster, tables, out)


def read_chats(path: Path) -> "PromptSet":
    """Chats with their answers, from JSONL."""
    from emlens.data import PromptSet

    return PromptSet.from_jsonl(path, upto="all")


def read_direction(path: Path | None) -> "Direction | None":
    """The direction that a directory holds; None where none was given."""
    from emlens.geometry import Direction

    return None if path is None else Direction.load(path)


def _backtest(
    forecaster: "Forecaster", questions: "QuestionSet", below: float, seed: int
) -> "dict[str, pd.DataFrame]":
    """How the forecaster did on past fine-tunes of other domains; nothing where there is only one
    domain.
    """
    from emlens.screening import backtest
    from emlens.screening.backtests import with_rivals

    if len(set(forecaster.clusters)) < 2:
        return {}
    texts = {prompt.id: prompt.text for prompt in questions.prompts()}
    return backtest(with_rivals(forecaster, texts), below=below, seed=seed)


def _record(
    forecaster: "Forecaster", tables: "dict[str, pd.DataFrame]", out: Path
) -> dict[str, Any]:
    return {
        "out": str(out),
        "site": forecaster.site,
        "position": forecaster.position,
        "fine_tunes": list(forecaster.runs),
        "rows": len(forecaster.ids),
        "r2": forecaster.facts["cross_validated_r2"],
        "severity_not_learnt": forecaster.facts["severity_not_learnt"],
        "backtest": {name: table.to_dict(orient="records") for name, table in tables.items()},
    }


def _print(forecaster: "Forecaster", tables: "dict[str, pd.DataFrame]", out: Path) -> None:
    print_line(
        f"{forecaster.site} at {forecaster.position}, {len(forecaster.ids)} questions,"
        f" {len(forecaster.runs)} fine-tunes, saved in {out}"
    )
    reason = forecaster.facts["severity_not_learnt"]
    if reason:
        print_line(
            "severity was not learnt from training files,"
            f" so every file counts as the mean past one: {reason}"
        )
    if not tables:
        print_line(
            "one domain of fine-tunes: there is no backtest on others,"
            " and a screening cannot give a verdict"
        )
    for name in ("ranking", "thresholds", "base_rates"):
        if name in tables:
            print_table(tables[name], name.replace("_", " "))


def _past_runs(path: Path) -> "dict[str, PastRun]":
    """Past fine-tunes by name, from a file that says what each was trained on."""
    from emlens.data.readers import read_yaml
    from emlens.foundation import InputError

    record = read_yaml(path)
    if not isinstance(record, dict) or not record:
        raise InputError(
            f"{path}: holds no mapping of fine-tunes;"
            " write `name: {domain: ..., training: file.jsonl}`"
        )
    return {str(name): _past_run(path, str(name), entry) for name, entry in record.items()}


def _past_run(path: Path, name: str, entry: Any) -> "PastRun":
    from emlens.foundation import InputError
    from emlens.foundation.files import one_line
    from emlens.screening import PastRun

    unknown = ["no mapping"]
    if isinstance(entry, dict):
        unknown = sorted(map(str, set(entry) - {"domain", "training"}))
    if unknown:
        raise InputError(
            f"{path}: fine-tune {one_line(name, 60)!r} has {one_line(', '.join(unknown), 80)};"
            " pass domain and training"
        )
    training = entry.get("training")
    chats = None if training is None else read_chats(path.parent / str(training))
    return PastRun(str(entry.get("domain") or ""), chats)
