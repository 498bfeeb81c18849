"""Prompts → residual streams: only the decoder runs, up to the deepest site, and only the asked positions are kept.

Rows are sorted by length and batched under a token budget; the layout depends on the rows alone, so that several
models given the same prompts run the identical padded batches (`capture_pair`, `capture_many`). With `store=` every
finished group of batches is on disk, and an interrupted capture goes on from there.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emlens.activations.record import Activations
from emlens.activations.reducing import Reduction
from emlens.activations.store import ActivationStore, ShardWriter
from emlens.data.answers import Answers
from emlens.data.prompts import Prompt, PromptSet
from emlens.data.questions import QuestionSet
from emlens.data.rendering import Rendered, rendered_hash
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.positions import Chosen, Position, PositionLike, parse_position
from emlens.foundation.provenance import hash_json, library_versions
from emlens.foundation.sites import Site, resolve_sites
from emlens.models.batches import pad, plan_batches
from emlens.models.families import check_same_rows
from emlens.models.hooked import DEFAULT_BATCH_TOKENS, HookedModel
from emlens.runs.progress import progress_bar

PromptsLike = PromptSet | QuestionSet | Answers
SHARD_ROWS = 1024


def capture(
    model: HookedModel,
    prompts: PromptsLike,
    sites: str | Site | Iterable[str | Site] = "resid_post",
    layers: Sequence[int] | None = None,
    positions: PositionLike | Sequence[PositionLike] = "last_prompt",
    store: str | Path | None = None,
    progress: bool = True,
    *,
    skip_first: int = 0,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    dtype: torch.dtype | None = None,
) -> Activations:
    """Residual streams of one model on prompts.

    Args:
        sites: names or kinds; a bare kind such as `"resid_post"` means every layer, or those in `layers`.
        layers: 0-based block indices; negative counts from the end.
        positions: one or several of the positions of `emlens.foundation.positions`.
        store: a directory; finished shards are kept there, an interrupted capture resumes, the result reads from disk.
        skip_first: tokens that means leave out at the start of a row.
        batch_tokens: padded tokens a batch holds at most.
        dtype: what is kept; default: the model's own.

    Returns:
        `Activations`, rows in the order of `prompts`; values after any active intervention.

    Raises:
        InputError: a site, layer or position that does not exist; a prompt that cannot be rendered.
    """
    stores = None if store is None else {model.name: store}
    found = capture_many(
        {model.name: model},
        prompts,
        sites=sites,
        layers=layers,
        positions=positions,
        stores=stores,
        progress=progress,
        skip_first=skip_first,
        batch_tokens=batch_tokens,
        dtype=dtype,
    )
    return found[model.name]


def capture_pair(
    model_a: HookedModel, model_b: HookedModel, prompts: PromptsLike, **options: Any
) -> tuple[Activations, Activations]:
    """`capture` for two models on identical padded batches: (before, after)."""
    found = capture_many({"a": model_a, "b": model_b}, prompts, **options)
    return found["a"], found["b"]


def capture_many(
    models: Mapping[str, HookedModel],
    prompts: PromptsLike,
    *,
    sites: str | Site | Iterable[str | Site] = "resid_post",
    layers: Sequence[int] | None = None,
    positions: PositionLike | Sequence[PositionLike] = "last_prompt",
    stores: Mapping[str, str | Path] | None = None,
    progress: bool = True,
    skip_first: int = 0,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    dtype: torch.dtype | None = None,
) -> dict[str, Activations]:
    """`capture` for several models on identical padded batches.

    Raises:
        InputError: also where two models' tokenizers give a prompt different ids.
    """
    if not models:
        raise InputError("models is empty; pass at least one")
    _check_stores(stores or {}, models)
    asked = as_prompts(prompts)
    reference = next(iter(models.values()))
    for other in models.values():
        check_same_rows(reference, other, list(asked))
    rows = reference.render(asked)
    listed = [positions] if isinstance(positions, str | Position) or callable(positions) else list(positions)
    wanted = [parse_position(position, skip_first) for position in listed]
    if not wanted:
        raise InputError("positions is empty; pass at least one such as 'last_prompt'")
    if len({p.name for p in wanted}) != len(wanted):
        raise InputError(f"positions holds a name twice: {[p.name for p in wanted]}")
    places = resolve_sites(sites, reference.n_layers, layers)
    _check_positions(wanted, rows)
    layout = plan_batches([len(row.ids) for row in rows], batch_tokens)
    found = {}
    with progress_bar(f"capture {len(rows)} prompts × {len(models)} models", len(models) * len(layout), progress) as advance:
        for name, model in models.items():
            facts = _facts(model, rows, asked, places, wanted, layout, batch_tokens, dtype)
            target = (stores or {}).get(name)
            if target is None:
                values: dict[int, dict[tuple[str, str], Tensor]] = {}
                for batch_index, kept in _passes(model, rows, layout, range(len(layout)), places, wanted, dtype):
                    values[batch_index] = kept
                    advance()
                found[name] = _assemble([values[i] for i in range(len(layout))], layout, rows, places, wanted, facts)
            else:
                found[name] = _into_store(Path(target), model, rows, layout, places, wanted, facts, dtype, advance)
    return found


def _check_stores(stores: Mapping[str, str | Path], models: Mapping[str, HookedModel]) -> None:
    unknown = sorted(set(stores) - set(models))
    if unknown:
        raise InputError(f"stores names {unknown[0]!r}, which is not among the models {', '.join(models)}")
    if len({Path(path).resolve() for path in stores.values()}) != len(stores):
        raise InputError("stores gives one directory to several models; pass one for each")


def _check_positions(positions: Sequence[Position], rows: Sequence[Rendered]) -> None:
    """Every position exists in every row: known before the first pass, not after hours of them."""
    for row in rows:
        for position in positions:
            try:
                position.tokens(row.ids, row.spans)
            except InputError as error:
                raise InputError(f"prompt {one_line(row.id, 60)!r}: {error}") from None


def as_prompts(prompts: PromptsLike) -> PromptSet:
    """The prompts behind a `PromptSet`, a `QuestionSet` or `Answers` (whose texts are kept as responses)."""
    if isinstance(prompts, PromptSet):
        return prompts
    if isinstance(prompts, QuestionSet | Answers):
        return prompts.prompts()
    if isinstance(prompts, Sequence) and prompts and all(isinstance(p, Prompt) for p in prompts):
        return PromptSet(prompts)
    raise InputError(
        f"prompts is a {type(prompts).__name__}; pass a PromptSet (PromptSet.from_questions, .from_texts, …), a QuestionSet or Answers"
    )


def _passes(
    model: HookedModel,
    rows: Sequence[Rendered],
    layout: Sequence[Sequence[int]],
    which: Iterable[int],
    sites: Sequence[Site],
    positions: Sequence[Position],
    dtype: torch.dtype | None,
) -> Iterator[tuple[int, dict[tuple[str, str], Tensor]]]:
    for number in which:
        index = layout[number]
        batch = pad([rows[i] for i in index], index, model.pad_id, "right", model.device)
        reduce = Reduction(batch, positions, dtype)
        kept: dict[tuple[str, str], Tensor] = {}

        def reader(stream: Tensor, site: Site, reduce: Reduction = reduce, kept: dict[Any, Tensor] = kept) -> None:
            kept.update({(str(site), name): value for name, value in reduce(stream).items()})

        model.run(batch, {site: lambda stream, site=site: reader(stream, site) for site in sites})  # type: ignore[misc]
        yield number, kept


def _assemble(
    parts: Sequence[Mapping[tuple[str, str], Tensor]],
    layout: Sequence[Sequence[int]],
    rows: Sequence[Rendered],
    sites: Sequence[Site],
    positions: Sequence[Position],
    facts: Mapping[str, Any],
) -> Activations:
    """Batches in plan order → rows in prompt order."""
    planned = [i for batch in layout for i in batch]
    order = torch.argsort(torch.tensor(planned))
    values: dict[tuple[str, str], Tensor] = {}
    offsets = token_ids = None
    for position in positions:
        if not position.pooled:
            lengths = torch.tensor([len(rows[i].ids) for i in planned])
            starts = lengths.cumsum(0) - lengths
            flat = torch.cat([torch.arange(int(starts[p]), int(starts[p] + lengths[p])) for p in order.tolist()])
            offsets = torch.tensor([0, *(len(row.ids) for row in rows)]).cumsum(0)
            token_ids = torch.tensor([t for row in rows for t in row.ids])
        for site in sites:
            key = (str(site), position.name)
            values[key] = torch.cat([part[key] for part in parts])[order if position.pooled else flat]
    return Activations(
        values,
        ids=[row.id for row in rows],
        groups=[row.group for row in rows],
        sites=[str(site) for site in sites],
        positions=[position.name for position in positions],
        provenance=facts,
        offsets=offsets,
        token_ids=token_ids,
    )


def _into_store(
    directory: Path,
    model: HookedModel,
    rows: Sequence[Rendered],
    layout: Sequence[Sequence[int]],
    sites: Sequence[Site],
    positions: Sequence[Position],
    facts: Mapping[str, Any],
    dtype: torch.dtype | None,
    advance: Any,
) -> ActivationStore:
    shards = _shards(layout)
    writer = ShardWriter(
        directory,
        rows=rows,
        shard_rows=[[i for number in shard for i in layout[number]] for shard in shards],
        sites=[str(site) for site in sites],
        positions=[position.name for position in positions],
        provenance=facts,
    )
    for number, shard in enumerate(shards):
        if writer.has(number):
            for _ in shard:
                advance()
            continue
        parts = []
        for _, kept in _passes(model, rows, layout, shard, sites, positions, dtype):
            parts.append(kept)
            advance()
        writer.write(number, {key: torch.cat([part[key] for part in parts]) for key in parts[0]})
    writer.finish()
    return ActivationStore.open(directory)


def _shards(layout: Sequence[Sequence[int]]) -> list[list[int]]:
    """Whole batches, grouped until a shard holds `SHARD_ROWS` rows."""
    shards: list[list[int]] = [[]]
    size = 0
    for number, batch in enumerate(layout):
        if size >= SHARD_ROWS:
            shards.append([])
            size = 0
        shards[-1].append(number)
        size += len(batch)
    return shards


def _facts(
    model: HookedModel,
    rows: Sequence[Rendered],
    prompts: PromptSet,
    sites: Sequence[Site],
    positions: Sequence[Position],
    layout: Sequence[Sequence[int]],
    batch_tokens: int,
    dtype: torch.dtype | None,
) -> dict[str, Any]:
    return {
        "model": model.provenance,
        "prompts_sha256": prompts.content_hash,
        "rendered_sha256": rendered_hash(rows),
        "sites": [str(site) for site in sites],
        "positions": [position.name for position in positions],
        "chosen_sha256": {p.name: hash_json([p.tokens(row.ids, row.spans) for row in rows]) for p in positions if isinstance(p, Chosen)},
        "batch_tokens": batch_tokens,
        "batches": len(layout),
        "kept_dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "interventions": [intervention.describe() for intervention in model.interventions],
        "threads": torch.get_num_threads(),
        "versions": library_versions(),
    }
