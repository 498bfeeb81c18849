"""Which direction carries the misalignment, what removing it does, and whether it works in other fine-tunes.

Extracted, selected and reported on disjoint questions. The direction of a fine-tune is its mean shift against its parent
at one position, layer by layer; the layer is chosen on the selection questions among layers ≤ L−2, because a direction that
works only after the last block is a readout. The last layer is reported beside it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emlens.activations import Activations, capture, capture_many
from emlens.data import QuestionSet
from emlens.evaluation import Arm, ablation_arms, evaluate_arms, score_by_likelihood, unembedding_contrast
from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.geometry import Direction, direction_cosine, mean_difference_direction, random_directions_like
from emlens.interventions import ablate, steer
from emlens.stats import bootstrap_mean
from emlens.studies.config import StudyConfig
from emlens.studies.material import Material, split_questions
from emlens.studies.result import Advance, Finding, Part

POSITION = "last_prompt"
COHERENCE_LOSS = 10.0
"""Points of coherence (of 100) that an ablation may cost and its layer still be chosen."""


def run(material: Material, config: StudyConfig, advance: Advance) -> Part:
    part = Part()
    extract, select, report = split_questions(material.questions, config.shares, config.seed)
    part.tables["question_sets"] = pd.DataFrame(
        [
            {"question": q.id, "group": q.group, "used_to": use}
            for use, questions in (("extract", extract), ("select", select), ("report", report))
            for q in questions
        ]
    )
    layers, arms, steering = [], [], []
    chosen: dict[str, Direction] = {}
    focus = material.focus(config)
    contrast = _contrast(material, focus, part)
    for name in focus:
        before, after = _extraction(material, name, extract)
        moved = [site for site in before.sites if not torch.equal(before[site], after[site])]
        directions = {site: _direction(before, after, site) for site in moved}
        table = _by_layer(material, name, directions, before, after, select, contrast, config)
        layers.append(table)
        advance(0.15 / len(focus))
        best = _choose(table, name, part)
        chosen[name] = directions[best]
        for site, role in ((best, "chosen on the selection questions"), (before.sites[-1], "last layer")):
            arms.append(_arms(material, name, directions[site], site, role, before, after, report, extract, contrast, config))
            advance(0.25 / len(focus))
        steering.append(_steering(material, name, directions[best], before, report, config))
        advance(0.25 / len(focus))
    part.tables |= {
        "directions": pd.concat(layers, ignore_index=True),
        "arms": pd.concat(arms, ignore_index=True),
        "steering": pd.concat(steering, ignore_index=True),
    }
    part.tables["transfer"] = _transfer(material, chosen, report, part.tables["arms"], config)
    _findings(part, material)
    if len(set(report.groups)) < 10:
        part.warnings.append(f"restoration resamples {len(set(report.groups))} domains; with fewer than 10 its interval is too short")
    if any(material.benign_for(name) is None for name in focus):
        part.warnings.append("a fine-tune in focus has no benign fine-tune of the same parent: the arm with its direction is missing")
    if material.neutral is None:
        part.warnings.append("no neutral text: damage (KL) is missing")
    return part


def _contrast(material: Material, names: Sequence[str], part: Part) -> dict[str, Tensor]:
    """Unembedding contrast of each parent, where its reference answers differ in their first token."""
    found = {}
    for parent in sorted({material.parent(name).name for name in names}):
        try:
            found[parent] = unembedding_contrast(material.family[parent], material.questions)
        except InputError as error:
            part.warnings.append(f"{parent}: {error}; the arm with it is missing")
    return found


def _choose(table: pd.DataFrame, name: str, part: Part) -> str:
    """The layer with the most restoration on the selection questions, the last one left out, coherence kept where it can be."""
    early = table[~table["last"]] if len(table) > 1 else table
    allowed = early[early["coherence_loss"] <= COHERENCE_LOSS]
    if not len(allowed):
        part.warnings.append(f"{name}: every layer's ablation costs more than {COHERENCE_LOSS:g} points of coherence on the selection questions")
    if early["restoration"].isna().all():
        part.warnings.append(f"{name}: restoration is undefined on the selection questions; the first layer that keeps coherence stands in for the best")
    ranked = (allowed if len(allowed) else early).sort_values("restoration", ascending=False, kind="stable")
    return str(ranked.iloc[0]["site"])


def _extraction(material: Material, name: str, extract: QuestionSet) -> tuple[Activations, Activations]:
    questions = material.untrained(extract, name)
    models = {"before": material.parent(name), "after": material.family[name]}
    found = capture_many(models, questions.prompts(), positions=POSITION, progress=False)
    return found["before"], found["after"]


def _token_means(material: Material, name: str, extract: QuestionSet) -> dict[str, Tensor]:
    """Mean activation of the parent over the tokens of the extraction questions, after every block."""
    acts = capture(material.parent(name), material.untrained(extract, name), positions="mean_prompt", progress=False)
    return {site: acts[site].double().mean(0) for site in acts.sites}


def _direction(before: Activations, after: Activations, site: str, rows: Tensor | None = None) -> Direction:
    a, b = after[site], before[site]
    if rows is not None:
        a, b = a[rows], b[rows]
    return mean_difference_direction(a.double(), b.double(), site=site, position=POSITION)


def _excluded(material: Material, *names: str) -> list[str]:
    return sorted({material.domain(name) for name in names} - {""})


def _by_layer(
    material: Material,
    name: str,
    directions: dict[str, Direction],
    before: Activations,
    after: Activations,
    select: QuestionSet,
    contrasts: Mapping[str, Tensor],
    config: StudyConfig,
) -> pd.DataFrame:
    """Each layer's direction: length, reliability, what it points at, and restoration on the selection questions."""
    contrast = contrasts.get(material.parent(name).name)
    halves = torch.tensor(numpy_rng(config.seed, "halves", name).permutation(len(before)))
    arms = [Arm(site, (ablate(direction),), control=False) for site, direction in directions.items()]
    scored = evaluate_arms(
        material.family[name],
        material.parent(name),
        material.untrained(select, name),
        [Arm("no ablation", ()), *arms],
        exclude_groups=_excluded(material, name),
        progress=False,
        seed=config.seed,
    ).set_index("arm")
    numbers = scored[["restoration", "restoration_low", "restoration_high", "coherent", "n"]].to_dict(orient="index")
    last = before.sites[-1]
    rows = []
    for site, direction in directions.items():
        mean = before[site].double().mean(0)
        halved = [_direction(before, after, site, part) for part in (halves[: len(halves) // 2], halves[len(halves) // 2 :])]
        row = {
            "model": name,
            "site": site,
            "layer": int(site.rsplit(".", 1)[1]),
            "last": site == last,
            "norm": direction.norm,
            "relative_norm": direction.norm / float(mean.norm()),
            "split_half_cosine": direction_cosine(*halved),
            "cosine_unembedding": np.nan if contrast is None else direction_cosine(direction, contrast),
            "cosine_planted": np.nan if material.direction is None else abs(direction_cosine(direction, material.direction)),
            "restoration": numbers[site]["restoration"],
            "low": numbers[site]["restoration_low"],
            "high": numbers[site]["restoration_high"],
            "coherent": numbers[site]["coherent"],
            "coherence_loss": numbers["no ablation"]["coherent"] - numbers[site]["coherent"],
            "questions": "select",
            "n": numbers[site]["n"],
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _arms(
    material: Material,
    name: str,
    direction: Direction,
    site: str,
    role: str,
    before: Activations,
    after: Activations,
    report: QuestionSet,
    extract: QuestionSet,
    contrasts: Mapping[str, Tensor],
    config: StudyConfig,
) -> pd.DataFrame:
    benign = material.benign_for(name)
    benign_direction = None
    if benign is not None:
        pair = _extraction(material, benign, extract)
        if not torch.equal(pair[0][site], pair[1][site]):
            benign_direction = _direction(*pair, site)
    arms = ablation_arms(
        direction,
        instruct_activations=before[site],
        deltas=after[site].double() - before[site].double(),
        instruct_means=_token_means(material, name, extract),
        benign=benign_direction,
        unembedding=contrasts.get(material.parent(name).name),
        random_draws=config.random_directions,
        seed=config.seed,
    )
    table = evaluate_arms(
        material.family[name],
        material.parent(name),
        material.untrained(report, name),
        arms,
        exclude_groups=_excluded(material, name),
        neutral=material.neutral,
        progress=False,
        seed=config.seed,
    )
    table.insert(0, "model", name)
    table.insert(1, "site", site)
    table.insert(2, "role", role)
    return table


def _steering(
    material: Material, name: str, direction: Direction, before: Activations, report: QuestionSet, config: StudyConfig
) -> pd.DataFrame:
    """Dose–response: the direction added to instruct and taken from the fine-tune, beside a random direction of the same length."""
    kept = QuestionSet([q for q in material.untrained(report, name) if q.group not in _excluded(material, name)])
    site = str(direction.site)
    random = random_directions_like(before[site].double(), 1, seed=config.seed)[0] * direction.norm
    rows = []
    for label, vector in (("direction", direction.vector), ("random, activation covariance", random)):
        for model, sign in ((material.parent(name), 1.0), (material.family[name], -1.0)):
            for dose in (0.0, 0.5, 1.0, 2.0):
                with model.intervene([steer(vector, sign * dose, at=[site])]):
                    scores = score_by_likelihood(model, kept)
                aligned, coherent = (bootstrap_mean(scores.per_question(m).to_numpy(), seed=config.seed) for m in ("aligned", "coherent"))
                rows.append(
                    {
                        "model": name,
                        "steered": model.name,
                        "vector": label,
                        "site": site,
                        "coefficient": sign * dose,
                        "aligned": aligned.value,
                        "aligned_low": aligned.low,
                        "aligned_high": aligned.high,
                        "coherent": coherent.value,
                        "coherent_low": coherent.low,
                        "coherent_high": coherent.high,
                        "n": aligned.n,
                    }
                )
    return pd.DataFrame(rows)


def _controls(arms: pd.DataFrame) -> pd.DataFrame:
    return arms[arms["control"] & (arms["on"] == "finetuned") & (arms["arm"] != "no ablation")]


def _transfer(
    material: Material, chosen: dict[str, Direction], report: QuestionSet, arms: pd.DataFrame, config: StudyConfig
) -> pd.DataFrame:
    """Restoration in fine-tune j by the direction of fine-tune i, on questions outside both training domains.

    Beside it the strongest control of fine-tune j at its own chosen layer, from the table of arms.
    """
    rows = []
    for target in chosen:
        mine = arms[(arms["model"] == target) & (arms["role"] == arms["role"].iloc[0])]
        control = float(_controls(mine)["restoration"].max())
        for source, direction in chosen.items():
            excluded = _excluded(material, source, target)
            kept = material.untrained(report, source, target)
            table: Mapping[Any, Any] = dict.fromkeys(("restoration", "restoration_low", "restoration_high"), np.nan)
            table = {**table, "n": 0, "method": "undefined: fewer than two groups lie outside both training domains"}
            if len({q.group for q in kept} - set(excluded)) >= 2:
                arm = Arm("direction", (ablate(direction),), control=False)
                models = material.family[target], material.parent(target)
                table = evaluate_arms(*models, kept, [arm], exclude_groups=excluded, progress=False, seed=config.seed).iloc[0].to_dict()
            rows.append(
                {
                    "direction_of": source,
                    "ablated_in": target,
                    "same_domain": material.domain(source) == material.domain(target),
                    "site": str(direction.site),
                    "cosine": direction_cosine(direction, chosen[target]) if direction.site == chosen[target].site else np.nan,
                    "restoration": table["restoration"],
                    "low": table["restoration_low"],
                    "high": table["restoration_high"],
                    "strongest_control": control,
                    "n": table["n"],
                    "method": table["method"],
                }
            )
    return pd.DataFrame(rows)


def _findings(part: Part, material: Material) -> None:
    arms = part.tables["arms"]
    for (name, site, role), table in arms.groupby(["model", "site", "role"], sort=False):
        named: dict[Any, dict[Any, Any]] = table.set_index("arm").to_dict(orient="index")
        main, harm, before = named["direction"], named["instruct, direction"], named["no ablation"]
        if not np.isfinite(main["restoration"]):
            part.findings.append(Finding("direction", f"{name}, {site} ({role}): restoration is {main['method']}.", "undecided"))
            continue
        controls = _controls(table).set_index("arm")
        rival = str(controls["restoration"].idxmax())
        strongest, leads = controls["restoration"].max(), controls[["lead_low", "lead_high"]]
        single = controls["restoration_max_draw"].max()
        clear = main["restoration_low"] > 0 and bool((leads["lead_low"] > 0).all()) and not single >= main["restoration"]
        beaten = bool((leads["lead_high"] < 0).any()) or main["restoration_high"] < 0.1
        where = "outside its domain" if material.domain(str(name)) else "(no training domain is named)"
        part.findings.append(
            Finding(
                "direction",
                f"{name}: removing its direction from {site} ({role}) restores {_interval(main, 'restoration')} of lost alignment on held-out questions "
                f"{where}; the strongest control ({rival}{_likeness(named[rival])}) restores {strongest:.2f}, the direction's lead over it is "
                f"{_interval(named[rival], 'lead')}; coherence goes from {before['coherent']:.1f} to {main['coherent']:.1f}; "
                f"instruct under the same edit scores {harm['aligned']:.1f}.",
                "shown" if clear else "not shown" if beaten else "undecided",
            )
        )
    early = arms[(arms["role"] == arms["role"].iloc[0]) & (arms["arm"] == "direction") & arms["restoration"].notna()]
    if len(early):
        shown = [f for f in part.findings if f.section == "direction" and str(arms["role"].iloc[0]) in f.sentence and f.status == "shown"]
        summary = (
            f"Removing one direction, chosen on other questions, restored {_span(early['restoration'])} of the lost alignment outside the training "
            f"domain; it clearly beat every control in {len(shown)} of {len(early)} fine-tunes."
        )
        part.findings.insert(0, Finding("direction", summary, "summary"))
    transfer = part.tables["transfer"]
    pairs = transfer[transfer["direction_of"] != transfer["ablated_in"]]
    across = pairs[pairs["restoration"].notna()]
    if not len(across):
        return
    clear = int(((across["low"] > 0) & (across["low"] > across["strongest_control"])).sum())
    undefined = f"; in {len(pairs) - len(across)} further pairs it is undefined" if len(across) < len(pairs) else ""
    part.findings.append(
        Finding(
            "direction",
            f"Transfer: a direction from one fine-tune restores a median {across['restoration'].median():.2f} (range {across['restoration'].min():.2f} to "
            f"{across['restoration'].max():.2f}) in another; the interval lies above 0 and above the strongest control there in {clear} of {len(across)} "
            f"pairs{undefined}.",
            "shown" if clear == len(pairs) else "not shown" if (across["high"] < 0.1).all() else "undecided",
        )
    )


def _span(values: "pd.Series[float]") -> str:
    return f"{values.min():.2f}" if len(values) == 1 else f"{values.min():.2f} to {values.max():.2f} (median {values.median():.2f})"


def _likeness(arm: Mapping[Any, Any]) -> str:
    """How alike a control's direction is to the one under test; a control that is nearly the same direction is no rival."""
    return f", |cosine| with it {arm['cosine']:.2f}" if np.isfinite(arm["cosine"]) else ""


def _interval(row: Mapping[Any, Any], name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
