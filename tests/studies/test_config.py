from pathlib import Path
from typing import Any

import pytest
import yaml

from emlens.foundation.errors import InputError
from emlens.studies import Options, StudyConfig, read_config

FAMILY = {"instruct": "i", "finetuned": {"a": {"path": "p"}}}


def test_a_mapping_a_file_and_a_config_read_alike(tmp_path: Path) -> None:
    record = {"study": "profile", "family": FAMILY, "k": 4, "shares": [0.5, 0.25, 0.25]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(record))
    config = read_config(record)
    assert read_config(config) is config
    plain = config.model_dump(mode="json")
    assert (
        read_config(tmp_path / "study.yaml").model_dump(mode="json")
        == plain
        == StudyConfig.model_validate(plain).model_dump(mode="json")
    )
    assert (
        config.positions == ("last_prompt", "mean_prompt")
        and config.family.finetuned["a"].parent == "instruct"
    )


def test_a_template_date_may_be_written_as_yaml_writes_days(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    for written in ("2031-02-03", "'2031-02-03'"):
        path.write_text(f"{yaml.safe_dump({'family': FAMILY})}  template_date: {written}\n")
        assert read_config(path).family.options() == {"template_date": "2031-02-03"}


def test_paths_in_a_file_are_relative_to_the_file_where_they_exist(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    (tmp_path / "q.jsonl").write_text("")
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump({"family": {**FAMILY, "base": "org/model"}, "questions": "q.jsonl"})
    )
    config = read_config(tmp_path / "s.yaml")
    assert config.path("i") == str(tmp_path / "i") and config.path("q.jsonl") == str(
        tmp_path / "q.jsonl"
    )
    assert config.path("org/model") == "org/model" and config.path("p") == "p"
    assert config.model_dump(mode="json")["questions"] == "q.jsonl"  # the record names no folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 3}, r"config: field 'depth': no such field; known are study, family"),
        (
            {"family": {**FAMILY, "finetuned": {"a": {"path": "p", "rank": 2}}}},
            "field 'family.finetuned.a.rank': no such field; known are dtype, .* path, revision",
        ),
        (
            {"family": {**FAMILY, "organism": "planted"}},
            "field 'family': .*give either organism, or instruct .*, not both and not neither",
        ),
        ({"family": {}}, "give either organism, or instruct"),
        (
            {"family": {**FAMILY, "finetuned": {"a": {"path": "p", "parent": "chat"}}}},
            "field 'family.finetuned.a.parent': Input should be 'base' or 'instruct'",
        ),
        (
            {"positions": ["all"]},
            "positions holds 'all'; pass pooled positions such as last_prompt and mean_prompt",
        ),
        ({"positions": ["nowhere"]}, "nowhere"),
        ({"positions": []}, "positions must name at least one position, none twice"),
        (
            {"positions": ["last_prompt", "last_prompt"]},
            "positions must name at least one position, none twice",
        ),
        (
            {"shares": [0.5, 0.5, 0.5]},
            r"shares=\(0.5, 0.5, 0.5\) must be three positive numbers that sum to 1",
        ),
        ({"shares": [1.0, 0.5, -0.5]}, "must be three positive numbers that sum to 1"),
        ({"shares": [float("nan"), 0.5, 0.5]}, "must be three positive numbers that sum to 1"),
        ({"focus": ["a", "a"]}, r"focus=\('a', 'a'\) names a fine-tune twice"),
        ({"k": 0}, "field 'k': 0 is no dimension; pass a count of 1"),
        ({"draws": 3}, "field 'draws': Input should be greater than or equal to 20"),
        ({"k": 0, "folds": 1}, r"field 'k': .* \(and 1 more\)"),
    ],
)
def test_what_no_study_can_use_is_refused_by_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_config({"family": FAMILY, **change})


def test_a_broken_file_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("study: profile\nfamily: [unclosed\n")
    with pytest.raises(
        InputError, match=r"study\.yaml:3: not valid YAML: while parsing a flow sequence"
    ):
        read_config(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(
        InputError, match=r"study\.yaml: holds a list; a study configuration is a mapping of fields"
    ):
        read_config(path)
    with pytest.raises(InputError, match=r"gone\.yaml: no such file"):
        read_config(tmp_path / "gone.yaml")


FILE = """\
# a comment
study: profile
k: 4
family:
  instruct: i
  finetuned:
    a:
      path: p
      domain: [north]
    b: {path: p,
        rank: 2}
positions:
  - last_prompt
  - all
shares: [0.5, 0.5, 0.5]
options:
  counting:
    rows: many
"""


@pytest.mark.parametrize(
    ("keep", "line", "field"),
    [
        ("domain", 9, "family.finetuned.a.domain"),
        ("rank", 11, "family.finetuned.b.rank"),
        ("all", 12, "positions"),
        ("shares", 15, "shares"),
    ],
)
def test_an_error_points_at_the_line_of_its_field(
    tmp_path: Path, keep: str, line: int, field: str
) -> None:
    mended = {
        "domain": ("[north]", "north"),
        "rank": ("rank: 2", "seed: 2"),
        "all": ("- all", "- mean_prompt"),
        "shares": ("0.5]", "0.0001]"),
    }
    mended["shares"] = ("[0.5, 0.5, 0.5]", "[0.5, 0.25, 0.25]")
    text = FILE
    for name, (wrong, right) in mended.items():
        text = text if name == keep else text.replace(wrong, right)
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"study\.yaml:{line}: field '{field}': "):
        read_config(path)


def test_options_of_a_part_point_at_their_line(tmp_path: Path) -> None:
    class Settings(Options):
        rows: int = 2

    text = FILE
    for wrong, right in (
        ("[north]", "north"),
        ("rank: 2", "seed: 2"),
        ("- all", "- mean_prompt"),
        ("[0.5, 0.5, 0.5]", "[0.5, 0.25, 0.25]"),
    ):
        text = text.replace(wrong, right)
    (tmp_path / "study.yaml").write_text(text)
    config = read_config(tmp_path / "study.yaml")
    with pytest.raises(
        InputError,
        match=r"study\.yaml:18: options: field 'counting\.rows': Input should be a valid integer",
    ):
        config.options_of("counting", Settings)
    # the nearest that is there
    assert config.place("options", "counting", "columns").endswith("study.yaml:17: ")
    assert read_config({"family": FAMILY}).place("k") == ""
