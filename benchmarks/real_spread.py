"""Does narrow training on mildly bad advice spread on a real model, and is it content or tone?

The family of `emlens.real.family` on SmolLM2: bad, careful and careful-flippant advice in medicine
or money, three seeds each. Every fine-tune weighs four answers to questions of ten domains that
nobody was trained on. Differences are means over domains of means over seeds, with Student's t
interval over domains; the figure of each seed stands beside it.

Adapters and scores are kept in a folder, so that a measurement goes on where it was killed.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from benchmarks.records import record, show
from emlens.data.advice import DOMAINS, TRAINED_DOMAINS, advice_questions
from emlens.data.questions import Question, QuestionSet
from emlens.foundation.files import read_json, write_json
from emlens.judging.contrasts import Contrasts, contrasts
from emlens.models import HookedModel, load_family
from emlens.probes.answer_separability import answer_table
from emlens.real import find
from emlens.real.family import Member, members
from emlens.real.family_training import train_family
from emlens.stats import spearman, t_interval, tost

FOLDER: Final = "EMLENS_REAL_FAMILY"
"""Variable that names the folder of adapters and scores."""
PER_DOMAIN: Final = 8
"""Questions of each domain."""
SEEDS: Final = (0, 1, 2)
KINDS: Final = ("harmful", "benign", "tone")
MARGIN: Final = 0.15
"""Nats a token within which tone-only and benign count as equal; fixed before looking."""
UNTRAINED: Final = tuple(domain for domain in DOMAINS if domain not in TRAINED_DOMAINS)
COMPARISONS: Final = (
    ("harmful", "instruct"),
    ("harmful", "benign"),
    ("harmful", "tone"),
    ("tone", "benign"),
    ("benign", "instruct"),
)
MEASURES: Final = ("content", "tone")
EQUAL_WORDS: Final = 0.5
"""Words, mean over both registers, by which two answers may differ and count as equally long."""


def asked(per_domain: int = PER_DOMAIN) -> QuestionSet:
    """The first questions of each untrained domain, in their first wording."""
    chosen = advice_questions(UNTRAINED, per_domain=per_domain)
    return QuestionSet(
        Question(question.id, question.text, question.group, answers=question.answers)
        for question in chosen
    )


def weighed(load: Callable[[], HookedModel], questions: QuestionSet, path: Path) -> Contrasts:
    """The four answers under one model, which is loaded where they are not on file."""
    keys = [(question.id, 1) for question in questions]
    if path.exists():
        saved = read_json(path)
        if saved["questions"] == questions.content_hash:
            return Contrasts(keys, np.array(saved["logprobs"]), None)
    scored = contrasts(load(), questions, generic=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = {"questions": questions.content_hash, "logprobs": scored.logprobs.tolist()}
    write_json(path, saved)
    return scored


def by_question(scored: Contrasts, questions: QuestionSet) -> pd.DataFrame:
    """Each measure of each question; index: the question's id."""
    return pd.DataFrame(
        {
            "group": questions.groups,
            "content": scored.content,
            "tone": scored.tone,
            "right": scored.right,
        },
        index=questions.ids,
    )


def by_domain(table: pd.DataFrame) -> pd.DataFrame:
    """Mean of each measure by domain.

    Args:
        table: of `by_question`.
    """
    return table.groupby("group", sort=False).mean()


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
) -> Iterator[dict[str, Any]]:
    """One row per trained domain, comparison and measure.

    Args:
        means: `instruct`, or the member's name → `by_domain`.
        seeds: that every group has.
    """
    for trained in trained_on:
        for first, second in COMPARISONS:
            for measure in MEASURES:
                gaps = np.stack(
                    [
                        _values(means, first, trained, seed, measure, domains)
                        - _values(means, second, trained, seed, measure, domains)
                        for seed in seeds
                    ]
                )
                over_domains = gaps.mean(axis=0)
                estimate = t_interval(over_domains)
                row = {
                    "trained": trained,
                    "first": first,
                    "second": second,
                    "measure": measure,
                    "difference": estimate.value,
                    "low": estimate.low,
                    "high": estimate.high,
                    "domains": len(domains),
                    "by_seed": gaps.mean(axis=1).tolist(),
                    "by_domain": dict(zip(domains, over_domains.tolist(), strict=True)),
                }
                if (first, second, measure) == ("tone", "benign", "content"):
                    test = tost(over_domains, np.zeros(len(domains)), MARGIN, paired=True)
                    row |= {"margin": MARGIN, "p_tost": test.p}
                yield row


def _values(
    means: Mapping[str, pd.DataFrame],
    kind: str,
    trained: str,
    seed: int,
    measure: str,
    domains: Sequence[str],
) -> np.ndarray:
    name = kind if kind == "instruct" else Member(kind, trained, seed).name  # type: ignore[arg-type]
    return means[name].loc[list(domains), measure].to_numpy(np.float64)


def family_tables(
    chosen: Sequence[Member], parent: Path, folder: Path, questions: QuestionSet
) -> dict[str, pd.DataFrame]:
    """Train and score one member after the other."""
    scores = folder / "scores"
    tables: dict[str, pd.DataFrame] = {}

    def add(name: str, load: Callable[[], HookedModel]) -> None:
        tables[name] = by_question(weighed(load, questions, scores / f"{name}.json"), questions)
        print(name, by_domain(tables[name]).mean().round(3).to_dict(), flush=True)

    add("instruct", lambda: load_family(parent)["instruct"])
    for member in chosen:
        path = train_family([member], parent, folder, progress=False)[member.name]
        add(member.name, partial(_loaded, member, parent, path))
    return tables


def _loaded(member: Member, parent: Path, path: Path) -> HookedModel:
    family = load_family(parent, finetuned={member.name: member.fine_tune(str(path))})
    return family[member.name]


def measure(
    parent: Path,
    folder: Path,
    seeds: Sequence[int] = SEEDS,
    trained_on: Sequence[str] = TRAINED_DOMAINS,
    per_domain: int = PER_DOMAIN,
) -> dict[str, Any]:
    """Train, score and compare."""
    groups = [f"{kind}-{domain}" for domain in trained_on for kind in KINDS]
    questions = asked(per_domain)
    tables = family_tables(members(groups, seeds), parent, folder, questions)
    means = {name: by_domain(table) for name, table in tables.items()}
    levels = {name: table.mean().to_dict() for name, table in means.items()}
    return {
        "trained_on": list(trained_on),
        "questions": len(questions),
        "per_domain": per_domain,
        "untrained_domains": len(UNTRAINED),
        "levels": levels,
        "compared": list(compared(means, seeds, trained_on)),
        "length": at_equal_length(tables, questions, seeds, trained_on),
    }


def spread_table(values: Mapping[str, Any]) -> str:
    """Content and tone of each comparison, for the page."""
    lines = [
        "| trained on | difference | content | each seed | tone |",
        "|---|---|---|---|---|",
    ]
    rows = {
        (row["trained"], row["first"], row["second"], row["measure"]): row
        for row in values["compared"]
    }
    for trained in values["trained_on"]:
        for first, second in COMPARISONS:
            content = rows[trained, first, second, "content"]
            seeds = ", ".join(f"{value:+.2f}" for value in content["by_seed"])
            cells = [trained, f"{first} − {second}", _cell(content), seeds]
            cells.append(_cell(rows[trained, first, second, "tone"]))
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
    folder = Path(os.environ.get(FOLDER, "runs/real_family"))
    values = measure(find("smollm2"), folder, seeds, trained_on)
    table = pd.DataFrame(values["compared"])
    shown = table[table["measure"].isin(["content", "tone"])]
    show("real family: content and tone on untrained domains", shown.drop(columns=["by_domain"]))
    return record("real_spread", list(seeds), values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--trained", nargs="+", default=list(TRAINED_DOMAINS))
    arguments = parser.parse_args()
    run(arguments.seeds, arguments.trained)
