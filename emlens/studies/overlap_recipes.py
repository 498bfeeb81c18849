"""What a training null of a fine-tune is made from: its recipe, its questions with careful answers,
and the parent as a directory; or which of these is missing.

The recipe is what `emlens.json` records, else what `adapter_config.json` says together with the
field `recipe` of the fine-tune, which wins over both. Careful answers are those of a file
(`careful`), of the benign twin, which has the same questions, else the parent's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from emlens.controls.permuted_answers import permuted_answers, with_careful_answers
from emlens.data import PromptSet
from emlens.data.system_messages import prompts_with_system
from emlens.foundation.errors import InputError, LoadError
from emlens.foundation.provenance import hash_json
from emlens.models import FineTune
from emlens.models.adapter_files import BEYOND_FACTORS, AdapterFiles, is_adapter
from emlens.models.families import local_copy
from emlens.runs import UnitLog
from emlens.studies.config import StudyConfig
from emlens.studies.study import StudyContext
from emlens.training import Recipe
from emlens.training.fitting import SIDECAR, read_record

STATED: Final = ("learning_rate", "steps", "batch_size")
"""Fields of a recipe that no adapter's configuration says."""


class NotHad(Exception):
    """Something that a training null needs cannot be had; the message says what, and the remedy."""


@dataclass(frozen=True, eq=False)
class NullNeeds:
    """What a training null of one fine-tune is made from.

    Args:
        parent: directory. recipe: the fine-tune's own. stop_after: where it stopped before the
            recipe's last step. careful: its questions with careful answers. careful_from: where
            these answers are from, in words.
    """

    parent: Path
    recipe: Recipe
    stop_after: int | None
    careful: PromptSet
    careful_from: str


def null_needs(context: StudyContext, name: str, *, planned: bool = False) -> NullNeeds:
    """What the training null of a fine-tune is made from.

    Args:
        planned: for a plan: the parent is not asked for answers; its own rows stand for them.

    Raises:
        NotHad: names what is missing.
    """
    _require_models(context, name)
    parent = _parent(context, name)
    recipe, stop_after = _recipe(context, name)
    careful, careful_from = _careful(context, name, planned)
    if planned:
        return NullNeeds(parent, recipe, stop_after, careful, careful_from)
    try:
        permuted_answers(careful, seed=recipe.seed)
    except InputError as error:
        raise NotHad(f"its careful answers ({careful_from}) cannot be permuted: {error}") from None
    return NullNeeds(parent, recipe, stop_after, careful, careful_from)


def is_one_direction(context: StudyContext, name: str) -> bool:
    """Whether the fine-tune is one adapter of rank 1 on one module of one block.

    All it can write is one vector, so what its shifts share there is an identity.
    """
    adapter = context.family[name].provenance.get("adapter") or {}
    blocks, modules = adapter.get("layers_to_transform"), adapter.get("target_modules")
    if isinstance(blocks, int):
        blocks = [blocks]
    for names in (blocks, modules):
        if not isinstance(names, list) or len(names) != 1:
            return False
    return bool(adapter.get("r") == 1)


def _require_models(context: StudyContext, name: str) -> None:
    if context.material.captured:
        raise NotHad("only captures are here, and adapters are trained from the parent's weights")
    if context.material.parent(name).backend == "rehearsal":
        raise NotHad("a rehearsal trains nothing")


def _parent(context: StudyContext, name: str) -> Path:
    source = context.family.specs[name].parent
    place = context.material.parents.get(source)
    if place is None:
        raise NotHad(f"it is not known where {source} lies; give its directory under family")
    try:
        return Path(local_copy(f"the {source} model", FineTune(place)).path)
    except LoadError as error:
        raise NotHad(f"the parent is no directory here ({error})") from None


def _of_configuration(config: StudyConfig, name: str, field: str) -> Any:
    """What the configuration says of a fine-tune; None where it says nothing."""
    if config.family is None or name not in config.family.finetuned:
        return None
    return getattr(config.family.finetuned[name], field)


def _stated_recipe(context: StudyContext, name: str) -> Mapping[str, Any]:
    """The fields of the recipe that the configuration gives."""
    stated = _of_configuration(context.config, name, "recipe")
    if isinstance(stated, str):
        return Recipe.from_yaml(context.config.path(stated)).to_record()
    return stated or {}


def _recipe(context: StudyContext, name: str) -> tuple[Recipe, int | None]:
    """The recipe, and the steps after which the fine-tune stopped early."""
    stated = _stated_recipe(context, name)
    try:
        directory = Path(local_copy(f"fine-tune {name!r}", context.family.specs[name]).path)
    except LoadError as error:
        raise NotHad(f"the fine-tune is no directory here ({error})") from None
    if (directory / SIDECAR).is_file():
        fields, stop_after = _recorded(directory)
    elif is_adapter(directory):
        fields, stop_after = _of_adapter(directory, stated), None
    elif stated:
        fields, stop_after = {"method": "full"}, None
    else:
        raise NotHad(
            f"its recipe is not known: the directory has no {SIDECAR};"
            f" give recipe: {{{', '.join(STATED)}, ...}} for it under family: finetuned"
        )
    if "steps" in stated:
        stop_after = None  # the steps it took
    try:
        recipe = Recipe.from_record({**fields, **stated})
    except InputError as error:
        raise NotHad(f"its recipe cannot be used: {error}") from None
    if recipe.method == "steering" or recipe.dora:
        what = "vectors" if recipe.method == "steering" else "a DoRA adapter"
        raise NotHad(f"it is {what}; a training null needs LoRA or a full fine-tune")
    return recipe, stop_after


def _recorded(directory: Path) -> tuple[dict[str, Any], int | None]:
    """What `emlens.json` records."""
    record = read_record(directory)
    if "recipe" not in record or "data" not in record:
        raise NotHad(f"its {SIDECAR} holds no recipe")
    trained_on_chats = record["data"].get("kind") == "chats"
    if record.get("objectives") or not trained_on_chats:
        raise NotHad(
            "it was not trained on its chats alone (its loss has a penalty, or other rows), which"
            " permuted answers cannot repeat"
        )
    steps, done = record["recipe"].get("steps"), record.get("steps_done")
    return dict(record["recipe"]), done if done is not None and done != steps else None


def _of_adapter(directory: Path, stated: Mapping[str, Any]) -> dict[str, Any]:
    """What `adapter_config.json` says of a recipe."""
    config = AdapterFiles(directory).config
    for option, what in BEYOND_FACTORS.items():
        if config.get(option):
            raise NotHad(f"it {what}; a training null needs LoRA or a full fine-tune")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise NotHad("its ranks differ between modules (rank_pattern), which no recipe says")
    if config.get("bias", "none") != "none":
        raise NotHad("it trains biases beside its factors, which no recipe says")
    lacking = [field for field in STATED if field not in stated]
    if lacking:
        raise NotHad(
            f"its recipe is not known: adapter_config.json does not say {', '.join(lacking)};"
            " give them for it under family: finetuned: recipe"
        )
    modules = config.get("target_modules")
    if isinstance(modules, str):
        if "target_modules" not in stated:
            raise NotHad("its target_modules is a pattern; name the modules under recipe")
        modules = []
    blocks = config.get("layers_to_transform")
    return {
        "method": "lora",
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "rslora": bool(config.get("use_rslora")),
        "target_modules": tuple(modules or ()),
        "layers_to_transform": [blocks] if isinstance(blocks, int) else blocks,
    }


def _careful(context: StudyContext, name: str, planned: bool) -> tuple[PromptSet, str]:
    """The training questions with careful answers, and where these are from."""
    material = context.material
    chats = material.training[name]
    stated = _of_configuration(context.config, name, "careful")
    if stated is not None:
        empty = _of_configuration(context.config, name, "empty")
        rows = PromptSet.from_jsonl(context.config.path(stated), upto="all", empty=empty)
        rows = prompts_with_system(rows, material.system(name))
        try:
            return with_careful_answers(chats, rows), f"the file {Path(stated).name}"
        except InputError as error:
            raise NotHad(f"careful: {stated}: {error}") from None
    twin = material.benign_for(name)
    if twin is not None and twin in material.training:
        try:
            careful = with_careful_answers(chats, material.training[twin])
            return careful, f"the benign twin {twin}"
        except InputError:
            pass  # other questions: no twin
    if not planned:
        chats = _own_answers(context, name, chats)
    return chats, "the parent's own answers"


def _own_answers(context: StudyContext, name: str, chats: PromptSet) -> PromptSet:
    """The parent's likeliest answers to the training questions, as long as theirs; written once."""
    parent = context.material.parent(name)
    questions = chats.without_responses()
    tokenizer: Any = parent.tokenizer
    lengths = [len(tokenizer(row.response or "")["input_ids"]) for row in chats]
    longest = max(lengths)
    inputs = {
        "chats": chats.content_hash,
        "parent": parent.provenance,
        "max_new_tokens": longest,
    }

    def answer() -> tuple[list[str], list[Path]]:
        return parent.generate(questions, max_new_tokens=longest, temperature=0.0), []

    log = UnitLog(context.folder / "answers")
    texts = log.run(f"careful {hash_json(inputs)[:16]}", inputs, answer)
    empty = sum(not text.strip() for text in texts)
    if empty:
        raise NotHad(
            f"no benign twin has its questions, and the parent answers {empty} of {len(texts)} with"
            " nothing; give careful: a JSONL of the same questions with careful answers"
        )
    return _answered(chats, texts)


def _answered(chats: PromptSet, texts: Sequence[str]) -> PromptSet:
    """The chats with these answers."""
    rows = zip(chats, texts, strict=True)
    return PromptSet(replace(row, response=text) for row, text in rows)
