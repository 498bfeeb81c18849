"""Quantisation as a mapping of fields, the way a YAML file gives it → the configuration that
transformers takes; and what a loaded model says of its own.
"""

import inspect
import json
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


def quantization_text(module: Any) -> str | None:
    """The quantisation of a loaded model as one line of JSON; None where its weights are whole."""
    config = getattr(module, "config", None)
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    record = quantization.to_dict() if hasattr(quantization, "to_dict") else quantization
    return one_line(json.dumps(record, sort_keys=True, default=str), 800)


def quantization_in_words(text: object) -> str:
    """Of what `quantization_text` gave, the kind: "4 bits (nf4)", "gptq"; "full precision" of
    None.
    """
    if text is None:
        return "full precision"
    try:
        fields = json.loads(str(text))
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        return "an unknown quantisation"
    if not fields.get("load_in_4bit"):
        return one_line(str(fields.get("quant_method", "an unknown quantisation")), 40)
    kind = one_line(str(fields.get("bnb_4bit_quant_type")), 20)
    return (
        f"4 bits ({kind}, double)"
        if fields.get("bnb_4bit_use_double_quant")
        else f"4 bits ({kind})"
    )


def _kind(fields: Mapping[str, Any]) -> str:
    """The name under which transformers lists the kind."""
    for bits in ("4bit", "8bit"):
        if fields.get(f"load_in_{bits}"):
            return f"bitsandbytes_{bits}"
    return str(fields.get("quant_method"))
