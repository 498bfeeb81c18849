"""Do the backends read the same stream? Every site of a model, on every backend, compared.

Each backend is compared with `output_hidden_states` of the bare module (whose last entry lies after
the final norm), with additivity (`resid_pre + attn_out = resid_mid`, `resid_mid + mlp_out =
resid_post`), and with the transformers backend. A difference above the limit in float32 is measured
again in float64: rounding vanishes there, a bug does not. Cost: a few passes over 33 tokens per
backend; one copy of the weights in memory at a time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from emlens.data.rendering import Rendered
from emlens.foundation.errors import EmlensError, InputError, LoadError
from emlens.foundation.files import one_line
from emlens.foundation.seeds import torch_rng
from emlens.foundation.sites import Site
from emlens.models.attaching import attach
from emlens.models.batches import pad
from emlens.models.checkpoint import CheckpointModel
from emlens.models.loading import load_model

RELATIVE: Final = 5e-5
"""float32: other attention kernels and orders of summation, over the depth of a model; measured
below 2e-6 on tiny ones.
"""
RELATIVE_FLOAT64: Final = 1e-10
"""float64: what remains of the same rounding; a bug does not shrink with the dtype."""
CONDITIONS: Final = ("plain", "left-padded", "right-padded", "adapter on", "adapter off")
LENGTHS: Final = (17, 5, 11)

Streams = dict[Site, list[Tensor]]
"""At each site one (token, d_model) tensor per row, without padding."""


@dataclass(frozen=True)
class Difference:
    """The largest difference at one kind of site: max |a − b| ÷ max |b| over layers, rows, tokens.

    Args:
        against: what it was compared with: `hidden_states`, `additivity`, `chain` (the output of
            the block before) or `transformers`.
        kind: of site.
        agrees: within the limit in float32, or, where it was measured again, in float64.
        value64: the difference in float64; None where it was not measured.
    """

    backend: str
    condition: str
    against: str
    kind: str
    value: float
    agrees: bool
    value64: float | None = None


@dataclass(frozen=True)
class Parity:
    """What `check_parity` found.

    Args:
        refused: backends that do not take this model (or its adapter), and why. They read nothing
            wrong.
        failed: backends that raised an error while they read it.
    """

    differences: tuple[Difference, ...]
    refused: Mapping[str, str]
    failed: Mapping[str, str]
    site_kinds: tuple[str, ...]
    architecture: str

    @property
    def agrees(self) -> bool:
        """Whether every backend that took the model read the same streams."""
        return not self.failed and all(difference.agrees for difference in self.differences)

    def of(self, backend: str, condition: str) -> list[Difference]:
        return [d for d in self.differences if (d.backend, d.condition) == (backend, condition)]


def check_parity(
    path_or_id: str | Path,
    *,
    adapter: str | Path | None = None,
    backends: Iterable[str] = ("transformers", "transformer_lens", "nnsight"),
    float64: bool | None = None,
    **options: Any,
) -> Parity:
    """Read every site of a model on several backends and compare.

    Args:
        adapter: a PEFT adapter of the model; adds the conditions "adapter on" and "adapter off".
        backends: those to check; the reference, transformers, always runs.
        float64: measure again in float64 always (True), never (False), or where float32 disagrees
            (None).
        options: passed to `load_model` (`device`, `revision`, …).

    Raises:
        InputError: an unknown backend.
        LoadError: the transformers backend cannot load the model or the adapter.
        MissingExtraError: a backend whose package is not installed.
    """
    from emlens.models.backends import BACKENDS, backend_class

    names = [name for name in BACKENDS if name in {"transformers", *backends}]
    for name in backends:
        backend_class(name)
    measured = _measure(path_or_id, adapter, names, torch.float32, options)
    if float64 is None:
        float64 = any(value > RELATIVE for value in measured.values.values())
    values64: dict[_Key, float] = {}
    if float64:
        values64 = _measure(path_or_id, adapter, names, torch.float64, options).values
    differences = []
    for key, value in measured.values.items():
        value64 = values64.get(key)
        agrees = value <= RELATIVE if value64 is None else value64 <= RELATIVE_FLOAT64
        differences.append(Difference(*key, value, agrees, value64))
    return Parity(
        tuple(differences),
        measured.refused,
        measured.failed,
        measured.site_kinds,
        measured.architecture,
    )


_Key = tuple[str, str, str, str]
"""Backend, condition, against, kind of site."""


@dataclass
class _Measured:
    values: dict[_Key, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    site_kinds: tuple[str, ...] = ()
    architecture: str = ""


def _measure(
    source: str | Path,
    adapter: str | Path | None,
    backends: Sequence[str],
    dtype: torch.dtype,
    options: Mapping[str, Any],
) -> _Measured:
    measured = _Measured()
    reference: dict[str, Streams] = {}
    for backend in backends:
        options_of_backend = {"attn_implementation": "eager", **options, "dtype": dtype}
        try:
            for condition, model, rows, streams in _conditions(
                source, adapter, backend, options_of_backend
            ):
                measured.site_kinds = model.site_kinds
                measured.architecture = str(model.provenance["architecture"])
                reference.setdefault(condition, streams)  # transformers comes first
                differences = _compare(model, rows, streams, reference[condition])
                for (against, kind), value in differences.items():
                    measured.values[backend, condition, against, kind] = value
        except LoadError as error:
            if backend == "transformers":
                raise
            measured.refused[backend] = one_line(str(error), 300)
        except Exception as error:  # a backend raises what its library raises
            if backend == "transformers":
                raise
            message = str(error)
            if not isinstance(error, EmlensError):
                message = f"{type(error).__name__}: {message}"
            measured.failed[backend] = one_line(message, 300)
    return measured


def _conditions(
    source: str | Path, adapter: str | Path | None, backend: str, options: Mapping[str, Any]
) -> Iterator[tuple[str, CheckpointModel, list[Rendered], Streams]]:
    """Condition, model, rows, and the streams that it reads."""
    model = load_model(source, backend=backend, **options)
    if not isinstance(model, CheckpointModel):
        raise InputError(f"backend {backend!r} gives no module to compare with")
    rows = some_rows(model)
    yield "plain", model, rows, read_streams(model, rows, alone=True)
    if model.pads_while_generating:
        yield "left-padded", model, rows, read_streams(model, rows, side="left")
    else:  # only captures pad its rows, and on the right
        yield "right-padded", model, rows, read_streams(model, rows, side="right")
    if adapter is not None:
        fine_tune = attach(model, "adapter", adapter, own_chats=False)
        yield "adapter on", fine_tune, rows, read_streams(fine_tune, rows)
        yield "adapter off", model, rows, read_streams(model, rows)


class _AllFloat64(TorchFunctionMode):
    """Computes in float64 what modules of transformers compute in float32.

    They compute softmax, norms and rotary angles in float32 whatever the model's dtype.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        wide_args = [_widened(value) for value in args]
        wide_kwargs = {key: _widened(value) for key, value in (kwargs or {}).items()}
        return func(*wide_args, **wide_kwargs)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def precision(model: CheckpointModel) -> AbstractContextManager[Any]:
    """Passes inside compute in float64 throughout where the model's weights are of it."""
    if model.provenance["dtype"] == "float64":
        return _AllFloat64()
    return nullcontext()


def some_rows(model: CheckpointModel, lengths: Sequence[int] = LENGTHS) -> list[Rendered]:
    """Rows of random token ids, the same for every backend."""
    rng = torch_rng(0, "parity")
    longest = min(model.max_length or max(lengths), max(lengths))
    ids = torch.randint(0, len(model.tokenizer), (len(lengths), longest), generator=rng)
    rows = []
    for i, length in enumerate(lengths):
        tokens = ids[i, : min(length, longest)].tolist()
        rows.append(Rendered(f"r{i}", "", tuple(tokens), len(tokens)))
    return rows


def read_streams(
    model: CheckpointModel, rows: Sequence[Rendered], side: Any = "right", alone: bool = False
) -> Streams:
    """Every site at every token of every row; rows in one padded batch, or each alone."""
    streams: Streams = {site: [] for site in model.sites}
    model.prepare()
    groups = [[row] for row in rows] if alone else [list(rows)]
    for group in groups:
        batch = pad(group, range(len(group)), model.pad_id, side, model.device)
        copies: dict[Site, list[Tensor]] = {site: [] for site in model.sites}
        readers = {site: partial(_keep, site_copies) for site, site_copies in copies.items()}
        with precision(model):
            model.run(batch, readers)
        for site, (stream,) in copies.items():
            for i, row in enumerate(group):
                start = batch.offset(i)
                streams[site].append(stream[i, start : start + len(row.ids)])
    return streams


def _keep(copies: list[Tensor], activation: Tensor) -> None:
    copies.append(activation.detach().cpu().clone())


def hidden_states(model: CheckpointModel, rows: Sequence[Rendered]) -> list[tuple[Tensor, ...]]:
    """`output_hidden_states` of the bare module, row by row: without hooks and without padding."""
    with model.bank.selected(model.adapter), torch.no_grad(), precision(model):
        states_of_rows = []
        for row in rows:
            ids = torch.tensor([row.ids], device=model.device)
            output = model.module(ids, output_hidden_states=True, use_cache=False)
            found = output.hidden_states or ()
            states_of_rows.append(tuple(states[0].cpu() for states in found))
    return states_of_rows


def _compare(
    model: CheckpointModel, rows: Sequence[Rendered], streams: Streams, reference: Streams
) -> dict[tuple[str, str], float]:
    """What was compared with, and the kind of site → the largest difference."""
    pairs = [*_hidden_states_pairs(model, rows, streams), *_additivity_pairs(model, streams)]
    if streams is not reference:
        for site, values in streams.items():
            pairs.append(("transformers", site.kind, torch.cat(values), torch.cat(reference[site])))
    differences: dict[tuple[str, str], float] = {}
    for against, kind, a, b in pairs:
        largest = differences.get((against, kind), 0.0)
        differences[against, kind] = max(largest, relative_difference(a, b))
    return differences


_Pair = tuple[str, str, Tensor, Tensor]
"""Against, kind of site, and the two values to compare."""


def _hidden_states_pairs(
    model: CheckpointModel, rows: Sequence[Rendered], streams: Streams
) -> Iterator[_Pair]:
    for i, states in enumerate(hidden_states(model, rows)):
        sites = model.architecture.hidden_state_sites(model.n_layers)
        for site, state in zip(sites, states, strict=bool(states)):
            yield "hidden_states", site.kind, streams[site][i], state


def _additivity_pairs(model: CheckpointModel, streams: Streams) -> Iterator[_Pair]:
    for layer in range(model.n_layers):
        at = {
            kind: torch.cat(streams[Site(kind, layer)])
            for kind in model.site_kinds
            if kind != "final_norm"
        }
        if model.architecture.level == 2:  # no parts that could add up
            if layer:
                before = torch.cat(streams[Site("resid_post", layer - 1)])
                yield "chain", "resid_pre", at["resid_pre"], before
            continue
        pre, attention, mlp, post = (
            at[kind] for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        )
        if "resid_mid" in at:
            yield "additivity", "resid_mid", pre + attention, at["resid_mid"]
            yield "additivity", "resid_post", at["resid_mid"] + mlp, post
        else:  # parallel blocks
            yield "additivity", "resid_post", pre + attention + mlp, post


def relative_difference(a: Tensor, b: Tensor) -> float:
    """max |a − b| ÷ max |b|; infinite where a value is not finite, or shapes differ."""
    if a.shape != b.shape or not bool(torch.isfinite(a).all()):
        return float("inf")
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-300))
