"""Rendered prompts that a model remembers, since a study renders the same ones often."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from emlens.data.prompts import Prompt
from emlens.data.rendering import Rendered

REMEMBERED_TOKENS: Final = 2**23
"""Tokens of all remembered rows at most: some 350 MB. Beyond that all are forgotten."""
_OF_A_ROW: Final = 24
"""What a row costs beside its tokens, in tokens of some 40 bytes."""


class RememberedRows:
    """Prompt → its row of tokens, under one chat template."""

    def __init__(self) -> None:
        self._rows: dict[Prompt, Rendered] = {}
        self._tokens = 0

    def rows(
        self, prompts: Sequence[Prompt], render: Callable[[list[Prompt]], list[Rendered]]
    ) -> list[Rendered]:
        """The rows of prompts; `render` makes those that are not remembered.

        More prompts than can be remembered are rendered, and all are forgotten.
        """
        # by way of a dictionary of its own: another thread may make this one forget
        row_of = {prompt: self._rows.get(prompt) for prompt in prompts}
        new = [prompt for prompt, row in row_of.items() if row is None]
        if new:
            rendered = dict(zip(new, render(new), strict=True))
            row_of.update(rendered)
            self._remember(rendered)
        return [row for prompt in prompts if (row := row_of[prompt]) is not None]

    def _remember(self, rendered: Mapping[Prompt, Rendered]) -> None:
        self._rows.update(rendered)
        self._tokens += sum(_OF_A_ROW + len(row.ids) for row in rendered.values())
        if self._tokens > REMEMBERED_TOKENS:
            self._rows.clear()
            self._tokens = 0
