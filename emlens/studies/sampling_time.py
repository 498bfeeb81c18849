"""How long it takes to sample answers in this process, from two short drawings.

A drawing has a cost of each answer (its prompt is read) and a cost of each token of it. Two
drawings of unlike lengths, of as many answers at once as the study draws, tell them apart.
"""

import time
from dataclasses import dataclass
from typing import Final

from emlens.data import QuestionSet
from emlens.judging.sampling import sample_answers
from emlens.judging.score_source import Cost
from emlens.models import HookedModel

_LENGTHS: Final = (2, 8)
"""Tokens of an answer in the two drawings."""
_MOST_ANSWERS: Final = 64
"""Answers that are drawn at once to be timed; rows beyond a batch would only repeat it."""


@dataclass(frozen=True)
class SamplingTime:
    """Seconds of each answer that is sampled, and of each token of it."""

    answer: float = 0.0
    token: float = 0.0

    @classmethod
    def measured(cls, model: HookedModel, questions: QuestionSet, samples: int) -> "SamplingTime":
        """From two short drawings of this model's answers to these questions."""
        samples = max(1, min(samples, _MOST_ANSWERS // len(questions)))
        few = questions.select(questions.ids[:_MOST_ANSWERS])
        sample_answers(model, few, 1, max_new_tokens=1, progress=False)  # warms up
        seconds = []
        for length in _LENGTHS:
            began = time.perf_counter()
            answers = sample_answers(model, few, samples, max_new_tokens=length, progress=False)
            seconds.append((time.perf_counter() - began) / len(answers))
        short, long = _LENGTHS
        token = max(0.0, seconds[1] - seconds[0]) / (long - short)
        return cls(max(0.0, seconds[0] - short * token), token)

    def of(self, cost: Cost) -> float:
        """Seconds of the answers that are sampled in this process, each as long as it may be."""
        return cost.sampled * self.answer + cost.sampled_tokens * self.token
