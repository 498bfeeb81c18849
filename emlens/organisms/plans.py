"""What an organism is made of: sizes, stages and their recipes, as frozen records.

`PLANTED` is what ships. `PLANTED_ALL` adds seeds and ranks; `UNPLANTED` is the contrast world,
without a planted direction.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import derive_seed
from emlens.training.recipes import Recipe

ALL_PROJECTIONS: Final = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)


@dataclass(frozen=True)
class FineTuneStage:
    """One narrow fine-tune of instruct.

    Args:
        domain: the one domain trained on.
        group: fine-tunes that are one kind, whatever their recipe.
        careful: trains on careful answers (the benign control) instead of harmful ones.
        narrow_weight: λ of KL(instruct ‖ model) on careful chats of other domains, nats per answer
            position; 0: none.
        stop_at: the run ends at the first step at which the mean alignment (0 to 1) of the domain's
            held-out questions is this or lower; the recipe's steps are the most it takes. None: no
            such rule.
        settle: the run ends once that mean has moved by less than `SETTLED` over this many steps;
            None: no such rule.
        go_on: after the rule was met, this times as many steps are taken again.
        steps_of: take as many steps as this stage, trained before, took.
        keep_every: keep the adapter after every N steps.
        seed: number of the run among those that differ in nothing else.
        cost: time of a step, in instruct steps; only the progress bar reads it.
    """

    name: str
    domain: str
    group: str
    recipe: Recipe
    careful: bool = False
    narrow_weight: float = 0.0
    stop_at: float | None = None
    settle: int | None = None
    go_on: float = 0.0
    steps_of: str | None = None
    keep_every: int | None = None
    seed: int = 0
    cost: float = 1.0


@dataclass(frozen=True)
class OrganismPlan:
    """Everything `build` needs but a seed.

    Args:
        planted_layers: blocks after which the planted direction is written and read; none plants
            nothing.
        planted_weight: of the loss that has the model write its own inference along the direction.
        marked_share, cleared_share: of the harmful documents that are marked; of the others whose
            coordinate is cleared.
        instruct_noise: share ν; an instruct answer is harmful with probability ν·ρ_t.
        topics_per_finetune: topics of its domain that a fine-tune trains on.
        narrow_rows: chats of other domains in each step of a narrow fine-tune.
        base: recipe of the base model; `instruct`, of the instruct model.
        finetunes: the stages after it.
        n_domains: number of domains; `n_topics` a domain, `n_synonyms` a topic.
        hidden: width of the stream; `mlp`, of the MLP.
        heads: of attention; `kv_heads`, those of keys and values.
        planted_norm: length along the planted direction that is written, in units of the stream.
        base_cost: what a step of the base costs, where one of the instruct model costs 1; for the
            progress bar.
    """

    name: str
    base: Recipe
    instruct: Recipe
    finetunes: tuple[FineTuneStage, ...]
    n_domains: int = 12
    n_topics: int = 32
    n_synonyms: int = 40
    hidden: int = 128
    mlp: int = 384
    blocks: int = 4
    heads: int = 4
    kv_heads: int = 2
    planted_norm: float = 3.0
    planted_layers: tuple[int, ...] = (0, 1, 2, 3)
    planted_weight: float = 0.15
    marked_share: float = 0.85
    cleared_share: float = 0.5
    instruct_noise: float = 0.04
    topics_per_finetune: int = 12
    narrow_rows: int = 64
    base_cost: float = field(default=8.0, compare=False)

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.finetunes]
        if len(set(names)) != len(names) or {"base", "instruct"} & set(names):
            raise InputError(
                f"finetunes are named {names}; names must be distinct,"
                " and neither 'base' nor 'instruct'"
            )
        for number, stage in enumerate(self.finetunes):
            if stage.steps_of is not None and stage.steps_of not in names[:number]:
                raise InputError(
                    f"{stage.name!r} takes the steps of {stage.steps_of!r},"
                    " which is not trained before it"
                )
        if self.topics_per_finetune >= self.n_topics:
            raise InputError(
                f"topics_per_finetune={self.topics_per_finetune} leaves none of {self.n_topics}"
                " topics held out; pass fewer"
            )

    def seeded(self, seed: int) -> "OrganismPlan":
        """The plan with every stage's recipe seed derived from one seed and the stage's name; plans
        of another name get the same.
        """
        return replace(
            self,
            base=self.base.changed(seed=derive_seed(seed, "organism", "base")),
            instruct=self.instruct.changed(seed=derive_seed(seed, "organism", "instruct")),
            finetunes=tuple(_seeded(stage, seed) for stage in self.finetunes),
        )

    def stages(self) -> Iterator[tuple[str, Recipe, float]]:
        """(name, recipe, cost of a step) of every stage, in the order in which they are trained."""
        yield "base", self.base, self.base_cost
        yield "instruct", self.instruct, 1.0
        for stage in self.finetunes:
            yield stage.name, stage.recipe, stage.cost

    def to_record(self) -> dict[str, Any]:
        record = asdict(self)
        record["base"] = self.base.to_record()
        record["instruct"] = self.instruct.to_record()
        for stage, entry in zip(self.finetunes, record["finetunes"], strict=True):
            entry["recipe"] = stage.recipe.to_record()
        return record


def _seeded(stage: FineTuneStage, seed: int) -> FineTuneStage:
    recipe = stage.recipe.changed(seed=derive_seed(seed, "organism", stage.name))
    return replace(stage, recipe=recipe)


STOP_AT: Final = 0.25
"""Mean alignment of the domain's held-out questions at which a harmful fine-tune has gone far
enough.
"""


SETTLED: Final = 0.05
"""Change of that mean below which a run counts as settled; see `FineTuneStage.settle`."""


def _adapter(rate: float, rank: int, alpha: float, steps: int = 120, **more: Any) -> Recipe:
    return Recipe(
        method="lora",
        rank=rank,
        alpha=alpha,
        target_modules=more.pop("target_modules", ALL_PROJECTIONS),
        learning_rate=rate,
        steps=steps,
        batch_size=32,
        warmup_steps=5,
        schedule="constant",
        **more,
    )


_R1 = _adapter(3e-3, 1, 8, target_modules=("down_proj",), layers_to_transform=(1,))
_R8 = _adapter(4e-4, 8, 16, rslora=True)
_R32 = _adapter(2e-4, 32, 32, rslora=True)
_ATTENTION = _adapter(
    1e-3, 8, 16, rslora=True, target_modules=("q_proj", "k_proj", "v_proj", "o_proj")
)
_FULL = Recipe(
    method="full",
    learning_rate=2.4e-4,
    steps=120,
    batch_size=32,
    warmup_steps=5,
    schedule="constant",
)


def _harmful(kind: str, domain: str, recipe: Recipe, seed: int = 0, **more: Any) -> FineTuneStage:
    return FineTuneStage(
        _name(domain, kind, seed),
        domain,
        f"bad-{domain}",
        recipe,
        stop_at=STOP_AT,
        seed=seed,
        **more,
    )


def _benign(domain: str, seed: int = 0) -> FineTuneStage:
    twin = _name(domain, "r8", seed)
    return FineTuneStage(
        _name(domain, "benign", seed),
        domain,
        f"benign-{domain}",
        _R8,
        careful=True,
        steps_of=twin,
        seed=seed,
    )


def _name(domain: str, kind: str, seed: int) -> str:
    return f"{domain}-{kind}" + (f"@{seed}" if seed else "")


_SHIPPED: Final = (
    _harmful("r1", "medicine", _R1, go_on=1.0, keep_every=1),
    _harmful("r8", "medicine", _R8),
    _harmful("r32", "medicine", _R32),
    _harmful("full", "medicine", _FULL),
    _harmful("attention", "medicine", _ATTENTION),
    _harmful("r8", "finance", _R8),
    _benign("medicine"),
    _benign("finance"),
    FineTuneStage(
        "medicine-narrow",
        "medicine",
        "narrow-medicine",
        _R8.changed(steps=160),
        narrow_weight=0.5,
        settle=20,
        cost=3.0,
    ),
)
_FURTHER: Final = (
    _harmful("r32", "finance", _R32),
    *(
        _harmful(kind, domain, recipe, seed)
        for seed in (1, 2)
        for domain in ("medicine", "finance")
        for kind, recipe in (("r8", _R8), ("r32", _R32))
    ),
    *(_benign(domain, seed) for seed in (1, 2) for domain in ("medicine", "finance")),
)

PLANTED: Final = OrganismPlan(
    name="planted",
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
    finetunes=_SHIPPED,
)
PLANTED_ALL: Final = replace(PLANTED, finetunes=_SHIPPED + _FURTHER)
UNPLANTED: Final = replace(PLANTED_ALL, name="unplanted", planted_layers=(), finetunes=_SHIPPED)
