import json

import pytest

from emlens.foundation import InputError, IntegrityError
from emlens.runs import Plan, Unit

UNITS = [Unit("shard/0", {"rows": 3}, 2.0), Unit("shard/1", {"rows": 4})]


def test_the_same_units_give_the_same_bytes(tmp_path):
    first, second = Plan.open(tmp_path / "a", UNITS), Plan.open(tmp_path / "b", list(UNITS))
    assert (tmp_path / "a" / "plan.json").read_bytes() == (
        tmp_path / "b" / "plan.json"
    ).read_bytes()
    assert first.sha256 == second.sha256 == Plan.read(tmp_path / "a").sha256
    assert Plan.read(tmp_path / "a").units == tuple(UNITS) and first["shard/1"] is UNITS[1]


@pytest.mark.parametrize(
    "other", [UNITS[:1], UNITS[::-1], [UNITS[0], Unit("shard/1", {"rows": 5})]]
)
def test_another_plan_is_refused_and_changes_nothing(tmp_path, other):
    Plan.open(tmp_path, UNITS)
    before = (tmp_path / "plan.json").read_bytes()
    with pytest.raises(
        IntegrityError,
        match=(
            r"plan.json: plans other work \(2 units, hash \w{8}\) than was asked for \(\d units,"
            r" hash \w{8}\); pass another"
        ),
    ):
        Plan.open(tmp_path, other)
    assert (tmp_path / "plan.json").read_bytes() == before
    assert Plan.open(tmp_path, UNITS).inputs(UNITS[0]) != Plan.open(tmp_path / "o", other).inputs(
        other[0]
    )


def test_lists_that_are_no_plan(tmp_path):
    with pytest.raises(InputError, match="units is empty; pass at least one unit of work"):
        Plan.open(tmp_path, [])
    with pytest.raises(InputError, match="units holds the id 'shard/0' twice; ids must be unique"):
        Plan.open(tmp_path, [UNITS[0], UNITS[0]])
    with pytest.raises(InputError, match=r"plan\.json: no such file"):
        Plan.read(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda p: {**p, "units": p["units"][:1]},
            "was changed after it was written; pass another directory",
        ),
        (lambda p: {**p, "units": [{"name": "x"}]}, "was changed after it was written"),
        (lambda p: {"format": 1}, "was changed after it was written"),
        (lambda p: {**p, "format": 2}, "is not a plan of format 1, which this version reads"),
        (lambda p: [], "is not a plan of format 1"),
    ],
)
def test_a_changed_plan_is_refused(tmp_path, change, match):
    Plan.open(tmp_path, UNITS)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(IntegrityError, match=match):
        Plan.open(tmp_path, UNITS)
