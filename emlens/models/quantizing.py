"""Quantisation as a mapping of fields, the way a YAML file gives it → the configuration that
transformers takes.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from emlens.data.configuration import FieldError, unknown_field
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line


def quantization_of(quantization: Any) -> Any:
    """The configuration of transformers for a mapping of its fields; anything else as it is.

    Args:
        quantization: such as `{"load_in_4bit": True}` or `{"quant_method": "quanto", ...}`.

    Raises:
        FieldError: a field that this kind of quantisation lacks; transformers would pass it over.
        InputError: a mapping that names no kind, or values that its kind refuses.
    """
    if not isinstance(quantization, Mapping):
        return quantization
    from transformers.quantizers.auto import (
        AUTO_QUANTIZATION_CONFIG_MAPPING,
        AutoQuantizationConfig,
    )

    fields = dict(quantization)
    kind = _kind(fields)
    if kind not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise InputError(
            f"quantization {one_line(repr(fields), 120)} names no kind that transformers knows;"
            " pass load_in_4bit: true, load_in_8bit: true or quant_method, one of"
            f" {', '.join(AUTO_QUANTIZATION_CONFIG_MAPPING)}"
        )
    known = inspect.signature(AUTO_QUANTIZATION_CONFIG_MAPPING[kind].__init__).parameters
    names = [name for name in known if name not in ("self", "kwargs")]
    for field in fields:
        if field not in (*names, "quant_method"):
            raise FieldError(
                f"field 'quantization.{one_line(str(field), 60)}': {unknown_field(field, names)}",
                (field,),
            )
    try:
        return AutoQuantizationConfig.from_dict(fields)
    except Exception as error:  # each kind checks its values in its own way
        raise InputError(
            f"quantization {one_line(repr(fields), 120)} cannot be used"
            f" ({one_line(str(error), 200)})"
        ) from None


def _kind(fields: Mapping[str, Any]) -> str:
    """The name under which transformers lists the kind."""
    for bits in ("4bit", "8bit"):
        if fields.get(f"load_in_{bits}"):
            return f"bitsandbytes_{bits}"
    return str(fields.get("quant_method"))
