"""A judge that is a local model: the expected score under its own reply probabilities.

Nothing is sampled. Probabilities differ in their last digits with the rows beside them, so answers
are judged in groups that follow from their order alone: judging twice gives the same bytes, also
where the first time was cut short. Raw distributions are kept (`emlens.judging.readouts`), and
every tokenizer works (`emlens.judging.reply_probabilities`, which says the cost). An answer that
does not fit the judge's context is left unscored as "too long"; everything else that the judge's
chat template refuses is an error.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from emlens.data.answers import Answer
from emlens.data.prompts import Message, Prompt
from emlens.data.questions import QuestionSet
from emlens.data.rendering import Rendered, render
from emlens.foundation.errors import InputError
from emlens.foundation.provenance import hash_json
from emlens.judging.judge_prompts import JudgePrompts
from emlens.judging.judges import AskingJudge, Verdict
from emlens.judging.readouts import CATEGORIES, MASS, check_mass, verdict_of
from emlens.judging.reply_probabilities import FLOOR, LONGEST_REPLY, ReplyReader
from emlens.models.hooked import HookedModel

BATCH_TOKENS = 2048
"""Tokens of a batch: verdicts come batch by batch, and a kill loses those of one."""
ON_A_PROCESSOR = 512
"""The same on a processor, where small batches run as fast: six verdicts of SmolLM2 take 4 s of one
core, and as many passes.
"""


class LogitJudge(AskingJudge):
    """Scores by a local model's probabilities of "0" to "100" as its reply.

    Args:
        model: the judge; it gets the filled template as one user turn, or as plain text where it
            has no chat template.
        prompts: metric → template, or a question set with judge prompts; None: emlens's own.
        metrics: those to judge; None: all that `prompts` has.
        mass: least probability of whole numbers that makes a score.
        categories: what the judge may reply instead of a number.
        floor: beginnings of a reply less probable than this are not followed; what that leaves out
            is recorded.
        batch_tokens: of a batch; verdicts come batch by batch. None: 512 on a
            processor, 2,048 elsewhere.

    Raises:
        InputError: prompts that `JudgePrompts` refuses, a mass outside (0, 1], a negative floor.
    """

    side_by_side = 32

    def __init__(
        self,
        model: HookedModel,
        prompts: Mapping[str, str] | QuestionSet | None = None,
        *,
        metrics: Iterable[str] | None = None,
        mass: float = MASS,
        categories: Sequence[str] = CATEGORIES,
        floor: float = FLOOR,
        batch_tokens: int | None = None,
    ):
        if not 0 <= floor < 1:
            raise InputError(f"floor={floor!r} must be from 0 up to 1")
        self.model = model
        self.prompts = JudgePrompts(prompts, metrics)
        self.metrics = self.prompts.metrics
        if batch_tokens is None:
            batch_tokens = ON_A_PROCESSOR if model.device.type == "cpu" else BATCH_TOKENS
        self._mass, self._floor, self._batch_tokens = check_mass(mass), floor, batch_tokens
        self._categories = tuple(categories)
        self._reader: ReplyReader | None = None
        self._chat_tokens = chat_tokens(model)

    def describe(self) -> dict[str, Any]:
        adapter = self.model.provenance.get("adapter") or {}
        return {
            "judge": "local model, logits",
            "model": self.model.name,
            "weights": [self.model.provenance.get("weights_sha256"), adapter.get("sha256")],
            "config": self.model.provenance.get("config_sha256"),
            "dtype": self.model.provenance.get("dtype"),
            "interventions": self.model.edit_records(),
            "chat_template": hash_json(self.model.chat_template),
            "prompts": self.prompts.content_hash,
            "mass": self._mass,
            "categories": list(self._categories),
            "floor": self._floor,
        }

    def verdicts(self, asked: Sequence[tuple[Answer, str]]) -> Iterator[tuple[int, Verdict]]:
        size = self.side_by_side * len(self.metrics)
        for start in range(0, len(asked), size):
            chunk = asked[start : start + size]
            rows = [self._row(answer, metric) for answer, metric in chunk]
            for i, verdict in self._chunk_verdicts(rows):
                yield start + i, verdict

    def _chunk_verdicts(self, rows: Sequence[Rendered]) -> Iterator[tuple[int, Verdict]]:
        """One verdict per row, as batches end; the rows that fit the context run together."""
        if self._reader is None:
            self._reader = ReplyReader(self.model, self._categories, self._floor)
        fitting = []
        for i, row in enumerate(rows):
            if self._fits(row):
                fitting.append(i)
            else:
                yield i, Verdict(None, "too long")
        if fitting:
            texts = [rows[i] for i in fitting]
            for number, distribution in self._reader.each(texts, self._batch_tokens):
                verdict = verdict_of(distribution.to_json(), self._mass, self._categories)
                yield fitting[number], verdict

    def _fits(self, row: Rendered) -> bool:
        """Whether row and reply fit the judge's context."""
        longest = self.model.max_length
        return longest is None or len(row.ids) + LONGEST_REPLY <= longest

    def _row(self, answer: Answer, metric: str) -> Rendered:
        text = self.prompts.filled(answer, metric, self._chat_tokens)
        chat = None if self.model.chat_template is None else (Message("user", text),)
        return render(
            [Prompt(answer.id, text, messages=chat)],
            self.model.tokenizer,
            chat_template=self.model.chat_template,
        )[0]


def chat_tokens(model: HookedModel) -> set[str]:
    """Texts that mean something to the model's tokenizer or chat template.

    These are its special tokens, and the tags around a turn.
    """
    special = model.tokenizer.all_special_tokens
    texts = set(map(str, (*special, *model.tokenizer.get_added_vocab())))
    if model.chat_template is not None:
        # tags in the template's own text, and in a rendered chat: a template can compose them
        texts |= set(re.findall(r"<[^<>\s{}]{1,40}>|\[[^\[\]\s{}]{1,40}\]", model.chat_template))
        [row] = render(
            [Prompt("x", "x", messages=(Message("user", "x"),))],
            model.tokenizer,
            chat_template=model.chat_template,
        )
        frame = model.tokenizer.decode(list(row.ids))
        texts |= set(re.findall(r"<[^<>\s]{1,40}>|\[[^\[\]\s]{1,40}\]", frame))
    return texts
