"""Could the change of each question have been foreseen from the untouched model, better than from
the text?

Of the kept family (`benchmarks.real_kept`): the change of content of each of 40 questions, mean
over three seeds, against instruct (spread) and against the benign fine-tune (what bad advice adds).
Predictors are activations of the untouched SmolLM2 at six blocks and two positions; ridge, with
place and penalty chosen on inner folds. Held out are questions, and then whole domains. Baselines
on the same folds: TF-IDF and length of the rendered prompt, domain, mean input embedding, the
untouched model's own content, how many words longer the bad answers are, random features, and
activations of Gemma 3 270M, which is not related to SmolLM2. Beside it, what two seeds share: no
forecast from before training can do better.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Final

import numpy as np
import pandas as pd

from benchmarks.real_kept import PARENT, KeptFamily
from benchmarks.real_spread import PER_DOMAIN
from benchmarks.records import record
from emlens.activations import Activations, capture
from emlens.data.advice import TRAINED_DOMAINS
from emlens.data.templates import PLAIN_TEMPLATE
from emlens.foundation.estimate import Estimate
from emlens.foundation.sites import spread_layers
from emlens.models import HookedModel
from emlens.models.loading import with_template
from emlens.probes import Baselines, Design, Forecast, cross_validate_forecasts
from emlens.probes.answer_separability import answer_table
from emlens.probes.record import corrected_forecasts
from emlens.probes.shuffles import draws_for
from emlens.probes.targets import Duplicates
from emlens.real import load
from emlens.real.family import Member, members
from emlens.stats import spearman

SEEDS: Final = (0, 1, 2)
AGAINST: Final = (PARENT, "benign")
HELD_OUT: Final = {"question": None, "domain": "group"}
"""What is held out → the groups of the design."""
BLOCKS: Final = 5
"""Of the unrelated model."""
POSITIONS: Final = ("last_prompt", "mean_prompt")
SHOWN: Final = (
    "text",
    "length",
    "domain",
    "mean embedding",
    "parent's own score",
    "unrelated model",
)


def changes(
    kept: KeptFamily, trained: str, against: str, seeds: Sequence[int]
) -> dict[int, pd.Series]:
    """Seed → change of content of each question."""
    found = {}
    for seed in seeds:
        before = against
        if against != PARENT:
            before = Member(against, trained, seed).name  # type: ignore[arg-type]
        after = kept.table(Member("harmful", trained, seed).name)["content"]
        found[seed] = after - kept.table(before)["content"]
    return found


def seeds_alike(by_seed: Mapping[int, pd.Series], groups: Sequence[str]) -> dict[str, Any]:
    """Mean rank correlation over pairs of seeds, and the share of variance that all seeds share:
    Spearman and Brown's reliability of their mean.
    """
    columns = pd.DataFrame(by_seed)
    pairs = [(a, b) for n, a in enumerate(columns) for b in list(columns)[n + 1 :]]
    if not pairs:
        return {"rank_correlation": None, "reliability": None}
    ranks = [spearman(columns[a], columns[b], clusters=groups).value for a, b in pairs]
    plain = float(np.mean([columns[a].corr(columns[b]) for a, b in pairs]))
    count = columns.shape[1]
    reliability = count * plain / (1 + (count - 1) * plain)
    return {"rank_correlation": float(np.mean(ranks)), "reliability": reliability}


def unrelated_of(model: HookedModel, kept: KeptFamily) -> Activations:
    """Activations of a model of another family on the same questions."""
    if model.chat_format is None:
        model = with_template(model, PLAIN_TEMPLATE)
    layers = spread_layers(model.n_layers, BLOCKS)
    return capture(model, kept.questions, layers=layers, positions=list(POSITIONS), progress=False)


def measure(
    kept: KeptFamily,
    unrelated: HookedModel,
    seeds: Sequence[int] = SEEDS,
    trained_on: Sequence[str] = TRAINED_DOMAINS,
    *,
    repeats: int = 2,
    shuffles: int | None = None,
    duplicates: Duplicates = "refuse",
) -> dict[str, Any]:
    """Forecasts of every change; `repeats`, `shuffles` and `duplicates` are those of `Design`."""
    acts, questions = kept.streams(PARENT), kept.questions
    parent = kept.model(PARENT)
    stranger = unrelated_of(unrelated, kept)
    own = kept.table(PARENT)["content"]
    words = answer_table(questions).pivot_table(index="question", columns="content", values="words")
    baselines = Baselines(
        texts=parent.rendered_texts(questions.prompts()),
        parent_scores=_on_scale(own),
        embedding=capture(
            parent, questions, sites="resid_pre.0", positions="mean_prompt", progress=False
        ),
        unrelated=stranger,
        numbers={"extra words of bad answers": (words["bad"] - words["careful"]).to_dict()},
    )
    targets, alike = {}, []
    for trained, against in product(trained_on, AGAINST):
        by_seed = changes(kept, trained, against, seeds)
        mean = pd.DataFrame(by_seed).mean(axis=1)
        targets[f"{trained}, against {against}"] = _on_scale(mean)
        shared = seeds_alike(by_seed, questions.groups)
        alike.append({"target": f"{trained}, against {against}", "sd": float(mean.std()), **shared})
    count = len(targets) * len(HELD_OUT)
    forecasts: dict[str, Forecast] = {}
    places: dict[str, dict[str, str]] = {}
    for held_out, groups in HELD_OUT.items():
        permutations = draws_for(count) if shuffles is None else shuffles
        design = Design(
            groups=groups, repeats=repeats, permutations=permutations, duplicates=duplicates
        )
        made = cross_validate_forecasts(acts, targets, design=design, baselines=baselines)
        for target, forecast in made.items():
            forecasts[f"{held_out}, {target}"] = forecast
            places[f"{held_out}, {target}"] = {"held_out": held_out, "target": target}
    rows = []
    for key, forecast in corrected_forecasts(forecasts).items():
        rows.append({**places[key], **_figures(forecast)})
    return {"questions": len(questions), "forecasts": rows, "seeds": alike}


def _on_scale(nats: pd.Series) -> dict[str, float]:
    """Nats as points of a scale from 0 to 100; R² does not see it."""
    return (50 + 10 * nats).to_dict()


def _ends(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _figures(forecast: Forecast) -> dict[str, Any]:
    return {
        "r2": _ends(forecast.r2),
        "spearman": _ends(forecast.spearman),
        "p_holm": forecast.p_holm,
        "baselines": {name: _ends(r2) for name, r2 in forecast.baseline_r2.items()},
        "gains": {name: _ends(gain) for name, gain in forecast.gain_over.items()},
        "not_beaten": list(forecast.not_beaten),
        "missing": list(forecast.missing),
        "verdict": forecast.verdict,
    }


def _text(ends: Mapping[str, float] | None) -> str:
    if ends is None or not np.isfinite(ends["value"]):
        return "–"
    if not np.isfinite(ends["low"]):
        return f"{ends['value']:.2f}"
    return f"{ends['value']:.2f} [{ends['low']:.2f}, {ends['high']:.2f}]"


def forecasts_table(values: Mapping[str, Any]) -> str:
    """R² of every forecast, for the page."""
    lines = [
        "| change of content | held out | R² | rank correlation | p (Holm) | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for row in values["forecasts"]:
        cells = [row["target"], row["held_out"], _text(row["r2"]), _text(row["spearman"])]
        cells += [f"{row['p_holm']:.3f}", row["verdict"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def baselines_table(values: Mapping[str, Any]) -> str:
    """R² of what it has to beat, for the page."""
    lines = [
        f"| change of content | held out | {' | '.join(SHOWN)} |",
        f"|---|---|{'---|' * len(SHOWN)}",
    ]
    for row in values["forecasts"]:
        cells = [row["target"], row["held_out"]]
        cells += [_text(row["baselines"].get(name)) for name in SHOWN]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def seeds_table(values: Mapping[str, Any]) -> str:
    """What seeds share of the changes, for the page."""
    lines = [
        "| change of content | sd, nats | rank correlation of two seeds | reliability of mean |",
        "|---|---|---|---|",
    ]
    for row in values["seeds"]:
        lines.append(
            f"| {row['target']} | {row['sd']:.2f} | {row['rank_correlation']:.2f} |"
            f" {row['reliability']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    groups = [f"{kind}-{name}" for name in TRAINED_DOMAINS for kind in ("harmful", "benign")]
    kept = KeptFamily.found(members(groups, SEEDS), PER_DOMAIN)
    values = measure(kept, load("gemma3-270m"))
    print(forecasts_table(values), baselines_table(values), seeds_table(values), sep="\n\n")
    record("real_forecasts", list(SEEDS), values)
