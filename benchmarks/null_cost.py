"""What the nulls of an overlap cost on a real model: one adapter on permuted careful answers, and
one draw of the landmarks, each in captures of one model on both sides.

SmolLM2, the recipe of the real family (25 steps of 6 rows, rank 8 on every linear layer), its 80
training questions of medicine beside as many questions of other domains. CPU time of one thread. It
needs the model (EMLENS_REAL_MODELS).
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import pandas as pd

from benchmarks.records import record, show
from emlens.activations import CaptureSpec, capture
from emlens.controls.null_adapters import NullSetting, NullWorker
from emlens.controls.update_landmark import Kind, update_null
from emlens.data import PromptSet
from emlens.data.advice import TRAINED_DOMAINS, advice_questions, training_chats
from emlens.interventions.lora import LoraAdapter
from emlens.models import HookedModel, load_model
from emlens.organisms.building import one_thread
from emlens.real import find
from emlens.real.family import Member

DOMAIN: Final = "medicine"
PROMPTS: Final = 80
"""On each side."""
DRAWS: Final = 2
GOALS: Final = {"adapter": 8.0, "gradient": 3.0}
"""Captures, at most."""
T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of a call, and what it gives."""
    began = time.process_time()
    result = call()
    return time.process_time() - began, result


def setting(parent: Path, prompts: int = PROMPTS, steps: int | None = None) -> NullSetting:
    """The null of the family's harmful medicine."""
    careful = training_chats(DOMAIN, "careful_polite")
    others = [name for name in advice_questions().groups if name not in TRAINED_DOMAINS]
    further = advice_questions(list(dict.fromkeys(others))).prompts()
    recipe = Member("harmful", DOMAIN).recipe()
    return NullSetting(
        parent,
        recipe if steps is None else recipe.changed(steps=steps, warmup_steps=min(3, steps - 1)),
        careful,
        PromptSet(list(careful.without_responses())[:prompts]),
        PromptSet(list(further)[:prompts]),
        CaptureSpec("resid_post", None, ("last_prompt",)),
    )


def costs(chosen: NullSetting, draws: int = DRAWS) -> list[dict[str, Any]]:
    """One row a null."""
    model = load_model(chosen.parent, dtype="float32")

    def both_sides() -> None:
        for prompts in (chosen.train, chosen.evaluation):
            capture(model, prompts, spec=chosen.spec, progress=False)

    both_sides()  # the first pass of a model proves what it may share
    captured, _ = timed(both_sides)
    rows = [{"what": "captures of one model on both sides", "seconds": captured, "captures": 1.0}]
    with tempfile.TemporaryDirectory() as folder:
        worker = NullWorker(chosen, 2, Path(folder), keep=True, device="cpu")
        first, second = (
            timed(lambda unit=unit: worker.run(unit))[0]  # type: ignore[misc]
            for unit in worker.plan()
        )
        rows.append(_row("adapter", second, captured))
        rows.append(_row("more for the first of them", first - second, captured))
        update = LoraAdapter.load(next(Path(folder).rglob("adapter_config.json")).parent)
    kinds: tuple[Kind, ...] = ("haar", "gradient")
    for kind in kinds:
        few, many = (_landmark(model, update, chosen, kind, n) for n in (1, 1 + draws))
        rows.append(_row(kind, (many - few) / draws, captured))
    return rows


def _landmark(
    model: HookedModel, update: LoraAdapter, chosen: NullSetting, kind: Kind, draws: int
) -> float:
    """CPU seconds of so many draws."""

    def drawn() -> None:
        update_null(
            model,
            update,
            (chosen.train, chosen.evaluation),
            kind=kind,
            careful=chosen.careful,
            tokenizer=model.tokenizer,
            spec=chosen.spec,
            draws=draws,
        )

    return timed(drawn)[0]


def _row(what: str, seconds: float, captured: float) -> dict[str, Any]:
    return {"what": what, "seconds": seconds, "captures": seconds / captured}


def costs_table(values: Mapping[str, Any]) -> str:
    """CPU seconds and captures of each."""
    names = {
        "adapter": f"one adapter, {values['steps']} steps",
        "haar": "one draw of a random update",
        "gradient": "one draw of a gradient update",
    }
    lines = ["| what | CPU seconds | captures | goal |", "|---|---|---|---|"]
    for row in values["rows"]:
        goal = GOALS.get(row["what"])
        lines.append(
            f"| {names.get(row['what'], row['what'])} | {row['seconds']:.1f} |"
            f" {row['captures']:.1f} | {'–' if goal is None else f'≤ {goal:g}'} |"
        )
    return "\n".join(lines)


def main() -> None:
    chosen = setting(Path(find("smollm2")))
    with one_thread():
        rows = costs(chosen)
    show("cost of the nulls on SmolLM2", pd.DataFrame(rows))
    record("null_cost", [0], {"rows": rows, "steps": chosen.recipe.steps, "prompts": PROMPTS})
