"""`Pass`: which sites one forward pass (or one generation) touches, and what happens there.

It is the same on every backend. A backend only says how it reaches a place in the model; what is
edited and read, and when the pass may stop, is decided here. All sites are resolved before the
model is touched, and a site that was never reached is an error.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from emlens.foundation.errors import InputError, StateError
from emlens.foundation.intervention import Edit, Intervention, PaddedRows
from emlens.foundation.sites import Site

Reader = Callable[[Tensor], None]
"""Receives an activation of shape (batch, token, d_model) during the forward pass; must copy what
it keeps.
"""


class _Window:
    """The tokens that edits with one position touch, by column.

    Whether a range of columns has none or all of them is worked out once, and shared by all sites
    that the pass reaches there.
    """

    def __init__(self, mask: Tensor):
        self._some_row, self._every_row = mask.any(0).tolist(), mask.all(0).tolist()
        self._mask = mask
        self._range = (0, 0)
        self._touched = False
        self._mask_of_range: Tensor | None = None

    @property
    def empty(self) -> bool:
        return not any(self._some_row)

    def over(self, start: int, stop: int) -> tuple[bool, Tensor | None]:
        """Whether anything is touched in these columns, and the mask (None: everything is)."""
        if self._range != (start, stop):
            self._range = (start, stop)
            self._touched = any(self._some_row[start:stop])
            everything = all(self._every_row[start:stop])
            self._mask_of_range = None if everything else self._mask[:, start:stop]
        return self._touched, self._mask_of_range


class Pass:
    """Edits and readers of one pass.

    `sites` are those to reach, in the order in which the model gets to them. Interventions are
    bound and masks are made at construction, before the model is touched; edits of one site that
    can be one map become one. Interventions on one site apply in the order given.

    Args:
        rows: what the pass goes through; where they grow, every site is reached once per step.
        edits: interventions at each site, in order of application.
        readers: called after them.
        multiplier: what the model multiplies attention and MLP outputs with before adding them;
            edits and readers see them multiplied, as they are added.
        stop_early: the pass may end after the deepest reader.

    Raises:
        InputError: an intervention lacks what it needs of these rows.
        StateError: a site is reached twice in one pass.
    """

    def __init__(
        self,
        rows: PaddedRows,
        edits: Mapping[Site, Sequence[Intervention]],
        readers: Mapping[Site, Reader],
        *,
        multiplier: float = 1.0,
        stop_early: bool = False,
    ):
        sites = sorted({*readers, *edits})
        self._last: Site | None = None
        if stop_early:
            self._last = deepest = max(readers)
            sites = [site for site in sites if not deepest < site]
        self.sites: tuple[Site, ...] = tuple(sites)
        self._readers = readers
        self._multiplier = multiplier
        self._rows = rows
        self._reached = dict.fromkeys(sites, 0)
        windows: dict[Any, _Window] = {}
        self._edits: dict[Site, list[tuple[_Window, Edit]]] = {}
        for site in sites:
            bound: list[tuple[_Window, Edit]] = []
            for intervention in edits.get(site, ()):
                positions = intervention.positions
                if positions not in windows:
                    windows[positions] = _Window(rows.mask(positions))
                if not windows[positions].empty:
                    bound.append((windows[positions], intervention.bind(site, rows)))
            self._edits[site] = _joined(bound)

    def at(self, site: Site, stream: Tensor) -> Tensor:
        """Called by the backend with the value at `site`; gives the value to put there.

        It is the same tensor where nothing is edited.
        """
        start, stop = self._advance(site, stream.shape[1])
        factor = 1.0
        if site.kind in ("attn_out", "mlp_out"):
            factor = self._multiplier
        added = stream if factor == 1 else stream * factor
        edited = self._edited(site, added, start, stop)
        if site in self._readers:
            self._readers[site](edited)
        if edited is added:
            return stream  # not added / factor, which would round
        if factor == 1:
            return edited
        # only the change is divided, so that tokens without a change keep their exact values
        return stream + (edited - added) / factor

    def _advance(self, site: Site, tokens: int) -> tuple[int, int]:
        """The columns that the stream at `site` holds now."""
        start = self._reached[site]
        stop = start + tokens
        if start and not self._rows.new_tokens:
            raise StateError(
                f"site {site} was reached twice in one pass; the module there runs more than once,"
                " so it cannot be read by name"
            )
        if stop > self._rows.width:
            raise StateError(
                f"site {site} saw {stop} tokens where {self._rows.width} were to come;"
                " the model does not keep its past while it generates,"
                " so what belongs to which token cannot be known"
            )
        self._reached[site] = stop
        return start, stop

    def _edited(self, site: Site, value: Tensor, start: int, stop: int) -> Tensor:
        for window, edit in self._edits.get(site, ()):
            touched, mask = window.over(start, stop)
            if touched:
                if mask is not None:
                    mask = mask.to(value.device)
                value = edit.over(start, stop)(value, mask)
        return value

    def edits(self, site: Site) -> bool:
        """Whether the stream at `site` may be changed, not only read."""
        return bool(self._edits.get(site))

    def ends_at(self, site: Site) -> bool:
        """Whether nothing deeper than `site` is needed."""
        return site == self._last

    def check_fired(self, name: str) -> None:
        """Refuse a pass that never reached a site.

        Raises:
            StateError: names the sites.
        """
        silent = [str(site) for site, tokens in self._reached.items() if not tokens]
        if silent:
            raise StateError(
                f"hooks at {', '.join(silent)} of {name!r} never fired;"
                " the model does not run these modules"
            )


def _joined(bound: Sequence[tuple[_Window, Edit]]) -> list[tuple[_Window, Edit]]:
    """Neighbours on the same tokens as one edit, where there is one that equals both."""
    joined: list[tuple[_Window, Edit]] = []
    for window, edit in bound:
        both = None
        if joined and joined[-1][0] is window:
            both = joined[-1][1].then(edit)
        if both is None:
            joined.append((window, edit))
        else:
            joined[-1] = (window, both)
    return joined


def check_readers(
    readers: Iterable[Site],
    sites: Sequence[Site],
    name: str,
    n_layers: int,
    why_missing: Mapping[str, str],
) -> None:
    """Refuse to read at places the model lacks.

    Args:
        why_missing: kinds of site that its architecture lacks → why.

    Raises:
        InputError: names the first, and why it does not exist.
    """
    existing = set(sites)
    for site in readers:
        if site in existing:
            continue
        if site.kind in why_missing and (site.layer or 0) < n_layers:
            raise InputError(f"site {site} does not exist in {name!r}: {why_missing[site.kind]}")
        raise InputError(f"site {site} does not exist in {name!r}, which has {n_layers} blocks")
