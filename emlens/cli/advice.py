"""`emlens advice`: what a set of four answers is like, the one that comes with emlens or yours."""

from pathlib import Path
from typing import Annotated

import typer

from emlens.cli.printing import print_json, print_line, print_table

app = typer.Typer(
    no_args_is_help=True,
    help="Everyday advice with four answers to a question: careful and bad, polite and flippant.",
)


@app.command("stats")
def stats(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="Questions with four answers each (YAML, JSONL); without it those of emlens."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Lengths, shared words, and how well register and content are told apart by words."""
    from emlens.data.advice import advice_questions
    from emlens.data.questions import QuestionSet
    from emlens.probes.answer_separability import (
        answer_separability,
        answer_table,
        length_rows,
        longest_over_shortest,
        vocabulary_rows,
    )

    questions = advice_questions() if file is None else QuestionSet.from_file(file)
    answers = answer_table(questions)
    separability = answer_separability(questions).rows
    ratio = longest_over_shortest(answers)
    if json:
        print_json(
            {
                "questions": len(questions),
                "groups": len(set(questions.groups)),
                "longest_over_shortest": ratio,
                "lengths": length_rows(answers).to_dict("records"),
                "vocabulary": vocabulary_rows(answers).to_dict("records"),
                "separability": separability.to_dict("records"),
            }
        )
        return
    print_line(f"{len(questions)} questions in {len(set(questions.groups))} groups")
    print_table(length_rows(answers), "Words of an answer; reason_share: because, since, so that")
    print_line(f"longest over shortest answer of one question: at most {ratio:.2f}")
    print_table(vocabulary_rows(answers), "Distinct words")
    print_table(separability, "AUROC of classifiers of words, each group held out; chance is .5")
    print_line(
        "Content can be told from tone where the register classifier does not rank bad over careful"
        " (.40 to .60)."
    )
