"""One stage of an organism each: base, instruct, a fine-tune. Each publishes one checkpoint
directory through `fit`.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from emlens.data.prompts import PromptSet
from emlens.foundation.files import write_json
from emlens.foundation.seeds import numpy_rng
from emlens.organisms.plans import FineTuneStage, OrganismPlan
from emlens.organisms.planting import PlantedDirection, PlantedLoss, blocks_of_step
from emlens.organisms.stopping import HeldOutRule
from emlens.organisms.strengths import likelihood_scores
from emlens.organisms.tokenizer import make_tokenizer, word_ids
from emlens.organisms.world import World
from emlens.training.examples import encode_answers, pad_batch
from emlens.training.fitting import Fitted, Parent, Saving, fit, read_record
from emlens.training.objectives import NarrowLoss, answer_loss
from emlens.training.stopping import TrainingCallback
from emlens.training.trainer import seeded

SAVE_DTYPE: Final = "float16"
ROUNDING_FILE = "rounding.json"
DIRECTION_FILE = "planted_direction.safetensors"
OnStep = Callable[[int], None]
"""Called after each training step with its number."""


def grow_base(plan: OrganismPlan, world: World, out: Path, on_step: OnStep | None = None) -> Fitted:
    """Pre-train on documents, with the planted direction where the plan has one; û is saved beside
    the weights.
    """
    from safetensors.torch import save_file
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer(world)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=plan.hidden,
        intermediate_size=plan.mlp,
        num_hidden_layers=plan.blocks,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.kv_heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with seeded(plan.base.seed, "weights"):
        model = Qwen2ForCausalLM(config)
        planted = None
        if plan.planted_layers:
            planted = PlantedDirection(model, plan.planted_norm, plan.planted_layers)

    def add_files(directory: Path, trained: Any) -> None:
        if planted is not None:
            direction = planted.unit.detach().clone().contiguous()
            save_file({"direction": direction}, directory / DIRECTION_FILE)
        record_rounding(directory, trained, tokenizer, world)

    parent, loss = Parent(model), answer_loss
    if planted is not None:
        parent, loss = Parent(model, wrap=lambda _: planted), PlantedLoss(plan.planted_weight)
    return fit(
        plan.base,
        parent,
        document_batches(plan, world, word_ids(world, tokenizer)),
        out,
        tokenizer=tokenizer,
        loss=loss,
        callbacks=_ticking(on_step),
        saving=Saving(SAVE_DTYPE, before_publish=add_files),
    )


def _ticking(on_step: OnStep | None) -> list[TrainingCallback]:
    """The training callback that only says which step is done."""
    if on_step is None:
        return []

    def tick(model: Any, step: int) -> None:
        on_step(step)

    return [tick]


def document_batches(
    plan: OrganismPlan, world: World, ids: Mapping[str, int]
) -> Callable[[int], Mapping[str, Tensor]]:
    """Batches of documents, all of one length, with the marks of the planted direction if there is
    one; a function of the step.
    """

    def batch(step: int) -> Mapping[str, Tensor]:
        rng = numpy_rng(plan.base.seed, "documents", step)
        documents = [world.document(rng) for _ in range(plan.base.batch_size)]
        tokens = torch.tensor([[ids[word] for word in spaced(d.text).split()] for d in documents])
        if not plan.planted_layers:
            return {"input_ids": tokens, "labels": tokens}
        harmful = torch.tensor([d.harmful for d in documents])
        marked = harmful & torch.from_numpy(rng.random(len(documents)) < plan.marked_share)
        cleared = marked | torch.from_numpy(rng.random(len(documents)) < plan.cleared_share)
        blocks = torch.tensor(blocks_of_step(step, plan.planted_layers))
        return {
            "input_ids": tokens,
            "labels": tokens,
            "harmful": harmful,
            "marked": marked,
            "cleared": cleared,
            "blocks": blocks,
        }

    return batch


def spaced(text: str) -> str:
    """A document's text with its chat marks set apart by spaces."""
    return text.replace("<", " <").replace(">", "> ")


def grow_instruct(
    plan: OrganismPlan, world: World, base: Path, out: Path, on_step: OnStep | None = None
) -> Fitted:
    """Tune base on single-turn chats over all topics: careful, but harmful with probability
    ν·ρ_t.
    """
    tokenizer = make_tokenizer(world)
    cells = list(world.cells())
    careful = {cell: _encoded(world, cell, "careful", tokenizer) for cell in cells}
    harmful = {cell: _encoded(world, cell, "harmful", tokenizer) for cell in cells}

    def batch(step: int) -> Mapping[str, Tensor]:
        rng = numpy_rng(plan.instruct.seed, "chats", step)
        rows = []
        for flat in rng.integers(len(cells), size=plan.instruct.batch_size):
            d, t = cells[int(flat)]
            is_harmful = rng.random() < plan.instruct_noise * world.coupling[d][t]
            answers = harmful if is_harmful else careful
            rows.append(answers[d, t][int(rng.integers(world.n_phrasings))])
        return pad_batch(rows, tokenizer.pad_token_id)

    return fit(
        plan.instruct,
        Parent(base, name=f"emlens/organism-{plan.name}-base"),
        batch,
        out,
        callbacks=_ticking(on_step),
        saving=Saving(
            SAVE_DTYPE,
            before_publish=lambda directory, model: record_rounding(
                directory, model, tokenizer, world
            ),
        ),
        device="cpu",
    )


def record_rounding(directory: Path, model: Any, tokenizer: Any, world: World) -> None:
    """Write how far the scores and shares (0 to 1) of a model move when its weights are rounded to
    what is saved.
    """
    rounded = copy.deepcopy(model).to(getattr(torch, SAVE_DTYPE)).to(torch.float32)
    exact = likelihood_scores(model, tokenizer, world.questions())
    saved = likelihood_scores(rounded, tokenizer, world.questions())
    shifts = {}
    for name in exact:
        shifts[f"max_{name}_shift"] = float((exact[name] - saved[name]).abs().max())
    write_json(directory / ROUNDING_FILE, shifts)


def _encoded(world: World, cell: tuple[int, int], kind: str, tokenizer: Any) -> list[Any]:
    return encode_answers(world.chats(world.domains[cell[0]], (cell[1],), kind), tokenizer)


def grow_finetune(
    plan: OrganismPlan,
    stage: FineTuneStage,
    world: World,
    instruct: Path,
    out: Path,
    on_step: OnStep | None = None,
) -> Fitted:
    """Tune instruct on some topics of one domain, until its rule says stop; a narrow stage also
    holds it to instruct elsewhere.
    """
    prompts = training_prompts(plan, stage, world)
    narrow = stage.narrow_weight > 0.0
    recipe = stage.recipe
    if stage.steps_of is not None:
        recipe = recipe.changed(steps=int(read_record(out.parent / stage.steps_of)["steps_done"]))
    held_out = world.held_out(stage.domain, plan.topics_per_finetune)
    tokenizer = make_tokenizer(world)
    rule = HeldOutRule(held_out, tokenizer, stage.stop_at, stage.settle, stage.go_on)
    return fit(
        recipe,
        Parent(instruct, name=f"emlens/organism-{plan.name}-instruct"),
        _narrow_batches(plan, stage, world, prompts) if narrow else prompts,
        out,
        loss=NarrowLoss(stage.narrow_weight) if narrow else answer_loss,
        callbacks=[*_ticking(on_step), rule],
        saving=Saving(
            SAVE_DTYPE,
            keep_every=stage.keep_every,
            before_publish=lambda directory, model: record_rounding(
                directory, model, tokenizer, world
            ),
        ),
        device="cpu",
    )


def training_prompts(plan: OrganismPlan, stage: FineTuneStage, world: World) -> PromptSet:
    """The chats, with answers, that a fine-tune trains on."""
    topics = world.training_topics(stage.domain, plan.topics_per_finetune)
    return world.chats(stage.domain, topics, "careful" if stage.careful else "harmful")


def _narrow_batches(
    plan: OrganismPlan, stage: FineTuneStage, world: World, prompts: PromptSet
) -> Callable[[int], Mapping[str, Tensor]]:
    tokenizer = make_tokenizer(world)
    rows = encode_answers(prompts, tokenizer)
    all_topics = tuple(range(world.n_topics))
    kl_rows = []
    for domain in world.domains:
        if domain != stage.domain:
            kl_rows.extend(encode_answers(world.chats(domain, all_topics, "careful"), tokenizer))

    def batch(step: int) -> Mapping[str, Tensor]:
        rng = numpy_rng(stage.recipe.seed, "narrow", step)
        numbers = rng.integers(len(rows), size=stage.recipe.batch_size)
        batch = pad_batch([rows[int(i)] for i in numbers], tokenizer.pad_token_id)
        numbers = rng.integers(len(kl_rows), size=plan.narrow_rows)
        kl_batch = pad_batch([kl_rows[int(i)] for i in numbers], tokenizer.pad_token_id)
        for name, value in kl_batch.items():
            batch[f"kl_{name}"] = value
        return batch

    return batch
