"""Does narrow training on mildly bad advice spread on a real model, and is it content or tone?

The family of `emlens.real.family` on SmolLM2: bad, careful and careful-flippant advice in medicine
or money, three seeds each. Every fine-tune weighs four answers to questions of ten domains that
nobody was trained on. Differences are means over seeds and domains, with an interval that counts
both as sampled (`emlens.stats.crossed`); the figure of each seed stands beside it. Medicine has two
kinds more: `narrow`, held to its parent outside medicine, and `rank1`.

Adapters and scores are kept in a folder (`benchmarks.real_kept`), so that a measurement goes on
where it was killed. About 50 CPU minutes from nothing.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from benchmarks.real_kept import PARENT, UNTRAINED, KeptFamily, by_domain
from benchmarks.records import record, show
from emlens.data.advice import TRAINED_DOMAINS
from emlens.data.questions import QuestionSet
from emlens.probes.answer_separability import answer_table
from emlens.real.family import Member, members
from emlens.stats import spearman, t_interval
from emlens.stats.crossed import crossed_mean

SEEDS: Final = (0, 1, 2)
PER_DOMAIN: Final = 4
"""Questions of each domain: half of those that are read of one seed."""
KINDS: Final = ("harmful", "benign", "tone")
HELD: Final = ("narrow", "rank1")
"""Kinds that are trained on medicine alone."""
MARGIN: Final = 0.15
"""Nats a token within which tone-only and benign count as equal; fixed before looking."""
COMPARISONS: Final = (
    ("harmful", PARENT),
    ("harmful", "benign"),
    ("harmful", "tone"),
    ("tone", "benign"),
    ("benign", PARENT),
)
HELD_COMPARISONS: Final = (
    ("harmful", PARENT),
    ("harmful", "benign"),
    ("narrow", PARENT),
    ("narrow", "harmful"),
    ("rank1", PARENT),
)
EXTRA_SEEDS: Final = 1
"""Seeds that are also weighed in the trained domain, and after a prompt that asks nothing."""
MEASURES: Final = ("content", "tone", "right")
EQUAL_WORDS: Final = 0.5
"""Words, mean over both registers, by which two answers may differ and count as equally long."""


def at_equal_length(
    tables: Mapping[str, pd.DataFrame],
    questions: QuestionSet,
    seeds: Sequence[int],
    trained_on: Sequence[str],
) -> list[dict[str, Any]]:
    """Content of harmful minus benign, and how many words longer bad answers are: rank correlation
    over questions, and the mean where both are of equal length to half a word.
    """
    answers = answer_table(questions)
    words = answers.pivot_table(index="question", columns="content", values="words", sort=False)
    longer = (words["bad"] - words["careful"])[questions.ids]
    rows = []
    for trained in trained_on:
        gaps = []
        for seed in seeds:
            harmful = tables[Member("harmful", trained, seed).name]["content"]
            gaps.append(harmful - tables[Member("benign", trained, seed).name]["content"])
        gap = sum(gaps) / len(gaps)
        equal = longer.abs() <= EQUAL_WORDS
        row = {
            "trained": trained,
            "correlation": spearman(longer.to_numpy(), gap.to_numpy()).to_record(),
            "mean_longer": float(longer.mean()),
            "equal_questions": int(equal.sum()),
            "equal": t_interval(gap[equal].to_numpy()).to_record(),
        }
        rows.append(row)
    return rows


def compared(
    means: Mapping[str, pd.DataFrame],
    seeds: Sequence[int],
    trained_on: Sequence[str] = TRAINED_DOMAINS,
    domains: Sequence[str] = UNTRAINED,
    comparisons: Sequence[tuple[str, str]] = COMPARISONS,
) -> Iterator[dict[str, Any]]:
    """One row per trained domain, comparison and measure.

    Args:
        means: `instruct`, or the member's name → `by_domain`.
        seeds: that every group has.
    """
    for trained in trained_on:
        for first, second in comparisons:
            for measure in MEASURES:
                gaps = np.stack(
                    [
                        _values(means, first, trained, seed, measure, domains)
                        - _values(means, second, trained, seed, measure, domains)
                        for seed in seeds
                    ]
                )
                mean = crossed_mean(gaps)
                row = {
                    "trained": trained,
                    "first": first,
                    "second": second,
                    "measure": measure,
                    **_ends(gaps),
                    "domains": len(domains),
                    "by_seed": gaps.mean(axis=1).tolist(),
                    "by_domain": dict(zip(domains, gaps.mean(axis=0).tolist(), strict=True)),
                }
                if (first, second, measure) == ("tone", "benign", "content"):
                    row |= {"margin": MARGIN, "p_tost": mean.equivalence_p(MARGIN)}
                yield row


def _ends(gaps: np.ndarray) -> dict[str, float]:
    """Mean of (seed, unit) with its interval."""
    estimate = crossed_mean(gaps).interval()
    return {"difference": estimate.value, "low": estimate.low, "high": estimate.high}


def _name(kind: str, trained: str, seed: int) -> str:
    return kind if kind == PARENT else Member(kind, trained, seed).name  # type: ignore[arg-type]


def _values(
    means: Mapping[str, pd.DataFrame],
    kind: str,
    trained: str,
    seed: int,
    measure: str,
    domains: Sequence[str],
) -> np.ndarray:
    table = means[_name(kind, trained, seed)]
    return table.loc[list(domains), measure].to_numpy(np.float64)


def own_domain(kept: KeptFamily, trained: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Change of content on evaluation questions of the trained domain itself, against instruct.

    One domain, so the units are its questions: the interval holds for further questions, and for
    further seeds where there are several.
    """
    rows = []
    before = kept.own(PARENT, trained)["content"].to_numpy()
    for kind, names in _members_of(kept, trained, seeds):
        gaps = np.stack([kept.own(name, trained)["content"].to_numpy() - before for name in names])
        rows.append({"trained": trained, "kind": kind, "seeds": len(names), **_ends(gaps)})
    return rows


def damage(kept: KeptFamily, trained: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Change of nats a token on neutral chats against instruct, seeds × chats."""
    before = kept.nats(PARENT)
    rows = []
    for kind, names in _members_of(kept, trained, seeds):
        gaps = np.stack([kept.nats(name) - before for name in names])
        rows.append({"trained": trained, "kind": kind, "seeds": len(names), **_ends(gaps)})
    return rows


def beside(kept: KeptFamily, trained: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Change against instruct of pointwise mutual information, and of content after a prompt that
    asks nothing, on the first questions of each domain.
    """
    rows: list[dict[str, Any]] = []
    columns = ["content", "informed", "generic"]
    before = kept.informed(PARENT).groupby("group", sort=False)[columns].mean()
    for kind, names in _members_of(kept, trained, seeds, KINDS):
        row: dict[str, Any] = {"trained": trained, "kind": kind, "seeds": len(names)}
        after = [kept.informed(name).groupby("group", sort=False)[columns].mean() for name in names]
        for column in columns:
            gaps = [(table[column] - before[column]).to_numpy() for table in after]
            row[column] = _ends(np.stack(gaps))
        rows.append(row)
    return rows


def _members_of(
    kept: KeptFamily, trained: str, seeds: Sequence[int], kinds: Sequence[str] = (*KINDS, *HELD)
) -> Iterator[tuple[str, list[str]]]:
    """Kind → names, of those kinds that are there with all of the seeds."""
    for kind in kinds:
        names = [_name(kind, trained, seed) for seed in seeds]
        if set(names) <= set(kept.names):
            yield kind, names


def complete_seeds(kept: KeptFamily, trained: str, kinds: Sequence[str]) -> list[int]:
    """Seeds of which every one of the kinds is there."""
    seeds = sorted({member.seed for member in kept.chosen})
    names = set(kept.names)
    return [seed for seed in seeds if {_name(kind, trained, seed) for kind in kinds} <= names]


def measure(kept: KeptFamily, trained_on: Sequence[str] = TRAINED_DOMAINS) -> dict[str, Any]:
    """Train, read and compare what is among the chosen members.

    Where a kind lacks a seed, that seed is left out of its domain and `seeds` says so.
    """
    for name in kept.names:
        level = by_domain(kept.table(name)).mean().round(3).to_dict()
        print(name, level, round(float(kept.nats(name).mean()), 3), flush=True)
    tables = {name: kept.table(name) for name in kept.names}
    means = {name: by_domain(table) for name, table in tables.items()}
    seeds = {trained: complete_seeds(kept, trained, KINDS) for trained in trained_on}
    first = trained_on[0]
    held_seeds = complete_seeds(kept, first, (*KINDS, *HELD))
    found: dict[str, list[dict[str, Any]]] = {"compared": [], "damage": [], "length": []}
    for trained, of_domain in seeds.items():
        found["compared"] += compared(means, of_domain, [trained])
        found["damage"] += damage(kept, trained, of_domain)
        found["length"] += at_equal_length(tables, kept.questions, of_domain, [trained])
    held: list[dict[str, Any]] = []
    if held_seeds:
        held = list(compared(means, held_seeds, [first], comparisons=HELD_COMPARISONS))
    return {
        "trained_on": list(trained_on),
        "seeds": seeds,
        "held_seeds": held_seeds,
        "questions": len(kept.questions),
        "per_domain": kept.per_domain,
        "untrained_domains": len(UNTRAINED),
        "levels": {name: table.mean().to_dict() for name, table in means.items()},
        "neutral_level": float(kept.nats(PARENT).mean()),
        "held": held,
        "own": own_domain(kept, first, seeds[first][:EXTRA_SEEDS]),
        "beside": beside(kept, first, seeds[first][:EXTRA_SEEDS]),
        **found,
    }


def spread_table(values: Mapping[str, Any]) -> str:
    """Content and tone of each comparison, for the page."""
    lines = [
        "| trained on | difference | content | each seed | tone |",
        "|---|---|---|---|---|",
    ]
    for trained in values["trained_on"]:
        lines += _rows_of(values["compared"], trained, COMPARISONS)
    return "\n".join(lines)


def _rows_of(
    compared: Sequence[Mapping[str, Any]], trained: str, comparisons: Sequence[tuple[str, str]]
) -> Iterator[str]:
    """Lines of a table: content, each seed, tone."""
    rows = {(row["trained"], row["first"], row["second"], row["measure"]): row for row in compared}
    for first, second in comparisons:
        content = rows[trained, first, second, "content"]
        seeds = ", ".join(f"{value:+.2f}" for value in content["by_seed"])
        tone = _cell(rows[trained, first, second, "tone"])
        cells = [trained, f"{first} − {second}", _cell(content), seeds, tone]
        yield f"| {' | '.join(cells)} |"


def held_table(values: Mapping[str, Any]) -> str:
    """Content of the member that was held narrow and of the one of rank 1, for the page."""
    lines = [
        "| trained on | difference | content, untrained domains | each seed | tone |",
        "|---|---|---|---|---|",
        *_rows_of(values["held"], values["trained_on"][0], HELD_COMPARISONS),
    ]
    return "\n".join(lines)


def own_table(values: Mapping[str, Any]) -> str:
    """Content in the trained domain itself against instruct, for the page."""
    lines = [
        "| trained on | fine-tune | content in that domain, against instruct |",
        "|---|---|---|",
    ]
    for row in values["own"]:
        lines.append(f"| {row['trained']} | {row['kind']} | {_cell(row)} |")
    return "\n".join(lines)


def damage_table(values: Mapping[str, Any]) -> str:
    """Neutral text and accuracy, for the page."""
    lines = [
        "| trained on | fine-tune | neutral text against instruct, nats | right answers |",
        "|---|---|---|---|",
    ]
    right = f"{100 * values['levels'][PARENT]['right']:.0f} %"
    lines.append(f"| – | instruct | level {values['neutral_level']:.2f} | {right} |")
    for row in values["damage"]:
        shares = [
            level["right"]
            for name, level in values["levels"].items()
            if name.startswith(f"{row['kind']}-{row['trained']}-")
        ]
        right = f"{100 * np.mean(shares):.0f} %"
        lines.append(f"| {row['trained']} | {row['kind']} | {_cell(row)} | {right} |")
    return "\n".join(lines)


def beside_table(values: Mapping[str, Any]) -> str:
    """Mutual information and the generic prompt, for the page."""
    lines = [
        "| trained on | fine-tune | content | informed | after a generic prompt |",
        "|---|---|---|---|---|",
    ]
    for row in values["beside"]:
        cells = [row["trained"], row["kind"]]
        cells += [_cell(row[name]) for name in ("content", "informed", "generic")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def domains_table(values: Mapping[str, Any]) -> str:
    """Content of harmful minus benign in each untrained domain."""
    lines = [f"| trained on | {' | '.join(UNTRAINED)} |", f"|---|{'---|' * len(UNTRAINED)}"]
    for row in values["compared"]:
        if (row["first"], row["second"], row["measure"]) == ("harmful", "benign", "content"):
            cells = [f"{row['by_domain'][domain]:+.2f}" for domain in UNTRAINED]
            lines.append(f"| {row['trained']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def length_table(values: Mapping[str, Any]) -> str:
    """Content of harmful minus benign where bad and careful answers are equally long."""
    lines = [
        "| trained on | questions of equal length | content, harmful − benign, there |"
        " rank correlation with extra words |",
        "|---|---|---|---|",
    ]
    for row in values["length"]:
        equal, rho = row["equal"], row["correlation"]
        cells = [row["trained"], f"{row['equal_questions']} of {values['questions']}"]
        cells.append(f"{equal['value']:+.2f} [{equal['low']:+.2f}, {equal['high']:+.2f}]")
        cells.append(f"{rho['value']:+.2f} [{rho['low']:+.2f}, {rho['high']:+.2f}]")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any]) -> str:
    return f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def run(seeds: Sequence[int] = SEEDS, trained_on: Sequence[str] = TRAINED_DOMAINS) -> Path:
    groups = [f"{kind}-{domain}" for domain in trained_on for kind in KINDS]
    groups += [f"{kind}-{trained_on[0]}" for kind in HELD]
    return recorded(KeptFamily.found(members(groups, seeds), PER_DOMAIN), trained_on)


def recorded(kept: KeptFamily, trained_on: Sequence[str] = TRAINED_DOMAINS) -> Path:
    """Measure what is among the chosen members, and write it down."""
    values = measure(kept, trained_on)
    table = pd.DataFrame(values["compared"])
    show("real family: content and tone on untrained domains", table.drop(columns=["by_domain"]))
    return record("real_spread", sorted({member.seed for member in kept.chosen}), values)


def main() -> None:
    run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--trained", nargs="+", default=list(TRAINED_DOMAINS))
    arguments = parser.parse_args()
    run(arguments.seeds, arguments.trained)
