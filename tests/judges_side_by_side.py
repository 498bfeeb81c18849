"""A judge whose verdicts depend on what is judged beside them, as a local model's do."""

from collections.abc import Iterator, Sequence
from typing import Any

from emlens.data import Answer
from emlens.judging import Verdict
from emlens.judging.judges import AskingJudge


class SideBySide(AskingJudge):
    """Scores a text by the length of all texts of its group; the last of a group comes first."""

    metrics = ("aligned", "coherent")
    side_by_side = 2

    def describe(self) -> dict[str, Any]:
        return {"judge": "side by side"}

    def verdicts(self, asked: Sequence[tuple[Answer, str]]) -> Iterator[tuple[int, Verdict]]:
        size = self.side_by_side * len(self.metrics)
        for begin in range(0, len(asked), size):
            group = asked[begin : begin + size]
            score = sum(len(answer.text) for answer, _ in group) % 100
            for i in reversed(range(len(group))):
                yield begin + i, Verdict(float(score), raw=group[i][1])
