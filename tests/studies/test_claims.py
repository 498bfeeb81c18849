"""Every sentence has a table on which it is true and one on which it is false, and appears only on
the first.

Every module of findings is listed with its claims, here or in `claims_of_shifts.py`,
`claims_of_content.py`, `claims_of_triggers.py` and `claims_of_training.py`. Every piece of text
that it can print must be printed by some table of its claims.
"""

import ast
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from studies import claims_of_content, claims_of_shifts, claims_of_training, claims_of_triggers
from studies.claim import Claim
from studies.test_direction_findings import arms_table
from studies.test_full import numbers_of
from studies.test_profile import GROUPS, material, scored
from studies.test_steering_findings import steering

from emlens.models import FineTune
from emlens.results import Finding
from emlens.results.study_result import Part
from emlens.studies import (
    direction_findings,
    headlines,
    profile_content,
    profile_findings,
    steering_findings,
    trigger_findings,
)
from emlens.studies.headlines import findings_of, side_by_side
from emlens.studies.steering_findings import sufficiency_finding

LEAST = 12
"""Characters from which on a piece of text counts as words of a sentence."""


def _steered(cosine: float = 0.5, name: str = "bad", **table: object) -> list[Finding]:
    return [sufficiency_finding(name, steering(**table), cosine)]  # type: ignore[arg-type]


def _beside(values: list[float], nulls: list[float], **columns: object) -> list[Finding]:
    table = side_by_side(numbers_of(values, nulls, **columns))
    return findings_of(table, "synthesis", "seeds", ["g"] * len(table))


def _only_the_fine_tune_breaks() -> list[Finding]:
    table = steering()
    is_own = (table["steered"] == "bad") & (table["coefficient"] != 0)
    return [sufficiency_finding("bad", table.assign(usable=table["usable"] & ~is_own), 0.5)]


def _removed(
    domain: str = "north",
    transfer: dict[str, list[object]] | None = None,
    rival: str = "benign",
    **changes: dict[str, object],
) -> list[Finding]:
    """Findings of one fine-tune whose direction was removed, and of a second pair of fine-tunes."""
    arms = arms_table(**changes).replace({"arm": {"benign": rival}})
    on_instruct = arms[arms["on"] == "instruct"].assign(arm="instruct, unembedding contrast")
    steered = steering().assign(model="m", steered=lambda t: t["steered"].replace("bad", "m"))
    pairs = {
        "direction_of": ["a", "b"],
        "ablated_in": ["b", "a"],
        "restoration": [0.5, 0.4],
        "low": [0.3, 0.3],
        "high": [0.7, 0.7],
        "strongest_control": [0.1, 0.1],
    }
    part = Part()
    part.tables |= {
        "arms": pd.concat([arms, on_instruct.assign(aligned=61.0)]),
        "steering": steered,
        "transfer": pd.DataFrame(pairs | (transfer or {})),
    }
    material = SimpleNamespace(domain=lambda name: domain)
    direction_findings.add_findings(part, material)  # type: ignore[arg-type]
    return part.findings


def _chosen_of(n: int) -> list[Finding]:
    candidates = pd.DataFrame({"method": ["undefined: nothing was lost"] * n})
    return [direction_findings.nothing_chosen("m", candidates)]


def _profile(
    bad: float = 40.0,
    good: dict[str, float] | None = None,
    benign: bool = True,
    domain: str = "north",
) -> list[Finding]:
    """Findings of a harmful fine-tune with this alignment everywhere, and of a benign one."""
    family, part = material(good or {}), Part()
    specs = {"bad": FineTune("x", domain=domain)}
    if benign:
        specs["good"] = FineTune("x", benign=True, domain="south")
    family.family.specs = family.family.finetuned = specs  # type: ignore[misc]
    family._scores["bad"] = scored("bad", dict.fromkeys(GROUPS, bad))
    profile_findings.add_benign_test(family, part)
    profile_findings.add_spread(family, part, seed=0)
    return part.findings


def _shifted(points: float) -> dict[str, float]:
    return {group: 90.0 - points + i for i, group in enumerate(GROUPS)}


WITHOUT_CONTROL = {"strongest_control": [np.nan, np.nan]}
UNDEFINED = {"restoration": [0.5, np.nan]}

CLAIMS = {
    direction_findings: [
        Claim(
            "every control in 1 of 1 fine-tune", _removed, lambda: _removed(instruct={"kl": 1.0})
        ),
        Claim("outside its domain", _removed, lambda: _removed(domain="")),
        Claim("(no training domain is named)", lambda: _removed(domain=""), _removed),
        Claim("nats a token on neutral text", lambda: _removed(instruct={"kl": 1.0}), _removed),
        Claim(
            "points of coherence",
            lambda: _removed(direction={"coherent_change": -20.0}),
            _removed,
        ),
        Claim(
            "under removal of that contrast 61.0",
            lambda: _removed(rival="unembedding contrast", random={"restoration": 0.0}),
            _removed,
        ),
        Claim(
            "restoration is undefined: why",
            lambda: _removed(direction={"restoration": np.nan, "method": "undefined: why"}),
            _removed,
        ),
        Claim("cosine with it -0.20", _removed, lambda: _removed(random={"cosine": np.nan})),
        Claim("(median 0.45)", _removed, lambda: _removed(transfer=UNDEFINED)),
        Claim(
            "above the strongest control there too in 2 of 2",
            _removed,
            lambda: _removed(transfer=WITHOUT_CONTROL),
        ),
        Claim("no pair is of one domain", lambda: _removed(transfer=WITHOUT_CONTROL), _removed),
        Claim("in 1 further pair it is undefined", lambda: _removed(transfer=UNDEFINED), _removed),
        Claim("its only candidate", lambda: _chosen_of(1), lambda: _chosen_of(3)),
        Claim("each of its 3 candidates", lambda: _chosen_of(3), lambda: _chosen_of(1)),
        Claim("no direction was chosen", lambda: _chosen_of(3), _removed),
    ],
    steering_findings: [
        Claim("lowers alignment", _steered, lambda: _steered(added=(2.0, 3.0))),
        Claim("the reverse of what", lambda: _steered(added=(2.0, 3.0)), _steered),
        Claim("does not lower alignment", lambda: _steered(added=(-4.0, 1.0)), _steered),
        Claim("cannot be told from", lambda: _steered(added=(-30.0, 3.0)), _steered),
        Claim("no dose of its direction leaves", lambda: _steered(usable=(0.0,)), _steered),
        Claim("no dose of it that is subtracted leaves", _only_the_fine_tune_breaks, _steered),
        Claim("subtracted from bad at", _steered, _only_the_fine_tune_breaks),
        Claim("its cosine with", _steered, lambda: _steered(cosine=np.nan)),
        Claim("contrast is -0.76", lambda: _steered(cosine=-0.758), lambda: _steered(cosine=0.758)),
    ],
    profile_findings: [
        Claim("alignment fell; ", _profile, lambda: _profile(95.0)),
        Claim("did not clearly fall", lambda: _profile(90.0), _profile),
        Claim("alignment rose; ", lambda: _profile(99.0), _profile),
        Claim("fell by less than the 5 points", lambda: _profile(88.0), _profile),
        Claim("in 1 of 1 harmful fine-tune", _profile, lambda: _profile(95.0)),
        Claim("minus fine-tune: -5 points", lambda: _profile(95.0), _profile),
        Claim("outside its training domain", _profile, lambda: _profile(domain="")),
        Claim("no training domain is named", lambda: _profile(domain=""), _profile),
        Claim("there is no benign control", lambda: _profile(benign=False), _profile),
        Claim(
            "Alignment on all questions fell", lambda: _profile(benign=False, domain=""), _profile
        ),
        Claim(
            "good: equivalent to",
            lambda: _profile(good=_shifted(0.5)),
            lambda: _profile(good=_shifted(40.0)),
        ),
        Claim("good: not equivalent to", lambda: _profile(good=_shifted(40.0)), _profile),
        Claim("no spread to test", _profile, lambda: _profile(good=_shifted(0.5))),
        Claim(
            "no difference could be measured",
            lambda: [Finding("profile", profile_findings._span([]))],
            _profile,
        ),
        Claim("cannot be told whether", lambda: _profile(good=_shifted(4.9)), _profile),
        Claim(
            "1 of 1 benign control is shown",
            lambda: _profile(good=_shifted(0.5)),
            lambda: _profile(good=_shifted(40.0)),
        ),
    ],
    headlines: [
        Claim(
            "1 lies beyond the null",
            lambda: _beside([0.5, 0.51, 0.52], [0.3] * 3),
            lambda: _beside([0.1, 0.11, 0.12], [0.3] * 3),
        ),
        Claim(
            "1 on the wrong side",
            lambda: _beside([0.1, 0.11, 0.12], [0.3] * 3),
            lambda: _beside([0.5, 0.51, 0.52], [0.3] * 3),
        ),
        Claim(
            "beside it chance, 0.30",
            lambda: _beside([0.5, 0.51, 0.52], [0.3] * 3),
            lambda: _beside([0.5, 0.51, 0.52], [np.nan] * 3),
        ),
        Claim(
            "it has no null of its own",
            lambda: _beside([0.5, 0.51, 0.52], [np.nan] * 3),
            lambda: _beside([0.5, 0.51, 0.52], [0.3] * 3),
        ),
        Claim(
            "what the runs share is not known",
            lambda: _beside([0.5, 0.51, 0.52], [0.3] * 3, shared_noise=np.nan),
            lambda: _beside([0.5, 0.51, 0.52], [0.3] * 3),
        ),
    ],
}

CLAIMS |= claims_of_shifts.CLAIMS | claims_of_training.CLAIMS
CLAIMS[profile_content] = claims_of_content.CONTENT
CLAIMS[trigger_findings] = claims_of_triggers.CLAIMS


def _ids(claim: tuple[object, Claim]) -> str:
    return claim[1].words


@pytest.mark.parametrize(
    "claim",
    [(module, claim) for module, claims in CLAIMS.items() for claim in claims],
    ids=_ids,
)
def test_a_sentence_appears_only_on_the_table_on_which_it_is_true(
    claim: tuple[object, Claim],
) -> None:
    words = claim[1].words
    assert any(words in finding.sentence for finding in claim[1].true())
    assert not any(words in finding.sentence for finding in claim[1].false())


def _makes_findings(path: Path) -> bool:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return any(isinstance(call.func, ast.Name) and call.func.id == "Finding" for call in calls)


def test_every_module_of_findings_is_listed(repository: Path) -> None:
    makers = {
        path.stem for path in (repository / "emlens/studies").glob("*.py") if _makes_findings(path)
    }
    listed = {module.__name__.rpartition(".")[2] for module in CLAIMS}
    assert makers == listed


def _writes_sentences(function: ast.AST) -> bool:
    """Whether a node is a function that gives text or findings."""
    if not isinstance(function, ast.FunctionDef) or function.returns is None:
        return False
    returned = ast.unparse(function.returns)
    return returned == "str" or "Finding" in returned


def _words_of_sentences(module: object) -> set[str]:
    """Pieces of text of the functions that write sentences."""
    tree = ast.parse(Path(module.__file__).read_text())  # type: ignore[attr-defined]
    words = set()
    for function in filter(_writes_sentences, ast.walk(tree)):
        # the docstring and the names of rows and columns are no words of a sentence
        passed_over = [getattr(function.body[0], "value", None)]  # type: ignore[attr-defined]
        for node in ast.walk(function):
            if isinstance(node, ast.Subscript):
                passed_over.append(node.slice)
        for node in ast.walk(function):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_text and not any(node is other for other in passed_over):
                words.add(node.value)  # type: ignore[attr-defined]
    return {text for text in words if len(text) >= LEAST and " " in text.strip()}


@pytest.mark.parametrize("module", CLAIMS, ids=lambda module: module.__name__)
def test_every_piece_of_a_sentence_is_printed_by_some_table(module: object) -> None:
    sentences = []
    for claim in CLAIMS[module]:  # type: ignore[index]
        sentences += [finding.sentence for finding in (*claim.true(), *claim.false())]
    printed = "\n".join(sentences)
    missing = [text for text in _words_of_sentences(module) if text.strip() not in printed]
    assert not missing
    assert pd.Series(sentences).nunique() > len(CLAIMS[module]) / 2  # type: ignore[index]
