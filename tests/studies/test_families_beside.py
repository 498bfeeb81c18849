"""Several families: each runs as it would alone, and their numbers stand side by side with families
as units.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from emlens.foundation.errors import InputError
from emlens.results import StudyResult
from emlens.studies import run_study
from emlens.studies.families_beside import read_members, size_tables


@pytest.fixture(scope="module")
def two(config_path: Path) -> Path:
    record = yaml.safe_load(config_path.read_text()) | {"study": "profile"}
    family = record.pop("family")
    swapped = {
        **family,
        "finetuned": {
            name: {**spec, "domain": "east"} for name, spec in family["finetuned"].items()
        },
    }
    record["families"] = {"one": {"family": family}, "two": {"family": swapped}}
    path = config_path.with_name("families.yaml")
    path.write_text(yaml.safe_dump(record))
    return path


def test_numbers_of_each_family_are_those_of_its_own_result(two: Path, tmp_path: Path) -> None:
    result = run_study(two, tmp_path / "out", progress=False)
    rows = result.tables["family_numbers"].set_index(["family", "model"])
    assert set(rows.index.get_level_values("family")) == {"one", "two"}
    for name in ("one", "two"):
        own = (
            StudyResult.load(tmp_path / "out" / "families" / name)
            .tables["models"]
            .set_index("model")
        )
        assert rows.loc[(name, "bad@0"), "value"] == pytest.approx(
            own.loc["bad@0", "aligned_others"]
        )
    table = result.tables["over_families"].set_index("number")
    harmful = rows[rows["kind"] == "harmful"].groupby("family")["value"].mean()
    row = table.loc["alignment outside the domain (harmful)"]
    assert (
        row["mean"] == pytest.approx(harmful.mean())
        and row["n"] == 2
        and row["sd"] == pytest.approx(harmful.std())
    )
    assert "2 families: an interval over so few says little" in result.warnings
    parent = rows[rows["kind"] == "harmful"].groupby("family")["null"].mean()
    assert (row["side"], row["beyond"]) == ("less", pytest.approx((harmful - parent).mean()))
    sizes = result.tables["family_sizes"]
    own = StudyResult.load(tmp_path / "out" / "families" / "one")
    assert set(sizes["parameters"]) == {own.facts["parameters"]} != {0}
    again = run_study(two, tmp_path / "out", progress=False)
    assert [f.sentence for f in again.findings] == [f.sentence for f in result.findings]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"families": {"one": {}}},
            (
                "config: families must map at least two names to what each family differs in,"
                " and replaces family"
            ),
        ),
        ({"family": {}, "families": {"one": {}, "two": {}}}, "replaces family"),
        (
            {"families": {"one": {}, "../two": {}}},
            (
                r"family '\.\./two' must be named as a folder can be and hold fields,"
                r" without study|family 'one'"
            ),
        ),
        ({"families": {"one": {"k": 0}, "two": {}}}, "config: family 'one': field 'k'"),
    ],
)
def test_what_is_no_set_of_families_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_members(
            {"study": "profile", **({} if "family" in change else {"released": "."}), **change}
        )


FILE = """study: {study}
released: .
families:
  one: {{}}
  two:
    k: {k}
    options:
      profile: {{no_such: 1}}
draws: {draws}
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            FILE.format(study="profile", k=0, draws=50),
            r"f\.yaml:6: field 'k': 0 is no dimension; pass a count of 1",
        ),
        (
            FILE.format(study="profile", k=2, draws=1),
            r"f\.yaml:9: field 'draws': Input should be greater",
        ),
        (
            "study: profile\nfamilies:\n  one: {}\n  two: {released: .}\n",
            r"f\.yaml:3: field 'configuration': family is missing",
        ),
        (
            FILE.format(study="profile", k="2\n    k: 3", draws=50),
            r"f\.yaml:7: not valid YAML: key 'k' is given twice",
        ),
        ("study: profile\nfamilies: [\n", r"f\.yaml:3: not valid YAML: while parsing a flow"),
        ("released: .\nfamilies:\n  one: {}\n", r"f\.yaml:2: families must map at least two names"),
        (
            "released: .\nfamilies:\n  one: {}\n  a/b: {}\n",
            r"f\.yaml:4: family 'a/b' must be named as a folder can be",
        ),
    ],
)
def test_what_is_wrong_in_a_file_of_families_is_refused_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(InputError, match=said):
        run_study(tmp_path / "f.yaml", tmp_path / "out", progress=False)


def test_a_member_says_where_its_fields_stand(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(FILE.format(study="unheard", k=2, draws=50))
    members = read_members(path)
    assert members is not None
    assert (
        members["two"].place("options", "profile") == f"{path}:8: "
        and members["two"].place("study") == f"{path}:1: "
    )
    with pytest.raises(InputError, match=r"f\.yaml:1: study 'unheard' is unknown"):
        run_study(path, tmp_path / "out", progress=False)


def test_one_family_is_none_of_its_business(config_path: Path) -> None:
    assert (
        read_members(config_path) is None
        and read_members({"family": {"organism": "planted"}}) is None
    )


def test_numbers_are_laid_against_the_parameter_count_with_an_exact_trend_test() -> None:
    sizes = {f"f{i}": 10 ** (i + 1) for i in range(5)}
    rows = []
    for i, family in enumerate(sizes):
        for number, value, null in (("rising", 0.1 * i, 0.05), ("flat", [3, 1, 5, 2, 4][i], None)):
            head = {"family": family, "kind": "harmful", "number": number}
            rows.append(head | {"value": float(value), "null": null})
    tables = size_tables(pd.DataFrame(rows), sizes)
    trend = tables["size_trend"].set_index("number")
    # 5! orders, of which two are wholly monotone
    assert trend.loc["rising", "p"] == pytest.approx(2 / 120) == trend.loc["rising", "smallest_p"]
    assert trend.loc["rising", "kendall_tau"] == pytest.approx(1.0)
    assert trend.loc["flat", "p"] > 0.5 and trend.loc["flat", "p_holm"] > 0.5
    assert trend.loc["rising", "p_holm"] == pytest.approx(4 / 120)
    assert list(tables["family_sizes"]["parameters"][:2]) == [10, 10]
    two = size_tables(pd.DataFrame(rows[:4]), sizes)
    assert "size_trend" not in two and len(two["family_sizes"]) == 4
    assert size_tables(pd.DataFrame(rows), {}) == {}
