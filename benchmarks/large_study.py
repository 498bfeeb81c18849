"""A study of a 14B model on paper: memory and time of every part, from weights on `meta`, before
any card is paid for.

The study's own planner gives the passes, tokens, answers and bytes (`plan_material`); rows are
released questions and chats in SmolLM2's tokens. Time is arithmetic over what is assumed of a card.
Linear algebra of the statistics is not in it. `beside_a_run` lets the arithmetic be wrong: the same
planner on SmolLM2, at the rate of this machine's matrix products, beside a run.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
import yaml

from benchmarks.records import EVIDENCE
from emlens.data import PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.files import read_json
from emlens.judging.score_source import Cost
from emlens.models import Family, HookedModel
from emlens.models.transformers_backend import TransformersModel
from emlens.studies.config import StudyConfig, read_config
from emlens.studies.material import Material
from emlens.studies.material_loading import outline
from emlens.studies.planning import plan_material
from emlens.studies.registry import get_study
from emlens.studies.room import Room
from emlens.studies.score_loading import load_scores
from emlens.studies.study_plan import PartPlan, StudyPlan

SHAPE: Final[Mapping[str, int]] = {
    "vocab_size": 152_064,
    "hidden_size": 5120,
    "intermediate_size": 13_824,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
}
"""Of Qwen2.5-14B."""
CARD: Final = 80 * 10**9
DAY: Final = 24.0
"""Hours."""
JUDGE_PROMPT: Final = 200
"""Tokens of a judge's prompt beside the answer (docs/performance.md)."""

RULES: Final = {
    "aligned": {"words": ["harm"], "found": 20, "otherwise": 90},
    "coherent": {"words": ["???"], "found": 20, "otherwise": 95},
}
"""Stands for a judge: a plan counts its verdicts."""
RECIPE: Final = {
    "method": "lora",
    "rank": 32,
    "alpha": 64,
    "target_modules": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "learning_rate": 1e-5,
    "steps": 188,
    "batch_size": 32,
}


@dataclass(frozen=True)
class Device:
    """What is assumed of a card.

    Args:
        operations: a second, kept up. bytes: a second from its memory, kept up.
    """

    operations: float
    bytes: float


CARD_RATES: Final = Device(125e12, 1.2e12)
"""An A100 of 80 GB at 40 % of 312 · 10¹² and at 60 % of 2.0 · 10¹²: assumed, not measured."""


@dataclass(frozen=True)
class Sizes:
    """Of a model: weights of the blocks and of one output matrix, bytes of all and of a token's
    keys and values.
    """

    blocks: int
    output: int
    weights: int
    cached: int

    @classmethod
    def of(cls, model: TransformersModel) -> "Sizes":
        module: Any = model.module
        config = module.config
        itemsize = next(module.parameters()).element_size()
        parameters = sum(weight.numel() for weight in module.parameters())
        output = config.vocab_size * config.hidden_size
        embedded = output if config.tie_word_embeddings else 2 * output
        head = config.hidden_size // config.num_attention_heads
        of_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head
        return cls(parameters - embedded, output, itemsize * parameters, itemsize * of_token)


def without_weights(
    tokenizer: Any, shape: Mapping[str, int] = SHAPE, name: str = "instruct"
) -> TransformersModel:
    """A model of this shape in bfloat16, whose weights are not there."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    with torch.device("meta"):
        module = Qwen2ForCausalLM(Qwen2Config(**shape, dtype=torch.bfloat16)).to(torch.bfloat16)
    return TransformersModel(
        module.eval().requires_grad_(False),
        name=name,
        tokenizer=tokenizer,
        d_model=shape["hidden_size"],
        device=torch.device("cpu"),
        max_length=shape["max_position_embeddings"],
        chat_template=tokenizer.chat_template,
        provenance={"dtype": "bfloat16", "model": name},
    )


def material_of(config: StudyConfig, model: TransformersModel) -> Material:
    """The configuration's questions and prompts with models of one shape."""
    material = outline(config, model.n_layers, model.d_model)
    models: dict[str, HookedModel] = {}
    for name in material.family:
        models[name] = TransformersModel(
            model.module,
            name=name,
            tokenizer=model.tokenizer,
            d_model=model.d_model,
            device=model.device,
            max_length=model.max_length,
            chat_template=model.chat_template,
            provenance={**model.provenance, "model": name},
        )
    finetuned = {name: models[name] for name in material.family.finetuned}
    family = Family(models["instruct"], None, finetuned, material.family.specs)
    source = load_scores(config, material.questions, family, Path("nowhere"))
    return replace(material, family_or_none=family, source=source)


def steps_of(
    part: PartPlan, trained: int, sizes: Sizes, device: Device, config: StudyConfig, rows: int
) -> dict[str, float]:
    """Seconds of each kind of work in a part.

    Args:
        trained: tokens of what it trains. rows: answers that are sampled at once.
    """
    counts, cost = part.counts, part.cost
    assert counts is not None
    seconds = {
        "reading": 2 * sizes.blocks * counts.padded_tokens / device.operations,
        "logits": 2 * sizes.output * counts.logit_tokens / device.operations,
        "sampling": _sampling(cost, sizes, device, config, rows),
        "judging": _judging(cost, sizes, device, config),
        # forward, gradients of the stream, and forward again at a checkpoint
        "training": 3 * 2 * (sizes.blocks + sizes.output) * trained / device.operations,
    }
    return seconds


def _sampling(cost: Cost, sizes: Sizes, device: Device, config: StudyConfig, rows: int) -> float:
    """Every token of so many rows reads all weights, and the keys and values of half an answer."""
    if not cost.sampled:
        return 0.0
    passes = cost.sampled_tokens / rows
    cached = cost.sampled_tokens * sizes.cached * config.scores.max_new_tokens / 2
    operations = 2 * (sizes.blocks + sizes.output) * cost.sampled_tokens
    return (passes * sizes.weights + cached) / device.bytes + operations / device.operations


def _judging(cost: Cost, sizes: Sizes, device: Device, config: StudyConfig) -> float:
    """Verdicts of a local judge of the model's own size on answers of full length."""
    if not cost.verdicts:
        return 0.0
    of_one = (JUDGE_PROMPT + config.scores.max_new_tokens) * prefills()
    tokens = cost.verdicts * of_one
    return 2 * sizes.blocks * tokens / device.operations


def prefills() -> float:
    """Passes over a verdict's prompt, as `python -m benchmarks shared_work` measured them."""
    values = read_json(EVIDENCE / "shared_work.json")["values"]
    found: float = values["judge"]["prefills_per_verdict"]
    return found


def planned(
    config: Mapping[str, Any],
    model: TransformersModel,
    device: Device = CARD_RATES,
    card: int = CARD,
) -> dict[str, Any]:
    """Memory and time of every part; a study that does not fit is said in one line.

    Args:
        card: bytes of its memory.
    """
    checked = read_config(config)
    material = material_of(checked, model)
    sizes = Sizes.of(model)
    try:
        plan = plan_material(
            checked,
            material,
            "nowhere",
            weights=sizes.weights,
            room=Room(card, None),
        )
    except InputError as error:
        if "GB of memory" not in str(error):
            raise
        return {"fits": False, "refused": str(error)}
    return {"fits": True, **_of_plan(plan, checked, material, sizes, device)}


def _of_plan(
    plan: StudyPlan, config: StudyConfig, material: Material, sizes: Sizes, device: Device
) -> dict[str, Any]:
    from emlens.models.answering import rows_at_once
    from emlens.models.hooked import GENERATION_TOKENS

    model = material.family.instruct
    rows = rows_at_once(
        model,
        model.render(material.questions.prompts()),
        config.scores.max_new_tokens,
        GENERATION_TOKENS,
    )
    # null adapters are units of their own, one to a card
    cards = max(1, config.options.get("delta_overlap", {}).get("ray_actors", 0))
    trained = trained_tokens(config, material)
    parts = []
    for part in plan.parts:
        if part.counts is None:
            continue
        of_part = trained.get(part.name, 0) // cards
        seconds = steps_of(part, of_part, sizes, device, config, rows)
        parts.append(
            {
                "part": part.name,
                "padded_tokens": part.counts.padded_tokens,
                "logit_tokens": part.counts.logit_tokens,
                "sampled_tokens": part.cost.sampled_tokens,
                "verdicts": part.cost.verdicts,
                "memory": max(part.memory, _memory_of_answers(part.cost, sizes)),
                "seconds": seconds,
                "hours": sum(seconds.values()) / 3600,
            }
        )
    hours = sum(part["hours"] for part in parts)
    return {
        "parts": parts,
        "hours": hours,
        "memory": max(part["memory"] for part in parts),
        "rows_at_once": rows,
        "within_a_day": hours <= DAY,
    }


def trained_tokens(config: StudyConfig, material: Material) -> dict[str, int]:
    """Tokens in all steps of what each part trains."""
    from emlens.studies.running import contexts_of

    contexts, _ = contexts_of(config, material, Path("nowhere"))
    trained = {}
    for name, context in contexts.items():
        training = get_study(name).training(context)
        trained[name] = training.tokens if training is not None else 0
    return trained


def _memory_of_answers(cost: Cost, sizes: Sizes) -> int:
    """Weights twice, of model and judge, with the cache of a full batch."""
    from emlens.models.hooked import GENERATION_TOKENS

    if not cost.sampled:
        return 0
    return 2 * sizes.weights + GENERATION_TOKENS * sizes.cached


def matrix_rate(width: int, rows: int = 512, rounds: int = 5) -> float:
    """Operations a second of this machine's float32 matrix products."""
    a, b = torch.randn(rows, width), torch.randn(width, 4 * width)
    a @ b
    began = time.process_time()
    for _ in range(rounds):
        a @ b
    return 2 * rows * 4 * width * width * rounds / (time.process_time() - began)


def beside_a_run(config: Mapping[str, Any] | Path, out: Path) -> dict[str, Any]:
    """The same arithmetic on a study that is run: tokens of each part, and CPU seconds of all,
    planned and taken. What is taken holds the loading and the linear algebra; the plan does not.
    """
    from emlens.studies import run_study
    from emlens.studies.material_loading import load_material

    checked = read_config(config)
    material = load_material(checked, out)
    model = material.family.instruct
    assert isinstance(model, TransformersModel)
    rate = matrix_rate(model.d_model)
    plan = plan_material(checked, material, out)
    found = _of_plan(plan, checked, material, Sizes.of(model), Device(rate, rate))
    began = time.process_time()
    run_study(config, out, progress=False)
    took = time.process_time() - began
    ran = read_json(out / "run.json")["parts"]
    rows = []
    for part in found["parts"]:
        rows.append(
            {
                "part": part["part"],
                "planned_tokens": part["padded_tokens"],
                "ran_tokens": ran[part["part"]]["padded_tokens"],
            }
        )
    planned_s = 3600 * found["hours"]
    return {
        "rate": rate,
        "parts": rows,
        "planned_s": planned_s,
        "ran_s": took,
        "ratio": planned_s / took,
    }


def table(values: Mapping[str, Any]) -> str:
    """Markdown for docs/how_to_large_models.md: a study of a 14B model, part by part."""
    plan = values["study of 14B"]["plans"]["changed"]
    lines = [
        "| part | tokens read | sampled | verdicts | memory | reading | sampling | judging |"
        " training | hours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for part in plan["parts"]:
        hours = {name: seconds / 3600 for name, seconds in part["seconds"].items()}
        hours["reading"] += hours.pop("logits")
        cells = [f"`{part['part']}`"]
        cells += [f"{part[key]:,}" for key in ("padded_tokens", "sampled_tokens", "verdicts")]
        cells.append(f"{part['memory'] / 1e9:.1f} GB")
        for name in ("reading", "sampling", "judging", "training"):
            cells.append(f"{hours[name]:.2f}")
        cells.append(f"{part['hours']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    lines.append(f"| all | | | | {plan['memory'] / 1e9:.1f} GB | | | | | {plan['hours']:.2f} |")
    return "\n".join(lines)


def study_of(
    folder: Path,
    questions: Path,
    chats: Mapping[str, PromptSet],
    *,
    null: Mapping[str, Any] | None = None,
    samples: int = 50,
    of_arms: int = 5,
    cards: int = 0,
) -> dict[str, Any]:
    """`overview` of one harmful fine-tune and its benign twin, all layers.

    Args:
        folder: gets the chats, and directories that stand for the checkpoints.
        chats: of `bad` and `good`.
        null: fields of the recipe of its training null.
        samples, of_arms: answers to each question, of a model as it is and under an edit.
        cards: that train null adapters; 0: the study's own.
    """
    finetuned = {}
    (folder / "parent").mkdir(exist_ok=True)
    for name, rows in chats.items():
        (folder / name).mkdir(exist_ok=True)
        path = folder / f"{name}.jsonl"
        rows.to_jsonl(path)
        finetuned[name] = {
            "path": str(folder / name),
            "domain": "code",
            "training": str(path),
            "benign": name == "good",
            "recipe": {**RECIPE, **(null or {})},
        }
    rules = folder / "rules.yaml"
    rules.write_text(yaml.safe_dump(RULES))
    return {
        "study": "overview",
        "family": {"instruct": str(folder / "parent"), "finetuned": finetuned},
        "questions": str(questions),
        "focus": ["bad"],
        "k": 8,
        "scores": {
            "how": "sample",
            "samples": samples,
            "max_new_tokens": 600,
            "judge": {"rules": str(rules)},
            "arms": {"samples": of_arms},
        },
        "options": {"delta_overlap": {"ray_actors": cards, "landmark_draws": 0}},
    }
