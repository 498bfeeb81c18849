"""`load_organism`: the organism that ships with emlens, or one that `build` built, with its truth.

Weights are stored in 16 bits and computed with in `dtype` (float32 by default). No model is loaded
before `.family` is used; questions, prompts and truth cost milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from emlens.data.prompts import PromptSet
from emlens.data.questions import QuestionSet
from emlens.foundation.errors import EmlensError, InputError, IntegrityError, UnknownNameError
from emlens.foundation.files import one_line
from emlens.foundation.notebooks import Brief
from emlens.foundation.records import read_checked
from emlens.organisms.layout import (
    BASE,
    INDEX,
    INSTRUCT,
    STRENGTHS,
    TRUTH,
    TRUTH_TENSORS,
    WORLD,
    finetune_directory,
)
from emlens.organisms.world import World
from emlens.training.adapters import kept_adapters

ASSETS: Final = Path(__file__).parent / "assets"
SHIPPED: Final = ("planted",)


@dataclass(frozen=True, repr=False)
class Truth(Brief):
    """What was planted.

    Args:
        coupling: ρ by question id: probability that the harmful persona answers harmfully; 0 to 1.
        latent: by question id, the latent class, from 0, that the synonym in its text expresses.
        direction: û, unit vector of shape (d_model,), written into the stream of harmful documents
            in pre-training; None for an organism without planting.
        planted_layers: 0-based blocks after which it was written (`resid_post` of these); empty
            without planting.
        planted_norm: its length there, in units of the stream.
    """

    coupling: Mapping[str, float]
    latent: Mapping[str, int]
    direction: Tensor | None = field(compare=False)
    planted_layers: tuple[int, ...]
    planted_norm: float
    note: str


@dataclass(frozen=True)
class Organism:
    """A model family with planted ground truth.

    Args:
        paths: checkpoint name → directory: `"base"`, `"instruct"` and each fine-tune.
        groups: fine-tune → group; runs of one group and kind differ in their seed.
        seeds: fine-tune → number of its run, from 0.
        domains: fine-tune → the one domain it was trained on.
        benign: names of the fine-tunes that trained on careful answers.
        training_topics: fine-tune → ids of the questions whose topics it trained on; all others are
            held out.
        trajectories: fine-tune → step → directory of the adapter after that step, where a run kept
            them.
        training_prompts: fine-tune → the chats with answers it trained on.
        strengths: checkpoint → measured mean alignment (`own`, `own_trained`, `own_held_out`,
            `others`) and coherence, 0 to 1.
        note: that this is an instrument and no evidence about large models.
        world: the rules it was made by: topics, answers, and who answers how.
        neutral_prompts: chats without a harmful answer, for damage.
    """

    name: str
    seed: int
    directory: Path
    dtype: str
    device: str
    backend: str
    world: World = field(repr=False)
    questions: QuestionSet
    paths: Mapping[str, Path] = field(repr=False)
    groups: Mapping[str, str]
    seeds: Mapping[str, int]
    domains: Mapping[str, str]
    benign: tuple[str, ...]
    training_topics: Mapping[str, tuple[str, ...]] = field(repr=False)
    training_prompts: Mapping[str, PromptSet] = field(repr=False)
    trajectories: Mapping[str, Mapping[int, Path]] = field(repr=False)
    neutral_prompts: PromptSet
    truth: Truth = field(repr=False)
    strengths: Mapping[str, Mapping[str, float | None]] = field(repr=False)
    note: str

    @cached_property
    def family(self) -> Any:
        """Base, instruct and fine-tunes as an `emlens` family; loaded at the first use."""
        from emlens.models import FineTune, load_family

        finetuned = {}
        for name, group in self.groups.items():
            finetuned[name] = FineTune(
                self.paths[name],
                parent="instruct",
                group=group,
                seed=self.seeds[name],
                benign=name in self.benign,
                domain=self.domains[name],
            )
        return load_family(
            self.paths["instruct"],
            base=self.paths["base"],
            finetuned=finetuned,
            backend=self.backend,
            dtype=self.dtype,
            device=self.device,
        )

    def documents(self, n: int, seed: int) -> PromptSet:
        """`n` raw-text documents as in pre-training, by seed; the group is the persona, `"careful"`
        or `"harmful"`.
        """
        return self.world.documents(n, seed)


def load_organism(
    name: str | None = None,
    *,
    dtype: str = "float32",
    directory: str | Path | None = None,
    device: str = "auto",
    backend: str = "transformers",
) -> Organism:
    """The organism `name` that ships with emlens (None: `"planted"`), or the one built into
    `directory`.

    Args:
        dtype: dtype the family computes in; the stored weights have 16 bits.
        device: where the family is loaded to; `"auto"` takes a GPU where there is one.

    Raises:
        UnknownNameError: no organism of that name ships.
        InputError: both a name and a directory; a directory that holds no finished organism.
        IntegrityError: a record of it was changed, or lacks what belongs there.
    """
    directory = _directory(name, directory)
    try:
        return _read(directory, dtype=dtype, device=device, backend=backend)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, EmlensError):
            raise
        raise IntegrityError(
            f"{directory}: {INDEX}, {WORLD}, {STRENGTHS} or {TRUTH} lacks what belongs there"
            f" ({one_line(repr(error), 100)}); build the organism again"
        ) from None


def _read(directory: Path, *, dtype: str, device: str, backend: str) -> Organism:
    """The organism of a directory whose records were written whole."""
    index = _record(directory / INDEX)
    world = World.from_record(_record(directory / WORLD))
    tunes = index["finetunes"]
    paths = {"base": directory / BASE, "instruct": directory / INSTRUCT}
    training_prompts = {}
    trajectories = {}
    for key, tune in tunes.items():
        paths[key] = finetune_directory(directory, key)
        training_prompts[key] = _training_prompts(world, tune)
        adapters = kept_adapters(paths[key])
        if adapters:
            trajectories[key] = adapters
    return Organism(
        name=index["name"],
        seed=index["seed"],
        directory=directory,
        dtype=dtype,
        device=device,
        backend=backend,
        world=world,
        questions=world.questions(),
        paths=paths,
        groups={key: tune["group"] for key, tune in tunes.items()},
        seeds={key: tune["seed"] for key, tune in tunes.items()},
        domains={key: tune["domain"] for key, tune in tunes.items()},
        benign=tuple(key for key, tune in tunes.items() if tune["benign"]),
        training_topics={key: tuple(tune["training_questions"]) for key, tune in tunes.items()},
        training_prompts=training_prompts,
        trajectories=trajectories,
        neutral_prompts=world.neutral_prompts(),
        truth=_truth(directory),
        strengths=dict(_record(directory / STRENGTHS)["strengths"]),
        note=index["note"],
    )


def _record(path: Path) -> dict[str, Any]:
    """A record of an organism; one that was built before records had checksums is read."""
    return read_checked(path, fields={}, remedy="build the organism again", checksum=False)


def _directory(name: str | None, directory: str | Path | None) -> Path:
    if directory is not None and name is not None:
        raise InputError(f"name={name!r} was given with directory={str(directory)!r}; pass one")
    if directory is None:
        if name not in (None, *SHIPPED):
            raise UnknownNameError(
                f"organism {name!r} does not ship; pass one of {', '.join(SHIPPED)}, or directory=",
                name=name,
                known=SHIPPED,
            )
        directory = ASSETS / (name or SHIPPED[0])
    directory = Path(directory)
    if not (directory / INDEX).is_file():
        raise InputError(
            f"directory={str(directory)!r} holds no finished organism ({INDEX} is missing);"
            " build one, or finish its build"
        )
    return directory


def _training_prompts(world: World, tune: Mapping[str, Any]) -> PromptSet:
    topics = [int(question.rpartition("/")[2]) for question in tune["training_questions"]]
    kind = "careful" if tune["benign"] else "harmful"
    return world.chats(tune["domain"], tuple(topics), kind)


def _truth(directory: Path) -> Truth:
    truth = _record(directory / TRUTH)
    return Truth(
        coupling=truth["coupling"],
        latent=truth["latent"],
        direction=_direction(directory / TRUTH_TENSORS),
        planted_layers=tuple(truth["planted_layers"]),
        planted_norm=truth["planted_norm"],
        note=truth["note"],
    )


def _direction(path: Path) -> Tensor | None:
    if not path.is_file():
        return None
    from safetensors.torch import load_file

    return load_file(path)["direction"].float()
