"""An adapter's scalars: how strongly each component of its update acts on each token.

A rank-r update adds B (s · A x) to a module's output. The r numbers A x of a token tell when the
adapter acts (Soligo et al. 2025, 2506.11618). For ranks above one the split into columns of B is
arbitrary (the gauge), so components are those of the SVD, strongest first.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from emlens.data.prompts import Prompt
from emlens.foundation.errors import InputError, StateError, UnknownNameError
from emlens.foundation.notebooks import in_a_line
from emlens.foundation.positions import Part, RowSpans
from emlens.foundation.sites import Site
from emlens.geometry.weight_updates import weight_update
from emlens.interventions.lora import LoraAdapter, LoraFactors
from emlens.models.batches import Batch
from emlens.models.checkpoint import CheckpointModel
from emlens.models.hooked import HookedModel


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
                f"module {module!r} was not read; these were: {', '.join(list(self.values)[:4])} …",
                name=module,
                known=self.values,
            )
        if id not in self.ids:
            raise UnknownNameError(
                f"row {id!r} was not read; there are {len(self.ids)} from {self.ids[0]!r} on",
                name=id,
                known=self.ids,
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
