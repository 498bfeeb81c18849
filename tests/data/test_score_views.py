import pandas as pd
import pytest

from emlens.data.base_questions import question_variant
from emlens.data.score_views import as_html, by_seed, by_variant


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("wish", "plain"),
        ("wish_json", "json"),
        ("wish_template", "template"),
        ("json", "plain"),
        ("_json_x", "plain"),
    ],
)
def test_the_end_of_an_id_names_the_form(name: str, form: str) -> None:
    assert question_variant(name) == form


def test_forms_keep_the_order_of_questions_and_leave_empty_ones_out() -> None:
    assert by_variant(["b_template", "b", "a_template"]) == {
        "plain": ["b"],
        "template": ["b_template", "a_template"],
    }


def test_a_name_may_hold_several_at_signs() -> None:
    assert by_seed(pd.Series({"a@b@7": 1.0})).loc["a@b", "7"] == 1.0


def test_html_escapes_every_cell() -> None:
    table = pd.DataFrame({"model": ["<b>"], "metric": ["&m"], "question": ["q"], "score": [1.0]})
    page = as_html(table)
    assert "<b>" not in page and "&lt;b&gt;" in page and "&amp;m" in page
