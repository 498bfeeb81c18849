"""The reference by concept: every public name with the first sentence of its docstring, read from
the sources without importing them.

`python -m benchmarks tables` draws it into docs/reference.md. A name goes where its module is
listed; a module that is not listed goes with its package.
"""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

import emlens

ROOT: Final = Path(emlens.__file__).parent
CONCEPTS: Final[dict[str, tuple[str, str]]] = {
    "Models and families": (
        "[Backends](backends.md), [real models](real_models.md)",
        "models real",
    ),
    "Sites, positions, estimates, errors": ("[Concepts](concepts.md)", "foundation"),
    "Prompts, questions and answers": (
        "[Questions and answers](questions.md)",
        "data judging.sampling directions.persona_contrasts judging.endpoint",
    ),
    "Judges and scores": (
        "[Judging and scores](judging.md)",
        ("data.scores data.misalignment data.model_comparisons judging"),
    ),
    "Activations, stores and deltas": ("[Activations](activations.md)", "activations"),
    "Subspaces, angles and overlap": ("[Geometry](geometry.md)", "geometry"),
    "Nulls and ceilings": (
        "[Nulls of an overlap](nulls.md)",
        (
            "geometry.isotropic_nulls geometry.covariance_nulls geometry.reference_nulls"
            " geometry.permutations geometry.ceilings geometry.random_directions stats.nulls"
            " controls"
        ),
    ),
    "Directions": (
        "[Directions](directions.md)",
        (
            "geometry.directions geometry.contrasts geometry.contrast_sums geometry.comparing"
            " geometry.recovery geometry.reliability directions"
            " data.foreign"
        ),
    ),
    "Interventions": ("[Interventions](interventions.md)", "interventions"),
    "Evaluating an intervention": (
        "[Evaluating interventions](evaluating_interventions.md)",
        "evaluation",
    ),
    "Adapters and weights": (
        "[Adapters](adapters.md)",
        (
            "interventions.lora interventions.scalars interventions.adapter_lens"
            " interventions.weight_edits geometry.weight_updates probes.sparse_probes"
        ),
    ),
    "Forecasts and screening": (
        "[Forecasting](forecasting.md)",
        "probes screening",
    ),
    "Training and sweeps": ("[Sweeps](how_to_sweep.md)", "training"),
    "Training dynamics": (
        "[Training dynamics](dynamics.md)",
        (
            "geometry.trajectories geometry.turns stats.trends stats.change_points"
            " stats.event_order stats.event_orders stats.events screening.alarms screening.guard"
        ),
    ),
    "Statistics": ("[Statistics](statistics.md)", "stats"),
    "Studies, figures and the report": (
        "[Studies](studies.md)",
        "studies results figures report replication",
    ),
    "Many processes": ("[Running on many processes](running.md)", "runs"),
    "The organism": ("[The organism](organism.md)", "organisms"),
}


def public_names() -> dict[str, str]:
    """`package.name` → the module that defines it, for every name a package lists."""
    found = {}
    for package in sorted(path.parent.name for path in ROOT.glob("*/__init__.py")):
        tree = ast.parse((ROOT / package / "__init__.py").read_text("utf-8"))
        homes = {
            a.asname or a.name: node.module
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            for a in node.names
        }
        for node in tree.body:
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and node.targets[0].id == "__all__"
            ):
                found |= {
                    f"{package}.{name}": str(homes.get(name, f"emlens.{package}"))
                    for name in ast.literal_eval(node.value)
                }
    return found


def concept_of(module: str) -> str:
    places = {
        place: concept for concept, (_, listed) in CONCEPTS.items() for place in listed.split()
    }
    short = module.removeprefix("emlens.")
    return places.get(short) or places[short.partition(".")[0]]


@cache
def _body(module: str) -> tuple[ast.stmt, ...]:
    path = ROOT.parent / module.replace(".", "/")
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return tuple(ast.parse(source.read_text("utf-8")).body)


def _told(module: str, name: str) -> str:
    """First sentence of what a module says of a name, or of what it imports under it; of a value
    without words, the value.
    """
    body = _body(module)
    for node, after in zip(body, (*body[1:], None), strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return _sentence(ast.get_docstring(node))
        if (
            isinstance(node, ast.ImportFrom)
            and any((a.asname or a.name) == name for a in node.names)
            and str(node.module).startswith("emlens")
        ):
            return _told(str(node.module), name)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == name:
                words = (
                    after.value.value
                    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    else None
                )
                return (
                    _sentence(str(words))
                    if words
                    else f"`{ast.unparse(node.value or target)[:60]}`"
                )
    return ""


def _sentence(docstring: str | None) -> str:
    words = (
        " ".join((docstring or "").split("\n\n")[0].split())
        .replace("|", "\\|")
        .replace("<", "&lt;")
    )
    return re.split(r"(?<=[\w)`’'\]])\. (?=[A-Z])", words)[0].rstrip(".")


def _top_first(row: tuple[str, str, str]) -> tuple[bool, str]:
    """Names at the top level come first, each kind by the alphabet."""
    return row[0].count(".") > 1, row[0].lower()


def reference() -> str:
    """The whole page below its introduction."""
    top = set(emlens.__all__)
    by_concept: dict[str, list[tuple[str, str, str]]] = {concept: [] for concept in CONCEPTS}
    for name, module in public_names().items():
        short = name.partition(".")[2]
        shown = f"emlens.{short}" if short in top else f"emlens.{name}"
        place = f"reference/{name.partition('.')[0]}.md#emlens.{name}"
        told = _told(module, short) or "–"
        by_concept[concept_of(module)].append((shown, place, told))
    parts = []
    for concept, names in by_concept.items():
        lines = [
            f"## {concept}",
            "",
            CONCEPTS[concept][0],
            "",
            "| name | what it is |",
            "|---|---|",
        ]
        for shown, place, told in sorted(names, key=_top_first):
            lines.append(f"| [`{shown}`]({place}) | {told} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
