"""What an adapter reads and writes: its scalars on real tokens, its spectrum, its directions.

A rank-r update adds B (s · A x) to a module's output. The r numbers A x of a token tell when the
adapter acts, the columns of B in which direction (Soligo et al. 2025, 2506.11618). The sign of
one column is arbitrary: turning the signs of A and B together changes nothing, so the largest
coordinate of B is made positive. For ranks above one the split into columns is arbitrary too (the
gauge); the factors of the SVD are used, strongest first, so that nothing depends on it.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from emlens.data.prompts import Prompt
from emlens.foundation.errors import InputError, StateError, UnknownNameError
from emlens.foundation.notebooks import in_a_line
from emlens.foundation.positions import Part, RowSpans
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.geometry.weight_updates import WeightUpdate, weight_update
from emlens.interventions.arguments import as_vector
from emlens.interventions.lora import LoraAdapter, LoraFactors, layer_of
from emlens.models.batches import Batch
from emlens.models.checkpoint import CheckpointModel
from emlens.models.hooked import HookedModel

_NO_SHARES = {"cosine": None, "share": None, "share_by_chance": None}
"""Of a module that does not write to the stream."""


@dataclass(frozen=True, eq=False, repr=False)
class AdapterScalars:
    """How strongly each component of each module's update acts on each token; padding is left out.

    Args:
        values: module → (token, r); tokens of all rows one after the other, in the order of `ids`.
            The unit is that of the module's output: a component adds value · (unit vector), so
            columns are comparable within a module.
        offsets: where each row begins; the last entry is the number of tokens.
        spans: where prompt, answer and closing lie in each row.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    values: Mapping[str, Float[Tensor, "token r"]]
    offsets: Int[Tensor, " row_plus_1"]
    spans: tuple[RowSpans, ...]

    def __repr__(self) -> str:
        facts = {
            "rows": len(self.ids),
            "tokens": int(self.offsets[-1]),
            "modules": len(self.values),
        }
        return in_a_line("AdapterScalars", facts)

    def row(self, module: str, id: str) -> Float[Tensor, "token r"]:
        """The tokens of one row.

        Raises:
            UnknownNameError: no such module or row.
        """
        if module not in self.values:
            raise UnknownNameError(
                f"module {module!r} was not read; these were: {', '.join(list(self.values)[:4])} …"
            )
        if id not in self.ids:
            raise UnknownNameError(
                f"row {id!r} was not read; there are {len(self.ids)} from {self.ids[0]!r} on"
            )
        i = self.ids.index(id)
        return self.values[module][int(self.offsets[i]) : int(self.offsets[i + 1])]

    def pooled(self, over: str = "response", how: str = "mean") -> pd.DataFrame:
        """Features of a probe: one row per prompt, one column per module and component (`path[i]`).

        Args:
            over: "response", "prompt" or "all" tokens.
            how: "mean", "mean_abs" or "max_abs".

        Raises:
            InputError: an unknown name; a row without such tokens.
        """
        reductions = {
            "mean": lambda v: v.mean(0),
            "mean_abs": lambda v: v.abs().mean(0),
            "max_abs": lambda v: v.abs().amax(0),
        }
        if over not in ("response", "prompt", "all") or how not in reductions:
            raise InputError(
                f"over={over!r}, how={how!r}: pass 'response', 'prompt' or 'all',"
                f" and one of {', '.join(reductions)}"
            )
        columns = {}
        for module, values in self.values.items():
            rows = []
            for row in range(len(self.ids)):
                first, last = self._token_range(row, over)
                rows.append(reductions[how](values[first:last]))
            for i, column in enumerate(torch.stack(rows).T):
                columns[f"{module}[{i}]"] = column.numpy()
        return pd.DataFrame(columns, index=pd.Index(self.ids, name="id"))

    def _token_range(self, row: int, over: str) -> tuple[int, int]:
        """First and last (exclusive) token of a part of a row."""
        start = int(self.offsets[row])
        parts: dict[str, Part] = {"prompt": "prompt", "response": "response", "all": "sequence"}
        tokens = self.spans[row].part(parts[over])
        if not tokens:
            raise InputError(
                f"row {self.ids[row]!r} has no {over} token; pass over='prompt',"
                " or prompts with answers"
            )
        return start + tokens.start, start + tokens.stop


def adapter_scalars(
    model: HookedModel,
    prompts: Sequence[Prompt],
    *,
    modules: Sequence[str] | None = None,
    batch_tokens: int = 8192,
) -> AdapterScalars:
    """Run a fine-tune on prompts (with their answers, if any) and keep A x of every adapted module.

    Args:
        model: one that has a LoRA adapter, on the transformers backend.
        modules: paths, or their last parts such as "down_proj"; default: every adapted module.

    Memory: tokens × modules × r numbers.

    Raises:
        InputError: the model has no adapter, is on another backend than transformers, or
            `modules` names none of its modules.
        StateError: adapters that cannot be read.
    """
    adapter = LoraAdapter.of(model)
    if adapter is None:
        raise InputError(f"{model.name!r} has no adapter; pass a fine-tune that is one")
    if not isinstance(model, CheckpointModel) or model.backend != "transformers":
        raise InputError(
            f"backend {model.backend!r} runs modules of its own; load with backend='transformers'"
        )
    paths = _selected_modules(adapter, modules)
    rendered = model.render(list(prompts))
    lengths = torch.tensor([0, *(len(row.ids) for row in rendered)])
    return AdapterScalars(
        tuple(row.id for row in rendered),
        tuple(row.group for row in rendered),
        _components_by_module(model, adapter, paths, model.batches(rendered, batch_tokens)),
        lengths.cumsum(0),
        tuple(row.spans for row in rendered),
    )


def _components_by_module(
    model: CheckpointModel, adapter: LoraAdapter, paths: Sequence[str], batches: Iterable[Batch]
) -> dict[str, Float[Tensor, "token r"]]:
    """Module → its components at every token, rows in the order in which they were rendered."""
    to_components = {path: _to_components(adapter[path]) for path in paths}
    by_row: dict[str, dict[int, Tensor]] = {path: {} for path in paths}
    for batch in batches:
        inner_products = _inner_products(model, paths, batch)
        for path in paths:
            components = inner_products[path].double().cpu() @ to_components[path]
            for i, row in enumerate(batch.rows):
                start = batch.offset(i)
                by_row[path][batch.index[i]] = components[i, start : start + len(row.ids)]
    # batches come longest first
    return {path: torch.cat([rows[i] for i in sorted(rows)]) for path, rows in by_row.items()}


def _selected_modules(adapter: LoraAdapter, modules: Sequence[str] | None) -> list[str]:
    """Paths of the adapted modules that `modules` names; embeddings have no A x and are left out.

    Raises:
        InputError: it names none.
    """
    names = set(modules or adapter.modules)
    paths = []
    for path, factors in adapter.modules.items():
        is_named = path in names or path.rpartition(".")[2] in names
        if is_named and not factors.embedding:
            paths.append(path)
    if not paths:
        raise InputError(
            f"modules={sorted(names)} names no adapted module;"
            f" there are {', '.join(list(adapter.modules)[:4])} …"
        )
    return paths


def _inner_products(
    model: CheckpointModel, paths: Sequence[str], batch: Batch
) -> dict[str, Float[Tensor, "row token r"]]:
    """A x of each module on a padded batch.

    Raises:
        StateError: a module that did not run.
    """
    name = model.bank.names[model.adapter or ""]
    outputs: dict[str, Tensor] = {}
    with ExitStack() as stack:
        # no other thread runs these modules meanwhile
        stack.enter_context(model.bank.selected(model.adapter))
        for path in paths:
            layer: Any = model.module.get_submodule(path)
            hook = partial(_keep_output, outputs, path)
            stack.callback(layer.lora_A[name].register_forward_hook(hook).remove)
        # a pass has to read some site; the last one makes it run to the end
        model.run(batch, {Site("resid_post", model.n_layers - 1): lambda stream: None})
    for path in paths:
        if path not in outputs:
            raise StateError(
                f"{path} of {model.name!r} did not run, so its scalars were not seen;"
                " pass modules that are part of a forward pass"
            )
    return outputs


def _keep_output(
    outputs: dict[str, Tensor], path: str, module: Any, inputs: Any, output: Tensor
) -> None:
    outputs[path] = output.detach()


def _to_components(factors: LoraFactors) -> Tensor:
    """(r, r): from A x to what each component of the SVD adds along its unit vector."""
    update = weight_update(factors.a, factors.b, factors.scale)
    return factors.scale * factors.b.double().T @ update.left.double()


def adapter_table(
    adapter: LoraAdapter, direction: Direction | Float[Tensor, " d_model"] | None = None
) -> pd.DataFrame:
    """One row per module: rank, norms, spectrum, and the share it writes along a direction.

    Columns: `norm_a`, `norm_b`, `norm_ba` (Frobenius, ΔW = s·BA); `singular_values`; `stable_rank`
    = ‖ΔW‖²/σ₁², in [1, r]; `effective_rank` = exp of the entropy of σ²/Σσ², in [1, r]: r for a flat
    spectrum, 1 for a single direction. With a direction, for modules that write to the stream:
    `cosine` of the strongest written direction with it (signless), `share` = ‖r̂ᵀΔW‖²/‖ΔW‖², and
    `share_by_chance` = 1/d, its mean over directions drawn at random.

    Raises:
        InputError: a module whose update is zero; no module as wide as the direction.
    """
    unit = None if direction is None else _written_unit(adapter, direction)
    rows = []
    for path, factors in adapter.modules.items():
        update = weight_update(factors.a, factors.b, factors.scale)
        row: dict[str, Any] = {
            "module": path,
            "layer": layer_of(path),
            "kind": path.rpartition(".")[2],
            **_spectrum(factors, update),
        }
        if unit is not None:
            writes = factors.writes_to_stream(path, len(unit))
            row.update(_shares_along(update, unit) if writes else _NO_SHARES)
        rows.append(row)
    return pd.DataFrame(rows)


def _written_unit(
    adapter: LoraAdapter, direction: Direction | Float[Tensor, " d_model"]
) -> Float[Tensor, " d_model"]:
    """The unit vector of a direction that some module of the adapter can write.

    Raises:
        InputError: no module as wide as the direction.
    """
    vector = as_vector(direction).double()
    unit = vector / vector.norm()
    for path, factors in adapter.modules.items():
        if factors.writes_to_stream(path, len(unit)):
            return unit
    raise InputError(
        f"direction has {len(unit)} coordinates,"
        " and no module of the adapter writes to a stream as wide"
    )


def _spectrum(factors: LoraFactors, update: WeightUpdate) -> dict[str, Any]:
    energy = update.singular_values.double() ** 2
    energy_share = energy / energy.sum()
    # xlogy(0, 0) = 0, so a singular value of zero adds nothing to the entropy
    entropy = -torch.special.xlogy(energy_share, energy_share).sum()
    return {
        "r": factors.r,
        "rank": update.rank,
        "scale": factors.scale,
        "norm_a": float(factors.a.double().norm()),
        "norm_b": float(factors.b.double().norm()),
        "norm_ba": float(update.norm),
        "singular_values": tuple(update.singular_values.tolist()),
        "stable_rank": float(energy.sum() / energy[0]),
        "effective_rank": float(torch.exp(entropy)),
    }


def _shares_along(update: WeightUpdate, unit: Float[Tensor, " d_model"]) -> dict[str, float | None]:
    """How much of what a module writes lies along a unit vector."""
    energy = update.singular_values.double() ** 2
    squared_cosines = (unit @ update.left.double()) ** 2
    return {
        "cosine": float(squared_cosines[0].sqrt()),
        # ‖r̂ᵀΔW‖²/‖ΔW‖² = Σ σᵢ² (r̂·uᵢ)² / Σ σᵢ²
        "share": float((squared_cosines * (energy / energy.sum())).sum()),
        # a random unit vector has a mean squared cosine of 1/d with any other
        "share_by_chance": 1 / len(unit),
    }


def written_directions(
    adapter: LoraAdapter, width: int, k: int = 1
) -> Iterator[tuple[str, Float[Tensor, "k d_model"]]]:
    """The k strongest unit vectors that each module writes to the stream, strongest first."""
    for path, factors in adapter.modules.items():
        if factors.writes_to_stream(path, width):
            update: WeightUpdate = weight_update(factors.a, factors.b, factors.scale)
            yield path, update.basis("output", min(k, update.rank)).T


def logit_lens(
    model: HookedModel, vectors: Mapping[str, Direction | Float[Tensor, " d_model"]], *, k: int = 10
) -> pd.DataFrame:
    """The tokens that a direction raises and lowers most.

    It is read through the gain γ of the final norm and the unembedding: logits = W_U (γ ⊙ v̂), with
    v̂ centred first where the final norm centres. Logits are centred over the vocabulary and given
    in units of their own standard deviation (column `z`); of n random numbers the largest is near
    √(2 ln n) (column `z_by_chance`). Only the direct path: what later blocks do with the direction
    is not in it.

    Args:
        vectors: name → direction.
        k: tokens on each side.

    Returns:
        name, side ("raised" or "lowered"), rank, token_id, token, z, z_by_chance.

    Raises:
        InputError: nothing to read, another width, a zero vector, or k outside the vocabulary.
    """
    matrix = model.unembedding().double()
    norm = _final_norm(model)
    if not vectors:
        raise InputError("vectors is empty; pass at least one direction")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= matrix.shape[0]:
        raise InputError(f"k={k!r} must be a count of 1 to {matrix.shape[0]}, the vocabulary")
    # the largest of n standard normal numbers lies near √(2 ln n)
    chance = float(torch.sqrt(2 * torch.log(torch.tensor(float(matrix.shape[0])))))
    rows = []
    for name, item in vectors.items():
        vector = as_vector(item).double().cpu()
        if vector.shape != (matrix.shape[1],) or float(vector.norm()) == 0:
            raise InputError(
                f"vector {name!r} has shape {tuple(vector.shape)} and norm"
                f" {float(vector.norm()):.3g}; pass one of {matrix.shape[1]} coordinates"
            )
        logits = matrix @ _through_norm(norm, vector)
        z = (logits - logits.mean()) / logits.std()
        for side, signed in (("raised", z), ("lowered", -z)):
            token_ids = signed.topk(k).indices.tolist()
            tokens = model.tokenizer.convert_ids_to_tokens(token_ids)
            for rank, (token_id, token) in enumerate(zip(token_ids, tokens, strict=True), start=1):
                rows.append(
                    {
                        "name": name,
                        "side": side,
                        "rank": rank,
                        "token_id": token_id,
                        "token": token,
                        "z": float(z[token_id]),
                        "z_by_chance": chance,
                    }
                )
    return pd.DataFrame(rows)


def _final_norm(model: HookedModel) -> nn.Module:
    """The norm before the unembedding, alone and in double precision."""
    if not isinstance(model, CheckpointModel):
        raise InputError(
            f"backend {model.backend!r} does not show its final norm;"
            " load with backend='transformers'"
        )
    path = model.architecture.final_norm
    if path is None:
        raise InputError(f"{model.name!r} has no final norm: {model.why_missing['final_norm']}")
    # copied while the adapter is on: some kinds change the norms
    with model.bank.selected(model.adapter):
        norm = copy.deepcopy(model.module.get_submodule(path))
    return norm.double()


def _through_norm(norm: nn.Module, vector: Tensor) -> Tensor:
    """γ ⊙ v̂, centred where the norm centres.

    Half of N(v) − N(−v): this drops a bias, and works however a norm keeps its gain (some keep
    γ − 1).
    """
    # a root mean square of 1, beside which the norm's epsilon is nothing
    long = vector / vector.norm() * len(vector) ** 0.5
    device = next(norm.parameters(), torch.empty(0)).device
    with torch.no_grad():
        plus, minus = norm(torch.stack([long, -long]).to(device)[None])[0].double().cpu()
    return (plus - minus) / 2
