"""Capture what a study reads of its models, so that the study can run where the models are not."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from emlens.activations import Activations, CaptureSpec, capture
from emlens.activations.capture_spec import BATCH_TOKENS
from emlens.data import PromptSet
from emlens.data.prompts import Prompt
from emlens.foundation.errors import InputError
from emlens.foundation.files import safe_name
from emlens.models import HookedModel
from emlens.studies.captured_models import content_id
from emlens.studies.config import StudyConfig, read_config
from emlens.studies.material_loading import load_material, outline
from emlens.studies.registry import get_study, parts_of
from emlens.studies.streams import Reading, check_layers, read_sites
from emlens.studies.study import StudyContext


def capture_for_study(
    model: HookedModel,
    config: str | Path | Mapping[str, Any] | StudyConfig,
    store: str | Path,
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> Activations:
    """Capture one model of a family on everything that the study's parts read of it.

    Every model of the family is captured with the same configuration, on one machine; then
    `captures: {name: store}` in that configuration runs the study without them. A capture that was
    interrupted goes on. Prompts that several parts read are captured once.

    Args:
        model: taken from its family, so that a base renders chats as the instruct model does.
        config: of the study; no model is loaded from it.
        store: a directory of this model's own.
        batch_tokens: as in `CaptureSpec`, the same for every model.

    Raises:
        InputError: a study none of whose parts runs on captures; what `capture` refuses.
    """
    checked = read_config(config)
    check_layers(checked, model.n_layers)
    readings = study_readings(checked, model.n_layers, model.d_model)
    spec = _spec(readings, checked, model.n_layers, batch_tokens)
    prompts = by_content(reading.prompts for reading in readings)
    return capture(model, prompts, spec=spec, store=store, progress=progress)


def capture_family(
    config: str | Path | Mapping[str, Any] | StudyConfig,
    directory: str | Path,
    *,
    progress: bool = True,
) -> dict[str, Path]:
    """Load the family that a configuration names and capture every model into a folder of its own
    below `directory` (`capture_for_study`).

    Returns:
        Model → store, as `captures` of a configuration names them.

    Raises:
        InputError, LoadError: what cannot be loaded or captured.
    """
    checked = read_config(config)
    if checked.captures:
        raise InputError(
            f"{checked.place('captures')}captures are named already; leave them out to capture"
        )
    family = load_material(checked).family
    stores = {}
    for name in family:
        stores[name] = Path(directory) / safe_name(name)
        capture_for_study(family[name], checked, stores[name], progress=progress)
    return stores


def study_readings(config: StudyConfig, n_layers: int, d_model: int) -> list[Reading]:
    """What the parts that run on captures read.

    Raises:
        InputError: no part of the study runs on captures.
    """
    material = outline(config, n_layers, d_model)
    readings: list[Reading] = []
    for name in parts_of(config.study, triggers=bool(config.triggers)):
        part = get_study(name)
        if not part.runs_on_captures:
            continue
        options = config.options_of(name, part.options)
        context = StudyContext(material, config, options, Path())
        readings += [reading for reading in part.readings(context) if reading.captured]
    if not readings:
        raise InputError(
            f"no part of study {config.study!r} reads residual streams that can be captured;"
            " delta_overlap, priors, layer_position_grid and studies with these parts do"
        )
    return readings


def by_content(sets: Iterable[PromptSet]) -> PromptSet:
    """The prompts of all sets, each once, under its `content_id`."""
    prompts: dict[str, Prompt] = {}
    for prompt_set in sets:
        for prompt in prompt_set:
            id = content_id(prompt)
            if id not in prompts:
                prompts[id] = Prompt(
                    id, prompt.text, prompt.group, prompt.messages, prompt.response
                )
    return PromptSet(prompts.values())


def _spec(
    readings: list[Reading], config: StudyConfig, n_layers: int, batch_tokens: int
) -> CaptureSpec:
    sites = {site for reading in readings for site in reading.sites}
    positions = dict.fromkeys(config.positions)
    for reading in readings:
        positions |= dict.fromkeys(reading.positions)
    return CaptureSpec(
        sites=read_sites(sorted(sites), config, n_layers),
        positions=tuple(positions),
        batch_tokens=batch_tokens,
        large=True,  # a store on disk is what was asked for
    )
