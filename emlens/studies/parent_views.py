"""What is known before fine-tuning: activations of each parent, as it is and on the plain
rendering, and forecasts from one of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from emlens.activations import Activations
from emlens.data import PromptSet
from emlens.data.system_messages import questions_with_system
from emlens.models import HookedModel
from emlens.models.loading import with_template
from emlens.probes import (
    Baselines,
    Design,
    Forecast,
    activation_cells,
    assert_different,
    cross_validate_forecast,
)
from emlens.probes.shuffles import draws_for
from emlens.studies.captured_models import AbsentModel
from emlens.studies.config import StudyConfig
from emlens.studies.material import Material
from emlens.studies.streams import Reading, read_streams

PERMUTED = ("ridge", "ridge1")
"""Estimators whose permutations are cheap; the others would be fitted again in each."""
OTHER_PARENT = {"instruct": "base", "base": "instruct"}


@dataclass(frozen=True, eq=False)
class ParentView:
    """One parent on one rendering of the questions.

    Args:
        name: `instruct`, `base`, or one of them with `, plain` after it.
        embedding: mean embedding of each prompt, a baseline.
        texts: id → what the parent reads of the prompt, a baseline; of a parent that is not here,
            what is asked without template.
    """

    name: str
    activations: Activations
    embedding: Activations
    texts: Mapping[str, str]

    @property
    def parent(self) -> str:
        return self.name.partition(", ")[0]

    @property
    def other_name(self) -> str:
        """The other parent on the same rendering."""
        return self.name.replace(self.parent, OTHER_PARENT[self.parent], 1)


@dataclass(frozen=True)
class Regression:
    """What is fitted to the scores: an estimator, and scores or their logits.

    Args:
        clamp: how near to 0 and 100 a score may come before its logit is taken.
    """

    estimator: str
    target: Literal["score", "logit"]
    clamp: float


def parent_views(
    material: Material, config: StudyConfig, plain: bool, asked_as: str = ""
) -> dict[str, ParentView]:
    """Name → view of every parent of the family, in the order in which forecasts are made.

    Args:
        plain: whether the plain rendering is taken too.
        asked_as: the fine-tune with whose system message the questions are read.

    Raises:
        InputError: two views with the same activations.
    """
    models: dict[str, HookedModel] = {name: material.family[name] for name in parents_of(material)}
    if plain:
        for name in parents_of(material):
            models[f"{name}, plain"] = with_template(material.family[name], "plain")
    questions = questions_with_system(material.questions, material.system(asked_as))
    prompts = questions.prompts()
    views = {name: _view(name, model, prompts, config) for name, model in models.items()}
    for first, second in combinations(views.values(), 2):
        assert_different(
            activation_cells(first.activations),
            activation_cells(second.activations),
            first.name,
            second.name,
        )
    return views


def view_readings(material: Material, asked_as: str) -> Iterator[Reading]:
    """What `parent_views` reads of the parents as they are."""
    questions = questions_with_system(material.questions, material.system(asked_as))
    prompts = questions.prompts()
    for name in parents_of(material):
        yield Reading((name,), prompts)
        yield Reading((name,), prompts, ("resid_pre.0",), ("mean_prompt",))


def parents_of(material: Material) -> list[str]:
    """The parents that the family has, the instruct model first."""
    return [name for name in OTHER_PARENT if name == "instruct" or material.family.has_base]


def _view(name: str, model: HookedModel, prompts: PromptSet, config: StudyConfig) -> ParentView:
    activations = read_streams({name: model}, prompts, config)[name]
    embedding = read_streams(
        {name: model}, prompts, config, sites="resid_pre.0", positions="mean_prompt"
    )
    return ParentView(name, activations, embedding[name], _texts(model, prompts))


def _texts(model: HookedModel, prompts: PromptSet) -> dict[str, str]:
    """What a model reads of each prompt; of one that is not here, the turns alone."""
    if not isinstance(model, AbsentModel):
        return model.rendered_texts(prompts)
    texts = {}
    for prompt in prompts:
        turns = [message.content for message in prompt.messages or ()]
        texts[prompt.id] = "\n\n".join(turns) or prompt.text
    return texts


def forecast_from(
    view: ParentView,
    other: ParentView | None,
    unrelated: Activations | None,
    material: Material,
    name: str,
    prompts: Sequence[str],
    regression: Regression,
    design: Design,
) -> Forecast:
    """Forecast the scores of fine-tune `name` from one view of a parent.

    Args:
        other: the other parent on the same rendering, shown beside. unrelated: a model of another
            family on the same questions. prompts: ids of the rows.
    """
    numbers = {}
    if "harmful" in material.scores(view.parent, name).metrics:
        harmful = material.per_question(view.parent, "harmful", asked_as=name)
        numbers["parent's P(harmful)"] = {str(q): float(p) for q, p in harmful.items()}
    baselines = Baselines(
        texts=view.texts,
        parent_scores=material.scores(view.parent, name),
        embedding=view.embedding.select(prompts),
        other_parent=None if other is None else other.activations.select(prompts),
        unrelated=unrelated,
        numbers=numbers,
    )
    return cross_validate_forecast(
        view.activations.select(prompts),
        material.scores(name),
        estimator=regression.estimator,
        target=regression.target,
        design=design,
        baselines=baselines,
    )


def design_of(
    config: StudyConfig, regression: Regression, groups: str | None, forecasts: int
) -> Design:
    """How forecasts are validated.

    Args:
        groups: what is held out together. forecasts: how many are corrected together, which the
            number of shuffles follows where the configuration names none.
    """
    permutations = config.permutations or draws_for(forecasts)
    if regression.estimator not in PERMUTED:
        permutations = 0
    return Design(
        groups=groups,
        folds=config.folds,
        inner_folds=config.folds,
        repeats=config.repeats,
        clamp=regression.clamp,
        permutations=permutations,
        duplicates="group",
        seed=config.seed,
    )
