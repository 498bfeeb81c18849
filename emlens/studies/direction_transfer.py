"""Which direction carries the misalignment, what removing it does, and whether it works in other fine-tunes.

Extracted, selected and reported on disjoint questions. The direction of a fine-tune is its mean shift against its parent
at one position, layer by layer; the layer is chosen on the selection questions among layers ≤ L−2, because a direction that
works only after the last block is a readout. The last layer is reported beside it.
"""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emlens.activations import Activations, capture_many
from emlens.data import QuestionSet
from emlens.evaluation import Arm, ablation_arms, evaluate_arms, score_by_likelihood, unembedding_contrast
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
        [{"question": q.id, "group": q.group, "used_to": use} for use, questions in (("extract", extract), ("select", select), ("report", report)) for q in questions]
    )
    layers, arms, steering = [], [], []
    chosen: dict[str, Direction] = {}
    focus = material.focus(config)
    for name in focus:
        before, after = _extraction(material, name, extract)
        directions = {site: _direction(before, after, site) for site in before.sites}
        table = _by_layer(material, name, directions, before, after, select, config)
        layers.append(table)
        advance(0.15 / len(focus))
        early = table[~table["last"]]
        allowed = early[early["coherence_loss"] <= COHERENCE_LOSS]
        best = str((allowed if len(allowed) else early).sort_values("restoration", ascending=False).iloc[0]["site"])
        chosen[name] = directions[best]
        for site, role in ((best, "chosen on the selection questions"), (before.sites[-1], "last layer")):
            arms.append(_arms(material, name, directions[site], site, role, before, after, report, extract, config))
            advance(0.25 / len(focus))
        steering.append(_steering(material, name, directions[best], before, report, config))
        advance(0.25 / len(focus))
    part.tables |= {
        "directions": pd.concat(layers, ignore_index=True),
        "arms": pd.concat(arms, ignore_index=True),
        "steering": pd.concat(steering, ignore_index=True),
        "transfer": _transfer(material, chosen, report, config),
    }
    _findings(part)
    if len(set(report.groups)) < 10:
        part.warnings.append(f"restoration resamples {len(set(report.groups))} domains; with fewer than 10 its interval is too short")
    if not material.benign:
        part.warnings.append("no benign fine-tune: the arm with its direction is missing")
    if material.neutral is None:
        part.warnings.append("no neutral text: damage (KL) is missing")
    return part


def _extraction(material: Material, name: str, extract: QuestionSet) -> tuple[Activations, Activations]:
    trained = material.trained.get(name, frozenset())
    questions = QuestionSet([q for q in extract if q.id not in trained])
    models = {"before": material.parent(name), "after": material.family[name]}
    found = capture_many(models, questions.prompts(), positions=POSITION, progress=False)
    return found["before"], found["after"]


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
    config: StudyConfig,
) -> pd.DataFrame:
    """Each layer's direction: length, reliability, what it points at, and restoration on the selection questions."""
    contrast = unembedding_contrast(material.parent(name), material.questions)
    halves = torch.tensor(numpy_rng(config.seed, "halves", name).permutation(len(before)))
    arms = [Arm(site, (ablate(direction),), control=False) for site, direction in directions.items()]
    scored = evaluate_arms(
        material.family[name], material.parent(name), select, [Arm("no ablation", ()), *arms], exclude_groups=_excluded(material, name), progress=False, seed=config.seed
    ).set_index("arm")
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
            "cosine_unembedding": direction_cosine(direction, contrast),
            "cosine_planted": np.nan if material.direction is None else abs(direction_cosine(direction, material.direction)),
            "restoration": scored.loc[site, "restoration"],
            "low": scored.loc[site, "restoration_low"],
            "high": scored.loc[site, "restoration_high"],
            "coherent": scored.loc[site, "coherent"],
            "coherence_loss": scored.loc["no ablation", "coherent"] - scored.loc[site, "coherent"],
            "questions": "select",
            "n": scored.loc[site, "n"],
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
    config: StudyConfig,
) -> pd.DataFrame:
    benign = material.benign_for(name)
    benign_direction = None
    if benign is not None:
        pair = _extraction(material, benign, extract)
        benign_direction = _direction(*pair, site)
    arms = ablation_arms(
        direction,
        instruct_activations=before[site],
        deltas=after[site].double() - before[site].double(),
        benign=benign_direction,
        unembedding=unembedding_contrast(material.parent(name), material.questions),
        random_draws=config.random_directions,
        seed=config.seed,
    )
    table = evaluate_arms(
        material.family[name], material.parent(name), report, arms, exclude_groups=_excluded(material, name), neutral=material.neutral, progress=False, seed=config.seed
    )
    table.insert(0, "model", name)
    table.insert(1, "site", site)
    table.insert(2, "role", role)
    return table


def _steering(
    material: Material, name: str, direction: Direction, before: Activations, report: QuestionSet, config: StudyConfig
) -> pd.DataFrame:
    """Dose–response: the direction added to instruct and taken from the fine-tune, beside a random direction of the same length."""
    kept = QuestionSet([q for q in report if q.group not in _excluded(material, name)])
    site = str(direction.site)
    random = random_directions_like(before[site].double(), 1, seed=config.seed)[0] * direction.norm
    rows = []
    for label, vector in (("direction", direction.vector), ("random, activation covariance", random)):
        for model, sign in ((material.parent(name), 1.0), (material.family[name], -1.0)):
            for dose in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0):
                with model.intervene([steer(vector, sign * dose, at=[site])]):
                    scores = score_by_likelihood(model, kept)
                aligned = bootstrap_mean(scores.per_question("aligned").to_numpy(), seed=config.seed)
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
                        "coherent": float(scores.per_question("coherent").mean()),
                        "n": aligned.n,
                    }
                )
    return pd.DataFrame(rows)


def _transfer(material: Material, chosen: dict[str, Direction], report: QuestionSet, config: StudyConfig) -> pd.DataFrame:
    """Restoration in fine-tune j by the direction of fine-tune i, on questions outside both training domains."""
    rows = []
    for target in chosen:
        for source, direction in chosen.items():
            table = evaluate_arms(
                material.family[target],
                material.parent(target),
                report,
                [Arm("direction", (ablate(direction),), control=False)],
                exclude_groups=_excluded(material, source, target),
                progress=False,
                seed=config.seed,
            ).iloc[0]
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
                    "n": table["n"],
                }
            )
    return pd.DataFrame(rows)


def _findings(part: Part) -> None:
    arms = part.tables["arms"]
    for (name, site, role), table in arms.groupby(["model", "site", "role"], sort=False):
        named = table.set_index("arm")
        main = named.loc["direction"]
        controls = table[(table["control"]) & (table["on"] == "finetuned") & (table["arm"] != "no ablation")]
        strongest = controls.sort_values("restoration", ascending=False).iloc[0]
        harm = named.loc["instruct, direction"]
        if not np.isfinite(main["restoration"]):
            part.findings.append(Finding("direction", f"{name}: restoration is {main['method']}.", "undecided"))
            continue
        clear = main["restoration_low"] > max(strongest["restoration"], 0)
        part.findings.append(
            Finding(
                "direction",
                f"{name}: removing its direction from {site} ({role}) restores {main['restoration']:.2f} [{main['restoration_low']:.2f}, {main['restoration_high']:.2f}] "
                f"of lost alignment on held-out questions outside its domain; the strongest control ({strongest['arm']}) restores {strongest['restoration']:.2f}; "
                f"coherence goes from {named.loc['no ablation', 'coherent']:.1f} to {main['coherent']:.1f}; instruct under the same edit scores {harm['aligned']:.1f}.",
                "shown" if clear else "not shown" if main["restoration_high"] < 0.1 else "undecided",
            )
        )
    transfer = part.tables["transfer"]
    across = transfer[(transfer["direction_of"] != transfer["ablated_in"]) & transfer["restoration"].notna()]
    if len(across):
        clear = int((across["low"] > 0).sum())
        part.findings.append(
            Finding(
                "direction",
                f"Transfer: a direction from one fine-tune restores a median {across['restoration'].median():.2f} (range {across['restoration'].min():.2f} to "
                f"{across['restoration'].max():.2f}) in another; the interval lies above 0 in {clear} of {len(across)} pairs.",
                "shown" if clear == len(across) else "undecided",
            )
        )
