"""The rows of a capture, held compactly: token ids in one integer array, not a Python object a
token.

A prompt of 60 tokens costs about 250 bytes here against 2,500 as tuples, which is what keeps the
memory of a capture nearly independent of how many prompts it has. Positions given as callables are
resolved once, here.
"""

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from emlens.data.prompts import Prompt
from emlens.data.rendering import Rendered
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.positions import Chosen, Position, RowSpans
from emlens.models.families import check_same_rows
from emlens.models.hooked import HookedModel

_CHUNK = 1024
"""Prompts rendered at once, so that only so many exist as Python objects."""


class CaptureRows:
    """Rendered rows in prompt order: ids, groups, token ids, prompt boundaries; token indices of
    listed positions.
    """

    def __init__(
        self,
        ids: Sequence[str],
        groups: Sequence[str],
        tokens: Int[Tensor, " token"],
        offsets: Int[Tensor, " row_plus_1"],
        prompt_ends: Int[Tensor, " row"],
        listed: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ):
        self.ids = list(ids)
        self.groups = list(groups)
        self.tokens = tokens
        self.offsets = offsets
        self.prompt_ends = prompt_ends
        self.listed = dict(listed or {})
        self.lengths: list[int] = (offsets[1:] - offsets[:-1]).tolist()

    @classmethod
    def from_rendered(cls, chunks: Iterable[Sequence[Rendered]]) -> "CaptureRows":
        ids: list[str] = []
        groups: list[str] = []
        tokens, ends, offsets = array("i"), array("i"), array("q", [0])
        for rows in chunks:
            for row in rows:
                ids.append(row.id)
                groups.append(row.group)
                tokens.extend(row.ids)
                ends.append(row.prompt_end)
                offsets.append(len(tokens))
        whole = torch.frombuffer(tokens, dtype=torch.int32)
        return cls(
            ids,
            groups,
            whole,
            torch.frombuffer(offsets, dtype=torch.int64),
            torch.frombuffer(ends, dtype=torch.int32),
        )

    @classmethod
    def of(cls, model: HookedModel, prompts: Sequence[Prompt]) -> "CaptureRows":
        """Render prompts as `model` reads them.

        Raises:
            InputError: what rendering refuses.
        """
        if len(prompts) <= _CHUNK:
            return cls.from_rendered([model.render(prompts)])
        chunks = (prompts[i : i + _CHUNK] for i in range(0, len(prompts), _CHUNK))
        return cls.from_rendered(model.render(chunk, remember=False) for chunk in chunks)

    def __len__(self) -> int:
        return len(self.ids)

    def rendered(self, row: int) -> Rendered:
        start, stop = int(self.offsets[row]), int(self.offsets[row + 1])
        return Rendered(
            self.ids[row],
            self.groups[row],
            tuple(self.tokens[start:stop].tolist()),
            int(self.prompt_ends[row]),
        )

    def resolve(self, positions: Sequence[Position]) -> None:
        """Check that every position exists in every row, before the first pass; keep what callables
        choose.

        Raises:
            InputError: names the first prompt and position that do not fit.
        """
        found: dict[str, tuple[list[int], list[int]]] = {
            p.name: ([], [0]) for p in positions if isinstance(p, Chosen)
        }
        for i in range(len(self)):
            spans = RowSpans(self.lengths[i], int(self.prompt_ends[i]))
            # only callables look at the ids
            ids = self.rendered(i).ids if found else range(self.lengths[i])
            for position in positions:
                try:
                    kept = position.tokens(ids, spans)
                except InputError as error:
                    raise InputError(f"prompt {one_line(self.ids[i], 60)!r}: {error}") from None
                if position.name in found:
                    flat, offsets = found[position.name]
                    flat.extend(kept)
                    offsets.append(len(flat))
        for name, (flat, offsets) in found.items():
            self.listed[name] = (torch.tensor(flat, dtype=torch.int32), torch.tensor(offsets))

    def indices(self, position: Position, row: int) -> list[int]:
        """Token indices of a position inside one row; `resolve` comes first for positions given as
        callables.
        """
        if position.name in self.listed:
            flat, offsets = self.listed[position.name]
            return [int(t) for t in flat[int(offsets[row]) : int(offsets[row + 1])].tolist()]
        return position.tokens(
            range(self.lengths[row]), RowSpans(self.lengths[row], int(self.prompt_ends[row]))
        )

    @property
    def sha256(self) -> str:
        """As `emlens.data.rendering.rendered_hash`: over ids, prompt boundaries and token ids, in
        order.
        """
        digest = hashlib.sha256()
        for i in range(len(self)):
            row = self.rendered(i)
            line = f"{row.id}\x1f{row.prompt_end}\x1f{','.join(map(str, row.ids))}"
            digest.update(("\n" * (i > 0) + line).encode())
        return digest.hexdigest()

    def check_other(
        self, reference: HookedModel, other: HookedModel, prompts: Sequence[Prompt]
    ) -> None:
        """Refuse a model that reads these prompts as other ids, or calls one of their ids by
        another token.

        Raises:
            InputError: names the first prompt that differs.
        """
        if (
            other.tokenizer is reference.tokenizer
            and other.chat_template == reference.chat_template
        ):
            return
        theirs = CaptureRows.of(other, prompts)
        same = torch.equal(self.tokens, theirs.tokens) and torch.equal(self.offsets, theirs.offsets)
        if same and torch.equal(self.prompt_ends, theirs.prompt_ends):
            used = self.tokens.unique().tolist()
            if reference.tokenizer.convert_ids_to_tokens(
                used
            ) == other.tokenizer.convert_ids_to_tokens(used):
                return
        for prompt in prompts:
            check_same_rows(reference, other, [prompt])

    def tensors(self) -> dict[str, Tensor]:
        """What a store keeps of the rows beside their ids."""
        kept = {"tokens": self.tokens, "offsets": self.offsets, "prompt_ends": self.prompt_ends}
        for name, (flat, offsets) in self.listed.items():
            kept |= {f"listed@{name}": flat, f"listed_offsets@{name}": offsets}
        return kept

    @classmethod
    def from_tensors(
        cls, ids: Sequence[str], groups: Sequence[str], tensors: Mapping[str, Any]
    ) -> "CaptureRows":
        names = [name.removeprefix("listed@") for name in tensors if name.startswith("listed@")]
        listed = {
            name: (tensors[f"listed@{name}"], tensors[f"listed_offsets@{name}"]) for name in names
        }
        return cls(
            ids, groups, tensors["tokens"], tensors["offsets"], tensors["prompt_ends"], listed
        )
