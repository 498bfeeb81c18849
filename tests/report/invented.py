"""A part that nobody made a section for: every kind of plot, facets, nulls, texts under the
pointer, a table that is missing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest

from emlens.results import Column, Part, Plot, Section, Table
from emlens.studies import Study, StudyContext, registry

HEAT = Plot(
    "heatmap",
    "cells",
    "layer",
    "value",
    "By layer and position",
    "Cells.",
    colour="position",
    null="null",
    y_title="overlap",
)
TITLE = "How do invented things go?"
INVENTED = [Column("value", "number", "nothing")]
SECTION = Section(
    method="They were invented.",
    reference="Nobody (2000).",
    tables={
        "runs": Table("One row per step.", INVENTED),
        "cells": Table("One row per layer and position.", INVENTED),
        "people": Table("One row per person.", INVENTED),
    },
    plots=(
        Plot(
            "line",
            "runs",
            "step",
            "loss",
            "Loss over steps",
            "With a band.",
            colour="model",
            facet="optimiser",
            null="null",
            hover=("seed",),
        ),
        Plot(
            "points",
            "runs",
            "loss",
            "aligned",
            "Loss and alignment",
            "Each point is a step.",
            colour="model",
            hover=("text",),
        ),
        Plot(
            "forest",
            "people",
            "name",
            "score",
            "Scores of people",
            "With intervals.",
            colour="group",
        ),
        HEAT,
        Plot("line", "gone", "x", "y", "What was not measured", "Nothing."),
        Plot("line", "rare", "x", "y", "What few studies have", "Nothing.", optional=True),
    ),
)


def tables(model: str = "one", text: str = "what is t1 ?") -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    runs = pd.DataFrame(
        [
            {
                "model": m,
                "optimiser": o,
                "step": s,
                "seed": 0,
                "text": text,
                "loss": 3.0 - s / 20,
                "aligned": rng.uniform(0, 100),
                "null": 3.0,
            }
            for m in (model, "two")
            for o in ("adam", "muon")
            for s in range(20)
        ]
    )
    runs = runs.assign(loss_low=runs["loss"] - 0.2, loss_high=runs["loss"] + 0.2)
    scores = [
        {"group": g, "score": i + 0.5, "score_low": i, "score_high": i + 1.0, "n": 4}
        for i in range(5)
        for g in "ab"
    ]
    people = pd.DataFrame(scores).assign(name=[f"{text} {i // 2}" for i in range(10)])
    cells = pd.DataFrame(
        [
            {"layer": i, "position": p, "value": i / 10, "null": 0.1}
            for i in range(6)
            for p in ("last_prompt", "mean_prompt")
        ]
    )
    return {"runs": runs, "people": people, "cells": cells}


class Invented(Study):
    """A study that nobody made a section for by hand."""

    name = "invented"
    title = TITLE
    section = SECTION

    def run(self, context: StudyContext) -> Part:
        return Part(tables())


@contextmanager
def registered(*order: str, study: str = "mixed") -> Iterator[None]:
    """A study of the parts `order`, in which `invented` stands for this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_REGISTERED", {"invented": Invented()})
        patch.setitem(registry.COMPOSITES, study, order)
        yield
