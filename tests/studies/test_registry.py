"""A study is one module and one line: options are checked before models load, a part that a family
lacks something for is left out and named.
"""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from emlens.foundation.errors import InputError
from emlens.results import Column, Part, Plot, Section, Table
from emlens.studies import Options, Study, StudyContext, register_study, registry, run_study

COUNT = Column("x", "integer", "a count", names_row=True)


class _Settings(Options):
    rows: int = 2


class Counting(Study):
    """A study of somebody else."""

    name = "counting"
    title = "How many?"
    options = _Settings
    section = Section(
        "Counted.",
        "–",
        {"counts": Table("One row per count.", [COUNT, Column("y", "integer", "the same")])},
        (Plot("line", "counts", "x", "y", "Counts", "y over x."),),
    )
    cost = 0.5

    def run(self, context: StudyContext) -> Part:
        context.folder.mkdir(parents=True)
        (context.folder / "seen").write_text("once")
        context.progress(1.0)
        rows = range(context.options.rows)
        return Part({"counts": pd.DataFrame({"x": rows, "y": rows})})


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> type[Study]:
    """The study, registered; and another of two parts, the profile and this one."""
    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.setitem(registry.COMPOSITES, "both", ("profile", "counting"))
    return register_study(Counting)


def configured(config_path: Path, study: str, **options: object) -> Path:
    record = (
        yaml.safe_load(config_path.read_text())
        | {"study": study}
        | ({"options": options} if options else {})
    )
    path = config_path.with_name(f"registry-{study}-{len(options)}.yaml")
    path.write_text(yaml.safe_dump(record))
    return path


def test_a_part_reads_its_own_options_and_has_a_folder(
    counting: type[Study], config_path: Path, tmp_path: Path
) -> None:
    result = run_study(
        configured(config_path, "counting", counting={"rows": 5}), tmp_path / "out", progress=False
    )
    assert len(result.tables["counts"]) == 5
    assert (tmp_path / "out" / "work" / "counting" / "seen").read_text() == "once"
    assert (
        len(
            run_study(
                configured(config_path, "counting"), tmp_path / "default", progress=False
            ).tables["counts"]
        )
        == 2
    )
    assert registry.get_study("profile").cost == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"counting": {"rows": "many"}},
            r"options: field 'counting.rows': Input should be a valid integer",
        ),
        (
            {"counting": {"columns": 1}},
            r"options: field 'counting.columns': no such field; known are ",
        ),
        (
            {"priors": {}},
            "options names 'priors', which study 'counting' does not have; its parts are counting",
        ),
    ],
)
def test_options_are_checked_before_models_load(
    counting: type[Study],
    config_path: Path,
    tmp_path: Path,
    options: dict[str, object],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        run_study(configured(config_path, "counting", **options), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_options_of_a_part_without_any_are_refused(config_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="options names 'profile', which takes none"):
        run_study(
            configured(config_path, "profile", profile={"rows": 1}),
            tmp_path / "out",
            progress=False,
        )


def test_what_a_family_cannot_carry_is_left_out_and_said_or_refused(
    counting: type[Study], config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "left_out", lambda self, context: "nothing to count")
    result = run_study(configured(config_path, "both"), tmp_path / "both", progress=False)
    assert "models" in result.tables and "counts" not in result.tables
    assert "counting was left out: nothing to count" in result.warnings
    with pytest.raises(
        InputError,
        match="study 'counting' cannot run on this family: counting was left out: nothing to count",
    ):
        run_study(configured(config_path, "counting"), tmp_path / "alone", progress=False)
