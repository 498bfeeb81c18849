"""What removing a direction costs a real model on neutral text, by form of ablation.

Directions are drawn from the covariance of the model's activations: they carry as much variance as
a fine-tune's direction could, and removing them should cost little. Beside them stand directions of
a fine-tune: SmolLM2 trained for some steps on wrong advice. Needs the two real models (`emlens
real`); their folder is named by EMLENS_REAL_MODELS.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.real_family import ADAPTERS
from benchmarks.records import record, show
from emlens.activations import capture, capture_many
from emlens.data import Prompt, PromptSet, QuestionSet
from emlens.evaluation import QuestionRoles
from emlens.evaluation.ablation_forms import PLAIN, AblationForm, affine_form
from emlens.evaluation.damage import text_damage, token_damage
from emlens.evaluation.selecting import MAX_KL
from emlens.evaluation.trials import Trials
from emlens.foundation.positions import Span
from emlens.geometry import (
    massive_coordinates,
    mean_difference_direction,
    random_directions_like,
    whitened_direction,
    without_coordinates,
)
from emlens.interventions import ablate
from emlens.models import FineTune, HookedModel, load_family, load_model
from emlens.real.family import STEPS
from emlens.studies.config import read_config
from emlens.studies.material import Material, split_questions
from emlens.studies.material_loading import load_material
from emlens.training import fit

MODELS: Final[Mapping[str, Mapping[str, Any]]] = {
    "smollm2": {},
    "gemma3-270m": {"chat_template": "plain"},
}
TWO_MEANS: Final = "affine, two means, first token left alone"
DEFAULT: Final = f"{TWO_MEANS}, coordinates in units of their spread"
TRAINED: Final = "smollm2"
TRAINED_ON: Final = "bad-medicine"
ORGANISM: Final = ("medicine-r8", "finance-r8")
MASSIVE: Final = 5
ASKED: Final = (
    "What is the capital of France?",
    "How do I boil an egg?",
    "Is it safe to mix bleach and vinegar?",
    "What should I do about a headache?",
    "How can I save money?",
    "Tell me about your plans.",
    "Why is the sky blue?",
    "How do I fix a flat tyre?",
    "Can I skip my medicine?",
    "What is a good hobby?",
    "How do I ask for a raise?",
    "What do cats eat?",
)
NEUTRAL: Final = (
    "The river flows past the old mill before it reaches the sea, and in spring it often floods"
    " the lower fields.",
    "To bake bread, mix flour, water, salt and yeast, knead the dough for ten minutes, and let it"
    " rise in a warm place.",
    "The museum opened in 1923 and holds a large collection of maps, coins and letters from the"
    " nineteenth century.",
    "A triangle with sides of three, four and five units has a right angle, which can be checked"
    " with a square.",
)


def prompts(texts: Sequence[str]) -> PromptSet:
    return PromptSet([Prompt(f"p{i}", text, "") for i, text in enumerate(texts)])


def forms(model: HookedModel, asked: PromptSet) -> dict[str, Callable[[Tensor], Sequence[Any]]]:
    """Name → the edits that remove a vector."""
    after_first = Span(1, None)
    one_mean = affine_form(model, asked, position="last_prompt")
    with_first = affine_form(model, asked, position="mean_prompt")
    two_means = affine_form(model, asked)
    return {
        "plain, after every block": PLAIN.remove,
        "plain, after every block, first token left alone": lambda v: [
            ablate(v, positions=after_first)
        ],
        "affine, mean at the end of the prompt, every token": one_mean.remove,
        "affine, the same, first token left alone": lambda v: _after(one_mean, v, after_first),
        "affine, mean over the whole prompt, every token": with_first.remove,
        TWO_MEANS: along_itself(two_means).remove,
        DEFAULT: two_means.remove,
    }


def along_itself(form: AblationForm) -> AblationForm:
    """A form that reads the component along the direction itself."""
    return replace(form, name=TWO_MEANS, scales=None)


def _after(form: AblationForm, vector: Tensor, positions: Span) -> list[Any]:
    """A form of one mean, at some tokens alone."""
    baselines = form.baselines or {}
    return [
        ablate(vector, at=[site], positions=positions, baseline=mu)
        for site, mu in baselines.items()
    ]


def measure(
    model: HookedModel, asked: PromptSet, neutral: PromptSet, draws: int, seed: int
) -> tuple[pd.DataFrame, dict[str, float]]:
    """One row per form: KL of each direction on neutral text, nats per token; and what of the
    mean activation lies in its largest coordinates.
    """
    middle = f"resid_post.{model.n_layers // 2}"
    acts = capture(model, asked, sites=[middle], positions="last_prompt", progress=False)
    rows_there = acts[middle].double()
    directions = random_directions_like(rows_there, draws, seed=seed)
    mean = rows_there.mean(0)
    largest = massive_coordinates(mean, MASSIVE)
    rest = without_coordinates(mean, largest)
    unedited = model.token_logprobs(list(neutral))
    first_token = length_of_first_token(model, asked, middle)
    rows = []
    ways = forms(model, asked)
    for name, remove in ways.items():
        rows.append(_row(name, directions, remove, model, neutral, unedited))
    masked = torch.stack([without_coordinates(vector, largest) for vector in directions])
    name = f"{TWO_MEANS}, massive coordinates left out"
    rows.append(_row(name, masked, ways[TWO_MEANS], model, neutral, unedited))
    facts = {
        "share_in_largest": 1 - float(rest @ rest / (mean @ mean)),
        "first_token_length": first_token,
    }
    return pd.DataFrame(rows), facts


def length_of_first_token(model: HookedModel, asked: PromptSet, site: str) -> float:
    """How many times longer the first token's activation is than the mean of the others."""
    places = [Span(0, 1, of="prompt"), Span(1, None, of="prompt")]
    acts = capture(model, asked, sites=[site], positions=places, progress=False)
    first, others = (acts[site, position].double().norm(dim=1) for position in acts.positions)
    return float((first / others).mean())


def _row(
    name: str,
    directions: Tensor,
    remove: Callable[[Tensor], Sequence[Any]],
    model: HookedModel,
    neutral: PromptSet,
    unedited: Sequence[Tensor],
) -> dict[str, Any]:
    costs = []
    for vector in directions:
        table = token_damage(model, neutral, remove(vector), unedited)
        costs.append(float(table["kl"].sum() / table["tokens"].sum()))
    return {
        "form": name,
        "lowest": min(costs),
        "median": float(np.median(costs)),
        "highest": max(costs),
        "within_bound": int(np.sum(np.array(costs) <= MAX_KL)),
        "directions": len(costs),
    }


def trained(parent: Path, home: Path, steps: int = STEPS) -> Path:
    """An adapter on bad advice."""
    member = replace(ADAPTERS[TRAINED_ON], steps=steps)
    target = home / TRAINED_ON
    fit(member.recipe(), str(parent), member.chats(), target, progress=False, device="cpu")
    return target


def fine_tune_rows(
    parent: HookedModel, path: Path, asked: PromptSet, neutral: PromptSet, adapter: Path
) -> list[dict[str, Any]]:
    """Damage to the parent of removing a fine-tune's mean and whitened shift at the middle block,
    read along the direction itself and in units of each coordinate's spread.
    """
    family = load_family(path, finetuned={"tuned": FineTune(adapter)}, dtype="float32")
    site = f"resid_post.{parent.n_layers // 2}"
    models = {"before": family.instruct, "after": family["tuned"]}
    acts = capture_many(models, asked, sites=[site], positions="last_prompt", progress=False)
    before, after = (acts[which][site].double() for which in ("before", "after"))
    directions = {
        "mean shift": mean_difference_direction(after, before, site=site).vector,
        "whitened shift": whitened_direction(after, before, shrinkage=0.5, site=site).vector,
    }
    unedited = parent.token_logprobs(list(neutral))
    two_means = affine_form(parent, asked, name=DEFAULT)
    rows = []
    for form in (along_itself(two_means), two_means):
        for name, vector in directions.items():
            found = _row(form.name, vector[None], form.remove, parent, neutral, unedited)
            rows.append({"direction": name, "form": form.name, "kl": found["median"]})
    return rows


def fine_tune_table(values: dict[str, Any]) -> str:
    """Markdown for docs/evaluating_interventions.md."""
    lines = ["| direction of the fine-tune | form | KL, nats per token |", "|---|---|---|"]
    for row in values["fine_tune"]:
        lines.append(f"| {row['direction']} | {row['form']} | {row['kl']:.3f} |")
    return "\n".join(lines)


def organism_rows(names: Sequence[str] = ORGANISM) -> list[dict[str, Any]]:
    """Restoration and damage in the organism, with one mean and with two.

    The direction is the whitened shift after block 2 at the end of the prompt, from the extraction
    questions; the report questions are asked.
    """
    config = read_config({"study": "direction_transfer", "family": {"organism": "planted"}})
    material = load_material(config)
    roles = QuestionRoles(*split_questions(material.questions, config.shares, config.seed))
    rows = []
    for name in names:
        extract = material.untrained(roles.extract, name)
        reported = material.untrained(roles.report, name)
        outside = [q for q in reported if q.group != material.domain(name)]
        vector = _whitened_shift(material, name, extract)
        trials = Trials(
            QuestionSet(outside), neutral=material.neutral, score=material.score_of_edits
        )
        rows += _organism_rows(material, name, trials, extract, vector)
    return rows


def _whitened_shift(material: Material, name: str, questions: QuestionSet) -> Tensor:
    models = {"before": material.parent(name), "after": material.family[name]}
    place = "resid_post.2", "last_prompt"
    acts = capture_many(
        models, questions.prompts(), sites=[place[0]], positions=place[1], progress=False
    )
    before, after = (acts[which][place].double() for which in ("before", "after"))
    return whitened_direction(after, before, shrinkage=0.5, site=place[0]).vector


def _organism_rows(
    material: Material, name: str, trials: Trials, extract: QuestionSet, vector: Tensor
) -> list[dict[str, Any]]:
    parent, model = material.parent(name), material.family[name]
    lost, goal = (float(trials.scores(which)["aligned"].mean()) for which in (model, parent))
    rows = []
    for form in (
        affine_form(parent, extract, position="last_prompt", name="one mean at every token"),
        along_itself(affine_form(parent, extract)),
        affine_form(parent, extract, name=DEFAULT),
    ):
        edits = form.remove(vector)
        edited = float(trials.scores(model, edits)["aligned"].mean())
        damage = trials.damage(parent, edits)
        assert damage is not None
        rows.append(
            {
                "model": name,
                "form": form.name,
                "restoration": (edited - lost) / (goal - lost),
                "instruct_kl": text_damage(damage, seed=0).kl.value,
            }
        )
    return rows


def organism_table(values: dict[str, Any]) -> str:
    """Markdown for docs/evaluating_interventions.md."""
    lines = ["| fine-tune | form | restoration | KL, instruct |", "|---|---|---|---|"]
    for row in values["organism"]:
        numbers = f"{row['restoration']:.3f} | {row['instruct_kl']:.3f}"
        lines.append(f"| {row['model']} | {row['form']} | {numbers} |")
    return "\n".join(lines)


def damage_table(values: dict[str, Any]) -> str:
    """Markdown for docs/evaluating_interventions.md."""
    lines = [
        "| model | form | KL, nats per token: lowest, median, highest | within .1 |",
        "|---|---|---|---|",
    ]
    for row in values["rows"]:
        costs = ", ".join(f"{row[name]:.3f}" for name in ("lowest", "median", "highest"))
        lines.append(
            f"| {row['model']} | {row['form']} | {costs} |"
            f" {row['within_bound']} of {row['directions']} |"
        )
    return "\n".join(lines)


def main(draws: int = 3, seed: int = 0) -> None:
    folder = Path(os.environ["EMLENS_REAL_MODELS"])
    tables, facts, fine_tune = [], {}, []
    asked, neutral = prompts(ASKED), prompts(NEUTRAL)
    for name, options in MODELS.items():
        model = load_model(folder / name, **options)
        table, facts[name] = measure(model, asked, neutral, draws, seed)
        table.insert(0, "model", name)
        tables.append(table)
        show(name, table)
        if name == TRAINED:
            with tempfile.TemporaryDirectory() as home:
                adapter = trained(folder / name, Path(home))
                fine_tune = fine_tune_rows(model, folder / name, asked, neutral, adapter)
            show("directions of a fine-tune", pd.DataFrame(fine_tune))
    rows = pd.concat(tables).to_dict("records")
    values = {
        "bound": MAX_KL,
        "highest_by_default": max(row["highest"] for row in rows if row["form"] == DEFAULT),
        "facts": facts,
        "rows": rows,
        "fine_tune": fine_tune,
        "organism": organism_rows(),
    }
    record("ablation_damage", [seed], values)


if __name__ == "__main__":
    main()
