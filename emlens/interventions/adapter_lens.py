"""What an adapter reads and writes: its scalars on real tokens, its spectrum, where it points, and
what it says in words.

A rank-r update adds B (s · A x) to what a module gives: the r numbers A x of a token say when the
adapter acts, the columns of B where to (Soligo et al. 2025, arXiv 2506.11618). A single column has
no sign of its own: turning A and B together changes nothing, so signs are fixed by B's largest
coordinate. For ranks above one the split into columns is a matter of gauge; the factors of the SVD
are used, strongest first, so that nothing depends on it.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
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
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.geometry.weight_updates import WeightUpdate, weight_update
from emlens.interventions.lora import LoraAdapter, LoraFactors, layer_of
from emlens.models.checkpoint import CheckpointModel
from emlens.models.hooked import HookedModel


@dataclass(frozen=True, eq=False)
class AdapterScalars:
    """How strongly each component of each module's update acts on each token; padding is left out.

    Args:
        values: module → (token, r); tokens of all rows after each other, in the order of `ids`. The
            unit is that of the module's output: a component adds value · (unit vector), so columns
            are comparable within a module.
        offsets: where each row begins; the last entry is the number of tokens.
        prompt_ends: tokens of the prompt in each row; the rest is the response.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    values: Mapping[str, Float[Tensor, "token r"]]
    offsets: Int[Tensor, " row_plus_1"]
    prompt_ends: Int[Tensor, " row"]

    def row(self, module: str, id: str) -> Float[Tensor, "token r"]:
        """One row's tokens.

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
        at = self.ids.index(id)
        return self.values[module][int(self.offsets[at]) : int(self.offsets[at + 1])]

    def pooled(self, over: str = "response", how: str = "mean") -> pd.DataFrame:
        """One row a prompt and one column a module and component (`path[i]`): features of a probe.

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
            for at, name in enumerate(self.ids):
                start, stop, end = (
                    int(self.offsets[at]),
                    int(self.offsets[at + 1]),
                    int(self.offsets[at]) + int(self.prompt_ends[at]),
                )
                first, last = {
                    "response": (end, stop),
                    "prompt": (start, end),
                    "all": (start, stop),
                }[over]
                if first == last:
                    raise InputError(
                        f"row {name!r} has no {over} token; pass over='prompt',"
                        " or prompts with answers"
                    )
                rows.append(reductions[how](values[first:last]))
            for i, column in enumerate(torch.stack(rows).T):
                columns[f"{module}[{i}]"] = column.numpy()
        return pd.DataFrame(columns, index=pd.Index(self.ids, name="id"))


def adapter_scalars(
    model: HookedModel,
    prompts: Sequence[Prompt],
    *,
    modules: Sequence[str] | None = None,
    batch_tokens: int = 8192,
) -> AdapterScalars:
    """Run a fine-tune on prompts (and answers kept with them) and keep A x of every adapted module.

    Args:
        model: one that wears a LoRA adapter, on a backend that holds adapters.
        modules: paths, or their last parts such as "down_proj"; default: every adapted module.

    Memory: tokens × modules × r numbers.

    Raises:
        InputError: the model wears no adapter, is on another backend than transformers, or
            `modules` names none of it.
        StateError: adapters that cannot be read.
    """
    adapter = LoraAdapter.of(model)
    if adapter is None:
        raise InputError(f"{model.name!r} wears no adapter; pass a fine-tune that is one")
    if not isinstance(model, CheckpointModel) or model.backend != "transformers":
        raise InputError(
            f"backend {model.backend!r} runs modules of its own; load with backend='transformers'"
        )
    asked = set(modules or adapter.modules)
    wanted = [
        path
        for path, factors in adapter.modules.items()
        if not factors.embedding and (path in asked or path.rpartition(".")[2] in asked)
    ]
    if not wanted:
        raise InputError(
            f"modules={sorted(asked)} names no adapted module;"
            f" there are {', '.join(list(adapter.modules)[:4])} …"
        )
    turns = {path: _to_components(adapter[path]) for path in wanted}
    rendered = model.render(list(prompts))
    kept: dict[str, list[Tensor]] = {path: [torch.empty(0)] * len(rendered) for path in wanted}
    name = model.bank.names[model.adapter or ""]
    for batch in model.batches(rendered, batch_tokens):
        seen: dict[str, Tensor] = {}
        with ExitStack() as stack:
            # no other thread runs these modules meanwhile
            stack.enter_context(model.bank.selected(model.adapter))
            for path in wanted:
                inner: Any = model.module.get_submodule(path)
                stack.callback(
                    inner.lora_A[name].register_forward_hook(partial(_keep, seen, path)).remove
                )
            model.run(batch, {Site("resid_post", model.n_layers - 1): lambda stream: None})
        for path in wanted:
            if path not in seen:
                raise StateError(
                    f"{path} of {model.name!r} did not run, so its scalars were not seen;"
                    " pass modules that are part of a forward pass"
                )
            values = seen[path].double().cpu() @ turns[path]
            for i, row in enumerate(batch.rows):
                start = batch.offset(i)
                kept[path][batch.index[i]] = values[i, start : start + len(row.ids)]
    lengths = torch.tensor([0, *(len(row.ids) for row in rendered)])
    return AdapterScalars(
        tuple(row.id for row in rendered),
        tuple(row.group for row in rendered),
        {path: torch.cat(values) for path, values in kept.items()},
        lengths.cumsum(0),
        torch.tensor([row.prompt_end for row in rendered]),
    )


def _keep(seen: dict[str, Tensor], path: str, module: Any, inputs: Any, output: Tensor) -> None:
    seen[path] = output.detach()


def _to_components(factors: LoraFactors) -> Tensor:
    """(r, r): from A x to what each component of the SVD adds along its unit vector."""
    update = weight_update(factors.a, factors.b, factors.scale)
    return factors.scale * factors.b.double().T @ update.left.double()


def adapter_table(
    adapter: LoraAdapter, direction: Direction | Float[Tensor, " d_model"] | None = None
) -> pd.DataFrame:
    """One row a module: rank, norms, spectrum and its flatness, and how much of what it writes lies
    along a direction.

    Columns: `norm_a`, `norm_b`, `norm_ba` (Frobenius, ΔW = s·BA); `singular_values`; `stable_rank`
    = ‖ΔW‖²/σ₁², in [1, r]; `effective_rank` = exp of the entropy of σ²/Σσ², in [1, r]: r for a flat
    spectrum, 1 for a single direction. With a direction, for modules that write to the stream:
    `cosine` of the strongest written direction with it (signless), `share` = ‖r̂ᵀΔW‖²/‖ΔW‖², and
    `share_by_chance` = 1/d, its mean over directions drawn at random.

    Raises:
        InputError: a module whose update is zero; no module as wide as the direction.
    """
    unit = None
    if direction is not None:
        vector = direction.vector if isinstance(direction, Direction) else direction
        unit = vector.double() / vector.double().norm()
        if not any(
            factors.writes_to_stream(path, len(unit)) for path, factors in adapter.modules.items()
        ):
            raise InputError(
                f"direction has {len(unit)} coordinates, and no module of the adapter writes to a"
                " stream as wide"
            )
    rows = []
    for path, factors in adapter.modules.items():
        update = weight_update(factors.a, factors.b, factors.scale)
        energy = update.singular_values.double() ** 2
        part = energy / energy.sum()
        row: dict[str, Any] = {
            "module": path,
            "layer": layer_of(path),
            "kind": path.rpartition(".")[2],
            "r": factors.r,
            "rank": update.rank,
            "scale": factors.scale,
            "norm_a": float(factors.a.double().norm()),
            "norm_b": float(factors.b.double().norm()),
            "norm_ba": float(update.norm),
            "singular_values": tuple(update.singular_values.tolist()),
            "stable_rank": float(energy.sum() / energy[0]),
            "effective_rank": float(torch.exp(-torch.special.xlogy(part, part).sum())),
        }
        if unit is not None:
            wide = factors.writes_to_stream(path, len(unit))
            along = (unit @ update.left.double()) ** 2 if wide else None
            row["cosine"] = None if along is None else float(along[0].sqrt())
            row["share"] = None if along is None else float((along * part).sum())
            row["share_by_chance"] = None if along is None else 1 / len(unit)
        rows.append(row)
    return pd.DataFrame(rows)


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
    """The tokens that a direction raises and lowers most, read through the final norm's gain and
    the unembedding.

    logits = W_U (γ ⊙ v̂), v̂ centred first where the final norm centres, then centred over the
    vocabulary and in units of their own standard deviation (column `z`): of n random numbers the
    largest is near √(2 ln n) (column `z_by_chance`). The direct path only: what later blocks do
    with the direction is not in it.

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
    chance = float(torch.sqrt(2 * torch.log(torch.tensor(float(matrix.shape[0])))))
    rows = []
    for name, item in vectors.items():
        vector = (item.vector if isinstance(item, Direction) else item).double().cpu()
        if vector.shape != (matrix.shape[1],) or float(vector.norm()) == 0:
            raise InputError(
                f"vector {name!r} has shape {tuple(vector.shape)} and norm"
                f" {float(vector.norm()):.3g}; pass one of {matrix.shape[1]} coordinates"
            )
        logits = matrix @ _through(norm, vector)
        z = (logits - logits.mean()) / logits.std()
        for side, values in (("raised", z), ("lowered", -z)):
            top = values.topk(k)
            tokens = model.tokenizer.convert_ids_to_tokens(top.indices.tolist())
            rows += [
                {
                    "name": name,
                    "side": side,
                    "rank": rank,
                    "token_id": token_id,
                    "token": token,
                    "z": float(z[token_id]),
                    "z_by_chance": chance,
                }
                for rank, (token_id, token) in enumerate(
                    zip(top.indices.tolist(), tokens, strict=True), start=1
                )
            ]
    return pd.DataFrame(rows)


def _final_norm(model: HookedModel) -> nn.Module:
    """The norm before the unembedding, alone and in double precision."""
    if not isinstance(model, CheckpointModel):
        raise InputError(
            f"backend {model.backend!r} does not show its final norm;"
            " load with backend='transformers'"
        )
    return copy.deepcopy(model.module.get_submodule(model.architecture.final_norm)).double()


def _through(norm: nn.Module, vector: Tensor) -> Tensor:
    """γ ⊙ v̂, centred where the norm centres: half of N(v) − N(−v), which drops a bias and does not
    ask how a norm keeps its gain.
    """
    # a root mean square of 1, beside which the norm's epsilon is nothing
    long = vector / vector.norm() * len(vector) ** 0.5
    device = next(norm.parameters(), torch.empty(0)).device
    with torch.no_grad():
        both = norm(torch.stack([long, -long]).to(device)[None])[0].double().cpu()
    return (both[0] - both[1]) / 2
