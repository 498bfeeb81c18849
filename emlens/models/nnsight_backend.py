"""nnsight as a backend: the same places, reached through a trace.

nnsight reads the source of the `with` blocks below, so traces are in this file only and it cannot
run from a zip. It mounts `.save` on every Python object when it is imported; nothing else in emlens
imports it. Locations are visited in the order in which the model reaches them, and readers are
called inside the trace, so nothing has to be saved. Cost: a switch between two greenlets at every
site.
"""

import warnings
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any

from emlens.foundation.sites import Site
from emlens.models.block_outputs import stream_of, with_stream
from emlens.models.checkpoint import Call, CheckpointModel, without_own_options
from emlens.models.passes import Pass


class NNsightModel(CheckpointModel):
    """A `HookedModel` by nnsight traces on the module itself."""

    backend = "nnsight"

    def _call(self, what: Call, inputs: Mapping[str, Any], passing: Pass) -> Any:
        from nnsight import NNsight
        from nnsight.intervention.interleaver import OutOfOrderError

        root = self.bank.derived(NNsight)
        places = [_Place(root, site, *self._place(site)) for site in passing.sites]
        run = self._callable(what)
        outputs: list[Any] = []

        def call(**arguments: Any) -> Any:
            outputs.append(run(**arguments))
            return outputs[-1]

        with ExitStack() as stack:
            if what == "generate":
                without_own_options(stack, self.module)
            if not places:
                return call(**inputs)
            # nnsight raises it where the model never reached a place; the pass itself names the
            # place
            stack.enter_context(suppress(OutOfOrderError))
            if what == "generate":
                stack.enter_context(warnings.catch_warnings())
                warnings.filterwarnings(
                    "ignore", message=".*was never reached: the loop asked for a step"
                )
                _every_step(root, call, inputs, places, passing)
            else:
                _one_pass(root, call, inputs, places, passing)
        if not outputs:  # the pass ended early
            return None
        return outputs[-1]

    def _callable(self, what: Call) -> Any:
        module: Any = self.module
        if what == "model":
            return module
        if what == "generate":
            return module.generate
        return module.get_submodule(self.architecture.decoder)


class _Place:
    """A location of a trace: the first input, or the output, of one module."""

    def __init__(self, root: Any, site: Site, path: str, before: bool):
        self.site = site
        self._envoy = _walk(root, path)
        self._before = before

    def visit(self, passing: Pass) -> None:
        """Inside a trace: wait for the value, hand it to the pass, and put back what it gives."""
        if self._before:
            value = passing.at(self.site, self._envoy.input)
            if passing.edits(self.site):
                self._envoy.input = value
            return
        output = self._envoy.output
        edited = with_stream(output, passing.at(self.site, stream_of(output)))
        if passing.edits(self.site):
            self._envoy.output = edited


def _walk(root: Any, path: str) -> Any:
    """The envoy of a module, by the path of the module."""
    envoy = root
    for name in path.split("."):
        envoy = envoy[int(name)] if name.isdigit() else getattr(envoy, name)
    return envoy


def _one_pass(
    root: Any, call: Any, inputs: Mapping[str, Any], places: list[_Place], passing: Pass
) -> None:
    with root.trace(fn=call, **inputs) as tracer:
        for place in places:
            place.visit(passing)
            if passing.ends_at(place.site):
                tracer.stop()


def _every_step(
    root: Any, call: Any, inputs: Mapping[str, Any], places: list[_Place], passing: Pass
) -> None:
    with root.trace(fn=call, **inputs) as tracer:
        for _ in tracer.iter[:]:
            for place in places:
                place.visit(passing)
