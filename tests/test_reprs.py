"""How results show themselves: a line at the prompt and a small table in a notebook, never a tensor
in full, and everything a user or a model wrote is text.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch

import emlens
from emlens.activations import Activations
from emlens.activations.memory import TokenValues
from emlens.data import (
    AlignmentScores,
    Answer,
    Answers,
    Message,
    PromptSet,
    Question,
    QuestionSet,
)
from emlens.data.sweeps import SweepTable
from emlens.foundation.notebooks import MOST_ROWS, Brief, as_rows, in_words
from emlens.geometry import Direction, Subspace, delta_summary, top_k_subspace, weight_update
from emlens.geometry.contrast_sums import ContrastSums
from emlens.interventions import ablate, steer
from emlens.models import Family
from emlens.models.batches import Batch
from emlens.probes import Baselines, Design
from emlens.probes.site_ridge import SiteRidge
from emlens.results import Part
from emlens.training.defences import PreventativeSteering

HOSTILE = "<img src=x onerror=alert(1)>\u202e"
MANY = 600
VECTOR = torch.linspace(-1, 1, MANY)


def rows(n: int = 12) -> torch.Tensor:
    return torch.randn(n, MANY, generator=torch.Generator().manual_seed(0))


def sums() -> ContrastSums:
    units = [f"u{i}" for i in range(12)]
    return ContrastSums.from_rows(rows() + 1, rows(), positive_units=units, negative_units=units)


SHOWN: dict[str, Callable[[], Any]] = {
    "Direction": lambda: Direction(VECTOR, emlens.Site.parse("resid_post.1")),
    "Subspace": lambda: top_k_subspace(rows(), 3, center=True),
    "DeltaSummary": lambda: delta_summary(rows()),
    "ContrastSums": sums,
    "WeightUpdate": lambda: weight_update(torch.randn(4, MANY), torch.randn(MANY, 4)),
    "Steering": lambda: steer(VECTOR, 2.0),
    "Ablation": lambda: ablate(VECTOR),
    "TokenValues": lambda: TokenValues(rows(), torch.tensor([0, 12]), torch.arange(12)),
    "Batch": lambda: Batch(
        (),
        (),
        torch.zeros(3, 40, dtype=torch.long),
        torch.ones(3, 40, dtype=torch.bool),
        "left",
    ),
    "SiteRidge": lambda: SiteRidge(
        "resid_post.1", "last_prompt", 1.0, VECTOR.numpy(), 0.0, VECTOR.numpy(), VECTOR.numpy()
    ),
    "Baselines": lambda: Baselines(texts={f"q{i}": "text" for i in range(MANY)}),
    "Design": lambda: Design(weights=pd.Series(np.ones(MANY))),
    "Part": lambda: Part(tables={"models": pd.DataFrame({"x": range(MANY)})}),
    "SweepTable": lambda: SweepTable(pd.DataFrame({"x": range(MANY)}), (), (), (), "file"),
    "PreventativeSteering": lambda: PreventativeSteering(VECTOR, 2.0, ["resid_post.1"]),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", SHOWN)
def test_a_repr_is_a_line_without_numbers_of_tensors(name: str) -> None:
    value = SHOWN[name]()
    for text in (repr(value), value._repr_html_()):
        assert "tensor(" not in text and "array(" not in text and "\n" not in text
        assert len(text) < 1500
    assert repr(value).startswith(f"{type(value).__name__}(")


LARGE = (torch.Tensor, np.ndarray, pd.DataFrame, pd.Series, Activations, AlignmentScores)


def public_classes() -> Iterator[type]:
    """Classes that packages list, and those that listed functions say they return."""
    seen: set[type] = set()
    for path in sorted(Path(emlens.__file__).parent.glob("*/__init__.py")):
        package = import_module(f"emlens.{path.parent.name}")
        for name in package.__all__:
            value = getattr(package, name)
            found = [value]
            if not isinstance(value, type) and callable(value):
                found = list(_classes_in(_returned(value)))
            seen |= {each for each in found if isinstance(each, type)}
    yield from sorted(seen, key=lambda each: (each.__module__, each.__name__))


def _returned(function: Any) -> Any:
    try:
        return typing.get_type_hints(function).get("return")
    except (NameError, TypeError):
        return None


def _classes_in(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, type):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _classes_in(argument)


def _holds_something_large(kind: type) -> bool:
    for field in dataclasses.fields(kind):
        text = str(field.type)
        if any(large.__name__ in text for large in LARGE) or "Array" in text or "Float[" in text:
            return True
    return False


RECORDS = [
    kind
    for kind in public_classes()
    if dataclasses.is_dataclass(kind) and kind.__module__.startswith("emlens")
]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_no_public_record_prints_its_fields_whole(kind: type) -> None:
    if _holds_something_large(kind):
        assert not kind.__dataclass_params__.repr or "__repr__" in vars(kind)  # type: ignore[attr-defined]


def test_there_are_public_records_that_hold_something_large() -> None:
    large = {kind.__name__ for kind in RECORDS if _holds_something_large(kind)}
    assert {"Direction", "Subspace", "Forecast", "StudyResult", "WeightUpdate"} <= large


# ---- sets in a notebook


def prompts(n: int = 1) -> PromptSet:
    return PromptSet.from_questions([f"{HOSTILE} {i}" for i in range(n)])


SETS: dict[str, Callable[[], Any]] = {
    "prompts": prompts,
    "questions": lambda: QuestionSet([Question("q", HOSTILE, group=HOSTILE)]),
    "answers": lambda: Answers([Answer(HOSTILE, "q", HOSTILE, (Message("user", "a"),))]),
    "scores": lambda: AlignmentScores.from_table(
        pd.DataFrame(
            {
                "model": [HOSTILE],
                "question": "q",
                "sample": 1,
                "metric": "aligned",
                "score": 1.0,
                "status": "ok",
            }
        )
    ),
}


@pytest.mark.parametrize("kind", SETS)
def test_a_set_shows_its_items_as_text(kind: str) -> None:
    page = SETS[kind]()._repr_html_()
    assert page.startswith("<table>") and page.endswith("</table>")
    assert "<img" not in page and "&lt;img" in page


def test_a_long_set_shows_its_first_items_and_how_many_there_are() -> None:
    page = prompts(MOST_ROWS + 5)._repr_html_()
    assert page.count("<tr>") == 1 + MOST_ROWS + 1 and "… 5 more" in page


def test_a_model_and_a_family_show_what_they_are(tmp_path: Path) -> None:
    model = emlens.load_model(tiny_models.build(tmp_path / "model"))
    page = model._repr_html_()
    assert "<th>d_model</th><td>32</td>" in page and "edits now" not in page
    with model.intervene(ablate(torch.ones(32))):
        assert "<th>edits now</th><td>1</td>" in model._repr_html_()
    spec = emlens.FineTune("path", benign=True, domain=HOSTILE)
    family = Family(model, None, {"good": model}, {"good": spec})
    shown = family._repr_html_()
    assert "benign fine-tune" in shown and "&lt;img" in shown and "<img" not in shown


def test_values_are_named_in_a_few_words() -> None:
    assert in_words(torch.zeros(2, 3)) == "Tensor 2 × 3"
    assert in_words(np.zeros(4)) == "ndarray 4"
    assert in_words(0.123456) == "0.1235"
    assert in_words({f"k{i}": i for i in range(9)}) == "{k0, k1, k2, k3, k4, k5, …}"
    assert in_words([1, 2]) == "[1, 2]" and in_words(list(range(99))) == "99 items"
    assert in_words("two\nlines") == "two lines"
    assert as_rows("none", ("a",), [], 0).count("<tr>") == 1


def test_brief_leaves_out_fields_that_have_no_repr() -> None:
    @dataclasses.dataclass(repr=False)
    class Kept(Brief):
        shown: int
        hidden: int = dataclasses.field(default=1, repr=False)

    assert repr(Kept(3)) == "Kept(shown=3)"


def test_a_subspace_of_a_batch_is_a_line() -> None:
    space = top_k_subspace(rows().reshape(2, 6, MANY), 2, center=False)
    assert isinstance(space, Subspace) and "\n" not in repr(space)
