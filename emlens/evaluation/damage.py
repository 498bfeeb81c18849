"""What an edit costs on text that has nothing to do with it: KL divergence and cross-entropy, in
nats a token.

The edited and the unedited model read the same prompts in the same batches, so an edit that changes
nothing costs exactly 0. KL is that of the unedited model's next-token distribution from the edited
one's, at every token; cross-entropy is that of the prompt's own next tokens. A text that the model
itself finds unlikely can have a lower cross-entropy under an edit, never a negative KL.
Log-probabilities of two passes over a few prompts are held at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.data.prompts import Prompt, PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.intervention import Intervention
from emlens.models.hooked import HookedModel
from emlens.stats import ratio_of_means

RESAMPLES = 1999
"""Of the intervals that describe a single arm; restoration, which decides, takes more."""
_HELD = 2**26
"""Log-probabilities held at once for one of the two models (256 MiB in float32)."""


@dataclass(frozen=True)
class TextDamage:
    """Damage on neutral text, in nats a token, with intervals over prompts.

    Args:
        kl: mean over tokens of KL(unedited ‖ edited); 0 or more.
        cross_entropy: cross-entropy of the edited model on the text itself minus that of the
            unedited one; negative where the edit fits the text better.
    """

    kl: Estimate
    cross_entropy: Estimate


def mean_kl(
    reference: Sequence[Float[Tensor, "token vocab"]], other: Sequence[Float[Tensor, "token vocab"]]
) -> float:
    """Mean over all tokens of KL(reference ‖ other) in nats, from log-probabilities of the same
    rows; 0 or more.

    Raises:
        InputError: rows that do not fit, or none.
    """
    total, count = 0.0, 0
    for a, b in zip(reference, other, strict=True):
        if a.shape != b.shape:
            raise InputError(
                f"rows have shapes {tuple(a.shape)} and {tuple(b.shape)};"
                " pass log-probabilities of the same prompts"
            )
        total += float(_kl(a, b).sum())
        count += len(a)
    if not count:
        raise InputError("reference is empty; pass at least one prompt")
    return total / count


def _kl(
    reference: Float[Tensor, "token vocab"], other: Float[Tensor, "token vocab"]
) -> Float[Tensor, " token"]:
    p = reference.double()
    return torch.where(p.exp() > 0, p.exp() * (p - other.double()), 0.0).sum(-1)


def token_damage(
    model: HookedModel,
    prompts: PromptSet,
    interventions: Sequence[Intervention],
    unedited: Sequence[Float[Tensor, "token vocab"]] | None = None,
) -> pd.DataFrame:
    """Damage by prompt: index prompt id; sums over the prompt's tokens, so that any set of prompts
    can be averaged.

    Args:
        unedited: what `unedited_logprobs` gave for this model and these prompts, to spare a pass;
            None: it is read anew.

    Returns:
        `tokens` and `kl` (sum over all tokens, nats); `predicted` (tokens after the first, each
        predicted by those before it) and their summed cross-entropy under the unedited (`plain`)
        and the `edited` model.
    """
    rows = []
    for chunk in _chunks(model, prompts):
        plain = unedited if unedited is not None else model.token_logprobs(chunk)
        with model.intervene(interventions):
            edited = model.token_logprobs(chunk)
        for row, a, b in zip(model.render(chunk), plain, edited, strict=True):
            following = torch.tensor(row.ids[1:], dtype=torch.long)[:, None]
            losses = {
                name: float(-table[:-1].gather(-1, following).double().sum())
                for name, table in (("plain", a), ("edited", b))
            }
            rows.append(
                {
                    "prompt": row.id,
                    "tokens": len(a),
                    "kl": float(_kl(a, b).sum()),
                    "predicted": len(following),
                    **losses,
                }
            )
    return pd.DataFrame(rows).set_index("prompt")


def unedited_logprobs(
    model: HookedModel, prompts: PromptSet
) -> list[Float[Tensor, "token vocab"]] | None:
    """Log-probabilities of the unedited model, where they all fit into memory together; None where
    they do not.
    """
    chunks = list(_chunks(model, prompts))
    return model.token_logprobs(chunks[0]) if len(chunks) == 1 else None


def _chunks(model: HookedModel, prompts: PromptSet) -> Iterator[list[Prompt]]:
    """Runs of prompts whose log-probabilities fit into memory together; at least one prompt
    each.
    """
    chunk: list[Prompt] = []
    size = 0
    for prompt, row in zip(prompts, model.render(prompts), strict=True):
        needed = len(row.ids) * model.vocab_size
        if chunk and size + needed > _HELD:
            yield chunk
            chunk, size = [], 0
        chunk.append(prompt)
        size += needed
    yield chunk


def text_damage(tables: pd.DataFrame | Sequence[pd.DataFrame], *, seed: int = 0) -> TextDamage:
    """Damage over all tokens of all prompts, from tables of `token_damage`; of several (draws of
    one control) the mean.

    Intervals: bootstrap over prompts, a ratio of sums; none with a single prompt.

    Raises:
        InputError: tables of different prompts, or prompts of one token each, which predict
            nothing.
    """
    given = [tables] if isinstance(tables, pd.DataFrame) else list(tables)
    if not given or any(not table.index.equals(given[0].index) for table in given):
        raise InputError(
            f"tables holds {len(given)} tables; pass at least one, all of the same prompts"
        )
    if not given[0]["predicted"].sum():
        raise InputError(
            "every neutral prompt has one token, so none is predicted; pass longer prompts"
        )
    mean = sum(given[1:], given[0]) / len(given)
    return TextDamage(
        _per_token(mean["kl"].to_numpy(), mean["tokens"].to_numpy(), seed),
        _per_token((mean["edited"] - mean["plain"]).to_numpy(), mean["predicted"].to_numpy(), seed),
    )


def _per_token(sums: np.ndarray, counts: np.ndarray, seed: int) -> Estimate:
    sums, counts = sums[counts > 0], counts[counts > 0]
    if len(sums) > 1:
        return ratio_of_means(sums, counts, resamples=RESAMPLES, seed=seed)
    return Estimate(
        float(sums[0] / counts[0]),
        float("nan"),
        float("nan"),
        1,
        "mean over the tokens of one prompt; no interval",
    )
