"""Damage: what an edit costs on neutral text, in nats per token.

The edited and the unedited model read the same prompts in the same batches, so an edit that changes
nothing costs exactly 0. Two measures: KL(unedited ‖ edited) of the next-token distributions, at
every token, and the change of the cross-entropy of the prompt's own next tokens. A text that the
model itself finds unlikely can have a lower cross-entropy under an edit, never a negative KL.
Memory: log-probabilities of two passes over a few prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.data.prompts import PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.free_memory import return_free_memory
from emlens.foundation.intervention import Intervention
from emlens.models.hooked import HookedModel
from emlens.models.likelihoods import rows_widened
from emlens.models.pass_memory import text_chunks
from emlens.stats import ratio_of_means

RESAMPLES = 1999
"""Of the intervals that describe a single arm; restoration, which decides, takes more."""


@dataclass(frozen=True)
class TextDamage:
    """Damage on neutral text, in nats per token, with intervals over prompts.

    Args:
        kl: mean over tokens of KL(unedited ‖ edited); 0 or more.
        cross_entropy: cross-entropy of the edited model on the text itself minus that of the
            unedited one; negative where the edit fits the text better.
    """

    kl: Estimate
    cross_entropy: Estimate


def summed_kl(
    reference: Sequence[Float[Tensor, "token vocab"]], other: Sequence[Float[Tensor, "token vocab"]]
) -> float:
    """Sum over all tokens of KL(reference ‖ other) in nats; 0 or more.

    Args:
        reference, other: log-probabilities of the same rows under two models.

    Raises:
        InputError: rows that do not fit.
    """
    total = 0.0
    for a, b in zip(reference, other, strict=True):
        if a.shape != b.shape:
            raise InputError(
                f"rows have shapes {tuple(a.shape)} and {tuple(b.shape)};"
                " pass log-probabilities of the same prompts"
            )
        total += float(_kl(a, b).sum())
    return total


def _kl(
    reference: Float[Tensor, "token vocab"], other: Float[Tensor, "token vocab"]
) -> Float[Tensor, " token"]:
    """Σ p (log p − log q) per token, in float64: it is a small difference of large terms."""
    values = []
    count = rows_widened(reference)
    for some, of_some in zip(reference.split(count), other.split(count), strict=True):
        wide = some.double()
        p = wide.exp()
        # where p is 0 the term is 0, while 0 · (−∞ + ∞) would be NaN
        values.append(torch.where(p > 0, p * (wide - of_some.double()), 0.0).sum(-1))
    return torch.cat(values)


def token_damage(
    model: HookedModel,
    prompts: PromptSet,
    interventions: Sequence[Intervention],
    unedited: Sequence[Float[Tensor, "token vocab"]] | None = None,
) -> pd.DataFrame:
    """Damage by prompt, as sums over the prompt's tokens, so that any prompts can be averaged.

    Args:
        unedited: what `unedited_logprobs` gave for this model and these prompts, to spare a pass;
            None: the unedited model is run.

    Returns:
        Index prompt id; `tokens` and `kl` (sum over all tokens, nats); `predicted` (tokens after
        the first, each predicted by those before it) and their summed cross-entropy under the
        unedited (`plain`) and the `edited` model.
    """
    rows = []
    return_free_memory()
    for chunk in text_chunks(model, prompts):
        plain = unedited if unedited is not None else model.token_logprobs(chunk)
        edited = plain
        if interventions:
            with model.intervene(interventions):
                edited = model.token_logprobs(chunk)
        for row, plain_row, edited_row in zip(model.render(chunk), plain, edited, strict=True):
            rows.append(
                {
                    "prompt": row.id,
                    "tokens": len(plain_row),
                    "kl": float(_kl(plain_row, edited_row).sum()),
                    "predicted": len(row.ids) - 1,
                    "plain": _summed_cross_entropy(plain_row, row.ids),
                    "edited": _summed_cross_entropy(edited_row, row.ids),
                }
            )
    return pd.DataFrame(rows).set_index("prompt")


def _summed_cross_entropy(logprobs: Float[Tensor, "token vocab"], ids: Sequence[int]) -> float:
    """Of all tokens after the first; the log-probabilities at a token are those of the next."""
    following = torch.tensor(ids[1:], dtype=torch.long)[:, None]
    return float(-logprobs[:-1].gather(-1, following).double().sum())


def unedited_logprobs(
    model: HookedModel, prompts: PromptSet
) -> list[Float[Tensor, "token vocab"]] | None:
    """Log-probabilities of the unedited model; None where they do not fit into memory together."""
    chunks = list(text_chunks(model, prompts))
    if len(chunks) > 1:
        return None
    return model.token_logprobs(chunks[0])


def text_damage(tables: pd.DataFrame | Sequence[pd.DataFrame], *, seed: int = 0) -> TextDamage:
    """Damage over all tokens of all prompts, from a table of `token_damage` or the mean of several.

    Several tables are those of the draws of one control. Intervals: prompts are resampled with all
    their tokens, and the statistic is a ratio of sums; there is none with a single prompt.

    Raises:
        InputError: tables of different prompts, or prompts of one token each, which predict
            nothing.
    """
    draws = [tables] if isinstance(tables, pd.DataFrame) else list(tables)
    if not draws or not all(table.index.equals(draws[0].index) for table in draws):
        raise InputError(
            f"tables holds {len(draws)} tables; pass at least one, all of the same prompts"
        )
    if not draws[0]["predicted"].sum():
        raise InputError(
            "every neutral prompt has one token, so none is predicted; pass longer prompts"
        )
    mean = sum(draws[1:], draws[0]) / len(draws)
    change = mean["edited"] - mean["plain"]
    return TextDamage(
        kl=_per_token(mean["kl"].to_numpy(), mean["tokens"].to_numpy(), seed),
        cross_entropy=_per_token(change.to_numpy(), mean["predicted"].to_numpy(), seed),
    )


def _per_token(sums: np.ndarray, counts: np.ndarray, seed: int) -> Estimate:
    """Σ sums / Σ counts over prompts; a prompt of one token predicts none and is left out."""
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
