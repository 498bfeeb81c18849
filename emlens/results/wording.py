"""Words for sentences that hold in every grammatical case."""


def counted(n: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 seed", "3 seeds".

    Args:
        plural: where it is not the noun with an "s".
    """
    return f"{n} {noun_for(n, noun, plural)}"


def noun_for(n: int, noun: str, plural: str = "") -> str:
    """The noun alone, as it stands after the number."""
    if n == 1:
        return noun
    return plural or f"{noun}s"
