"""What sampled scores will cost: the answers and verdicts that are neither on file nor planned
before.

A study asks for the scores of one model many times: unedited models stand beside every arm, dose
and candidate. What was asked before is read from the journal, so a plan must not count it again.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from emlens.data.answers import Answer, read_answers
from emlens.data.journal import read_journal
from emlens.data.prompts import Message
from emlens.data.questions import QuestionSet
from emlens.judging.score_source import Planned
from emlens.judging.scoring import answer_hash

_Place = tuple[str, int, int, tuple[Message, ...]]
"""Of an answer: question, paraphrase, sample, and the chat it answers."""


def missing(
    answers_file: Path,
    verdicts_file: Path,
    questions: QuestionSet,
    samples: int,
    metrics: Sequence[str],
    planned: Planned,
) -> tuple[int, int]:
    """Answers and verdicts of one model that are still to be had.

    Args:
        answers_file, verdicts_file: the journals that they would lie in; they need not exist.
        samples: answers to each paraphrase.
        planned: gets the answers of this call; those in it are not counted.
    """
    on_file = {_place(answer): answer for answer in _answers(answers_file)}
    judged = set(_judged(verdicts_file))
    answers = verdicts = 0
    for place in _places(questions, samples):
        key = answers_file.name, *place
        if key in planned:
            continue
        planned.add(key)
        answer = on_file.get(place)
        if answer is None:
            answers += 1
            verdicts += len(metrics)
        else:
            wanted = {(answer.id, answer_hash(answer), metric) for metric in metrics}
            verdicts += len(wanted - judged)
    return answers, verdicts


def _places(questions: QuestionSet, samples: int) -> Iterable[_Place]:
    for question in questions:
        for paraphrase in range(1, len(question.paraphrases) + 1):
            messages = question.messages(paraphrase)
            for sample in range(samples):
                yield question.id, paraphrase, sample, messages


def _place(answer: Answer) -> _Place:
    return answer.question, answer.paraphrase, answer.sample, answer.messages


def _answers(file: Path) -> list[Answer]:
    if not file.exists():
        return []
    return read_answers(file, unfinished=True, repeated=True)


def _judged(file: Path) -> Iterable[tuple[str, str, str]]:
    """Answer, hash of it and metric of every verdict in a journal."""
    for _, line in read_journal(file)[1:]:  # after its head
        yield line["answer"], line["hash"], line["metric"]
