"""nnsight as a backend: the same places, reached through a trace.

nnsight reads the source of the `with` block below, so traces live in this file only and it cannot
run from a zip. It mounts `.save` on every Python object when it is imported; nothing else in emlens
imports it. Locations are asked for in the order in which the model reaches them, and readers are
called inside the trace, so nothing has to be saved. Cost: a switch between two greenlets at every
site.
"""

import warnings
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any

from torch import Tensor

from emlens.foundation.sites import Site
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
        found: list[Any] = []
        run: Any = self.module
        if what != "model":
            run = (
                run.generate if what == "generate" else run.get_submodule(self.architecture.decoder)
            )

        def call(**given: Any) -> Any:
            found.append(run(**given))
            return found[-1]

        with ExitStack() as stack:
            if what == "generate":
                without_own_options(stack, self.module)
            if not places:
                return call(**inputs)
            # a place the model never reached; the pass itself names it
            stack.enter_context(suppress(OutOfOrderError))
            if what == "generate":
                stack.enter_context(warnings.catch_warnings())
                warnings.filterwarnings(
                    "ignore", message=".*was never reached: the loop asked for a step"
                )
                _every_step(root, call, inputs, places, passing)
            else:
                _one_pass(root, call, inputs, places, passing)
        return found[-1] if found else None


class _Place:
    """A location of a trace: the first input, or the output, of one module."""

    def __init__(self, root: Any, site: Site, path: str, before: bool):
        self.site = site
        self._envoy = _walk(root, path)
        self._before = before

    def visit(self, passing: Pass) -> None:
        """Inside a trace: wait for the value, hand it to the pass, and put back what it gives."""
        output = self._envoy.input if self._before else self._envoy.output
        stream: Tensor = output[0] if isinstance(output, tuple) else output
        value = passing.at(self.site, stream)
        if not passing.edits(self.site):
            return
        if self._before:
            self._envoy.input = value
        else:
            self._envoy.output = (value, *output[1:]) if isinstance(output, tuple) else value


def _walk(root: Any, path: str) -> Any:
    found = root
    for part in path.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    return found


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
