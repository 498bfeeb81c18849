"""`TokenRows`: the prompts of a capture as token ids, held compactly.

Ids lie in one integer array, not as one Python object per token: a prompt of 60 tokens costs about
250 bytes here against 2,500 as tuples. So the memory of a capture is nearly independent of how many
prompts it has. Positions given as callables are resolved once, here.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from emlens.data.prompts import Prompt
from emlens.data.rendering import Rendered, row_text
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.positions import Chosen, Position, RowSpans
from emlens.models.families import check_same_rows
from emlens.models.hooked import HookedModel

_CHUNK = 1024
"""Prompts rendered at once, so that at most this number exist as Python objects."""
_LISTED = "listed@"
_LISTED_OFFSETS = "listed_offsets@"
_N_BOUNDARIES = 3


class TokenRows:
    """Rendered rows in prompt order: ids, groups, token ids and boundaries.

    `boundaries` holds of each row where its prompt ends, and where its answer begins and ends
    (`RowSpans`). `listed` holds the token indices of positions given as callables, by the
    position's name: the indices of all rows one after another, and the offsets of the rows in them.
    """

    def __init__(
        self,
        ids: Sequence[str],
        groups: Sequence[str],
        tokens: Int[Tensor, " token"],
        offsets: Int[Tensor, " row_plus_1"],
        boundaries: Int[Tensor, "row 3"],
        listed: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ):
        self.ids = list(ids)
        self.groups = list(groups)
        self.tokens = tokens
        self.offsets = offsets
        self.boundaries = boundaries
        self.listed = dict(listed or {})
        self.lengths: list[int] = (offsets[1:] - offsets[:-1]).tolist()

    @classmethod
    def from_rendered(cls, chunks: Iterable[Sequence[Rendered]]) -> "TokenRows":
        ids: list[str] = []
        groups: list[str] = []
        tokens, boundaries, offsets = array("i"), array("i"), array("q", [0])
        for rows in chunks:
            for row in rows:
                ids.append(row.id)
                groups.append(row.group)
                tokens.extend(row.ids)
                boundaries.extend((row.prompt_end, *row.spans.content))
                offsets.append(len(tokens))
        return cls(
            ids,
            groups,
            # frombuffer shares the memory of the arrays, which are not changed from here on
            torch.frombuffer(tokens, dtype=torch.int32),
            torch.frombuffer(offsets, dtype=torch.int64),
            torch.frombuffer(boundaries, dtype=torch.int32).view(-1, _N_BOUNDARIES),
        )

    @classmethod
    def render(cls, model: HookedModel, prompts: Sequence[Prompt]) -> "TokenRows":
        """Render prompts as `model` reads them.

        Raises:
            InputError: what rendering refuses.
        """
        if len(prompts) <= _CHUNK:
            return cls.from_rendered([model.render(prompts)])
        return cls.from_rendered(_rendered_chunks(model, prompts))

    def __len__(self) -> int:
        return len(self.ids)

    def rendered(self, row: int) -> Rendered:
        start, stop = int(self.offsets[row]), int(self.offsets[row + 1])
        return Rendered(
            self.ids[row],
            self.groups[row],
            tuple(self.tokens[start:stop].tolist()),
            *self.boundaries[row].tolist(),
        )

    def token_ids(self) -> list[Int[np.ndarray, " _"]]:
        """Token ids of each row; views of the one array."""
        return np.split(self.tokens.numpy(), self.offsets[1:-1].numpy())

    def _spans(self, row: int) -> RowSpans:
        return RowSpans(self.lengths[row], *self.boundaries[row].tolist())

    def resolve_positions(self, positions: Sequence[Position]) -> None:
        """Check that every position exists in every row, and list the tokens of callables.

        Raises:
            InputError: names the first prompt and position that do not fit.
        """
        choices = {p.name: _ListedTokens() for p in positions if isinstance(p, Chosen)}
        for row in range(len(self)):
            spans = self._spans(row)
            ids: Sequence[int] = range(self.lengths[row])
            if choices:  # only callables look at the ids, and reading them takes time
                ids = self.rendered(row).ids
            for position in positions:
                try:
                    tokens = position.tokens(ids, spans)
                except InputError as error:
                    raise InputError(f"prompt {one_line(self.ids[row], 60)!r}: {error}") from None
                if position.name in choices:
                    choices[position.name].add_row(tokens)
        for name, choice in choices.items():
            self.listed[name] = choice.tensors()

    def indices(self, position: Position, row: int) -> list[int]:
        """Token indices of a position inside one row.

        `resolve_positions` comes first where the position is a callable.
        """
        if position.name in self.listed:
            flat, offsets = self.listed[position.name]
            tokens: list[int] = flat[int(offsets[row]) : int(offsets[row + 1])].tolist()
            return tokens
        return position.tokens(range(self.lengths[row]), self._spans(row))

    @property
    def sha256(self) -> str:
        """Over ids, boundaries and token ids in order; equal to `rendered_hash`."""
        digest = hashlib.sha256()
        for i in range(len(self)):
            if i > 0:
                digest.update(b"\n")
            digest.update(row_text(self.rendered(i)).encode())
        return digest.hexdigest()

    def check_same_ids(
        self, reference: HookedModel, model: HookedModel, prompts: Sequence[Prompt]
    ) -> None:
        """Refuse a model that reads these prompts as other ids, or as other tokens by the same ids.

        Args:
            reference: the model that rendered these rows.

        Raises:
            InputError: names the first prompt that differs.
        """
        same_tokenizer = model.tokenizer is reference.tokenizer
        if same_tokenizer and model.chat_template == reference.chat_template:
            return
        if self._has_same_tokens(TokenRows.render(model, prompts)):
            ids = self.tokens.unique().tolist()
            # equal ids are not enough: two vocabularies may give one id to different tokens
            names = model.tokenizer.convert_ids_to_tokens(ids)
            if reference.tokenizer.convert_ids_to_tokens(ids) == names:
                return
        # something differs: prompt by prompt, so that the error names the first
        for prompt in prompts:
            check_same_rows(reference, model, [prompt])

    def _has_same_tokens(self, rows: "TokenRows") -> bool:
        return (
            torch.equal(self.tokens, rows.tokens)
            and torch.equal(self.offsets, rows.offsets)
            and torch.equal(self.boundaries, rows.boundaries)
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """What a store keeps of the rows beside their ids."""
        tensors = {"tokens": self.tokens, "offsets": self.offsets, "boundaries": self.boundaries}
        for name, (flat, offsets) in self.listed.items():
            tensors[_LISTED + name] = flat
            tensors[_LISTED_OFFSETS + name] = offsets
        return tensors

    @classmethod
    def from_tensors(
        cls, ids: Sequence[str], groups: Sequence[str], tensors: Mapping[str, Any]
    ) -> "TokenRows":
        listed = {}
        for key in tensors:
            if key.startswith(_LISTED):
                name = key.removeprefix(_LISTED)
                listed[name] = (tensors[key], tensors[_LISTED_OFFSETS + name])
        return cls(
            ids, groups, tensors["tokens"], tensors["offsets"], tensors["boundaries"], listed
        )


class _ListedTokens:
    """Token indices of one callable position, row by row."""

    def __init__(self) -> None:
        self._flat: list[int] = []
        self._offsets = [0]

    def add_row(self, tokens: Sequence[int]) -> None:
        self._flat.extend(tokens)
        self._offsets.append(len(self._flat))

    def tensors(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self._flat, dtype=torch.int32), torch.tensor(self._offsets)


def _rendered_chunks(model: HookedModel, prompts: Sequence[Prompt]) -> Iterator[list[Rendered]]:
    for start in range(0, len(prompts), _CHUNK):
        yield model.render(prompts[start : start + _CHUNK], remember=False)
