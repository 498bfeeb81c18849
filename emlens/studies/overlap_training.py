"""The training nulls of a study: which fine-tunes have one, what prompts they share, and training
them in the study's folder.

The adapters of one recipe, chats and prompts serve every position, and fine-tunes that differ in
their seed alone. They are units: a killed study goes on from the finished ones.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

from emlens.activations import CaptureSpec
from emlens.controls.null_adapters import NullSetting, shares_parent
from emlens.controls.null_training import TrainingNull, training_null
from emlens.data import PromptSet
from emlens.data.rendering import Rendered
from emlens.data.system_messages import prompts_with_system
from emlens.foundation.errors import InputError, IntegrityError, LoadError, StateError
from emlens.foundation.provenance import hash_json
from emlens.foundation.seeds import numpy_rng
from emlens.models import HookedModel
from emlens.organisms.building import one_thread
from emlens.runs import Executor, LocalExecutor
from emlens.studies.config import StudyConfig
from emlens.studies.material import Material
from emlens.studies.overlap_recipes import NotHad, NullNeeds, is_one_direction, null_needs
from emlens.studies.overlap_shifts import compared_prompts
from emlens.studies.streams import read_sites
from emlens.studies.study import PlannedTraining, StudyContext
from emlens.training import Recipe
from emlens.training.gradient_memory import batch_bytes, weight_bytes

IDENTITY: Final = (
    "rank 1 on one module writes one direction for every prompt: what its shifts share is an"
    " identity, and is not tested"
)
USUAL_K: Final = 8
MOST_FURTHER: Final = 128
"""Prompts of third domains, at most: a mean of so many cosines is known well enough."""


def described_k(config: StudyConfig) -> int:
    """Dimension of the two described statistics: one for all layers, since they are averaged."""
    return config.k if isinstance(config.k, int) else USUAL_K


def third_prompts(material: Material, names: Sequence[str], config: StudyConfig) -> PromptSet:
    """Prompts outside the domains of all these fine-tunes, the same for each; empty where there
    are none.

    Raises:
        NotHad: fewer than two domains are known, or no question lies outside all of them.
    """
    domains = {material.domain(name) for name in names} - {""}
    if len(domains) < 2:
        raise NotHad(
            "it takes two harmful fine-tunes of different domains in focus;"
            f" these are of {', '.join(sorted(domains)) or 'no known domain'}"
        )
    common = set(material.questions.prompts().ids)
    for name in names:
        if material.domain(name):
            common &= set(material.outside(name).prompts().ids)
    ids = [id for id in material.questions.prompts().ids if id in common]
    if len(ids) < 3:
        raise NotHad(
            f"no question lies outside all of the domains {', '.join(sorted(domains))};"
            " add questions of a further domain"
        )
    order = numpy_rng(config.seed, "third domains").permutation(len(ids))[:MOST_FURTHER]
    return material.questions.prompts().select([ids[i] for i in sorted(order)])


@dataclass(eq=False)
class StudyNulls:
    """The training nulls of the fine-tunes of one study, each trained at the first use.

    Args:
        third: prompts on which adapters of two domains are compared; None where there are none.
        after_each: called after every adapter.
    """

    context: StudyContext
    adapters: int
    keep: bool
    ray_actors: int
    third: PromptSet | None
    after_each: Callable[[], None]

    def __post_init__(self) -> None:
        self._trained: dict[str, TrainingNull] = {}
        self._needs: dict[str, NullNeeds | str] = {}

    def needs(self, name: str) -> NullNeeds | str:
        """What the null of a fine-tune is made from; a sentence where there is none."""
        if name not in self._needs:
            self._needs[name] = self._found(name)
        return self._needs[name]

    def of(self, name: str) -> TrainingNull | str:
        """The null of a fine-tune, trained where it is not yet; a sentence where there is none."""
        needs = self.needs(name)
        if isinstance(needs, str):
            return needs
        key = self.key(name, needs)
        if key not in self._trained:
            try:
                self._trained[key] = self._train(name, needs, key)
            except (InputError, IntegrityError, LoadError, StateError) as error:
                self._needs[name] = f"its training null could not be trained: {error}"
                return str(self._needs[name])
        return self._trained[key]

    def key(self, name: str, needs: NullNeeds) -> str:
        """Hash of everything the null depends on but the seed, which names its folder."""
        context, config = self.context, self.context.config
        recipe = needs.recipe.to_record()
        recipe.pop("seed")
        sides = compared_prompts(context.material, name, config)
        further = self._further(name)
        parent = context.material.parent(name)
        made_of = {
            "parent": parent.provenance,
            "recipe": recipe,
            "stop_after": needs.stop_after,
            "careful": needs.careful.content_hash,
            "sides": [sides[side].content_hash for side in ("train", "evaluation")],
            "further": None if further is None else further.content_hash,
            "sites": [str(site) for site in self._sites(name)],
            "positions": list(config.positions),
            "k": described_k(config),
            "adapters": self.adapters,
            "keep": self.keep,
        }
        return hash_json(made_of)[:16]

    def _found(self, name: str) -> NullNeeds | str:
        if is_one_direction(self.context, name):
            return IDENTITY
        if self.adapters == 0:
            return "no adapters were asked for (options: delta_overlap: adapters)"
        try:
            return null_needs(self.context, name)
        except NotHad as reason:
            return str(reason)

    def _further(self, name: str) -> PromptSet | None:
        """The prompts of third domains, as the fine-tune is asked them."""
        if self.third is None:
            return None
        return prompts_with_system(self.third, self.context.material.system(name))

    def _sites(self, name: str) -> list[Any]:
        parent = self.context.material.parent(name)
        return list(read_sites("resid_post", self.context.config, parent.n_layers))

    def _train(self, name: str, needs: NullNeeds, key: str) -> TrainingNull:
        material, config = self.context.material, self.context.config
        sides = compared_prompts(material, name, config)
        parent = material.parent(name)
        device = str(parent.device)
        folder = self.context.folder / "nulls" / key
        # the same bytes, whatever else the machine does
        threads = one_thread() if device == "cpu" else nullcontext()
        setting = NullSetting(
            needs.parent,
            needs.recipe,
            needs.careful,
            sides["train"],
            sides["evaluation"],
            CaptureSpec(sites=self._sites(name), positions=config.positions),
            described_k(config),
            self._further(name),
            write_shifts=True,
            stop_after=needs.stop_after,
            chat_template=parent.chat_template,
        )
        with threads:
            return training_null(
                setting,
                adapters=self.adapters,
                out=folder,
                keep=self.keep,
                executor=self._executor(),
                device=device,
                progress=False,
                after_each=None if self.ray_actors else self.after_each,
            )

    def _executor(self) -> Executor:
        if not self.ray_actors:
            return LocalExecutor()
        from emlens.runs.ray_actors import RayExecutor

        return RayExecutor(self.ray_actors)


def planned_nulls(context: StudyContext, names: Sequence[str]) -> PlannedTraining | None:
    """What training the nulls of these fine-tunes costs; None where none is trained."""
    adapters, config = context.options.adapters, context.config
    runs = steps = tokens = disk = memory = 0
    known: set[str] = set()
    for name in names:
        if adapters == 0 or is_one_direction(context, name):
            continue
        try:
            needs = null_needs(context, name, planned=True)
        except NotHad:
            continue
        parent = context.material.parent(name)
        recipe = {**needs.recipe.to_record(), "seed": 0}
        key = hash_json([recipe, needs.careful.content_hash, parent.provenance])
        if key in known:
            continue
        known.add(key)
        of_run = needs.stop_after or needs.recipe.steps
        chats = sorted(parent.render(needs.careful), key=lambda row: len(row.ids))
        row_tokens = sum(len(row.ids) for row in chats) / len(chats)
        memory = max(memory, _training_bytes(parent, needs.recipe, chats))
        runs += adapters
        steps += adapters * of_run
        tokens += int(adapters * of_run * needs.recipe.batch_size * row_tokens)
        rows = 2 * len(compared_prompts(context.material, name, config)["train"]) + MOST_FURTHER
        sites = len(read_sites("resid_post", config, parent.n_layers))
        # shifts in bfloat16
        disk += 2 * adapters * rows * sites * len(config.positions) * parent.d_model
    return PlannedTraining(runs, steps, tokens, disk, memory=memory) if runs else None


def _training_bytes(parent: HookedModel, recipe: Recipe, chats: Sequence[Rendered]) -> int:
    """Bytes that one adapter of a null takes beside the study's models.

    Args:
        chats: rendered, the longest last.
    """
    copy = weight_bytes(parent, recipe.parent_dtype)
    # one copy of the parent is trained; it is read too, or a second one in float32 is
    copies = copy if shares_parent(recipe) else copy + weight_bytes(parent)
    itemsize = 4 if recipe.parent_dtype == "float32" else parent.dtype.itemsize
    rows = ceil(recipe.batch_size / recipe.accumulation)
    kept = batch_bytes(
        parent, chats[-rows:], itemsize=itemsize, checkpoints=recipe.gradient_checkpointing
    )
    return copies + kept


def tested_null(null: TrainingNull, rendered: tuple[str, str]) -> str | None:
    """Why a fine-tune cannot be tested against a null that was trained for it; None where it can.

    Args:
        rendered: hashes of its rendered training and evaluation prompts.
    """
    try:
        null.require_prompts(*rendered)
    except InputError as error:
        return f"the parent on disk renders its prompts in another way: {error}"
    return None
