import pytest

from emlens.foundation import (
    EmlensError,
    InputError,
    IntegrityError,
    LoadError,
    MissingExtraError,
    StateError,
    UnknownNameError,
)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (InputError, ValueError),
        (UnknownNameError, KeyError),
        (LoadError, OSError),
        (MissingExtraError, ImportError),
        (StateError, RuntimeError),
        (IntegrityError, RuntimeError),
    ],
)
def test_every_error_is_ours_and_the_built_in_one(
    error: type[EmlensError], builtin: type[Exception]
) -> None:
    for caught in (EmlensError, builtin):
        with pytest.raises(caught, match="^what came; what to pass$"):
            raise error("what came; what to pass")
    assert str(error("it's 'quoted'")) == "it's 'quoted'"  # a KeyError alone would show its repr
    assert str(error()) == ""
