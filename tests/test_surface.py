"""The public surface: pinned here, resolved lazily, shown to type checkers by a stub, explicit in
every package.

Removing or renaming a pinned name is a breaking change: it belongs in CHANGELOG.md before it
belongs here.
"""

import ast
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import emlens

PINNED = [
    "ActivationStore",
    "Activations",
    "AlignmentScores",
    "Answers",
    "Direction",
    "EmlensError",
    "Estimate",
    "Family",
    "FineTune",
    "Guard",
    "HookedModel",
    "Index",
    "NullDistribution",
    "Prompt",
    "PromptSet",
    "Question",
    "QuestionSet",
    "Site",
    "Span",
    "Subspace",
    "ablate",
    "activation_deltas",
    "capture",
    "capture_many",
    "capture_pair",
    "covariance_overlap_null",
    "extract_directions",
    "fit_forecaster",
    "judge_answers",
    "load_family",
    "load_model",
    "mean_difference_direction",
    "overlap_null",
    "predict_alignment",
    "principal_angles",
    "rank_configurations",
    "replicate",
    "run_study",
    "sample_answers",
    "score_alignment",
    "score_by_likelihood",
    "split_half_ceiling",
    "steer",
    "subspace_overlap",
    "top_k_subspace",
    "variance_captured",
    "write_report",
]
PACKAGES = [
    "activations",
    "cli",
    "data",
    "evaluation",
    "figures",
    "foundation",
    "geometry",
    "interventions",
    "models",
    "organisms",
    "probes",
    "report",
    "runs",
    "stats",
    "studies",
    "training",
]
BY_PACKAGE_ONLY = {
    "organisms": ["load"],
    "training": ["Recipe", "fit"],
    "geometry": ["cosine_matrix"],
}
"""Names that scripts reach through their package."""


def stub_names(stub: str) -> dict[str, str]:
    """Name -> module, from the re-exports `from module import name as name` of a stub."""
    names = {}
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.asname == alias.name:  # only this form re-exports
                    names[alias.name] = str(node.module)
    return names


def mismatches(
    table: Mapping[str, str], packages: tuple[str, ...], listed: list[str], stub: str
) -> list[str]:
    """Where the lazy table, `__all__` of the top level, and the stub say different things."""
    found = []
    expected = dict(table) | {name: "emlens" for name in packages}
    in_stub = stub_names(stub)
    for name in sorted(expected.keys() | in_stub.keys()):
        if name not in in_stub:
            found.append(f"{name} is not in the stub")
        elif name not in expected:
            found.append(f"{name} is in the stub only")
        elif in_stub[name] != expected[name]:
            found.append(f"{name}: the stub says {in_stub[name]}, the table {expected[name]}")
    for name in sorted((expected.keys() | {"__version__"}) ^ set(listed)):
        found.append(f"{name} is in one of the table and __all__ only")
    if len(set(listed)) != len(listed):
        found.append("__all__ names something twice")
    return found


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
def stub(repository: Path) -> str:
    return (repository / "emlens" / "__init__.pyi").read_text(encoding="utf-8")


def test_the_surface_is_the_pinned_one() -> None:
    assert sorted(emlens._HOME_OF) == sorted(PINNED)
    assert sorted(emlens._PACKAGES) == sorted(PACKAGES)


def test_table_listing_and_stub_agree(stub: str) -> None:
    assert mismatches(emlens._HOME_OF, emlens._PACKAGES, emlens.__all__, stub) == []


@pytest.mark.parametrize("name", PINNED)
def test_name_resolves_and_is_listed_by_its_package(name: str) -> None:
    home = import_module(emlens._HOME_OF[name])
    assert name in home.__all__
    assert getattr(emlens, name) is getattr(home, name)


@pytest.mark.parametrize(
    ("package", "name"), [(p, n) for p, names in BY_PACKAGE_ONLY.items() for n in names]
)
def test_name_of_a_package_resolves(package: str, name: str) -> None:
    assert name in getattr(emlens, package).__all__


@pytest.mark.parametrize("package", PACKAGES)
def test_package_lists_what_it_imports(package: str, repository: Path) -> None:
    source = (repository / "emlens" / package / "__init__.py").read_text(encoding="utf-8")
    assert surface_faults(getattr(emlens, package), source) == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'emlens' has no attribute 'load_modle'"):
        emlens.load_modle  # noqa: B018


def test_dir_lists_the_surface() -> None:
    assert set(PINNED) | set(PACKAGES) <= set(dir(emlens))


def test_planted_mismatches_of_the_stub_are_found(stub: str) -> None:
    table, packages, listed = dict(emlens._HOME_OF), emlens._PACKAGES, list(emlens.__all__)
    assert mismatches(table | {"new": "emlens.stats"}, packages, listed, stub) == [
        "new is not in the stub",
        "new is in one of the table and __all__ only",
    ]
    assert mismatches(
        table, packages, listed, stub + "\nfrom emlens.stats import extra as extra\n"
    ) == ["extra is in the stub only"]
    assert mismatches(table | {"Site": "emlens.data"}, packages, listed, stub) == [
        "Site: the stub says emlens.foundation, the table emlens.data"
    ]
    assert mismatches(table, packages, [*listed, "Site"], stub) == ["__all__ names something twice"]
    assert mismatches(table, packages, listed, stub.replace("Site as Site", "Site")) == [
        "Site is not in the stub"
    ]


def test_planted_faults_of_a_package_are_found() -> None:
    module = ModuleType("planted")
    assert surface_faults(module, "") == ["planted has no __all__"]
    module.__dict__.update({"__all__": ["here", "gone"], "here": 1})
    assert surface_faults(module, "from emlens.stats.nulls import here, hidden\n") == [
        "planted: gone is in __all__ but not imported by name",
        "planted: hidden is imported but not in __all__",
        "planted: gone does not resolve",
    ]
