"""Do the backends read the same stream? Every site of a model, on every backend, against routes
that know no hooks.

Three comparisons: each backend against `output_hidden_states` of the bare module (whose last entry
lies after the final norm), against additivity (`resid_pre + attn_out = resid_mid`, `resid_mid +
mlp_out = resid_post`), and against the transformers backend. A difference above the limit in
float32 is run again in float64: rounding vanishes there, a bug stays. Cost: a few passes over 33
tokens for each backend; one copy of the weights in memory at a time.
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
from emlens.models.batches import pad
from emlens.models.checkpoint import CheckpointModel
from emlens.models.families import FineTune, attach
from emlens.models.loading import load_model

RELATIVE: Final = 5e-5
"""float32: other attention kernels and orders of summation, over the depth of a model; measured
below 2e-6 on tiny ones.
"""
RELATIVE_FLOAT64: Final = 1e-10
"""float64: what is left of the same rounding; a bug does not shrink with the dtype."""
CONDITIONS: Final = ("plain", "left-padded", "adapter on", "adapter off")
LENGTHS: Final = (17, 5, 11)

Streams = dict[Site, list[Tensor]]
"""Each site: one (token, d_model) tensor a row, padding cut off."""


@dataclass(frozen=True)
class Difference:
    """The largest difference of one kind of site: max |a − b| ÷ max |b|, over layers, rows and
    tokens.

    `agrees`: within the limit in float32, or, where it was run again, in float64. `value64` is None
    where it was not.
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
        refused: backends that say they do not take this model (or its adapter), and why; they read
            nothing wrong.
        failed: backends that broke while they read it.
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
        float64: run again in float64 always (True), never (False), or where float32 disagrees
            (None).
        options: passed to `load_model` (`device`, `revision`, …).

    Raises:
        InputError: an unknown backend.
        LoadError: the transformers backend cannot load the model or the adapter.
        MissingExtraError: a backend whose package is not installed.
    """
    from emlens.models.backends import BACKENDS, backend_class

    asked = [name for name in BACKENDS if name in {"transformers", *backends}]
    for name in backends:
        backend_class(name)
    found = _measure(path_or_id, adapter, asked, torch.float32, options)
    again: dict[_Key, float] = {}
    if float64 or (float64 is None and any(value > RELATIVE for value in found.values.values())):
        again = _measure(path_or_id, adapter, asked, torch.float64, options).values
    differences = []
    for key, value in found.values.items():
        value64 = again.get(key)
        agrees = value <= RELATIVE if value64 is None else value64 <= RELATIVE_FLOAT64
        differences.append(Difference(*key, value, agrees, value64))
    return Parity(
        tuple(differences), found.refused, found.failed, found.site_kinds, found.architecture
    )


_Key = tuple[str, str, str, str]
"""Backend, condition, against, kind of site."""


@dataclass
class _Found:
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
) -> _Found:
    found = _Found()
    reference: dict[str, Streams] = {}
    for backend in backends:
        try:
            for condition, model, rows, streams in _conditions(
                source, adapter, backend, dtype, options
            ):
                found.site_kinds, found.architecture = (
                    model.site_kinds,
                    str(model.provenance["architecture"]),
                )
                reference.setdefault(condition, streams)
                found.values.update(
                    _compare(backend, condition, model, rows, streams, reference[condition])
                )
        except Exception as error:
            if backend == "transformers":
                raise
            into = found.refused if isinstance(error, LoadError) else found.failed
            into[backend] = one_line(
                (
                    str(error)
                    if isinstance(error, EmlensError)
                    else f"{type(error).__name__}: {error}"
                ),
                300,
            )
    return found


def _conditions(
    source: str | Path,
    adapter: str | Path | None,
    backend: str,
    dtype: torch.dtype,
    options: Mapping[str, Any],
) -> Iterator[tuple[str, CheckpointModel, list[Rendered], Streams]]:
    model = load_model(
        source, backend=backend, dtype=dtype, **{"attn_implementation": "eager", **options}
    )
    if not isinstance(model, CheckpointModel):
        raise InputError(f"backend {backend!r} gives no module to compare with")
    rows = some_rows(model)
    yield "plain", model, rows, read_streams(model, rows, alone=True)
    yield "left-padded", model, rows, read_streams(model, rows, side="left")
    if adapter is not None:
        tuned = attach(model, "adapter", FineTune(adapter))
        yield "adapter on", tuned, rows, read_streams(tuned, rows)
        yield "adapter off", model, rows, read_streams(model, rows)


class _AllFloat64(TorchFunctionMode):
    """Modules of transformers compute softmax, norms and rotary angles in float32 whatever the
    dtype; here they do not.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        wide = [torch.float64 if value is torch.float32 else value for value in args]
        named = {
            key: torch.float64 if value is torch.float32 else value
            for key, value in (kwargs or {}).items()
        }
        return func(*wide, **named)


def _precision(model: CheckpointModel) -> AbstractContextManager[Any]:
    return _AllFloat64() if model.provenance["dtype"] == "float64" else nullcontext()


def some_rows(model: CheckpointModel, lengths: Sequence[int] = LENGTHS) -> list[Rendered]:
    """Rows of random token ids, the same for every backend."""
    rng = torch_rng(0, "parity")
    longest = min(model.max_length or max(lengths), max(lengths))
    ids = torch.randint(0, len(model.tokenizer), (len(lengths), longest), generator=rng)
    return [
        Rendered(f"r{i}", "", tuple(ids[i, : min(n, longest)].tolist()), min(n, longest))
        for i, n in enumerate(lengths)
    ]


def read_streams(
    model: CheckpointModel, rows: Sequence[Rendered], side: Any = "right", alone: bool = False
) -> Streams:
    """Every site at every token of every row; rows in one padded batch, or each alone."""
    found: Streams = {site: [] for site in model.sites}
    model.prepare()
    for group in [[row] for row in rows] if alone else [list(rows)]:
        batch = pad(group, range(len(group)), model.pad_id, side, model.device)
        seen: dict[Site, list[Tensor]] = {site: [] for site in model.sites}
        with _precision(model):
            model.run(batch, {site: partial(_keep, kept) for site, kept in seen.items()})
        for site, (x,) in seen.items():
            found[site] += [
                x[i, batch.offset(i) : batch.offset(i) + len(row.ids)]
                for i, row in enumerate(group)
            ]
    return found


def hidden_states(model: CheckpointModel, rows: Sequence[Rendered]) -> list[tuple[Tensor, ...]]:
    """`output_hidden_states` of the bare module, row by row: a route that knows neither hooks nor
    padding.
    """
    with model.bank.selected(model.adapter), torch.no_grad(), _precision(model):
        return [
            tuple(
                x[0].cpu()
                for x in model.module(
                    torch.tensor([row.ids], device=model.device),
                    output_hidden_states=True,
                    use_cache=False,
                ).hidden_states
            )
            for row in rows
        ]


def _compare(
    backend: str,
    condition: str,
    model: CheckpointModel,
    rows: Sequence[Rendered],
    streams: Streams,
    reference: Streams,
) -> dict[_Key, float]:
    pairs: list[tuple[str, str, Tensor, Tensor]] = []
    for i, states in enumerate(hidden_states(model, rows)):
        for index, state in enumerate(states):
            site = Site.from_hf_index(index, model.n_layers)
            pairs.append(("hidden_states", site.kind, streams[site][i], state))
    for layer in range(model.n_layers):
        at = {
            kind: torch.cat(streams[Site(kind, layer)])
            for kind in model.site_kinds
            if kind != "final_norm"
        }
        if "resid_mid" in at:
            pairs.append(
                ("additivity", "resid_mid", at["resid_pre"] + at["attn_out"], at["resid_mid"])
            )
            pairs.append(
                ("additivity", "resid_post", at["resid_mid"] + at["mlp_out"], at["resid_post"])
            )
        else:
            pairs.append(
                (
                    "additivity",
                    "resid_post",
                    at["resid_pre"] + at["attn_out"] + at["mlp_out"],
                    at["resid_post"],
                )
            )
    if streams is not reference:
        pairs += [
            ("transformers", site.kind, torch.cat(mine), torch.cat(reference[site]))
            for site, mine in streams.items()
        ]
    found: dict[_Key, float] = {}
    for against, kind, a, b in pairs:
        key = (backend, condition, against, kind)
        found[key] = max(found.get(key, 0.0), relative_difference(a, b))
    return found


def relative_difference(a: Tensor, b: Tensor) -> float:
    """max |a − b| ÷ max |b|; infinite where a value is not finite, or shapes differ."""
    if a.shape != b.shape or not bool(torch.isfinite(a).all()):
        return float("inf")
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-300))


def _keep(copies: list[Tensor], activation: Tensor) -> None:
    copies.append(activation.detach().cpu().clone())
