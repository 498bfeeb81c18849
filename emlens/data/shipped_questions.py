"""Question sets that come with the library, by name.

`traits` has twelve mild prompts over safety, factuality and politeness, with a judge prompt for
each of five metrics (docs/trait_questions.md). It serves a profile of models before anything is
trained. `advice` has 180 everyday questions of twelve domains with four answers each, for scores by
contrast (docs/advice.md); `advice-small` has the first three of each domain, in one wording.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from emlens.data.advice import advice_questions
from emlens.data.questions import QuestionSet
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.files import one_line

_ASSETS: Final = Path(__file__).parent / "assets"
SMALL: Final = 3
"""Questions of each domain in `advice-small`."""
SHIPPED: Final[Mapping[str, Callable[[], QuestionSet]]] = {
    "traits": partial(QuestionSet.from_yaml, _ASSETS / "traits.yaml"),
    "advice": advice_questions,
    "advice-small": partial(advice_questions, per_domain=SMALL, paraphrases=False),
}
"""Name → what reads the set."""


def shipped_questions(name: str) -> QuestionSet:
    """A question set of the library.

    Raises:
        UnknownNameError: no set of this name.
    """
    if name not in SHIPPED:
        raise UnknownNameError(
            f"no question set {one_line(name)!r} comes with emlens; pass one of"
            f" {', '.join(SHIPPED)}, or a file",
            name=name,
            known=SHIPPED,
        )
    return SHIPPED[name]()


def named_questions(name: str, path: str | Path) -> QuestionSet:
    """The questions of a file, or, where there is none, those that come with the library.

    Args:
        name: as it was written. path: where a file of that name would lie.

    Raises:
        InputError: no such file and no such name; a file that cannot be read.
    """
    if name in SHIPPED and not Path(path).is_file():
        return shipped_questions(name)
    try:
        return QuestionSet.from_file(path)
    except InputError as error:
        if Path(path).exists() or Path(path).suffix:
            raise
        raise InputError(
            f"{error}; sets that come with emlens are called {', '.join(SHIPPED)}"
        ) from None
