"""What a judge is: it names its metrics and turns an answer into a verdict on each.

Anything with `metrics` and `judge(answer)` is a `Judge`. One that asks a model is an `AskingJudge`:
it takes many (answer, metric) pairs at once, gives verdicts as they come, and describes itself, so
that verdicts can be kept on disk. A verdict without a score has the reason as its status, in a few
words that are the same in every run: a category such as `refusal`, `low mass`, or, after a fault of
an endpoint, `endpoint: timeout`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from emlens.data.answers import Answer

FAULT: Final = "endpoint: "
"""Beginning of the status of an answer that was not judged because the endpoint failed."""


@dataclass(frozen=True)
class Verdict:
    """One metric's score on 0 to 100, or None with the reason as status.

    `raw` is what the score was computed from, as JSON: `rescore` reads it and runs no judge.
    """

    score: float | None
    status: str = "ok"
    raw: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether there is no score only because an endpoint failed: asking again may help."""
        return self.status.startswith(FAULT)


@runtime_checkable
class Judge(Protocol):
    """Anything that names its metrics and turns an answer into a verdict on each."""

    @property
    def metrics(self) -> Sequence[str]:
        """Names of what it judges."""
        ...

    def judge(self, answer: Answer) -> Mapping[str, Verdict]:
        """A verdict for each metric."""
        ...


class AskingJudge(ABC):
    """A judge that asks a model, many answers at once."""

    metrics: Sequence[str]
    side_by_side: int = 1
    """Answers whose verdicts can differ in their last digits with what is judged beside them: so
    many, in the order of their file, are judged together or not at all. 1: each by itself.
    """

    @abstractmethod
    def verdicts(self, asked: Sequence[tuple[Answer, str]]) -> Iterator[tuple[int, Verdict]]:
        """Yield (number of the pair, its verdict), each once, in any order, as they come.

        Args:
            asked: pairs of an answer and a metric. A judge of several answers side by side gets
                whole groups of them, with all its metrics.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-ready: all that decides its verdicts, and no secret.

        Two judges of one description give the same verdicts.
        """

    def judge(self, answer: Answer) -> Mapping[str, Verdict]:
        pairs = [(answer, metric) for metric in self.metrics]
        return {pairs[i][1]: verdict for i, verdict in self.verdicts(pairs)}


def judge_description(judge: Judge) -> dict[str, Any]:
    """What a journal of verdicts says about the judge: its `describe()`, or class and metrics."""
    describe = getattr(judge, "describe", None)
    if callable(describe):
        return dict(describe())
    return {"judge": type(judge).__name__, "metrics": list(judge.metrics)}
