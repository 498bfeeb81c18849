"""The stream in what a module returns: a bare tensor, or the first entry of a tuple or list.

Decoder layers return a bare tensor in transformers 5, a tuple before and in some architectures
still. Element 0 of a bare tensor would be row 0 of the batch, so only tuples and lists are opened.
"""

from typing import Any


def stream_of(output: Any) -> Any:
    """The stream in the output of a module."""
    if isinstance(output, tuple | list) and output:
        return output[0]
    return output


def with_stream(output: Any, stream: Any) -> Any:
    """The output with another stream in its place."""
    if isinstance(output, tuple | list) and output:
        return type(output)((stream, *output[1:]))
    return stream
