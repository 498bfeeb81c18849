"""The public surface: one list at the top, explicit in every package, and no larger than agreed.

The stub `emlens/__init__.pyi` is the only list of the top level; `lazy_loader` reads it. A name
is public where the `__all__` of its package lists it. Later work trades names, it does not add:
to list a new one, take another off the list. Both belong in CHANGELOG.md.
"""

import ast
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import emlens

MOST_AT_THE_TOP = 60
MOST_IN_ALL = 250
PACKAGES = sorted(path.parent.name for path in Path(emlens.__file__).parent.glob("*/__init__.py"))
BY_PACKAGE_ONLY = {
    "organisms": ["load_organism"],
    "training": ["Recipe", "fit"],
    "geometry": ["cosine_matrix"],
}
"""Names that scripts reach through their package."""


def stub_names(stub: str) -> dict[str, str]:
    """Name → package it comes from ("" for a package), as the stub re-exports it."""
    names = {}
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.asname == alias.name:  # only this form re-exports
                    names[alias.name] = node.module or ""
    return names


def surface_faults(module: ModuleType, source: str) -> list[str]:
    """Where a package's `__all__`, its explicit imports and what it really holds differ."""
    listed = getattr(module, "__all__", None)
    if listed is None:
        return [f"{module.__name__} has no __all__"]
    imported: set[str] = set()
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            imported.add(node.name)
    imported = {name for name in imported if not name.startswith("_")}
    for name in sorted(set(listed) - imported):
        found.append(f"{module.__name__}: {name} is in __all__ but not imported by name")
    for name in sorted(imported - set(listed)):
        found.append(f"{module.__name__}: {name} is imported but not in __all__")
    found += [
        f"{module.__name__}: {name} does not resolve"
        for name in listed
        if not hasattr(module, name)
    ]
    if len(set(listed)) != len(listed):
        found.append(f"{module.__name__}: __all__ names something twice")
    return found


@pytest.fixture(scope="module")
def top(repository: Path) -> dict[str, str]:
    return stub_names((repository / "emlens" / "__init__.pyi").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def listed() -> dict[str, list[str]]:
    return {name: list(import_module(f"emlens.{name}").__all__) for name in public_packages()}


def public_packages() -> list[str]:
    return [name for name in PACKAGES if name != "cli"]


def test_the_stub_is_what_the_top_level_holds(top: dict[str, str]) -> None:
    assert sorted(emlens.__all__) == sorted(top)
    assert set(top) <= set(dir(emlens))
    assert {name for name, home in top.items() if not home} == set(public_packages())


def test_names_at_the_top_are_listed_by_their_package(top: dict[str, str]) -> None:
    for name, package in top.items():
        if package:
            home = import_module(f"emlens.{package}")
            assert name in home.__all__
            assert getattr(emlens, name) is getattr(home, name)


def test_the_surface_stays_small(top: dict[str, str], listed: dict[str, list[str]]) -> None:
    assert len(top) <= MOST_AT_THE_TOP
    assert sum(map(len, listed.values())) <= MOST_IN_ALL


def test_no_two_public_objects_share_a_name(listed: dict[str, list[str]]) -> None:
    counts = Counter(name for names in listed.values() for name in names)
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize(
    ("package", "name"), [(p, n) for p, names in BY_PACKAGE_ONLY.items() for n in names]
)
def test_name_of_a_package_resolves(package: str, name: str) -> None:
    assert name in getattr(emlens, package).__all__


@pytest.mark.parametrize("package", public_packages())
def test_package_lists_what_it_imports(package: str, repository: Path) -> None:
    source = (repository / "emlens" / package / "__init__.py").read_text(encoding="utf-8")
    assert surface_faults(getattr(emlens, package), source) == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="load_modle"):
        emlens.load_modle  # noqa: B018


def test_only_re_exports_of_the_stub_count() -> None:
    assert stub_names("from .models import load_model as load_model, hidden\n") == {
        "load_model": "models"
    }
    assert stub_names("from . import models as models\n") == {"models": ""}


def test_planted_faults_of_a_package_are_found() -> None:
    module = ModuleType("planted")
    assert surface_faults(module, "") == ["planted has no __all__"]
    module.__dict__.update({"__all__": ["here", "gone"], "here": 1})
    assert surface_faults(module, "from emlens.stats.nulls import here, hidden\n") == [
        "planted: gone is in __all__ but not imported by name",
        "planted: hidden is imported but not in __all__",
        "planted: gone does not resolve",
    ]
