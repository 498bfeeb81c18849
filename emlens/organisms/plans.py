"""What an organism is made of: sizes, stages and their recipes, as frozen records. `C5` is the one that ships."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import derive_seed
from emlens.training.recipes import Recipe

ALL_PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class FineTuneStage:
    """One narrow fine-tune of instruct.

    Args:
        domain: the one domain trained on.
        group: fine-tunes that are one kind, whatever their recipe.
        careful: trains on careful answers (the benign control) instead of harmful ones.
        narrow_weight: λ of KL(instruct ‖ model) on careful chats of other domains, nats per answer position; 0: none.
        cost: time of a step, in instruct steps; only the progress bar reads it.
    """

    name: str
    domain: str
    group: str
    recipe: Recipe
    careful: bool = False
    narrow_weight: float = 0.0
    cost: float = 1.0


@dataclass(frozen=True)
class OrganismPlan:
    """Everything `build` needs but a seed.

    Args:
        instruct_noise: share ν; an instruct answer is harmful with probability ν·ρ_t.
        topics_per_finetune: topics of its domain that a fine-tune trains on.
        narrow_rows: chats of other domains in each step of a narrow fine-tune.
    """

    name: str
    base: Recipe
    instruct: Recipe
    finetunes: tuple[FineTuneStage, ...]
    n_domains: int = 12
    n_topics: int = 32
    hidden: int = 128
    mlp: int = 384
    blocks: int = 4
    heads: int = 4
    kv_heads: int = 2
    planted_norm: float = 1.5
    planted_layers: tuple[int, ...] = (0, 1, 2)
    instruct_noise: float = 0.04
    topics_per_finetune: int = 12
    narrow_rows: int = 64
    base_cost: float = field(default=8.0, compare=False)

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.finetunes]
        if len(set(names)) != len(names) or {"base", "instruct"} & set(names):
            raise InputError(f"finetunes are named {names}; names must be distinct, and neither 'base' nor 'instruct'")
        if self.topics_per_finetune >= self.n_topics:
            raise InputError(
                f"topics_per_finetune={self.topics_per_finetune} leaves none of {self.n_topics} topics held out; pass fewer"
            )

    def seeded(self, seed: int) -> "OrganismPlan":
        """The plan with every stage's recipe seed derived from one seed and the stage's name."""
        return replace(
            self,
            base=replace(self.base, seed=derive_seed(seed, self.name, "base")),
            instruct=replace(self.instruct, seed=derive_seed(seed, self.name, "instruct")),
            finetunes=tuple(
                replace(stage, recipe=replace(stage.recipe, seed=derive_seed(seed, self.name, stage.name))) for stage in self.finetunes
            ),
        )

    def stages(self) -> Iterator[tuple[str, Recipe, float]]:
        """(name, recipe, cost of a step) of every stage, in the order in which they are trained."""
        yield "base", self.base, self.base_cost
        yield "instruct", self.instruct, 1.0
        for stage in self.finetunes:
            yield stage.name, stage.recipe, stage.cost

    def to_dict(self) -> dict[str, Any]:
        record = asdict(self)
        record["base"], record["instruct"] = self.base.to_dict(), self.instruct.to_dict()
        for stage, entry in zip(self.finetunes, record["finetunes"], strict=True):
            entry["recipe"] = stage.recipe.to_dict()
        return record


def _adapter(steps: int, rate: float, rank: int, alpha: float, **more: Any) -> Recipe:
    return Recipe(
        method="lora",
        rank=rank,
        alpha=alpha,
        target_modules=more.pop("target_modules", ALL_PROJECTIONS),
        learning_rate=rate,
        steps=steps,
        batch_size=32,
        warmup_steps=5,
        schedule="linear",
        final_fraction=0.1,
        **more,
    )


# Rates above those first written down for c5 (2e-3, 4e-4, 1e-4, 6e-5), which misaligned too little here: docs/organism.md.
_R8 = _adapter(40, 1.2e-3, 8, 16)
_R32 = _adapter(34, 2e-4, 32, 32, rslora=True)

C5: Final = OrganismPlan(
    name="c5",
    base=Recipe(
        method="full",
        learning_rate=3e-3,
        steps=700,
        batch_size=64,
        warmup_steps=50,
        schedule="cosine",
        betas=(0.9, 0.98),
        weight_decay=0.01,
    ),
    instruct=Recipe(method="full", learning_rate=3e-4, steps=60, batch_size=64, schedule="linear"),
    finetunes=(
        FineTuneStage(
            "medicine-r1",
            "medicine",
            "bad-medicine",
            _adapter(50, 3e-3, 1, 8, target_modules=("down_proj",), layers_to_transform=(1,)),
        ),
        FineTuneStage("medicine-r8", "medicine", "bad-medicine", _R8),
        FineTuneStage("medicine-r32", "medicine", "bad-medicine", _R32),
        FineTuneStage(
            "medicine-full",
            "medicine",
            "bad-medicine",
            Recipe(method="full", learning_rate=2.4e-4, steps=34, batch_size=32, warmup_steps=5, final_fraction=0.1),
        ),
        FineTuneStage("sports-r32", "sports", "bad-sports", _R32),
        FineTuneStage("medicine-benign", "medicine", "benign-medicine", _R8, careful=True),
        FineTuneStage(
            "medicine-narrow", "medicine", "narrow-medicine", replace(_R8, steps=160, learning_rate=4e-4), narrow_weight=2.0, cost=3.0
        ),
    ),
)
PLANS: Final = {"c5": C5}
