"""Importing emlens, or a package that knows no models, stays cheap: the heavy libraries are not
loaded.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("transformers", "transformer_lens", "nnsight", "peft", "sklearn", "plotly", "ray")
CHEAP = (
    "emlens",
    "emlens.foundation",
    "emlens.stats",
    "emlens.data",
    "emlens.geometry",
    "emlens.runs",
)


def loaded_by(statement: str, root: Path) -> set[str]:
    """Top-level packages a fresh interpreter holds after `statement`, with emlens taken from
    `root`.
    """
    probe = (
        f"{statement}\nimport emlens, json, sys\nprint(json.dumps([emlens.__file__,"
        " *sorted(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        env=os.environ | {"PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    file, *modules = json.loads(done.stdout)
    assert Path(file).resolve() == (root / "emlens" / "__init__.py").resolve()
    return {name.split(".")[0] for name in modules}


def test_imports_load_nothing_heavy(repository: Path) -> None:
    assert loaded_by(f"import {', '.join(CHEAP)}", repository) & set(HEAVY) == set()


def test_the_top_level_loads_not_even_torch(repository: Path) -> None:
    assert loaded_by("import emlens", repository) & {"torch", "numpy", "pandas", "scipy"} == set()


def test_listing_names_loads_nothing(repository: Path) -> None:
    assert "torch" not in loaded_by("import emlens\ndir(emlens)\nemlens.__version__", repository)


def test_a_name_loads_its_own_package_only(repository: Path) -> None:
    after = loaded_by("import emlens\nemlens.principal_angles", repository)
    assert "torch" in after
    assert after & set(HEAVY) == set()


@pytest.mark.parametrize(
    ("file", "module"), [("__init__.py", "emlens"), ("geometry/__init__.py", "emlens.geometry")]
)
def test_a_planted_heavy_import_is_found(
    file: str, module: str, repository: Path, tmp_path: Path
) -> None:
    shutil.copytree(
        repository / "emlens",
        tmp_path / "emlens",
        ignore=shutil.ignore_patterns("assets", "__pycache__"),
    )
    with (tmp_path / "emlens" / file).open("a", encoding="utf-8") as source:
        source.write("\nimport plotly\n")
    assert loaded_by(f"import {module}", tmp_path) & set(HEAVY) == {"plotly"}
