"""What a judge is: it names its metrics and turns an answer into a verdict on each.

Anything with `metrics` and `judge(answer)` is a `Judge`. One that asks a model is an `AskingJudge`:
it takes many (answer, metric) pairs at once, gives verdicts as they come, and describes itself, so
that verdicts can be kept on disk. A verdict without a score carries the reason as its status, a few
words that stay the same from run to run: a category such as `refusal`, `low mass`, or, after a
fault of an endpoint, `endpoint: timeout`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from emlens.data.answers import Answer

FAULT: Final = "endpoint: "
"""How the status of an answer begins that was not judged because the endpoint failed."""


@dataclass(frozen=True)
class Verdict:
    """One metric's score on 0 to 100, or None with the reason as status.

    `raw` is what the score was computed from, as JSON: `rescore` reads it, and asks nobody again.
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
    """Whatever names its metrics and turns an answer into a verdict on each."""

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

    @abstractmethod
    def verdicts(self, asked: Sequence[tuple[Answer, str]]) -> Iterator[tuple[int, Verdict]]:
        """Yield (number of the pair, its verdict) for (answer, metric) pairs, each once, in any
        order, as they come.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-ready: all that decides its verdicts, and no secret. Two judges that describe
        themselves alike judge alike.
        """

    def judge(self, answer: Answer) -> Mapping[str, Verdict]:
        pairs = [(answer, metric) for metric in self.metrics]
        return {pairs[i][1]: verdict for i, verdict in self.verdicts(pairs)}


def described(judge: Judge) -> dict[str, Any]:
    """What a record of verdicts says about the judge; one that does not describe itself is known by
    its class and metrics.
    """
    describe = getattr(judge, "describe", None)
    return (
        dict(describe())
        if callable(describe)
        else {"judge": type(judge).__name__, "metrics": list(judge.metrics)}
    )
