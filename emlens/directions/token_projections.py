"""How far each token of a text lies along a direction, layer by layer.

The projection of a token is the dot product of the stream at that token with the direction scaled
to length 1, in the units of the stream. Attention sinks are marked and not left out: their vectors
are many times longer than others, and whatever they project on says nothing about the text. Cost:
one forward pass of the texts.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emlens.activations import CaptureSpec, capture
from emlens.data.prompts import PromptSet
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.models import HookedModel

SINK_FACTOR: Final = 5.0
"""A token whose vector is longer than this many times the row's median is an attention sink."""
LINE_BREAK: Final = "↵"


def token_projections(
    model: HookedModel, direction: Direction, prompts: PromptSet, layers: Sequence[int]
) -> pd.DataFrame:
    """One row per prompt, layer and token: its text, its projection, and whether it is a sink.

    Args:
        direction: read at its own kind of site in each of the layers.
        prompts: with their answers, where they have them.
        layers: 0-based blocks.

    Returns:
        Columns id, site, layer, token_index, token, prompt (whether the token belongs to the prompt
        with the template's opening), projection (in units of the stream, any sign), sink.

    Raises:
        InputError: a layer that the model does not have; what `capture` refuses.
    """
    kind = Site.parse(str(direction.site)).kind
    sites = [f"{kind}.{layer}" for layer in layers]
    spec = CaptureSpec(sites=sites, positions="all")
    acts = capture(model, prompts, spec=spec, progress=False)
    unit = direction.vector.double() / direction.vector.double().norm()
    rendered = {row.id: row for row in model.render(prompts)}
    rows: list[dict[str, Any]] = []
    for site, layer in zip(sites, layers, strict=True):
        values = acts.tokens(site)
        offsets = values.offsets.tolist()
        for i, name in enumerate(acts.ids):
            stream = values.values[offsets[i] : offsets[i + 1]].double()
            projections, sinks = stream @ unit, _sinks(stream)
            texts = _token_texts(model.tokenizer, list(rendered[name].ids))
            for place, text in enumerate(texts):
                rows.append(
                    {
                        "id": name,
                        "site": site,
                        "layer": layer,
                        "token_index": place,
                        "token": text,
                        "prompt": place < rendered[name].prompt_end,
                        "projection": float(projections[place]),
                        "sink": bool(sinks[place]),
                    }
                )
    return pd.DataFrame(rows)


def _sinks(stream: Float[Tensor, "token d_model"]) -> Bool[Tensor, " token"]:
    """The tokens whose vectors are many times longer than the median of their row."""
    lengths = stream.norm(dim=1)
    return lengths > SINK_FACTOR * torch.quantile(lengths, 0.5)


def _token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """What each token adds to the text, so that blanks between words stay."""
    texts, before = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=False)
        # a token that ends inside a character changes what came before it
        added = text[len(before) :] if text.startswith(before) else tokenizer.decode([ids[end - 1]])
        texts.append(added.replace("\n", LINE_BREAK))
        before = text
    return texts


def spread_layers(n_layers: int, own: int) -> list[int]:
    """The direction's own layer, and the first, middle and last quarter beside it."""
    quarters = np.linspace(0, n_layers - 1, 4).round().astype(int).tolist()
    return sorted({own, *quarters[1:]})
