"""The status of a finding, from what its test showed."""


def verdict(*, shown: bool, not_shown: bool = False) -> str:
    """`"shown"`, `"not shown"` or, where neither holds, `"undecided"`; shown wins over both."""
    if shown:
        return "shown"
    if not_shown:
        return "not shown"
    return "undecided"
