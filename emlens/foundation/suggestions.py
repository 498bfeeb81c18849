"""What a message adds to a name that does not exist: the name that was probably meant.

One function for every name there is: sites, positions, fine-tunes, metrics, questions, studies,
fields of a configuration, options. It adds nothing where no name is near, because a wrong guess
costs more than none.
"""

import difflib
from collections.abc import Iterable
from itertools import islice

MOST_COMPARED = 20_000
"""Names that are compared at most; of more the first ones."""
CUTOFF = 0.6
"""Share of characters in common from which a name counts as near, as difflib counts them."""
LONGEST = 80


def nearest(name: str, known: Iterable[object]) -> str | None:
    """The known name that is most like `name`, upper and lower case alike; None where none is."""
    by_lower: dict[str, str] = {}
    for each in islice(known, MOST_COMPARED):
        by_lower.setdefault(str(each).lower(), str(each))
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=CUTOFF)
    return by_lower[close[0]] if close else None


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """`; did you mean 'aligned'?` for the end of a message; empty where no name is near."""
    from emlens.foundation.files import one_line  # it imports the errors, which import this

    if not isinstance(name, str):
        return ""
    close = nearest(name, known)
    if close is None or close == name:
        return ""
    return f"; did you mean {one_line(close, LONGEST)!r}?"
