"""A model of another family that reads the questions of a study. What it forecasts as well as the
parents do is in the prompts, and is no prior of the parents.

It is a model, which is run, or a store of captures of the questions. Of a model five blocks are
read, spread evenly over its depth, and a forecast chooses among them on inner folds, so that it is
given no less choice than it needs and no best place is picked.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from emlens.activations import Activations, capture
from emlens.data import PromptSet, QuestionSet
from emlens.data.templates import PLAIN_TEMPLATE
from emlens.foundation.errors import InputError
from emlens.foundation.sites import spread_layers
from emlens.models import Family, HookedModel, load_model
from emlens.models.loading import with_template
from emlens.real.catalogue import MODELS
from emlens.real.finding import find
from emlens.studies.captured_models import AbsentModel, captured_rows, open_captured
from emlens.studies.config import StudyConfig

UNRELATED: Final = "unrelated model"
LAYERS: Final = 5


def load_unrelated(
    config: StudyConfig, questions: QuestionSet | None, family: Family | None
) -> HookedModel | None:
    """The model that a configuration names under `unrelated`; None where it names none.

    Raises:
        InputError: it has the weights of a model of the family.
        LoadError: there is no such model or store.
    """
    if config.unrelated is None or questions is None:
        return None
    path = Path(config.path(config.unrelated))
    if (path / "manifest.json").is_file():
        return open_captured(UNRELATED, path, questions.prompts())
    is_real = config.unrelated in MODELS and not path.exists()
    model = load_model(find(config.unrelated) if is_real else path)
    if model.chat_format is None:
        model = with_template(model, PLAIN_TEMPLATE)
    if family is not None:
        _require_other_weights(config, model, family)
    return model


def _require_other_weights(config: StudyConfig, model: HookedModel, family: Family) -> None:
    weights = model.provenance.get("weights_sha256")
    for name in family.names:
        if weights is not None and family[name].provenance.get("weights_sha256") == weights:
            raise InputError(
                f"{config.place('unrelated')}unrelated={config.unrelated!r} has the weights of"
                f" {name!r}, a model of this family; pass a model of another family"
            )


def read_unrelated(model: HookedModel, prompts: PromptSet, positions: Sequence[str]) -> Activations:
    """What the model holds of the prompts, at pooled positions.

    Raises:
        InputError: a store that lacks a prompt.
    """
    if isinstance(model, AbsentModel):
        rows = captured_rows(model)
        return rows.read(UNRELATED, prompts, rows.store.sites, rows.store.positions)
    return capture(
        model,
        prompts,
        sites="resid_post",
        layers=spread_layers(model.n_layers, LAYERS),
        positions=list(positions),
        progress=False,
    )


def why_unreadable(model: HookedModel, prompts: PromptSet) -> str | None:
    """In a sentence, what a store lacks of these prompts; None where it lacks nothing."""
    if not isinstance(model, AbsentModel):
        return None
    rows = captured_rows(model)
    return rows.lacks(UNRELATED, prompts, rows.store.sites, rows.store.positions)
