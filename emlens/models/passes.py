"""One forward pass, or one generation: which sites are touched, and what happens there. The same on
every backend.

A backend only says how it reaches a place in the model; what is edited, read and when the pass may
stop is decided here. All sites are resolved before the model is touched, and a site that was never
reached is an error.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from emlens.foundation.errors import InputError, StateError
from emlens.foundation.intervention import Edit, Intervention, PaddedRows
from emlens.foundation.sites import Site

Reader = Callable[[Tensor], None]
"""Receives an activation of shape (batch, token, d_model) during the forward pass; must copy what
it keeps.
"""


class _Window:
    """The tokens that edits of one scope touch, by column, and whether a range of columns has none
    or all of them.

    What holds for a range is worked out once and shared by all sites that the pass reaches there.
    """

    def __init__(self, mask: Tensor):
        self._some, self._all = mask.any(0).tolist(), mask.all(0).tolist()
        self._mask = mask
        self._last: tuple[int, int, bool, Tensor | None] = (0, 0, False, None)

    @property
    def empty(self) -> bool:
        return not any(self._some)

    def over(self, start: int, stop: int) -> tuple[bool, Tensor | None]:
        """Whether anything is touched there, and the mask (None: everything is)."""
        if self._last[:2] != (start, stop):
            touched, whole = any(self._some[start:stop]), all(self._all[start:stop])
            self._last = (start, stop, touched, None if whole else self._mask[:, start:stop])
        return self._last[2:]


class Pass:
    """Edits and readers of one pass. `sites` are those to reach, in the order in which the model
    gets to them.

    Everything is bound and every mask is made here, before the model is touched; edits of one site
    that can be one map become one. Interventions on one site apply in the order given.

    Args:
        rows: what the pass goes through; where they grow, every site is reached once a step.
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
        wanted = sorted({*readers, *edits})
        if stop_early:
            deepest = max(readers)
            wanted = [site for site in wanted if not deepest < site]
        self.sites: tuple[Site, ...] = tuple(wanted)
        self._readers = readers
        self._multiplier = multiplier
        self._last = wanted[-1] if stop_early else None
        self._rows = rows
        self._reached = dict.fromkeys(wanted, 0)
        scopes = {edit.positions for site in wanted for edit in edits.get(site, ())}
        windows = {positions: _Window(rows.mask(positions)) for positions in scopes}
        self._edits: dict[Site, list[tuple[_Window, Edit]]] = {}
        for site in wanted:
            touching = [edit for edit in edits.get(site, ()) if not windows[edit.positions].empty]
            self._edits[site] = _joined(
                [(windows[edit.positions], edit.bind(site, rows)) for edit in touching]
            )

    def at(self, site: Site, stream: Tensor) -> Tensor:
        """Called by the backend with what stands at `site`; returns what shall stand there (the
        same tensor where nothing is edited).
        """
        start = self._reached[site]
        stop = start + stream.shape[1]
        if start and not self._rows.new_tokens:
            raise StateError(
                f"site {site} was reached twice in one pass; the module there runs more than once,"
                " so it cannot be read by name"
            )
        if stop > self._rows.width:
            raise StateError(
                f"site {site} saw {stop} tokens where {self._rows.width} were to come;"
                " the model does not keep its past while it generates,"
                " so what belongs to which token cannot be told"
            )
        self._reached[site] = stop
        factor = self._multiplier if site.kind in ("attn_out", "mlp_out") else 1.0
        value = given = stream if factor == 1 else stream * factor
        for window, edit in self._edits.get(site, ()):
            touched, mask = window.over(start, stop)
            if touched:
                value = edit.over(start, stop)(
                    value, None if mask is None else mask.to(value.device)
                )
        if site in self._readers:
            self._readers[site](value)
        if value is given:
            return stream
        return value if factor == 1 else stream + (value - given) / factor

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
    found: list[tuple[_Window, Edit]] = []
    for window, edit in bound:
        both = found[-1][1].then(edit) if found and found[-1][0] is window else None
        if both is None:
            found.append((window, edit))
        else:
            found[-1] = (window, both)
    return found


def check_readers(readers: Iterable[Site], sites: Sequence[Site], name: str, n_layers: int) -> None:
    """Refuse to read at places the model lacks.

    Raises:
        InputError: names the first, and why it does not exist.
    """
    known = set(sites)
    for site in readers:
        if site in known:
            continue
        if site.layer is not None and site.layer < n_layers:
            raise InputError(
                f"site {site} does not exist in {name!r}: its blocks run attention and MLP side by"
                " side, so no stream lies between them; read resid_pre, attn_out,"
                " mlp_out or resid_post"
            )
        raise InputError(f"site {site} does not exist in {name!r}, which has {n_layers} blocks")
