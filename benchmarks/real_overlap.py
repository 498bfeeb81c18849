"""Do fine-tunes of two domains shift prompts of ten others alike, and is it harm that is alike?

Residual streams of the kept family (`benchmarks.real_kept`) at the last prompt token, mean over six
blocks. Two numbers for each pair of models, as in `delta_overlap`: the cosine of both centred
shifts prompt by prompt, and the cosine of mean shifts. A shift is fine-tune − instruct, or, with
the benign part taken out, harmful − benign of the same domain and seed. Pairs stand beside those of
benign and of tone-only fine-tunes, and beside differences of two benign seeds, which hold no harm.

Three seeds, the i-th of one domain with the i-th of the other. Intervals are of jackknife
pseudo-values over domains, seeds crossed with them. No null is trained: 39 adapters of each domain
would cost about 100 CPU minutes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import pandas as pd
from torch import Tensor

from benchmarks.real_kept import PARENT, KeptFamily
from benchmarks.real_spread import PER_DOMAIN
from benchmarks.records import record, show
from emlens.controls.domain_pairs import MEANS, PROMPT_COSINE, pair_statistics
from emlens.data.advice import TRAINED_DOMAINS
from emlens.foundation.estimate import Estimate
from emlens.real.family import Member, members
from emlens.stats.crossed import crossed_mean

SEEDS: Final = (0, 1, 2)
KINDS: Final = ("harmful", "benign", "tone")
POSITION: Final = "last_prompt"
Shift = dict[tuple[str, str], Tensor]


@dataclass(frozen=True)
class Side:
    """One side of a pair: `first` − `second`, kinds of fine-tunes of one domain.

    Args:
        second: a kind, or `instruct`. other_seed: `second` is of the next seed.
    """

    first: str
    second: str = PARENT
    other_seed: bool = False

    @property
    def label(self) -> str:
        if self.second == PARENT:
            return self.first
        return f"{self.first} − {self.second}" + (" of another seed" if self.other_seed else "")


HARM: Final = Side("harmful", "benign")
PAIRS: Final = (
    (Side("harmful"), Side("harmful")),
    (Side("benign"), Side("benign")),
    (Side("tone"), Side("tone")),
    (Side("harmful"), Side("benign")),
    (HARM, HARM),
    (Side("tone", "benign"), Side("tone", "benign")),
    (HARM, Side("tone", "benign")),
    (Side("benign", "benign", other_seed=True), Side("benign", "benign", other_seed=True)),
)
"""(side of the first domain, side of the second)."""
GAPS: Final = (
    ((Side("harmful"), Side("harmful")), (Side("benign"), Side("benign"))),
    ((Side("harmful"), Side("harmful")), (Side("harmful"), Side("benign"))),
    ((HARM, HARM), (HARM, Side("tone", "benign"))),
    ((HARM, HARM), (Side("benign", "benign", True), Side("benign", "benign", True))),
)
"""Pairs of pairs whose difference is tested, fixed before looking."""


class Streams:
    """Shifts of the family on the questions, by model and seed."""

    def __init__(self, kept: KeptFamily, seeds: Sequence[int]):
        self.kept, self.seeds = kept, list(seeds)
        self.groups = np.array(kept.questions.groups)
        self._read: dict[str, Mapping[tuple[str, str], Tensor]] = {}

    def of(self, kind: str, domain: str, seed: int) -> Mapping[tuple[str, str], Tensor]:
        name = kind if kind == PARENT else Member(kind, domain, seed).name  # type: ignore[arg-type]
        if name not in self._read:
            acts = self.kept.streams(name)
            self._read[name] = {(site, POSITION): acts[site, POSITION] for site in acts.sites}
        return self._read[name]

    def shift(self, side: Side, domain: str, seed: int) -> Shift:
        """Site and position → (question, d)."""
        second_seed = seed
        if side.other_seed:
            second_seed = self.seeds[(self.seeds.index(seed) + 1) % len(self.seeds)]
        after = self.of(side.first, domain, seed)
        before = self.of(side.second, domain, second_seed)
        return {key: after[key].double() - before[key].double() for key in after}


def statistics(first: Shift, second: Shift) -> dict[str, float]:
    """Both numbers, mean over blocks."""
    cells = pair_statistics(first, second)
    means: dict[str, float] = cells.groupby("statistic")["value"].mean().to_dict()
    return means


def pseudo_values(first: Shift, second: Shift, groups: np.ndarray) -> dict[str, np.ndarray]:
    """Statistic → jackknife pseudo-value of each domain: D·θ − (D − 1)·θ without it."""
    domains = list(dict.fromkeys(groups))
    whole = statistics(first, second)
    values: dict[str, list[float]] = {name: [] for name in whole}
    for domain in domains:
        rows = np.flatnonzero(groups != domain)
        without = statistics(_rows(first, rows), _rows(second, rows))
        for name in whole:
            values[name].append(len(domains) * whole[name] - (len(domains) - 1) * without[name])
    return {name: np.array(column) for name, column in values.items()}


def _rows(shift: Shift, rows: np.ndarray) -> Shift:
    return {key: values[rows] for key, values in shift.items()}


Tables = dict[tuple[Side, Side], dict[str, np.ndarray]]


def pair_tables(
    streams: Streams, domains: Sequence[str] = TRAINED_DOMAINS, pairs: Any = PAIRS
) -> Tables:
    """Pair → statistic → pseudo-values (seed, domain). A pair of unlike sides is taken both ways
    round and averaged.
    """
    tables: Tables = {}
    for pair in pairs:
        ways = [pair] if pair[0] == pair[1] else [pair, pair[::-1]]
        rows: dict[str, list[np.ndarray]] = {}
        for seed in streams.seeds:
            of_seed: dict[str, list[np.ndarray]] = {}
            for one, other in ways:
                first = streams.shift(one, domains[0], seed)
                second = streams.shift(other, domains[1], seed)
                for name, values in pseudo_values(first, second, streams.groups).items():
                    of_seed.setdefault(name, []).append(values)
            for name, both in of_seed.items():
                rows.setdefault(name, []).append(np.mean(both, axis=0))
        tables[pair] = {name: np.stack(column) for name, column in rows.items()}
    return tables


def _ends(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def pair_rows(tables: Tables) -> Iterator[dict[str, Any]]:
    for (one, other), by_statistic in tables.items():
        row: dict[str, Any] = {"first": one.label, "second": other.label}
        for name, table in by_statistic.items():
            row[name] = _ends(crossed_mean(table).interval())
            row[f"{name}_by_seed"] = table.mean(axis=1).tolist()
        yield row


def gap_rows(tables: Tables) -> Iterator[dict[str, Any]]:
    """Differences of pairs that say whether harm is what is alike."""
    for (one, other), name in product(GAPS, (PROMPT_COSINE, MEANS)):
        gap = crossed_mean(tables[one][name] - tables[other][name]).interval()
        yield {
            "pair": _label(one),
            "beside": _label(other),
            "statistic": name,
            **_ends(gap),
            "shown": bool(gap.low > 0),
        }


def _label(pair: tuple[Side, Side]) -> str:
    return f"{pair[0].label} × {pair[1].label}"


def alike_seeds(
    streams: Streams, domains: Sequence[str], kinds: Sequence[str] = KINDS
) -> list[dict[str, Any]]:
    """What two seeds of one fine-tune share: as alike as anything can be."""
    rows = []
    if len(streams.seeds) < 2:
        return rows
    following = [*streams.seeds[1:], streams.seeds[0]]
    for kind, domain in product(kinds, domains):
        found = []
        for seed, other in zip(streams.seeds, following, strict=True):
            one, two = (streams.shift(Side(kind), domain, number) for number in (seed, other))
            found.append(statistics(one, two))
        means = pd.DataFrame(found).mean().to_dict()
        rows.append({"fine-tune": f"{kind} {domain}", **means})
    return rows


def lengths(streams: Streams, domains: Sequence[str]) -> list[dict[str, Any]]:
    """Mean length of shifts, as a share of the stream's, mean over blocks and seeds."""
    rows = []
    for kind, domain in product(KINDS, domains):
        shares = []
        for seed in streams.seeds:
            before, shift = (
                streams.of(PARENT, domain, seed),
                streams.shift(Side(kind), domain, seed),
            )
            for key, values in shift.items():
                shares.append(
                    float(values.norm(dim=1).mean() / before[key].double().norm(dim=1).mean())
                )
        rows.append({"fine-tune": f"{kind} {domain}", "share": float(np.mean(shares))})
    return rows


def measure(
    kept: KeptFamily, seeds: Sequence[int] = SEEDS, domains: Sequence[str] = TRAINED_DOMAINS
) -> dict[str, Any]:
    streams = Streams(kept, seeds)
    tables = pair_tables(streams, domains)
    return {
        "questions": len(kept.questions),
        "blocks": list(kept.layers),
        "pairs": list(pair_rows(tables)),
        "gaps": list(gap_rows(tables)),
        "seeds_of_one": alike_seeds(streams, domains),
        "lengths": lengths(streams, domains),
    }


def _cell(ends: Mapping[str, float]) -> str:
    return f"{ends['value']:.2f} [{ends['low']:.2f}, {ends['high']:.2f}]"


def pairs_table(values: Mapping[str, Any]) -> str:
    """Both numbers of every pair, for the page."""
    lines = [
        "| after medicine | after money | prompt by prompt, centred | mean shifts |",
        "|---|---|---|---|",
    ]
    for row in values["pairs"]:
        cells = [row["first"], row["second"], _cell(row[PROMPT_COSINE]), _cell(row[MEANS])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gaps_table(values: Mapping[str, Any]) -> str:
    """What is alike beyond which control, for the page."""
    lines = ["| pair | beyond | prompt by prompt | mean shifts |", "|---|---|---|---|"]
    by_pair: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in values["gaps"]:
        by_pair.setdefault((row["pair"], row["beside"]), {})[row["statistic"]] = row
    for (pair, beside), rows in by_pair.items():
        cells = [f"{_gap(rows[name])}" for name in (PROMPT_COSINE, MEANS)]
        lines.append(f"| {pair} | {beside} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gap(row: Mapping[str, Any]) -> str:
    text = f"{row['value']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
    return text + (", shown" if row["shown"] else ", not shown")


def main() -> None:
    groups = [f"{kind}-{domain}" for domain in TRAINED_DOMAINS for kind in KINDS]
    values = measure(KeptFamily.found(members(groups, SEEDS), PER_DOMAIN))
    show("seeds of one fine-tune", pd.DataFrame(values["seeds_of_one"]))
    print(pairs_table(values), gaps_table(values), sep="\n\n")
    record("real_overlap", list(SEEDS), values)
