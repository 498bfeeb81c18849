"""The models that a configuration names, loaded as it says."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emlens.data.readers import read_text
from emlens.foundation.errors import InputError
from emlens.models import Family, FineTune, load_family
from emlens.models.families import local_copy
from emlens.models.quantizing import quantization_of
from emlens.studies.config import StudyConfig
from emlens.studies.family_config import FamilyConfig, FineTuneConfig, LoadingConfig, ParentConfig


def load_models(config: StudyConfig, family: FamilyConfig) -> Family:
    """Load every model of a family that is given by checkpoints.

    Raises:
        InputError: an option that cannot be used, with the line that gave it.
        LoadError: a checkpoint that does not load or does not fit the others.
    """
    _check_quantizations(config, family)
    if family.instruct is None:
        raise InputError("instruct is missing; give the model that the fine-tunes start from")
    finetuned = {name: fine_tune(config, spec) for name, spec in family.finetuned.items()}
    parents = parent_paths(config, family)
    return load_family(
        parents["instruct"],
        base=parents.get("base"),
        finetuned=finetuned,
        own=dict(_own_options(config, family)),
        **family.options(),
    )


def parent_paths(config: StudyConfig, family: FamilyConfig) -> dict[str, str]:
    """Instruct and base → where they are, for those that are named."""
    named = {"instruct": family.instruct, "base": family.base}
    paths = {}
    for name, parent in named.items():
        if parent is not None:
            paths[name] = parent_path(config, name, parent)
    return paths


def fine_tune(config: StudyConfig, spec: FineTuneConfig) -> FineTune:
    """A fine-tune of the configuration as `load_family` takes it."""
    return FineTune(
        config.path(spec.path),
        spec.parent,
        spec.group,
        spec.seed,
        spec.benign,
        spec.domain,
        merge=spec.merge,
        check_base=spec.check_base,
        revision=spec.revision,
        subfolder=spec.subfolder,
        system=spec.system,
    )


def parent_path(config: StudyConfig, name: str, parent: ParentConfig) -> str:
    """Where a parent is: a directory, or a hub id; a folder below a hub id is downloaded."""
    path = config.path(parent.path)
    if parent.subfolder:
        spec = FineTune(path, revision=parent.revision, subfolder=parent.subfolder)
        return str(local_copy(f"the {name} model", spec).path)
    return path


def _own_options(
    config: StudyConfig, family: FamilyConfig
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Model → the options in which it differs from its family, for those that have some."""
    for name, parent in (("instruct", family.instruct), ("base", family.base)):
        if parent is None:
            continue
        own = parent.options()
        if parent.revision is not None:
            own["revision"] = parent.revision
        if parent.chat_template is not None:
            own["chat_template"] = _template(config, parent.chat_template)
        if own:
            yield name, own
    for name, spec in family.finetuned.items():
        if spec.options():
            yield name, spec.options()


def _template(config: StudyConfig, text: str) -> str:
    """The template in a file; a name such as `plain` as it is."""
    path = config.path(text)
    if Path(path).is_file():
        return read_text(path)
    return text


def _check_quantizations(config: StudyConfig, family: FamilyConfig) -> None:
    """Refuse an unknown field of a quantisation before any model is loaded."""
    places: list[tuple[tuple[str, ...], LoadingConfig | None]] = [
        (("family",), family),
        (("family", "instruct"), family.instruct),
        (("family", "base"), family.base),
    ]
    places += [(("family", "finetuned", name), spec) for name, spec in family.finetuned.items()]
    for place, loading in places:
        if loading is None:
            continue
        try:
            quantization_of(loading.quantization)
        except InputError as error:
            where = config.place(*place, "quantization", *getattr(error, "place", ()))
            raise InputError(f"{where}{'.'.join(place)}: {error}") from None
