"""`emlens judge`: answers on file to scores on file, by rules, by a local model, or by a model
behind an endpoint.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emlens.cli.printing import as_json, line

if TYPE_CHECKING:
    from emlens.data import QuestionSet
    from emlens.judging import Judge


def judge(
    answers: Annotated[
        Path, typer.Argument(help="Answers (JSONL), as `sample_answers` writes them.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            help=(
                "CSV of scores to write; the verdicts are kept beside it as they come"
                " (.verdicts.jsonl)."
            )
        ),
    ],
    questions: Annotated[
        Path | None,
        typer.Option(
            help="Questions (YAML, JSONL, CSV) whose judge prompts, or reference answers, to use."
        ),
    ] = None,
    local: Annotated[
        str, typer.Option(help="Judge with this local model: a directory or hub id.")
    ] = "",
    endpoint: Annotated[
        str,
        typer.Option(
            help="Judge through this OpenAI-compatible endpoint, such as http://localhost:8000/v1."
        ),
    ] = "",
    model: Annotated[str, typer.Option(help="The judge's name at the endpoint.")] = "",
    references: Annotated[
        bool, typer.Option("--references", help="Judge by the questions' reference answers.")
    ] = False,
    metrics: Annotated[
        str, typer.Option(help="Comma-separated; left out, all that the prompts have.")
    ] = "",
    mass: Annotated[
        float, typer.Option(help="Least probability of whole numbers that makes a score.")
    ] = 0.25,
    read: Annotated[
        str, typer.Option(help="logprobs, or text: the number the endpoint's reply says.")
    ] = "logprobs",
    key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the endpoint's key.")
    ] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(help="Requests under way at once.")] = 8,
    requests_per_minute: Annotated[float | None, typer.Option(help="Rate limit.")] = None,
    max_requests: Annotated[
        int | None, typer.Option(help="Budget of requests, repeated ones included.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also ask again for answers that a fault left unscored.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Score answers with one judge. A stopped command goes on where it was; nothing that was judged
    is judged twice.
    """
    from emlens.data import Answers
    from emlens.foundation import InputError
    from emlens.judging import judge_answers

    chosen = [
        name
        for name, given in (
            ("--local", local),
            ("--endpoint", endpoint),
            ("--references", references),
        )
        if given
    ]
    if len(chosen) != 1:
        raise InputError(
            f"{' and '.join(chosen) or 'no judge'} came; pass one of --local MODEL,"
            " --endpoint URL or --references"
        )
    asked = _questions(questions)
    given = Answers.from_jsonl(answers)
    options: dict[str, Any] = {
        "metrics": [name.strip() for name in metrics.split(",") if name.strip()] or None,
        "mass": mass,
    }
    if references:
        judging = _by_references(asked)
    elif local:
        judging = _local(local, asked, options)
    else:
        judging = _behind(
            endpoint,
            model,
            asked,
            {**options, "read": read},
            {
                "key_env": key_env,
                "concurrency": concurrency,
                "requests_per_minute": requests_per_minute,
                "max_requests": max_requests,
            },
        )
    scores = judge_answers(given, judging, out=out.with_suffix(".verdicts.jsonl"), again=again)
    scores.to_csv(out)
    found: dict[str, dict[str, int]] = {}
    for metric, status in zip(scores.table["metric"], scores.table["status"], strict=True):
        counts = found.setdefault(metric, {})
        counts[status] = counts.get(status, 0) + 1
    if json:
        as_json({"answers": len(given), "statuses": found, "out": str(out)})
        return
    for metric, counts in found.items():
        for status, count in counts.items():
            line(
                f"{metric}: {count} {'scored' if status == 'ok' else f'without a score ({status})'}"
            )
    line(f"written to {out}")


def _questions(path: Path | None) -> "QuestionSet | None":
    from emlens.data import QuestionSet
    from emlens.foundation import InputError

    if path is None:
        return None
    readers = {
        ".yaml": QuestionSet.from_yaml,
        ".yml": QuestionSet.from_yaml,
        ".jsonl": QuestionSet.from_jsonl,
        ".csv": QuestionSet.from_csv,
    }
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: questions are read from {', '.join(readers)}")
    return readers[path.suffix.lower()](path)


def _by_references(questions: "QuestionSet | None") -> "Judge":
    from emlens.foundation import InputError
    from emlens.judging import ReferenceJudge

    if questions is None:
        raise InputError("--references needs --questions, which hold the reference answers")
    return ReferenceJudge(questions)


def _local(name: str, questions: "QuestionSet | None", options: dict[str, Any]) -> "Judge":
    from emlens.judging import LogitJudge
    from emlens.models import load_model

    return LogitJudge(load_model(name), questions, **options)


def _behind(
    url: str,
    model: str,
    questions: "QuestionSet | None",
    options: dict[str, Any],
    limits: dict[str, Any],
) -> "Judge":
    from emlens.judging import EndpointJudge
    from emlens.judging.endpoint import Endpoint

    return EndpointJudge(Endpoint(url, model, **limits), questions, **options)
