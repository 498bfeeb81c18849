"""Other ways to the last prompt token of every block: as their documentation shows, and as an
expert would tune them.

Each case returns (layer, row, d_model). "As documented" runs the whole model with its head in the
order in which the prompts came, and picks the tokens afterwards; "tuned" runs no head, stops after
the last block where the tool can, and keeps only the tokens asked for. nnsight reads the source of
its traces, so they are written out here.
"""

import contextlib
import copy
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from emlens.models.batches import Batch

Case = Callable[[], Tensor]


class Stop(Exception):
    """Ends a pass after the last block."""


def last_tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    return torch.arange(len(batch.rows)), torch.tensor([len(row.ids) - 1 for row in batch.rows])


def filled(
    batches: Sequence[Batch], layers: int, width: int, read: Callable[[Batch], Sequence[Tensor]]
) -> Tensor:
    rows = sum(len(batch.rows) for batch in batches)
    kept = torch.empty(layers, rows, width)
    for batch in batches:
        for layer, value in enumerate(read(batch)):
            kept[layer, list(batch.index)] = value.float().cpu()
    return kept


def hidden_states(module: Any, batch: Batch) -> list[Tensor]:
    """`[L]` is after the final norm, so the last block is in no entry and is left out."""
    out = module(
        input_ids=batch.ids,
        attention_mask=batch.mask.long(),
        use_cache=False,
        output_hidden_states=True,
    )
    at = last_tokens(batch)
    return [out.hidden_states[i][at] for i in range(1, len(out.hidden_states) - 1)]


def bridge_cached(bridge: Any, names: list[str], batch: Batch) -> list[Tensor]:
    _, cache = bridge.run_with_cache(
        batch.ids, attention_mask=batch.mask.long(), names_filter=names
    )
    return [cache[name][last_tokens(batch)] for name in names]


def bridge_hooked(bridge: Any, names: list[str], batch: Batch) -> list[Tensor]:
    at, kept = last_tokens(batch), []

    def keep(stream: Tensor, hook: Any) -> None:
        kept.append(stream[at])
        if len(kept) == len(names):
            raise Stop

    with contextlib.suppress(Stop):
        bridge.run_with_hooks(
            batch.ids,
            attention_mask=batch.mask.long(),
            fwd_hooks=[(name, keep) for name in names],
            return_type=None,
        )
    return kept


def traced(root: Any, batch: Batch) -> list[Tensor]:
    with root.trace(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False):
        kept = list().save()
        for layer in root.model.layers:
            kept.append(layer.output)
    return [value[last_tokens(batch)] for value in kept]


def traced_slices(decoder: Any, batch: Batch) -> list[Tensor]:
    at = last_tokens(batch)
    with decoder.trace(
        input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False
    ) as tracer:
        kept = list().save()
        for layer in decoder.layers:
            kept.append(layer.output[at])
        tracer.stop()
    return kept


def twin(module: nn.Module) -> Any:
    """A second tree of modules on the same weights: every tool changes the modules that it gets."""
    return copy.deepcopy(
        module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    )


def cases(
    module: nn.Module, tokenizer: Any, batches: Mapping[str, Sequence[Batch]]
) -> tuple[dict[str, Case], list[str]]:
    """Cases by name, and which tools are not installed.

    Args:
        batches: the same prompts as batches in the `given` order and `sorted` by length.
    """
    layers, width = module.config.num_hidden_layers, module.config.hidden_size  # type: ignore[union-attr]
    found: dict[str, Case] = {}
    missing = []

    def add(
        tool: str,
        documented: Callable[[Batch], Sequence[Tensor]],
        tuned: Callable[[Batch], Sequence[Tensor]],
        blocks: int = layers,
    ) -> None:
        found[f"{tool}, as documented"] = lambda: filled(
            batches["given"], blocks, width, documented
        )
        for order in ("given", "sorted"):
            found[f"{tool}, tuned, {order} order"] = partial(
                filled, batches[order], blocks, width, tuned
            )

    plain = twin(module)
    add(
        "output_hidden_states",
        partial(hidden_states, plain),
        partial(hidden_states, plain.model),
        layers - 1,
    )
    if importlib.util.find_spec("transformer_lens"):
        from transformer_lens.model_bridge import TransformerBridge

        bridge = TransformerBridge.boot_transformers(
            "rival",
            hf_model=twin(module),
            tokenizer=copy.deepcopy(tokenizer),
            device=str(next(module.parameters()).device),
            dtype=next(module.parameters()).dtype,
        )
        names = [f"blocks.{i}.hook_resid_post" for i in range(layers)]
        add(
            "TransformerLens",
            partial(bridge_cached, bridge, names),
            partial(bridge_hooked, bridge, names),
        )
    else:
        missing.append("transformer_lens")
    if importlib.util.find_spec("nnsight"):
        from nnsight import NNsight

        own = twin(module)
        add("nnsight", partial(traced, NNsight(own)), partial(traced_slices, NNsight(own.model)))
    else:
        missing.append("nnsight")
    return found, missing
