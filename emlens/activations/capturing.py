"""Prompts → residual streams: only the decoder runs, up to the deepest site, and only the positions
that were asked for are kept.

Rows are sorted by length and batched under a token budget. The layout depends on the rows alone, so
that several models given the same prompts run the identical padded batches (`capture_pair`,
`capture_many`). A batch that does not fit into memory is cut, for every model, and the cut is
recorded. With `store=` every finished shard is on disk, and an interrupted capture goes on from
there. A capture too large to start by accident needs `CaptureSpec(large=True)`.
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

from emlens.activations.capture_job import CaptureJob
from emlens.activations.capture_plan import LARGE_BYTES, CapturePlan
from emlens.activations.capture_spec import CaptureSpec, PositionsLike, SitesLike, spec_of
from emlens.activations.kept_captures import (
    KeptCaptures,
    active_captures,
    capture_key,
    copied,
    of_alone,
)
from emlens.activations.memory import Activations
from emlens.data.prompt_inputs import PromptsLike, as_prompts
from emlens.data.prompts import PromptSet
from emlens.foundation.errors import InputError
from emlens.models.hooked import HookedModel
from emlens.models.widening import computing_in
from emlens.runs.progress import progress_bar


def capture(
    model: HookedModel,
    prompts: PromptsLike,
    sites: SitesLike | CaptureSpec | None = None,
    layers: int | Sequence[int] | None = None,
    positions: PositionsLike | None = None,
    *,
    spec: CaptureSpec | None = None,
    store: str | Path | None = None,
    progress: bool = True,
) -> Activations:
    """Residual streams of one model on prompts.

    Args:
        prompts: a `PromptSet`, `QuestionSet` or `Answers`; or a string, strings, a conversation
            (turns with role and content), conversations, or a data frame
            (`emlens.data.prompt_inputs`). Strings are raw text, without a chat template.
        sites, layers, positions: a short way to write `CaptureSpec(sites, layers, positions)`. By
            default `resid_post` of every layer at `last_prompt`.
        spec: what is read and how, in place of the three; also by place, in that of `sites`.
        store: a directory; finished shards are kept there, an interrupted capture resumes, the
            result reads from disk.

    Returns:
        `Activations`, rows in the order of `prompts`; values after any active intervention.

    Raises:
        InputError: `spec` together with `sites`, `layers` or `positions`; a site, layer or position
            that does not exist; a prompt that cannot be rendered; more than 8 GiB without
            `CaptureSpec(large=True)`; a prompt that does not fit into memory alone.
        IntegrityError: `store` holds something else, or a store of another plan.
        NotFiniteError: a value that is NaN or infinite; nothing is stored.
        StateError: another process captures into `store`.
    """
    spec = spec_of(spec, sites=sites, layers=layers, positions=positions)
    stores = {} if store is None else {model.name: store}
    activations = capture_many(
        {model.name: model}, prompts, spec=spec, stores=stores, progress=progress
    )
    return activations[model.name]


def capture_pair(
    before: HookedModel,
    after: HookedModel,
    prompts: PromptsLike,
    sites: SitesLike | CaptureSpec | None = None,
    layers: int | Sequence[int] | None = None,
    positions: PositionsLike | None = None,
    *,
    spec: CaptureSpec | None = None,
    progress: bool = True,
) -> tuple[Activations, Activations]:
    """`capture` for two models on identical padded batches: (before, after).

    `capture_many` also writes them into stores.
    """
    spec = spec_of(spec, sites=sites, layers=layers, positions=positions)
    models = {"before": before, "after": after}
    activations = capture_many(models, prompts, spec=spec, progress=progress)
    return activations["before"], activations["after"]


def capture_many(
    models: Mapping[str, HookedModel],
    prompts: PromptsLike,
    sites: SitesLike | CaptureSpec | None = None,
    layers: int | Sequence[int] | None = None,
    positions: PositionsLike | None = None,
    *,
    spec: CaptureSpec | None = None,
    stores: Mapping[str, str | Path] | None = None,
    progress: bool = True,
) -> dict[str, Activations]:
    """`capture` for several models on identical padded batches.

    Args:
        stores: model → directory; a model without one is captured into memory.

    Raises:
        InputError: also where two models' tokenizers give a prompt different ids.
    """
    spec = spec_of(spec, sites=sites, layers=layers, positions=positions)
    kept = active_captures()
    if kept is None or stores:
        return _capture_now(models, prompts, spec, stores, progress)
    return _from_kept(kept, models, as_prompts(prompts), spec, progress)


def capture_lasting(
    models: Mapping[str, HookedModel], prompts: PromptsLike, spec: CaptureSpec
) -> dict[str, Activations]:
    """`capture_many` into memory, of models that other parts of a study read as well: what the
    study has on disk is not captured again, and what is captured is put there.
    """
    kept, prompt_set = active_captures(), as_prompts(prompts)
    if kept is None:
        return _capture_now(models, prompt_set, spec, None, False)
    keys = _keys(models, prompt_set, spec)
    found = _in_memory(kept, keys, models)
    store = kept.lasting
    absent = [name for name, key in keys.items() if key is not None and name not in found]
    if store is None or not absent:
        return _with_missing(kept, keys, found, models, prompt_set, spec, False)
    plan = CapturePlan.make(models, list(prompt_set), spec)
    names = {name: store.key(models[name], plan, prompt_set.content_hash) for name in absent}
    for name in absent:
        activations = store.get(names[name])
        if activations is not None:
            found[name] = activations
            kept.add(keys[name], models[name], activations)
    captured = _with_missing(kept, keys, found, models, prompt_set, spec, False)
    for name in absent:
        if not captured[name].provenance.get("replanned"):
            store.add(names[name], captured[name])
    return captured


def _from_kept(
    kept: KeptCaptures,
    models: Mapping[str, HookedModel],
    prompts: PromptSet,
    spec: CaptureSpec,
    progress: bool,
) -> dict[str, Activations]:
    """What is kept already, and a capture of the models of which nothing is."""
    keys = _keys(models, prompts, spec)
    found = _in_memory(kept, keys, models)
    return _with_missing(kept, keys, found, models, prompts, spec, progress)


def _keys(
    models: Mapping[str, HookedModel], prompts: PromptSet, spec: CaptureSpec
) -> dict[str, Hashable | None]:
    alike = _share_alike(models)
    return {name: capture_key(model, prompts, spec, alike) for name, model in models.items()}


def _share_alike(models: Mapping[str, HookedModel]) -> bool:
    """Whether all models of a capture can share first tokens."""
    return all(model.no_sharing is None for model in models.values())


def _in_memory(
    kept: KeptCaptures, keys: Mapping[str, Hashable | None], models: Mapping[str, HookedModel]
) -> dict[str, Activations]:
    found = {}
    for name, model in models.items():
        activations = kept.get(keys[name], model)
        if activations is not None:
            found[name] = activations
    return found


def _with_missing(
    kept: KeptCaptures,
    keys: Mapping[str, Hashable | None],
    found: Mapping[str, Activations],
    models: Mapping[str, HookedModel],
    prompts: PromptSet,
    spec: CaptureSpec,
    progress: bool,
) -> dict[str, Activations]:
    """What was found, and a capture of the models of which nothing was."""
    missing = {name: model for name, model in models.items() if name not in found}
    captured = dict(found)
    if missing:
        alone = of_alone(spec, _share_alike(models))
        made = _capture_now(missing, prompts, alone, None, progress)
        if found and not _same_batches([*found.values(), *made.values()]):
            # a batch was cut, or the ids are others, which is refused there
            captured, made = {}, _capture_now(models, prompts, spec, None, progress)
        for name, activations in made.items():
            kept.add(keys[name], models[name], activations)
        captured |= made
    return {name: copied(captured[name]) for name in models}


def _same_batches(captures: Sequence[Activations]) -> bool:
    """Whether captures ran the same tokens in the same batches."""
    names = ("rendered_sha256", "layout_sha256")
    return len({tuple(each.provenance[name] for name in names) for each in captures}) == 1


def _capture_now(
    models: Mapping[str, HookedModel],
    prompts: PromptsLike,
    spec: CaptureSpec,
    stores: Mapping[str, str | Path] | None,
    progress: bool,
) -> dict[str, Activations]:
    job = plan_capture(models, prompts, spec, stores=stores)
    title = f"capture {len(job.plan.rows)} prompts × {len(models)} models"
    batches = sum(job.batch_count(unit) for unit in job.units)
    with (
        job.alone(),
        computing_in(models.values(), job.plan.compute_dtype),
        progress_bar(title, batches, progress) as advance,
        job.in_turn() as units,
    ):
        while units:  # once more where a batch was cut after another model had run it whole
            for unit in units:
                job.run(unit, models[unit.model], advance, advance.found)
            units = job.missing()
        return job.finish()


def plan_capture(
    models: Mapping[str, HookedModel],
    prompts: PromptsLike,
    spec: CaptureSpec | None = None,
    *,
    stores: Mapping[str, str | Path] | None = None,
) -> CaptureJob:
    """What `capture_many` does before the first pass: a job whose units can run in any process.

    Raises:
        InputError, IntegrityError: as `capture_many`.
    """
    spec = spec or CaptureSpec()
    prompt_set = as_prompts(prompts)
    plan = CapturePlan.make(models, list(prompt_set), spec)
    if not spec.large:
        _check_size(plan, len(models))
    return CaptureJob.begin(
        models, plan, stores=stores or {}, prompts_sha256=prompt_set.content_hash
    )


def _check_size(plan: CapturePlan, models: int) -> None:
    sizes = {name: models * size for name, size in plan.bytes_by_position.items()}
    total = sum(sizes.values())
    if total > LARGE_BYTES:
        listed = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in sizes.items())
        raise InputError(
            f"this capture keeps {total / 1e9:.1f} GB ({listed} over {len(plan.sites)} sites and"
            f" {models} models), more than {LARGE_BYTES / 1e9:.1f} GB;"
            " pass large=True in a CaptureSpec to run it, or fewer layers, pooled positions, a"
            " smaller dtype; stream_moments keeps sums instead of tokens"
        )
