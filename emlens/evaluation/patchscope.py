"""What a model says of a vector that is put into its stream: a patchscope.

A prompt repeats words ("cat -> cat; 1135 -> 1135; hello -> hello; ?"). At its last token the stream
after one block is replaced by the vector, at the length that the stream has there, and the model
goes on (2401.06102). It is read at several blocks, beside random directions. Whether the model can
do this at all is measured first: the streams of known words are put in, and the share of them that
comes out is `read_back`. Where it is low, the other rows say nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from emlens.activations import capture
from emlens.data.prompts import Prompt, PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.geometry.random_directions import random_directions, random_directions_like
from emlens.interventions import mean_ablate
from emlens.models import HookedModel

TEMPLATE: Final = "cat -> cat; 1135 -> 1135; hello -> hello; ?"
WORDS: Final = ("dog", "house", "water", "music", "red", "doctor", "money", "school")
"""Words whose own streams are read back as the control of the method."""
READ_TOKENS: Final = 4
"""Tokens within which a word must come back: the prompt's own pattern puts an arrow before it."""
ENOUGH: Final = 0.5
"""Share of words that must come back at a block for its rows to be read."""
_CONTEXT: Final = "The word is"


def patchscope(
    model: HookedModel,
    direction: Direction,
    layers: Sequence[int],
    *,
    template: str = TEMPLATE,
    like: Float[Tensor, "row d_model"] | None = None,
    draws: int = 3,
    k: int = 5,
    max_new_tokens: int = 6,
    seed: int = 0,
) -> pd.DataFrame:
    """Next tokens and greedy text after the vector was put in.

    Args:
        layers: 0-based blocks after which it is put in.
        like: activations (row, d_model) with whose covariance random directions are drawn; None:
            uniform on the sphere.
        k: likeliest next tokens that are named.

    Returns:
        One row a layer and vector (`direction`, `minus direction`, `random 1`, …): read_back (share
        of known words that come back at this layer), can_read, tokens, probability (of the first),
        text.

    Raises:
        InputError: no layer, one that the model lacks, a direction of another width.
    """
    if not layers or not all(0 <= layer < model.n_layers for layer in layers):
        raise InputError(
            f"layers={list(layers)} must name blocks of 0 to {model.n_layers - 1}, at least one"
        )
    if direction.d_model != model.d_model:
        raise InputError(
            f"direction has {direction.d_model} coordinates and {model.name!r} {model.d_model}"
        )
    prompt = PromptSet([Prompt("patchscope", template)])
    vectors = {"direction": direction.unit, "minus direction": -direction.unit}
    if like is None:
        random = random_directions(model.d_model, draws, seed)
    else:
        random = random_directions_like(like.double().cpu(), draws, seed)
    vectors |= {f"random {number}": row for number, row in enumerate(random, start=1)}
    rows: list[dict[str, Any]] = []
    for layer in dict.fromkeys(layers):
        site = f"resid_post.{layer}"
        read_back = _read_back(model, prompt, site)
        length = float(_last_streams(model, prompt, site)[0].norm())
        for name, vector in vectors.items():
            put = vector.double().cpu() * length
            rows.append(
                {
                    "layer": layer,
                    "vector": name,
                    "read_back": read_back,
                    "can_read": read_back >= ENOUGH,
                    **_said(model, prompt, site, put, k, max_new_tokens),
                }
            )
    return pd.DataFrame(rows)


def _last_streams(
    model: HookedModel, prompts: PromptSet, site: str
) -> Float[Tensor, "row d_model"]:
    """The stream at the last token of each row."""
    acts = capture(model, prompts, sites=[site], positions=["last"], progress=False)
    return acts[site, "last"].double().cpu()


def _read_back(model: HookedModel, prompt: PromptSet, site: str) -> float:
    """Share of known words that the model says when their own stream is put in."""
    words = PromptSet(Prompt(word, f"{_CONTEXT} {word}") for word in WORDS)
    streams = _last_streams(model, words, site)
    hits = 0
    for word, stream in zip(WORDS, streams, strict=True):
        with model.intervene(_put(site, stream)):
            (text,) = model.generate(prompt, max_new_tokens=READ_TOKENS, temperature=0.0)
        hits += word in text.lower()
    return hits / len(WORDS)


def _put(site: str, vector: Float[Tensor, " d_model"]) -> Any:
    return mean_ablate({Site.parse(site): vector.float()}, positions="last_prompt")


def _said(
    model: HookedModel,
    prompt: PromptSet,
    site: str,
    vector: Float[Tensor, " d_model"],
    k: int,
    max_new_tokens: int,
) -> Mapping[str, Any]:
    """Likeliest next tokens and greedy text with a vector in place."""
    with model.intervene(_put(site, vector)):
        shares = model.logits(prompt)[0].double().softmax(-1)
        (text,) = model.generate(prompt, max_new_tokens=max_new_tokens, temperature=0.0)
    best = shares.topk(k)
    return {
        "tokens": " | ".join(_pieces(model, best.indices.tolist())),
        "probability": float(best.values[0]),
        "text": text,
    }


def _pieces(model: HookedModel, ids: Sequence[int]) -> Iterator[str]:
    for token_id in ids:
        yield str(model.tokenizer.decode([token_id])).strip() or "␣"
