"""What the parts of a study read of the residual stream: at which layers, and from which models.

Every part reads through `read_streams`, so that `layers:` of a configuration holds in all of them.
Models that are read together run the identical padded batches; models that are not here are read
from their captures. A part says by `Reading`s what it will read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from emlens.activations import Activations, CaptureSpec
from emlens.activations.capture_spec import BATCH_TOKENS, PositionsLike
from emlens.activations.capturing import capture_lasting
from emlens.data import PromptSet, QuestionSet
from emlens.data.prompt_inputs import as_prompts
from emlens.foundation.errors import InputError
from emlens.foundation.sites import SITE_KINDS, Site, resolve_sites
from emlens.models import HookedModel
from emlens.studies.captured_models import AbsentModel, captured_rows
from emlens.studies.config import StudyConfig


def read_streams(
    models: Mapping[str, HookedModel],
    prompts: PromptSet | QuestionSet,
    config: StudyConfig,
    *,
    sites: str | Sequence[str] = "resid_post",
    positions: PositionsLike | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> dict[str, Activations]:
    """Residual streams of several models on the same prompts, by the names given.

    Args:
        sites: kinds, which are read at the layers of the configuration, or single sites.
        positions: None: those of the configuration.

    Raises:
        InputError: what `capture_many` refuses.
    """
    n_layers = next(iter(models.values())).n_layers
    spec = CaptureSpec(
        sites=read_sites(sites, config, n_layers),
        positions=config.positions if positions is None else positions,
        batch_tokens=batch_tokens,
    )
    if any(isinstance(model, AbsentModel) for model in models.values()):
        return _from_captures(models, as_prompts(prompts), spec)
    return capture_lasting(models, prompts, spec)


def _from_captures(
    models: Mapping[str, HookedModel], prompts: PromptSet, spec: CaptureSpec
) -> dict[str, Activations]:
    sites = [str(site) for site in spec.sites]  # type: ignore[union-attr]
    positions = [position.name for position in spec.parsed_positions]
    streams = {}
    for name, model in models.items():
        streams[name] = captured_rows(model).read(model.name, prompts, sites, positions)
    return streams


def not_captured(
    readings: Iterable["Reading"], models: Mapping[str, HookedModel], config: StudyConfig
) -> str | None:
    """In a sentence, the first thing that captures lack for these readings; None where they lack
    nothing.
    """
    for reading in readings:
        if not reading.captured:
            continue
        for name in reading.models:
            model = models[name]
            if isinstance(model, AbsentModel) and model.rows is None:
                return f"only judged answers of {name!r} are here; give the models, or captures"
            sites = [str(site) for site in read_sites(reading.sites, config, model.n_layers)]
            positions = reading.positions or config.positions
            lacking = captured_rows(model).lacks(name, reading.prompts, sites, positions)
            if lacking is not None:
                return lacking
    return None


@dataclass(frozen=True)
class Reading:
    """One time that a part reads residual streams.

    Args:
        models: names in the family, which run the same batches.
        sites: kinds, or single sites.
        positions: where there are none, those of the configuration.
        captured: whether captures can serve it; they hold each prompt in one batch and one
            rendering only.
    """

    models: tuple[str, ...]
    prompts: PromptSet
    sites: tuple[str, ...] = ("resid_post",)
    positions: tuple[str, ...] = ()
    batch_tokens: int = BATCH_TOKENS
    captured: bool = True


def read_sites(sites: str | Sequence[str], config: StudyConfig, n_layers: int) -> list[Site]:
    """The sites that are read, in the order of a pass: a kind stands for the configured layers."""
    named = [sites] if isinstance(sites, str) else list(sites)
    kinds = [site for site in named if site in SITE_KINDS and site != "final_norm"]
    single = [site for site in named if site not in kinds]
    at_layers = resolve_sites(kinds, n_layers, config.layers) if kinds else []
    return resolve_sites([*at_layers, *single], n_layers)


def read_layers(config: StudyConfig, n_layers: int) -> list[int]:
    """The blocks whose output is read, ascending."""
    sites = read_sites("resid_post", config, n_layers)
    return [site.layer for site in sites if site.layer is not None]


def check_layers(config: StudyConfig, n_layers: int) -> None:
    """Refuse layers that the model does not have.

    Raises:
        InputError: names the first, the blocks that there are, and the line.
    """
    seen: dict[int, int] = {}
    for number, layer in enumerate(config.layers or ()):
        place = config.place("layers", number)
        if not -n_layers <= layer < n_layers:
            raise InputError(
                f"{place}layers names block {layer}, but the model has {n_layers} blocks;"
                f" pass 0 to {n_layers - 1}, or {-n_layers} to -1 from the end"
            )
        if layer % n_layers in seen:
            raise InputError(
                f"{place}layers names block {layer % n_layers} twice, as"
                f" {seen[layer % n_layers]} and {layer}; name each once"
            )
        seen[layer % n_layers] = layer
