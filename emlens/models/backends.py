"""Names of backends → classes.

Where the package of a backend is missing, or has another version, the error says what to install.
"""

import re
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from emlens.foundation.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from emlens.models.checkpoint import CheckpointModel

BACKENDS = ("transformers", "transformer_lens", "nnsight")
_EXTRAS = {"transformer_lens": ("transformer-lens", (4,)), "nnsight": ("nnsight", (0, 8))}
"""Distribution (also the name of our extra) and the first numbers of the versions that fit."""


def backend_class(name: str) -> "type[CheckpointModel]":
    """The class of a backend.

    Raises:
        InputError: no backend of that name.
        MissingExtraError: its package is not installed, or in a version that does not fit.
    """
    if name not in BACKENDS:
        raise InputError(
            f"backend {name!r} is unknown; pass one of {', '.join(BACKENDS)}",
            name=name,
            known=BACKENDS,
        )
    if name in _EXTRAS:
        _check_extra(name)
    if name == "transformer_lens":
        from emlens.models.transformer_lens_backend import TransformerLensModel

        return TransformerLensModel
    if name == "nnsight":
        from emlens.models.nnsight_backend import NNsightModel

        return NNsightModel
    from emlens.models.transformers_backend import TransformersModel

    return TransformersModel


def installed_backends() -> list[str]:
    """The backends that can be used here, the reference first."""
    installed = []
    for name in BACKENDS:
        try:
            backend_class(name)
        except MissingExtraError:
            continue
        installed.append(name)
    return installed


def _check_extra(name: str) -> None:
    package, needed = _EXTRAS[name]
    line = f"backend {name!r} needs {package} {'.'.join(map(str, needed))}"
    try:
        installed = version(package)
    except PackageNotFoundError:
        raise MissingExtraError(
            f"{line}, which is not installed; run: pip install 'misalignment-lens[{package}]'"
        ) from None
    numbers = tuple(map(int, re.findall(r"\d+", installed)))
    if numbers[: len(needed)] != needed:
        raise MissingExtraError(
            f"{line}, but {installed} is installed; run: pip install 'misalignment-lens[{package}]'"
        )
