import json
from pathlib import Path

import pytest
from replication.test_replicate import judged, put

from emlens.foundation import InputError
from emlens.replication import replicate
from emlens.replication.own_figures import FILE, FUNCTIONS

SWEEP = "run,loss,aligned,domain\na,1,90,north\nb,2,70,north\nc,4,75,south\nd,5,20,south\n"


def listed(root: Path, text: str) -> Path:
    put(root, "sweep.csv", SWEEP)
    put(root, "judged.csv", judged([0.5, 0.25]))
    rows = [
        json.loads(line) for line in ('{"x": 1, "k": 8}', '{"x": 4, "k": 8}', '{"x": 9, "k": 1}')
    ]
    put(root, "deltas.json", json.dumps({"per_example": rows}))
    put(root, "deltas.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    put(root, FILE, text)
    return root


def entry(**fields: object) -> str:
    return "figures:\n  - " + json.dumps(fields) + "\n"


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ({"file": "judged.csv", "function": "em_rate"}, 37.5),
        ({"file": "judged.csv", "function": "coherent_share"}, 100.0),
        ({"file": "judged.csv", "function": "questions"}, 2),
        ({"file": "sweep.csv", "function": "rows", "where": {"domain": "south"}}, 2),
        ({"file": "sweep.csv", "function": "mean", "columns": ["loss"]}, 3.0),
        ({"file": "sweep.csv", "function": "sd", "columns": ["loss"]}, 1.8257418583505538),
        ({"file": "sweep.csv", "function": "minimum", "columns": ["aligned"]}, 20.0),
        ({"file": "sweep.csv", "function": "maximum", "columns": ["aligned"]}, 90.0),
        (
            {"file": "sweep.csv", "function": "pearson", "columns": ["loss", "aligned"]},
            -0.8113194670734644,
        ),
        ({"file": "sweep.csv", "function": "spearman", "columns": ["loss", "aligned"]}, -0.8),
        (
            {
                "file": "deltas.json",
                "rows": "per_example",
                "function": "median",
                "columns": ["x"],
                "where": {"k": 8},
            },
            2.5,
        ),
        ({"file": "deltas.jsonl", "function": "median", "columns": ["x"]}, 4.0),
    ],
)
def test_every_function_gives_its_figure(
    tmp_path: Path, fields: dict[str, object], value: float
) -> None:
    [figure] = replicate(listed(tmp_path, entry(**fields, published=f"{value:.6f}"))).figures
    assert figure.recomputed == pytest.approx(value) and figure.agrees
    assert figure.function == fields["function"] and fields["function"] in FUNCTIONS


def test_the_last_digit_or_a_tolerance_decides(tmp_path: Path) -> None:
    fields = {"file": "sweep.csv", "function": "mean", "columns": ["loss"]}
    for published, more, agrees in (
        ("3.0", {}, True),
        ("3.1", {}, False),
        ("3.1", {"tolerance": 0.2}, True),
        ("3", {"tolerance": 0.0}, True),
    ):
        found = replicate(listed(tmp_path, entry(**fields, published=published, **more)))
        assert found.agrees is agrees, (published, more)
    counts = {"file": "sweep.csv", "function": "rows"}
    assert not replicate(listed(tmp_path, entry(**counts, published="4.4"))).agrees  # exact


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (entry(file="sweep.csv", function="mean", columns=["los"], published="3"), "did you mean"),
        (entry(file="sweep.csv", function="mean", published="3"), "takes 1 columns"),
        (entry(file="sweep.csv", function="mean", columns=["run"], published="3"), "no number"),
        (entry(file="no.csv", function="rows", published="3"), "no such file"),
        (entry(file="../sweep.csv", function="rows", published="3"), "lies outside"),
        (entry(file="deltas.json", function="rows", published="3"), "name its key with rows:"),
        (entry(file="sweep.csv", function="rows", published=4), "in quotes"),
        (entry(file="sweep.csv", function="rows", published="about 4"), "pattern"),
        (entry(file="sweep.csv", function="men", published="4"), "function"),
        (
            entry(file="sweep.csv", function="rows", published="4", tolerence=0),
            "did you mean 'tolerance'",
        ),
        (
            entry(file="sweep.csv", function="rows", where={"domain": "east"}, published="4"),
            "no row has",
        ),
        (
            entry(file="judged.csv", function="em_rate", where={"a": 1}, published="4"),
            "leave out where",
        ),
        ("figures: []\n", "at least 1 item"),
        ("- a\n", "holds a list"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        replicate(listed(tmp_path, text))
    assert FILE in str(error.value) and "\n" not in str(error.value)
