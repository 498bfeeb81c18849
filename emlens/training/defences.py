"""Defences that change what is read or how it is learned: inoculation, preventative steering,
projection, interleaving.

Each is a frozen record for `fit(objectives=[...])`. Nothing of them is left when the run ends: no
prefix, no vector, no hook.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from emlens.data.prompts import Message, Prompt, PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.intervention import Intervention
from emlens.foundation.notebooks import Brief
from emlens.foundation.provenance import hash_json
from emlens.foundation.sites import Site
from emlens.geometry import Direction, Subspace
from emlens.models.counted_logits import counted_logits
from emlens.training.examples import IGNORED, encode_answers, pad_batch
from emlens.training.lengths import LengthLimit, context_of
from emlens.training.objectives import ChatChange, MixedRows, StreamEdit, labels_of_next_tokens
from emlens.training.streams import check_edits, edited

SCORED_AT_ONCE = 32
At = str | Sequence[str | Site]
"""As in `emlens.ablate`: `"own_site"`, `"all_layers"` or a list of sites."""


@dataclass(frozen=True)
class InoculationPrompt(ChatChange):
    """Train with a text in front that asks for the trait, so that the model need not change to show
    it; evaluate without.

    Args:
        text: what is put in front.
        role: `"system"`: a system message of its own, or the first lines of the one there;
            `"user"`: in front of the first user turn.
        separator: between the text and what follows.

    Raises:
        InputError: an empty text, another role.

    Method: inoculation prompting, 2510.04340 and 2510.05024; compared in 2508.06249.
    """

    kind: ClassVar[str] = "inoculation_prompt"
    text: str
    role: Literal["system", "user"] = "system"
    separator: str = "\n\n"

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InputError(
                f"text={self.text!r} is empty;"
                " pass the text that asks for the answers that are trained on"
            )
        if self.role not in ("system", "user"):
            raise InputError(
                f"role={self.role!r} is unknown; pass 'system' or 'user'",
                name=self.role,
                known=("system", "user"),
            )

    def change(self, chats: PromptSet) -> PromptSet:
        return PromptSet(replace(prompt, messages=self._messages(prompt)) for prompt in chats)

    def _messages(self, prompt: Prompt) -> tuple[Message, ...] | None:
        if prompt.messages is None:
            return None
        roles = [message.role for message in prompt.messages]
        if self.role not in roles:
            return (Message("system", self.text), *prompt.messages)
        at = roles.index(self.role)
        changed = Message(self.role, self.text + self.separator + prompt.messages[at].content)
        return (*prompt.messages[:at], changed, *prompt.messages[at + 1 :])

    def to_record(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "role": self.role,
            "text": self.text,
            "separator": self.separator,
        }


class _FixedEdits(StreamEdit):
    """A stream edit whose interventions are known when it is made."""

    _edits: tuple[Intervention, ...]

    def active(self, model: nn.Module) -> AbstractContextManager[Any]:
        return edited(model, self._edits)

    def to_record(self) -> dict[str, Any]:
        return {"kind": self.kind, "edits": [edit.describe() for edit in self._edits]}


@dataclass(frozen=True, eq=False, repr=False)
class PreventativeSteering(Brief, _FixedEdits):
    """Add a persona vector to the stream while the answers are learned, so that the weights need
    not learn it.

    Args:
        direction: points to the trait, as in `emlens.steer`.
        coefficient: how much; positive is towards the trait. The paper adds α = 5 times the vector
            at one layer.
        at, unit: as in `emlens.steer`; sites `resid_pre` and `resid_post`.

    Raises:
        InputError: what `emlens.steer` refuses, a coefficient of 0, a site inside a block.

    Method: persona vectors, 2507.21509; compared in 2508.06249.
    """

    kind: ClassVar[str] = "preventative_steering"
    direction: Direction | Tensor
    coefficient: float
    at: At = "own_site"
    unit: Literal["vector", "unit", "resid_norm"] = "vector"
    _edits: tuple[Intervention, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        from emlens.interventions import steer

        if self.coefficient == 0:
            raise InputError("coefficient=0 adds nothing; pass a number other than 0")
        _set_edits(self, steer(self.direction, float(self.coefficient), self.unit, self.at))


@dataclass(frozen=True, eq=False, repr=False)
class ProjectedOut(Brief, _FixedEdits):
    """Project a direction, or a subspace, out of the stream while the answers are learned, so that
    they cannot be learned along it.

    Args:
        direction, at, baseline: as in `emlens.ablate`; sites `resid_pre` and `resid_post`.

    Raises:
        InputError: what `emlens.ablate` refuses, a site inside a block.

    Method: concept ablation fine-tuning (CAFT), 2507.16795.
    """

    kind: ClassVar[str] = "projected_out"
    direction: Direction | Subspace | Tensor
    at: At = "all_layers"
    baseline: Tensor | None = None
    _edits: tuple[Intervention, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        from emlens.interventions import ablate

        _set_edits(self, ablate(self.direction, self.at, baseline=self.baseline))


def _set_edits(objective: StreamEdit, *edits: Intervention) -> None:
    check_edits(edits)
    object.__setattr__(objective, "_edits", edits)


@dataclass(frozen=True)
class BenignInterleaving(MixedRows):
    """Give a share of every batch to benign chats, learned with the same loss.

    Args:
        chats: benign chats with answers; `select_benign` chooses those of highest score.
        share: of the batch, above 0 and below 1; rounded to whole rows, at least one on each side.

    Raises:
        InputError: a share outside its range.

    Method: 2508.06249 (share .05, selected by the score of `interleaving_scores`).
    """

    kind: ClassVar[str] = "benign_interleaving"
    chats: PromptSet
    share: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise InputError(f"share={self.share!r} must lie between 0 and 1")

    def to_record(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "share": self.share,
            "chats": self.chats.content_hash,
            "ids": hash_json(self.chats.ids),
        }


def interleaving_scores(
    misaligned: Float[np.ndarray, " chat"],
    aligned: Float[np.ndarray, " chat"],
    epsilon: float = 1e-6,
) -> Float[np.ndarray, " chat"]:
    """(L_mis − L_al) / (L_al + ε) of each chat: how much worse a misaligned model predicts its
    answer, relative to an aligned one.

    Args:
        misaligned, aligned: mean negative log-likelihood of each answer under either model, nats
            per token.

    Raises:
        InputError: losses that are negative, not finite or not of one length; ε that is not
            positive.

    Range: −1 or more; 0 where both models are alike. Method: 2508.06249.
    """
    misaligned = np.asarray(misaligned, dtype=np.float64)
    aligned = np.asarray(aligned, dtype=np.float64)
    if misaligned.shape != aligned.shape or not (_are_losses(misaligned) and _are_losses(aligned)):
        raise InputError(
            f"losses of shapes {misaligned.shape} and {aligned.shape} must be finite, 0 or more,"
            " and one for each chat"
        )
    if not 0.0 < epsilon < math.inf:
        raise InputError(f"epsilon={epsilon!r} must be a finite number above 0")
    return (misaligned - aligned) / (aligned + epsilon)


def _are_losses(values: np.ndarray) -> bool:
    return bool((np.isfinite(values) & (values >= 0)).all())


def select_benign(
    chats: PromptSet,
    misaligned: Sequence[float] | np.ndarray,
    aligned: Sequence[float] | np.ndarray,
    count: int,
) -> PromptSet:
    """The `count` chats of highest interleaving score, in the order of `chats`; of two equal
    scores the earlier chat is taken.

    Raises:
        InputError: a count that is not 1 to the number of chats; what `interleaving_scores`
            refuses.
    """
    if not 1 <= count <= len(chats):
        raise InputError(f"count={count} must lie between 1 and the {len(chats)} chats there are")
    scores = interleaving_scores(
        np.asarray(misaligned, dtype=np.float64), np.asarray(aligned, dtype=np.float64)
    )
    if len(scores) != len(chats):
        raise InputError(
            f"{len(scores)} losses were given for {len(chats)} chats; pass one for each"
        )
    rows = sorted(np.argsort(-scores, kind="stable")[:count])
    return chats.select([chats.ids[i] for i in rows])


@torch.no_grad()
def answer_losses(model: nn.Module, chats: PromptSet, tokenizer: Any) -> Float[np.ndarray, " chat"]:
    """Mean negative log-likelihood of each chat's answer, nats per token, with dropout off.

    Raises:
        InputError: as `encode_answers`; a chat longer than the model's context.
    """
    rows = encode_answers(chats, tokenizer)
    LengthLimit(context_of(model)).require_fit(rows, "chats")
    training, device = model.training, next(model.parameters()).device
    model.eval()
    losses = []
    for start in range(0, len(rows), SCORED_AT_ONCE):
        padded = pad_batch(rows[start : start + SCORED_AT_ONCE], tokenizer.pad_token_id or 0)
        batch = {name: values.to(device) for name, values in padded.items()}
        labels = labels_of_next_tokens(batch.pop("labels"))
        counted = labels != IGNORED
        logprobs = counted_logits(model, batch, counted).double().log_softmax(-1)
        of_label = torch.zeros(labels.shape, dtype=torch.float64, device=device)
        of_label[counted] = -logprobs.gather(-1, labels[counted][:, None])[:, 0]
        losses.append((of_label.sum(-1) / counted.sum(-1)).cpu().numpy())
    model.train(training)
    return np.concatenate(losses)
