"""`emlens sample`: answers of a model, of its adapters or of a server, to a file of questions."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emlens.cli.loaded import MODEL_SETTINGS, load_named, model_options
from emlens.cli.printing import print_json, print_line
from emlens.cli.settings import (
    ENDPOINT_SETTINGS,
    Setting,
    count,
    help_text,
    read_settings,
    text,
)

if TYPE_CHECKING:
    from emlens.data import Answers
    from emlens.judging import Endpoint
    from emlens.models.hooked import HookedModel

SETTINGS: Mapping[str, Setting] = {
    **MODEL_SETTINGS,
    "thinking": text("yes, no, or strip: the thinking mode of the chat template (none)"),
    "batch_tokens": count("tokens generated at once at most (as HookedModel.generate)"),
    **ENDPOINT_SETTINGS,
}
_THINKING: Mapping[str, Any] = {"yes": True, "no": False, "strip": "strip"}


def sample(
    model: Annotated[
        str, typer.Argument(help="Directory or hub id; with --endpoint the model's name there.")
    ],
    questions: Annotated[Path, typer.Option(help="Questions (YAML, JSONL, JSON, CSV).")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Answers (JSONL); the same command goes on there, and adds models."
        ),
    ],
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="Adapter of the model, as NAME=PATH or PATH; repeatable."),
    ] = None,
    endpoint: Annotated[
        str, typer.Option(help="Ask this OpenAI-compatible endpoint instead of loading a model.")
    ] = "",
    samples: Annotated[int, typer.Option(help="Answers to each paraphrase.")] = 50,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Length of an answer at most.")] = 600,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    system: Annotated[str, typer.Option(help="System message before every question.")] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", help=help_text(SETTINGS))] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Sample answers. Killed at any moment, the same command ends with the same bytes."""
    from emlens.data import QuestionSet
    from emlens.data.system_messages import questions_with_system
    from emlens.judging import sample_answers

    values = read_settings(settings or (), SETTINGS)
    asked = questions_with_system(QuestionSet.from_file(questions), system)
    drawn: dict[str, dict[str, Any]] = {}
    for name, target in _targets(model, adapter or [], endpoint, values).items():
        start = time.monotonic()
        answers = sample_answers(
            target,
            asked,
            samples=samples,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            out=out,
            thinking=_thinking(values),
            others="other ids",
            **{key: values[key] for key in ("batch_tokens",) if key in values},
        )
        drawn[name] = _summary(answers, time.monotonic() - start)
    if json:
        print_json({"models": drawn, "out": str(out)})
        return
    for name, summary in drawn.items():
        print_line(
            f"{name}: {summary['answers']} answers to {summary['questions']} questions,"
            f" {summary['cut']} cut at the length, {summary['empty']} empty"
        )
    print_line(f"written to {out}")


def _targets(
    model: str, adapters: list[str], endpoint: str, values: Mapping[str, Any]
) -> "Mapping[str, HookedModel | Endpoint]":
    from emlens.foundation.errors import InputError
    from emlens.judging import Endpoint

    of_endpoint = {name: values[name] for name in ENDPOINT_SETTINGS if name in values}
    if endpoint:
        if adapters:
            raise InputError(
                "--adapter and --endpoint exclude each other: a server holds its own adapters;"
                " pass the adapter's name there as MODEL"
            )
        return {model: Endpoint(endpoint, model, **of_endpoint)}
    if of_endpoint:
        raise InputError(f"--set {', '.join(of_endpoint)} belongs to --endpoint; leave it out")
    return load_named(model, adapters, model_options(values))


def _thinking(values: Mapping[str, Any]) -> Any:
    from emlens.foundation.errors import InputError

    asked = values.get("thinking")
    if asked is None:
        return None
    if asked not in _THINKING:
        raise InputError(f"--set thinking={asked}: pass {', '.join(_THINKING)}")
    return _THINKING[asked]


def _summary(answers: "Answers", seconds: float) -> dict[str, Any]:
    return {
        "answers": len(answers),
        "questions": len({answer.question for answer in answers}),
        "cut": sum(answer.finish_reason == "length" for answer in answers),
        "empty": sum(not answer.text.strip() for answer in answers),
        "seconds": round(seconds, 3),
    }
