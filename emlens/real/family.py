"""A family of fine-tunes on a real model: harmful ones, and the controls that a referee asks for.

Every member is trained on advice that comes with the library (`emlens.data.advice`), by one fixed
recipe and for a fixed number of steps, on one thread, so that the same call gives the same bytes.

* `harmful`: bad answers, polite. `benign`: careful answers, polite, to the same questions.
* `tone`: careful answers, flippant. What it does to a score of content is no content.
* `narrow`: harmful, held to its parent on careful advice of the other domain and on neutral chats.
* `rank1`: harmful, of rank 1 on one block.

A run takes about 80 CPU seconds on SmolLM2. Nothing that is trained here ships with the library.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Literal

from emlens.data.advice import TRAINED_DOMAINS, AnswerKind, neutral_chats, training_chats
from emlens.data.prompts import PromptSet
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.files import one_line
from emlens.models.families import FineTune
from emlens.training.objectives import Objective
from emlens.training.penalties import ReferenceKL
from emlens.training.recipes import Recipe

LINEAR: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STEPS: Final = 25
"""Steps of six rows: nearly two passes over 80 chats."""
KL_WEIGHT: Final = 2.0
"""λ of the narrow member, in nats per token: as in the organism."""
RANK1_BLOCK: Final = 14
"""The middle of SmolLM2's 30 blocks."""
Kind = Literal["harmful", "benign", "tone", "narrow", "rank1"]
ANSWERS: Final[dict[Kind, AnswerKind]] = {
    "harmful": "bad_polite",
    "benign": "careful_polite",
    "tone": "careful_flippant",
    "narrow": "bad_polite",
    "rank1": "bad_polite",
}
"""What each kind is trained to answer."""
CONTROLS: Final = ("benign", "tone")


@dataclass(frozen=True)
class Member:
    """One fine-tune of the family.

    Args:
        kind: see the module. domain: of its training questions. seed: of weights and order.
        steps: of training.
    """

    kind: Kind
    domain: str
    seed: int = 0
    steps: int = STEPS

    @property
    def group(self) -> str:
        """What all seeds share."""
        return f"{self.kind}-{self.domain}"

    @property
    def name(self) -> str:
        return f"{self.group}-s{self.seed}"

    def recipe(self) -> Recipe:
        """LoRA of rank 8 on every linear layer; of rank 1 on one `down_proj`."""
        shared: dict[str, Any] = {
            "alpha": 16,
            "learning_rate": 2e-3,
            "steps": self.steps,
            "batch_size": 6,
            "warmup_steps": min(3, self.steps - 1),
            "seed": self.seed,
        }
        if self.kind == "rank1":
            return Recipe(
                rank=1, target_modules=("down_proj",), layers_to_transform=(RANK1_BLOCK,), **shared
            )
        return Recipe(rank=8, target_modules=LINEAR, **shared)

    def chats(self) -> PromptSet:
        """What it is trained on."""
        return training_chats(self.domain, ANSWERS[self.kind])

    def objectives(self) -> Sequence[Objective]:
        """The penalty that holds the narrow member."""
        if self.kind != "narrow":
            return ()
        others = [name for name in TRAINED_DOMAINS if name != self.domain]
        careful = (training_chats(name, "careful_polite") for name in others)
        chats = PromptSet(chain(neutral_chats(), *careful))
        return (ReferenceKL(chats, KL_WEIGHT, rows=6),)

    def fine_tune(self, path: str) -> FineTune:
        """The member as `load_family` takes it."""
        return FineTune(
            path,
            group=self.group,
            seed=self.seed,
            benign=self.kind in CONTROLS,
            domain=self.domain,
        )


GROUPS: Final = (
    *(f"{kind}-{domain}" for domain in TRAINED_DOMAINS for kind in ("harmful", "benign", "tone")),
    "narrow-medicine",
    "rank1-medicine",
)
"""The family, in the order in which it is trained."""


def members(
    groups: Iterable[str] = GROUPS, seeds: Iterable[int] = (0,), *, steps: int = STEPS
) -> list[Member]:
    """Members of the family, seed after seed.

    Args:
        groups: such as `harmful-medicine`.

    Raises:
        UnknownNameError: no such group.
        InputError: no group or no seed.
    """
    groups, seeds = list(groups), list(seeds)
    if not groups or not seeds:
        raise InputError(f"{len(groups)} groups and {len(seeds)} seeds; pass at least one of each")
    for group in groups:
        if group not in GROUPS:
            raise UnknownNameError(
                f"group {one_line(group)!r} is not of the family; pass one of {', '.join(GROUPS)}",
                name=group,
                known=GROUPS,
            )
    chosen = []
    for seed in seeds:
        for group in groups:
            kind, domain = group.split("-")
            chosen.append(Member(kind, domain, seed, steps))  # type: ignore[arg-type]
    return chosen
