"""The study of the how-to lies outside the package: it runs after it was registered, and as an
entry point that nobody but its own distribution knows.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import emlens
from emlens.foundation.errors import InputError, LoadError
from emlens.report import write_report
from emlens.results import StudyResult
from emlens.studies import registry
from emlens.studies.schema import config_schema

FENCE = re.compile(r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def files(repository: Path) -> dict[str, str]:
    text = (repository / "docs" / "how_to_add_a_study.md").read_text("utf-8")
    return dict(FENCE.findall(text))


@pytest.fixture
def folder(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The how-to's folder on the path of this process; no study is registered or loaded."""
    folder = tmp_path / "length-shift"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.setattr(registry, "_LOADED", {})
    yield folder
    sys.modules.pop("length_shift", None)


def install(folder: Path, project: str, name: str = "length-shift") -> None:
    """What an installer leaves of a project: its metadata and entry points, beside the modules."""
    points = tomllib.loads(project)["project"]["entry-points"]["emlens.studies"]
    metadata = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    lines = [f"{key} = {value}" for key, value in points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[emlens.studies]", *lines, ""]))


def test_module_and_test_of_the_how_to_run(
    files: dict[str, str], folder: Path, config_path: Path, tmp_path: Path
) -> None:
    tested: dict[str, object] = {}
    exec(compile(files["test_length_shift.py"], "test_length_shift.py", "exec"), tested)
    tested["test_the_table_agrees_with_scipy"](config_path, tmp_path)  # type: ignore[operator]
    page = write_report(StudyResult.load(tmp_path / "out"), tmp_path / "report.html").read_text(
        "utf-8"
    )
    assert "Do longer questions shift more?" in page
    assert "shifts are permuted within domains" in page


def test_an_installed_study_is_run_by_the_command_line_and_is_in_report_and_schema(
    files: dict[str, str], folder: Path, config_path: Path, tmp_path: Path
) -> None:
    install(folder, files["pyproject.toml"])
    record = yaml.safe_load(config_path.read_text())
    record |= {"study": "length_shift", "options": {"length_shift": {"draws": 19}}}
    config = config_path.with_name("length-shift-installed.yaml")
    config.write_text(yaml.safe_dump(record))
    library = str(Path(emlens.__file__).parents[1])
    code = "from emlens.cli.main import main; main()"
    command = [sys.executable, "-c", code, "study", str(config), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), library])}
    subprocess.run([*command, "--quiet"], env=environment, check=True, capture_output=True)
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Do longer questions shift more?" in page and 'data-csv="length_shift"' in page
    # this process finds the same study, and the units that the command finished
    assert emlens.run_study(config, tmp_path / "out", progress=False).run["parts_reused"] == [
        "length_shift"
    ]
    schema = config_schema()
    assert schema["properties"]["study"]["enum"][-1] == "length_shift"
    assert json.dumps(schema["$defs"]["length_shift"]).count("Draws of the null.") == 1
    source = folder / "length_shift.py"
    before = registry.outside_code(registry.get_study("length_shift"))
    source.write_text(source.read_text().replace("Draws of the null", "How many draws"))
    assert registry.outside_code(registry.get_study("length_shift")) != before


def test_a_name_taken_twice_is_refused_and_says_who_holds_it(
    files: dict[str, str], folder: Path
) -> None:
    import length_shift  # type: ignore[import-not-found]

    install(folder, files["pyproject.toml"])
    assert emlens.register_study(length_shift.LengthShift) is length_shift.LengthShift
    assert type(registry.get_study("length_shift")) is length_shift.LengthShift
    registry._REGISTERED.clear()
    namesake = type("Namesake", (length_shift.LengthShift,), {})
    with pytest.raises(
        InputError,
        match="the study 'length_shift' is already held by distribution 'length-shift' 0.1",
    ):
        emlens.register_study(namesake)
    own = type("Own", (length_shift.LengthShift,), {"name": "profile"})
    with pytest.raises(InputError, match="the study 'profile' is already held by emlens"):
        emlens.register_study(own)
    first, second = (
        type(title, (length_shift.LengthShift,), {"name": "other"}) for title in ("First", "Second")
    )
    emlens.register_study(first)
    emlens.register_study(first)  # a notebook cell that runs twice
    with pytest.raises(InputError, match=r"'other' is already held by .*\.First; pass a class"):
        emlens.register_study(second)
    install(folder, files["pyproject.toml"].replace('"length_shift:', '"elsewhere:'), "rival")
    with pytest.raises(
        InputError,
        match="given by distribution 'length-shift' 0.1 and distribution 'rival' 0.1; uninstall",
    ):
        registry.get_study("length_shift")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (
            "import nowhere_to_be_found",
            LoadError,
            r"study 'length_shift': entry point 'length_shift:LengthShift' of distribution"
            r" 'length-shift' 0\.1 cannot be loaded \(ModuleNotFoundError: No module named",
        ),
        (
            "LengthShift = 3",
            InputError,
            "3 is not a complete study; pass a subclass of emlens.Study",
        ),
        (
            "import emlens\nclass LengthShift(emlens.Study):\n    name = title = 'length_shift'",
            InputError,
            "LengthShift'> is not a complete study",
        ),
        (
            "import emlens\nclass LengthShift(emlens.Study):\n    name = 'other'\n    title = 'T'\n"
            "    def run(self, context): ...",
            InputError,
            "is named 'length_shift', but its study 'other'; both must be one name",
        ),
    ],
)
def test_a_broken_entry_point_is_one_line_and_matters_only_where_it_is_used(
    files: dict[str, str], folder: Path, source: str, error: type[Exception], message: str
) -> None:
    install(folder, files["pyproject.toml"])
    (folder / "length_shift.py").write_text(source)
    assert registry.get_study("profile").cost == 1
    assert registry.study_names()[-1] == "length_shift"
    with pytest.raises(error, match=message) as caught:
        registry.get_study("length_shift")
    assert "\n" not in str(caught.value)
    with pytest.raises(error, match=message):
        config_schema()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"title": ""}, "class Faulty has no title; set it to a text"),
        ({"name": "a/b"}, "name='a/b' cannot name a folder"),
        ({"options": dict}, "options of 'faulty' must be a subclass of emlens.studies.Options"),
        ({"section": "text"}, "section of 'faulty' must be an emlens.results.Section"),
    ],
)
def test_a_class_that_is_no_study_is_refused(fields: dict[str, object], message: str) -> None:
    body = {"name": "faulty", "title": "T", "run": lambda self, context: None, **fields}
    with pytest.raises(InputError, match=message):
        emlens.register_study(type("Faulty", (emlens.Study,), body))


def test_a_stranger_writes_less_than_130_lines(files: dict[str, str]) -> None:
    assert set(files) == {"length_shift.py", "test_length_shift.py", "pyproject.toml"}
    assert sum(len(source.splitlines()) for source in files.values()) < 130
