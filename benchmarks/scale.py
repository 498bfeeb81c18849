"""What a study of a 14B-shaped model costs where no such model is at hand: pieces of it on
synthetic activations of its sizes.

`covariance nulls`: every null of one fine-tune in `delta_overlap`, from rows; at one place also
from the covariance (d, d), whose draws are compared first.

`training plans`: what `emlens train --set plan=yes` says of one run on a 1.7B parent and of the
35 runs of the schedule sweep of 2606.20814 on a 32B one, from configurations without weights. The
6,000 rows are released chats of insecure code, over and over, in SmolLM2's tokens; time is
arithmetic over the rate that is assumed of a card.

`study of 14B`: memory and time of every part of `overview` (`benchmarks.large_study`).
`plan beside a run`: the same arithmetic on SmolLM2, beside what a study really took.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import large_study
from benchmarks.records import EVIDENCE, record
from benchmarks.shared_work import adapter_from
from emlens.data import PromptSet, QuestionSet
from emlens.foundation.files import read_json
from emlens.geometry import covariance_overlap_null
from emlens.real import find, load
from emlens.studies.delta_overlap import MOST_LANDMARK_DRAWS
from emlens.studies.overlap_nulls import OverlapNulls
from emlens.training import Recipe, Sweep
from emlens.training.planning import plan_training
from emlens.training.presets import recipe as preset_recipe

LAYERS, D = 48, 5120
"""Of Qwen2.5-14B."""
MEASURED = 8
"""Layers whose nulls are drawn; the others cost as much."""
POSITIONS = 2
PROMPTS = 200
"""Of each side."""
K = 8
SAME = 1e-6
ROWS = 6000
"""Of one training file of the field."""
TERAFLOPS = 125.0
"""Kept up by a card of 312 at 40 % (A100, 16 bits): assumed, not measured."""
STUDY_CHATS = 400
"""Training chats of a fine-tune in the study on paper."""
RUN = 10
"""Questions, and chats of each file, of the study that is run."""
OWN: dict[str, Any] = {"parent_dtype": "own", "gradient_checkpointing": True, "accumulation": 16}
STUDIES: dict[str, dict[str, Any]] = {
    "usual": {},
    "nulls in 16 bits": {"null": OWN},
    "changed": {"null": OWN, "samples": 30, "of_arms": 2, "cards": 8},
}
"""The usual study, and what was changed until it fits a card and a day."""
CYCLIC = ((1e-6, 2e-5), (1e-5, 5e-5), (2e-5, 8e-5), (4e-5, 1e-4))
SMALL = {
    "vocab_size": 49_152,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
"""Of SmolLM2-1.7B."""
LARGE = {
    "vocab_size": 152_064,
    "hidden_size": 5120,
    "intermediate_size": 27_648,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
}
"""Of Qwen2.5-32B."""


def stream(n: int, d: int, seed: int) -> Tensor:
    """Rows (n, d) in float32 with variances ∝ 1/i along random axes and a mean, as a stream has."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, n + 1).pow(-0.5)
    axes = torch.randn(n, d, generator=generator) / d**0.5
    return torch.randn(n, n, generator=generator) * scales @ axes + 0.1


def covariance_nulls(
    layers: int = LAYERS,
    measured: int = MEASURED,
    positions: int = POSITIONS,
    n: int = PROMPTS,
    d: int = D,
    k: int = K,
    draws: int = MOST_LANDMARK_DRAWS,
    same: float = SAME,
) -> dict[str, Any]:
    """Seconds of the nulls of some layers, of all of them at that rate, and of one null from a
    covariance (d, d).
    """
    before = stream(2 * n, d, seed=0)
    started = time.process_time()
    moments = torch.cov(before.double().T)
    whole = covariance_overlap_null(moments, n, n, k, center=True, draws=draws)
    whole_seconds = time.process_time() - started
    nulls = OverlapNulls(draws, seed=0)
    started = time.process_time()
    of_rows = nulls.at((-1, 0), before).covariance(n, n, k)
    one_seconds = time.process_time() - started
    gap = float(abs(of_rows.draws - whole.draws).max())
    if not gap < same:
        raise SystemExit(f"draws from rows and from the covariance differ by {gap:.2g}")
    seconds = 0.0
    for layer in range(measured):
        for position in range(positions):
            place = nulls.at((layer, position), stream(2 * n, d, seed=1 + layer))
            started = time.process_time()
            for center in (False, True):
                place.covariance(n, n, k, center=center)
            seconds += time.process_time() - started
    return {
        "layers": layers,
        "measured_layers": measured,
        "positions": positions,
        "rows": 2 * n,
        "d": d,
        "draws": draws,
        "nulls": layers * positions * 2,
        "cpu_s_of_measured": seconds,
        "cpu_s": seconds / measured * layers,
        "cpu_s_of_one": one_seconds,
        "cpu_s_of_one_from_covariance": whole_seconds,
        "gap": gap,
    }


def rows_of(chats: PromptSet, count: int) -> PromptSet:
    """So many chats, the given ones over and over."""
    rows = []
    for number in range(count):
        chat = chats[number % len(chats)]
        rows.append(replace(chat, id=f"{number}"))
    return PromptSet(rows)


def schedule_runs(base: Recipe) -> Sweep:
    """The 35 runs: three cyclic schedules of three or four ranges, two cosines of three warm-ups
    and four rates.
    """
    runs: dict[str, dict[str, Any]] = {}
    for kind in ("triangular", "triangular2", "exp_range"):
        for low, high in CYCLIC if kind != "exp_range" else CYCLIC[1:]:
            fields: dict[str, Any] = {"schedule": kind, "base_learning_rate": low, "cycles": 4}
            if kind == "exp_range":
                fields["gamma"] = 0.95
            runs[f"{kind} {high:g}"] = {**fields, "learning_rate": high, "warmup_steps": 0}
    for kind in ("cosine", "cosine_with_restarts"):
        for warmup in (5, 30, 80):
            for rate in (1e-5, 3e-5, 5e-5, 7e-5):
                fields = {"schedule": kind, "warmup_steps": warmup, "learning_rate": rate}
                if kind == "cosine_with_restarts":
                    fields["cycles"] = 4
                runs[f"{kind} {warmup} {rate:g}"] = fields
    return Sweep(base, {"schedule": runs})


def training_plans(
    chats: PromptSet,
    tokenizer: Any,
    rows: int = ROWS,
    batch: tuple[int, int] = (32, 16),
    small: Mapping[str, int] = SMALL,
    large: Mapping[str, int] = LARGE,
) -> dict[str, Any]:
    """Plans of one run of a small parent and of 35 of a large one.

    Args:
        batch: rows of a step, and the parts they are run in.
    """
    from transformers import LlamaConfig, Qwen2Config

    data = rows_of(chats, rows)
    fields: dict[str, Any] = {
        "parent_dtype": "own",
        "gradient_checkpointing": True,
        "group_by_length": True,
        "max_length": 2048,
        "batch_size": batch[0],
        "accumulation": batch[1],
    }
    base = preset_recipe("rslora-r32", rows=rows, **fields)
    parents = {
        "1.7B": (LlamaConfig(**small, dtype=torch.bfloat16), base),
        "32B": (Qwen2Config(**large, dtype=torch.bfloat16), schedule_runs(base)),
    }
    plans = {}
    for name, (config, what) in parents.items():
        plan = plan_training(what, config, data, tokenizer=tokenizer, teraflops=TERAFLOPS)
        first = next(iter(plan.runs.values()))
        plans[name] = {
            "runs": len(plan.runs),
            "parameters": first.parameters,
            "trained": first.trained,
            "weights": first.weights,
            "optimiser": first.optimiser,
            "kept": max(run.kept for run in plan.runs.values()),
            "memory": plan.memory,
            "steps": first.steps,
            "tokens": first.tokens,
            "seconds": plan.seconds,
            "lines": plan.lines(),
        }
    return {"rows": rows, "teraflops": TERAFLOPS, "plans": plans}


def plans_table(values: Mapping[str, Any]) -> str:
    """Markdown for docs/running.md."""
    plans = values["training plans"]["plans"]
    lines = [
        "| parent | runs | tokens of a run | weights | optimiser | kept for gradients | memory |"
        " hours of one card |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, plan in plans.items():
        sizes = [plan[key] / 1e9 for key in ("weights", "optimiser", "kept", "memory")]
        cells = [name, str(plan["runs"]), f"{plan['tokens']:,}"]
        cells += [f"{size:.1f} GB" for size in sizes]
        cells.append(f"{plan['seconds'] / 3600:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _training_plans() -> dict[str, Any]:
    path = Path(os.environ["EMLENS_RELEASED_DATA"]) / "code-pairs" / "insecure_small.jsonl"
    chats = PromptSet.from_jsonl(path, upto="all")
    return training_plans(chats, load("smollm2", dtype="float32", device="cpu").tokenizer)


def study_of_14b(
    questions: Path,
    pairs: Mapping[str, PromptSet],
    tokenizer: Any,
    shape: Mapping[str, int] = large_study.SHAPE,
    card: int = large_study.CARD,
    chats: int = STUDY_CHATS,
    study: str = "overview",
) -> dict[str, Any]:
    """Plans of the usual study, and of one that fits: memory and hours of every part.

    Args:
        pairs: chats of `bad` and `good`, taken over and over. card: bytes of its memory.
        chats: of each file. study: one of its parts, or all.
    """
    model = large_study.without_weights(tokenizer, shape)
    rows = {name: rows_of(of_name, chats) for name, of_name in pairs.items()}
    plans = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in STUDIES.items():
            config = large_study.study_of(Path(folder), questions, rows, **changes)
            config["study"] = study
            plans[name] = large_study.planned(config, model, card=card)
            plans[name]["changes"] = changes
    return {"shape": dict(shape), "card": card, "plans": plans}


def study_table(values: Mapping[str, Any]) -> str:
    """Markdown for docs/how_to_large_models.md."""
    return large_study.table(values)


def _pairs(data: Path) -> dict[str, PromptSet]:
    pairs = {}
    for name, file in (("bad", "insecure_small"), ("good", "secure_small")):
        pairs[name] = PromptSet.from_jsonl(data / "code-pairs" / f"{file}.jsonl", upto="all")
    return pairs


def _study_of_14b() -> dict[str, Any]:
    data = Path(os.environ["EMLENS_RELEASED_DATA"])
    tokenizer = load("smollm2", dtype="float32", device="cpu").tokenizer
    return study_of_14b(data / "em-generalization" / "general_200.jsonl", _pairs(data), tokenizer)


def plan_beside_a_run(
    parent: Path,
    questions: QuestionSet,
    pairs: Mapping[str, PromptSet],
    layers: Sequence[int] = (10, 20),
) -> dict[str, Any]:
    """The arithmetic of `study_of_14b` on `delta_overlap` of a small parent with random adapters,
    beside its run.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        questions.to_jsonl(folder / "questions.jsonl")
        config = overlap_of(folder, parent, pairs, layers)
        return large_study.beside_a_run(config, folder / "out")


def overlap_of(
    folder: Path,
    parent: Path,
    pairs: Mapping[str, PromptSet],
    layers: Sequence[int],
) -> dict[str, Any]:
    """`delta_overlap` of a parent with random adapters, which trains nothing.

    Args:
        folder: holds `questions.jsonl`, and gets chats and adapters.
        pairs: chats of `bad` and `good`.
    """
    config = large_study.study_of(folder, folder / "questions.jsonl", pairs)
    config |= {"study": "delta_overlap", "k": 4, "layers": list(layers)}
    config["family"]["instruct"] = str(parent)
    config["family"]["device"] = "cpu"
    config["options"]["delta_overlap"] |= {"adapters": 0, "by_group": False}
    for seed, fine_tune in enumerate(pairs):
        adapter_from(parent, folder / fine_tune, 0, seed)
    return config


def _plan_beside_a_run() -> dict[str, Any]:
    data = Path(os.environ["EMLENS_RELEASED_DATA"])
    asked = QuestionSet.from_file(data / "em-generalization" / "general_200.jsonl")
    pairs = {name: PromptSet(list(chats)[:RUN]) for name, chats in _pairs(data).items()}
    return plan_beside_a_run(find("smollm2"), asked.select(asked.ids[:RUN]), pairs)


PIECES: dict[str, Callable[[], dict[str, Any]]] = {
    "covariance nulls": covariance_nulls,
    "training plans": _training_plans,
    "study of 14B": _study_of_14b,
    "plan beside a run": _plan_beside_a_run,
}


def main(names: Sequence[str] = tuple(PIECES)) -> None:
    """Measure some pieces; the others stay as they are."""
    torch.set_num_threads(1)
    path = EVIDENCE / "scale.json"
    values: dict[str, Any] = read_json(path)["values"] if path.exists() else {}
    for name in names:
        values[name] = PIECES[name]()
        record("scale", [0], values)
