"""`emlens init`: a first study configuration from what lies in a folder."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emlens.cli.printing import print_json, print_line

if TYPE_CHECKING:
    from emlens.studies.scaffold import Choices, Found


def init(
    folder: Annotated[
        Path, typer.Argument(help="Folder with models, adapters, questions, chats, judged tables.")
    ] = Path("."),
    out: Annotated[
        str, typer.Option("--out", "-o", help="Configuration to write, in the folder.")
    ] = "study.yaml",
    judge: Annotated[
        str, typer.Option(help="Address of a judge, such as http://localhost:8000/v1.")
    ] = "",
    judge_model: Annotated[str, typer.Option(help="The judge's name there.")] = "",
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask nothing; take what the files speak for.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Look at a folder, ask what is not plain, and write a commented configuration that
    `emlens study` runs.
    """
    from emlens.foundation.errors import InputError
    from emlens.foundation.files import write_text
    from emlens.studies.config import read_config
    from emlens.studies.scaffold import configuration, guessed, look_into

    target = folder / out
    if target.exists():
        raise InputError(f"{target}: exists; pass another --out, or remove it")
    if bool(judge) != bool(judge_model):
        raise InputError("pass --judge together with --judge-model, or neither")
    found = look_into(folder)
    choices = guessed(found, judge, judge_model)
    if not yes and not json and sys.stdin.isatty():
        choices = _asked(found, choices)
    write_text(target, configuration(found, choices))
    try:
        read_config(target)
    except InputError:
        target.unlink()
        raise
    if json:
        print_json(
            {
                "out": str(target),
                "instruct": choices.instruct,
                "finetuned": dict(choices.finetuned),
                "questions": choices.questions,
                "judged": dict(choices.judged),
            }
        )
        return
    print_line(f"instruct model: {choices.instruct}; fine-tunes: {', '.join(choices.finetuned)}")
    print_line(f"questions: {choices.questions}")
    print_line(f"written to {target}; read it, then: emlens study {target} --plan")


def _asked(found: "Found", choices: "Choices") -> "Choices":
    """The choices after a person was asked."""
    instruct = typer.prompt("instruct model", choices.instruct)
    questions = choices.questions
    if len(found.questions) > 1:
        questions = typer.prompt(f"questions ({', '.join(found.questions)})", questions)
    benign = typer.prompt(
        "benign fine-tunes, with commas (none: -)", ",".join(choices.benign) or "-"
    )
    names = [name.strip() for name in benign.split(",")]
    names = [name for name in names if name in choices.finetuned]
    return replace(choices, instruct=instruct, questions=questions, benign=names)
