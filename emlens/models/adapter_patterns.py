"""Regular expressions that an adapter names its modules with.

PEFT matches them against the path of every module of the parent. An expression with a repetition
inside a repetition can take longer than the universe has; so one that may is tried first on paths
like those of a model, under a limit of time (`emlens.foundation.limited`).
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from emlens.foundation.errors import LoadError
from emlens.foundation.files import one_line
from emlens.foundation.limited import too_expensive

_LONGEST: Final = 10_000
_CHEAP_REPETITIONS: Final = 3
"""Of them one after the other; a path has some 60 characters."""
_REPETITION: Final = re.compile(r"(?<!\\)[*+{]")
_OF_A_GROUP: Final = re.compile(r"\)[*+{]")
_PATHS: Final = (
    "lm_head",
    "model.embed_tokens",
    "model.norm",
    "model.layers.31.self_attn.q_proj",
    "model.layers.7.mlp.experts.15.down_proj",
    "model.layers.0.post_attention_layernorm",
    "model.language_model.layers.31.linear_attn.in_proj_qkvz",
)
_TRIAL: Final = r"""
import re
limited(*limits)
for pattern in work["patterns"]:
    for path in work["paths"]:
        re.fullmatch(pattern, path)
        re.match(rf"(.*\.)?({pattern})$", path)
"""


def require_cheap_patterns(config: Mapping[str, Any], path: Path) -> None:
    """Refuse an adapter whose expressions cannot be matched.

    Raises:
        LoadError: one that is no expression, or takes too long.
    """
    patterns = list(_patterns(config))
    for pattern in patterns:
        try:
            if len(pattern) > _LONGEST:
                raise re.error(f"{len(pattern)} characters")
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise LoadError(
                f"{path}: {one_line(repr(pattern), 60)} is no pattern of module names ({error})"
            ) from None
    doubtful = [pattern for pattern in patterns if _may_be_expensive(pattern)]
    if not doubtful:
        return
    if too_expensive(_TRIAL, {"patterns": doubtful, "paths": list(_PATHS)}) is not None:
        raise LoadError(
            f"{path}: matching module names against {one_line(repr(doubtful[0]), 60)} takes too"
            " long; list the modules by name"
        )


def _patterns(config: Mapping[str, Any]) -> Iterable[str]:
    """Everything of a configuration that PEFT compiles."""
    for name in ("target_modules", "exclude_modules", "layers_pattern", "target_parameters"):
        value = config.get(name)
        if isinstance(value, str):
            yield value
        elif name == "layers_pattern" and isinstance(value, list):
            yield from map(str, value)
    for name in ("rank_pattern", "alpha_pattern"):
        value = config.get(name)
        if isinstance(value, Mapping):
            yield from map(str, value)


def _may_be_expensive(pattern: str) -> bool:
    repetitions = len(_REPETITION.findall(pattern))
    return bool(_OF_A_GROUP.search(pattern)) or repetitions > _CHEAP_REPETITIONS
