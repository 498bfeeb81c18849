"""When a fine-tune of an organism has gone far enough: a rule on questions it does not train on,
instead of steps set by hand.
"""

from collections.abc import Mapping
from typing import Any

from emlens.data.questions import QuestionSet
from emlens.organisms.plans import SETTLED
from emlens.organisms.strengths import likelihood_scores
from emlens.training import StopRun


class HeldOutRule:
    """A training callback: ends the run once the mean alignment of some questions is `at` or lower,
    or has settled.

    It logs that mean, 0 to 1, as `own_held_out` after each step. Cost: two forward passes over the
    questions per step.

    Args:
        questions: of the training domain, about topics that are not trained on.
        at: mean alignment at which to stop; None: no such rule.
        settle: stop once the mean has moved by less than `SETTLED` over this many steps; None: no
            such rule.
        go_on: after the rule was met, this times as many steps are taken again, so that what
            follows can be seen.
    """

    def __init__(
        self,
        questions: QuestionSet,
        tokenizer: Any,
        at: float | None,
        settle: int | None = None,
        go_on: float = 0.0,
    ):
        self.questions = questions
        self.tokenizer = tokenizer
        self.at = at
        self.settle = settle
        self.go_on = go_on
        self.seen: list[float] = []
        self.met: int | None = None

    def __call__(self, model: Any, step: int) -> Mapping[str, Any]:
        training = model.training
        model.eval()
        mean = float(likelihood_scores(model, self.tokenizer, self.questions)["aligned"].mean())
        model.train(training)
        self.seen.append(mean)
        if self._has_settled():
            raise StopRun(
                f"held-out questions of the domain settled over {self.settle} steps",
                own_held_out=mean,
            )
        if self.at is not None and mean <= self.at and self.met is None:
            self.met = step
        if self.met is not None and step >= self.met * (1.0 + self.go_on):
            raise StopRun(
                f"held-out questions of the domain reached {self.at} at step {self.met}",
                own_held_out=mean,
            )
        return {"own_held_out": mean}

    def _has_settled(self) -> bool:
        if self.settle is None or len(self.seen) <= self.settle:
            return False
        recent = self.seen[-(self.settle + 1) :]
        return max(recent) - min(recent) < SETTLED

    def state(self) -> dict[str, Any]:
        """What it remembers between steps, for a run that is resumed."""
        return {"seen": self.seen, "met": self.met}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.seen = list(state["seen"])
        self.met = state["met"]
