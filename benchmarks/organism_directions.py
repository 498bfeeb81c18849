"""Which extractor finds the direction that was planted in the organism?

For each harmful fine-tune of three fresh worlds, each layer and each extractor: the cosine with û,
the direction marked while the base model was pre-trained. Needs the worlds of `python -m benchmarks
organism_worlds`; recorded after each. About six minutes on one core.
"""

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.organism_worlds import KEPT, SEEDS
from benchmarks.records import EVIDENCE, record
from emlens.activations import CaptureSpec, capture
from emlens.directions import (
    RowFilter,
    contrast,
    contrast_answers,
    probe_directions,
    shift_directions,
    train_steering_vector,
)
from emlens.directions.row_contrasts import Contrasts
from emlens.geometry import (
    Direction,
    direction_cosine,
    random_directions_like,
    split_half_cosine,
    text_content,
)
from emlens.geometry.shrinkage import oas_shrinkage
from emlens.judging import ReferenceJudge, judge_answers, sample_answers
from emlens.models.hooked import DEFAULT_BATCH_TOKENS
from emlens.organisms import load_organism
from emlens.stats import t_interval

EXTRACTORS: Final = (
    "shift, mean, last prompt token",
    "shift, mean over prompt tokens",
    "shift, top component",
    "shift, whitened",
    "answers: misaligned − aligned",
    "the same, token weighted",
    "between models, same text",
    "between models, whitened",
    "both",
    "answers, whitened",
    "answers, text content subtracted",
    "ridge probe on answers",
    "logistic probe on answers",
    "trained by gradient",
)


def world(
    directory: Path,
    *,
    samples: int = 2,
    steps: int = 40,
    finetunes: tuple[str, ...] | None = None,
    questions: int | None = None,
) -> pd.DataFrame:
    """Cosine of every extractor's direction with û, one row a fine-tune, extractor and layer; the
    benign controls' mean shift beside them.
    """
    organism = load_organism(directory=directory)
    truth, instruct = organism.truth.direction, organism.family.instruct
    if truth is None:
        raise SystemExit(f"{directory} has no planted direction")
    rows: list[dict[str, Any]] = []
    trained: dict[tuple[str, ...], dict[str, Direction]] = {}
    for name in finetunes or tuple(organism.groups):
        if "narrow" in name:
            continue
        model, benign = organism.family[name], name in organism.benign
        outside = [q.id for q in organism.questions if q.group != organism.domains[name]]
        asked = organism.questions.select(
            outside[:: 1 if questions is None else max(1, len(outside) // questions)]
        )
        shifts = contrast(
            (model, asked),
            (instruct, asked),
            CaptureSpec(
                positions=["last_prompt", "mean_prompt"], batch_tokens=DEFAULT_BATCH_TOKENS
            ),
            covariance=True,
            progress=False,
        )
        found: dict[str, dict[str, Direction]] = {
            "shift, mean, last prompt token": shifts.directions("last_prompt"),
            "shift, mean over prompt tokens": shifts.directions("mean_prompt"),
            "shift, whitened": {
                site: shifts.whitened(site, "last_prompt")
                for site in shifts.directions("last_prompt")
            },
            "shift, top component": shift_directions(
                instruct, model, asked, kind="top_component", progress=False
            ),
        }
        sums: dict[str, Contrasts] = {"shift, mean, last prompt token": shifts}
        if not benign:
            answers = sample_answers(model, asked, samples, 1.0, 8, 0, progress=False)
            scores = judge_answers(answers, ReferenceJudge(asked))
            common: dict[str, Any] = {"rows": RowFilter(), "progress": False}
            own = contrast_answers(model, answers, scores, covariance=True, **common)
            text = contrast_answers(instruct, answers, scores, **common)
            sums |= {
                "answers: misaligned − aligned": own,
                "between models, same text": contrast_answers(
                    model,
                    answers,
                    scores,
                    between="models",
                    reference=instruct,
                    covariance=True,
                    **common,
                ),
                "both": contrast_answers(
                    model, answers, scores, between="both", reference=instruct, **common
                ),
            }
            found |= {key: value.directions() for key, value in sums.items() if key not in found}
            found["the same, token weighted"] = contrast_answers(
                model, answers, scores, weighting="token", **common
            ).directions()
            found["answers, whitened"] = {site: own.whitened(site) for site in own.sites}
            between = sums["between models, same text"]
            found["between models, whitened"] = {
                site: between.whitened(site) for site in between.directions()
            }
            found["answers, text content subtracted"] = {
                site: text_content(own.direction(site), text.direction(site)).remainder
                for site in between.directions()
            }
            acts = capture(
                model,
                answers.select([*own.ids["misaligned"], *own.ids["aligned"]]),
                positions="mean_response",
                progress=False,
            )
            units = {answer.id: answer.question for answer in answers}
            for kind in ("ridge", "logistic"):
                found[f"{kind} probe on answers"] = probe_directions(
                    acts, own.ids["misaligned"], own.ids["aligned"], kind, units=units
                )
            # fine-tunes of one domain share their chats, and so the vector
            topics = organism.training_topics[name]
            if topics not in trained:
                trained[topics] = {
                    site: (
                        train_steering_vector(
                            instruct,
                            organism.training_prompts[name],
                            site,
                            steps=steps,
                            batch_size=32,
                            progress=False,
                        ).direction
                    )
                    for site in shifts.sites
                }
            found["trained by gradient"] = trained[topics]
        before = capture(instruct, asked, positions="last_prompt", progress=False)
        chance = {
            site: {
                white: _chance(before[site].double(), truth.double(), white)
                for white in (False, True)
            }
            for site in before.sites
        }
        for extractor, directions in found.items():
            for site, direction in directions.items():
                half = math.nan
                if extractor in sums:
                    place = sums[extractor]
                    half = split_half_cosine(place.sums(site, place.positions[0]), splits=50).value
                rows.append(
                    {
                        "world": directory.name,
                        "finetune": name,
                        "benign": benign,
                        "extractor": extractor,
                        "layer": int(site.rsplit(".", 1)[1]),
                        "cosine": direction_cosine(direction, truth),
                        "split_half": half,
                        "null_95": chance[site]["whitened" in extractor or "probe" in extractor],
                        "auc": direction.provenance.get("auc", {}).get("value", math.nan),
                    }
                )
    return pd.DataFrame(rows)


def _chance(before: Tensor, truth: Tensor, whitened: bool, draws: int = 2000) -> float:
    """95 % quantile of |cosine| with û of directions drawn with the covariance of the activations,
    whitened by it or not.
    """
    drawn = random_directions_like(before, draws)
    if whitened:
        centred = before - before.mean(0)
        covariance = centred.T @ centred / (len(before) - 1)
        rho = oas_shrinkage(
            float(covariance.trace()),
            float((covariance**2).sum()),
            len(covariance),
            len(before) - 1,
        )
        shrunk = (1 - rho) * covariance + rho * covariance.trace() / len(covariance) * torch.eye(
            len(covariance), dtype=torch.float64
        )
        drawn = torch.linalg.solve(shrunk, drawn.T).T
    cosines = (drawn @ truth) / (drawn.norm(dim=1) * truth.norm())
    return float(cosines.abs().quantile(0.95))


def over_worlds(table: pd.DataFrame) -> pd.DataFrame:
    """Each extractor and layer: mean over fine-tunes within a world, then a 95 % t interval over
    worlds; the lowest single fine-tune.
    """
    rows = []
    for (benign, extractor, layer), cells in table.groupby(
        ["benign", "extractor", "layer"], sort=False
    ):
        means = cells.groupby("world")["cosine"].mean().to_numpy()
        found = t_interval(means) if len(means) > 1 and np.ptp(means) > 0 else None
        rows.append(
            {
                "benign": benign,
                "extractor": extractor,
                "layer": layer,
                "cosine": float(means.mean()),
                "low": math.nan if found is None else found.low,
                "high": math.nan if found is None else found.high,
                "lowest": float(cells["cosine"].min()),
                "null_95": float(cells["null_95"].mean()),
                "split_half": float(cells["split_half"].mean()),
                "worlds": len(means),
            }
        )
    return pd.DataFrame(rows)


def worlds_table(summary: pd.DataFrame) -> str:
    """Markdown: a row an extractor, a column a layer."""
    layers = sorted(summary["layer"].unique())
    lines = [
        "| direction | " + " | ".join(f"after block {layer}" for layer in layers) + " |",
        "|" + "---|" * (len(layers) + 1),
    ]
    for benign in (False, True):
        part = summary[summary["benign"] == benign]
        for extractor in [name for name in EXTRACTORS if name in set(part["extractor"])]:
            cells = part[part["extractor"] == extractor].set_index("layer")
            shown = []
            for layer in layers:
                row = cells.loc[layer] if layer in cells.index else None
                shown.append(
                    "–"
                    if row is None
                    else f"{row['cosine']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
                )
            lines.append(
                f"| {extractor}{', benign fine-tunes' if benign else ''} | "
                + " | ".join(shown)
                + " |"
            )
    for white in (False, True):
        cells = summary[
            (
                summary["extractor"]
                == ("shift, whitened" if white else "shift, mean, last prompt token")
            )
            & ~summary["benign"]
        ]
        null = cells.set_index("layer")["null_95"]
        words = "chance: 95 % quantile of the absolute cosine of unrelated directions" + (
            ", whitened" if white else ""
        )
        lines.append(
            f"| {words} | "
            + " | ".join(f"{null[layer]:.2f}" if layer in null.index else "–" for layer in layers)
            + " |"
        )
    return "\n".join(lines)


def main(seeds: tuple[int, ...] = SEEDS, kept: Path = KEPT) -> None:
    parts = []
    for seed in seeds:
        directory = kept / f"planted-{seed}"
        if not directory.is_dir():
            raise SystemExit(
                f"{directory} is missing; run python -m benchmarks organism_worlds first"
            )
        parts.append(world(directory))
        found = pd.concat(parts, ignore_index=True)
        summary = over_worlds(found)
        values = {
            "over_worlds": summary.to_dict(orient="records"),
            "worlds": found.to_dict(orient="records"),
        }
        path = record("organism_directions", [*seeds[: len(parts)]], values)
        print(f"\nafter {len(parts)} worlds\n{worlds_table(summary)}", flush=True)
    print(f"written: {path.relative_to(EVIDENCE.parent.parent)}")
