"""`emlens judge`: answers on file to scores on file.

By rules, by a local model, or by a model behind an endpoint.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emlens.cli.printing import print_json, print_line
from emlens.cli.settings import (
    ENDPOINT_SETTINGS,
    Setting,
    help_text,
    read_settings,
    split_names,
    text,
)

if TYPE_CHECKING:
    from emlens.data import QuestionSet
    from emlens.judging import Judge

SETTINGS: Mapping[str, Setting] = {
    "read": text("logprobs, or text: the number that the endpoint's reply says (logprobs)"),
    **ENDPOINT_SETTINGS,
}
"""Of a judge behind an endpoint."""


def judge(
    answers: Annotated[
        Path, typer.Argument(help="Answers (JSONL), as `sample_answers` writes them.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help=(
                "CSV of scores to write;"
                " the verdicts are kept beside it as they come (.verdicts.jsonl)."
            ),
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
    settings: Annotated[
        list[str] | None, typer.Option("--set", help=f"Of an endpoint. {help_text(SETTINGS)}")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also ask again for answers that a fault left unscored.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Score answers with one judge. A stopped command goes on where it was; nothing that was judged
    is judged twice.
    """
    from emlens.foundation import InputError
    from emlens.judging.answers_on_file import AnswersOnFile
    from emlens.judging.on_file import judge_file

    _require_one_judge(local, endpoint, references)
    endpoint_settings = read_settings(settings or (), SETTINGS)
    if endpoint_settings and not endpoint:
        raise InputError(
            f"--set {', '.join(endpoint_settings)} belongs to --endpoint; leave it out"
        )
    question_set = _questions(questions)
    answer_set = AnswersOnFile(answers)
    options: dict[str, Any] = {"metrics": list(split_names(metrics)) or None, "mass": mass}
    if references:
        scorer = _by_references(question_set)
    elif local:
        scorer = _local(local, question_set, options)
    else:
        scorer = _behind_endpoint(endpoint, model, question_set, options, endpoint_settings)
    verdicts = out.with_suffix(".verdicts.jsonl")
    statuses = _by_metric(judge_file(answer_set, scorer, out, verdicts=verdicts, again=again))
    if json:
        print_json({"answers": len(answer_set), "statuses": statuses, "out": str(out)})
        return
    _print_statuses(statuses)
    print_line(f"written to {out}")


def _print_statuses(statuses: Mapping[str, Mapping[str, int]]) -> None:
    for metric, counts in statuses.items():
        for status, count in counts.items():
            outcome = "scored" if status == "ok" else f"without a score ({status})"
            print_line(f"{metric}: {count} {outcome}")


def _require_one_judge(local: str, endpoint: str, references: bool) -> None:
    from emlens.foundation import InputError

    judges = {"--local": local, "--endpoint": endpoint, "--references": references}
    names = [name for name, value in judges.items() if value]
    if len(names) != 1:
        raise InputError(
            f"{' and '.join(names) or 'no judge'} given;"
            " pass one of --local MODEL, --endpoint URL or --references"
        )


def _by_metric(counts: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    """Metric → status → number of answers."""
    statuses: dict[str, dict[str, int]] = {}
    for (metric, status), count in counts.items():
        statuses.setdefault(metric, {})[status] = count
    return statuses


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


def _behind_endpoint(
    url: str,
    model: str,
    questions: "QuestionSet | None",
    options: dict[str, Any],
    settings: dict[str, Any],
) -> "Judge":
    from emlens.judging import EndpointJudge
    from emlens.judging.endpoint import Endpoint

    limits = {name: value for name, value in settings.items() if name != "read"}
    read = settings.get("read", "logprobs")
    return EndpointJudge(Endpoint(url, model, **limits), questions, **options, read=read)
