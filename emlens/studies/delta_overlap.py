"""Do the shifts on training prompts and on unrelated prompts share a subspace, beyond what chance,
anisotropy and a benign fine-tune explain?

Both sides have the same number of prompts. Three numbers at every layer and position: uncentred
overlap, centred overlap, cosine of the mean shifts. Beside them: the isotropic null (a landmark), a
null with the covariance of the *before* activations, the benign fine-tune's own overlap, neutral
text under the same template, and the split-half ceiling. Further tables (`overlap_tables`): each
evaluation group apart, several k, and the lead over the benign fine-tune with an interval and the
null of its shifts.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from emlens.activations import Activations
from emlens.foundation.errors import InputError
from emlens.foundation.seeds import torch_rng
from emlens.geometry import (
    cosine_to_mean,
    covariance_overlap_null,
    direction_cosine,
    overlap_null,
    principal_angles,
    prompt_overlap,
    split_half_ceiling,
    subspace_overlap,
    top_k_subspace,
)
from emlens.geometry.shifts import components_above_rounding
from emlens.results.study_result import Advance, Finding, Part
from emlens.stats import (
    NullDistribution,
    correlation_null,
    cosine_of_means,
    partial_correlation,
    pearson,
)
from emlens.studies.config import Options as PartOptions, StudyConfig
from emlens.studies.material import Material
from emlens.studies.overlap_section import SECTION
from emlens.studies.overlap_sides import Sides, noise_floor, shifts_everywhere, sides_of
from emlens.studies.overlap_tables import Place, by_group, by_k, grouped, lead_over_benign, mantel
from emlens.studies.study import Study, StudyContext

MEASURE: Literal["mean_cos2"] = "mean_cos2"


class Options(PartOptions):
    """What only this part reads."""

    ks: tuple[int, ...] = ()
    """Further dimensions k at which the overlap is measured, each beside its own null."""
    by_group: bool = True
    """Whether each group of questions, the own domain and neutral text are compared apart."""
    mantel_draws: int = Field(199, ge=19)
    """Draws of the Mantel test of prompts' likeness and shifts' likeness."""


def _without_reference(name: str, sides: Sides, benign: Activations | None) -> list[str]:
    """The null of benign shifts takes as many of them as both sides have together."""
    needed = len(sides.train) + len(sides.evaluation)
    if benign is None or len(benign) >= needed:
        return []
    counts = (
        f"needs {needed} shifts of the benign control, which has {len(benign)} questions outside"
        " its domain"
    )
    return [f"{name}: the null of benign shifts {counts}; it is missing"]


def _lowered(name: str, site: str, position: str, k: int, asked: int) -> str:
    if k == 0:
        return (
            f"{name} at {site}, {position}: nothing moved there (the fine-tune acts later in the"
            " model); left out"
        )
    return (
        f"{name} at {site}, {position}: shifts have {k} components above rounding;"
        f" k is {k} there instead of {asked}"
    )


def check(material: Material, config: StudyConfig) -> None:
    """Refuse a k that the data cannot carry, before anything runs.

    Raises:
        InputError: names the fine-tune, its number of prompts a side, and the largest k.
    """
    for name in material.focus(config):
        if name not in material.training:
            continue
        n = min(len(material.training[name]), len(material.outside(name).prompts()))
        # a centred half has one rank less than rows
        largest = min(n // 2 - 1, material.family[name].d_model)
        if config.k > largest:
            raise InputError(
                f"k={config.k} is above the rank that half of {n} prompts a side of {name!r} can"
                f" carry; pass k <= {largest}, or more prompts"
            )


def run(material: Material, config: StudyConfig, advance: Advance) -> Part:
    part = Part()
    rows: list[dict[str, object]] = []
    angles: list[dict[str, object]] = []
    shifts: list[dict[str, object]] = []
    relations: list[dict[str, object]] = []
    leads: list[dict[str, object]] = []
    apart: list[dict[str, object]] = []
    several: list[dict[str, object]] = []
    options = config.options_of("delta_overlap", Options)
    everywhere: dict[str, Activations] = {}
    nulls: dict[tuple[object, ...], NullDistribution] = {}
    chosen = [name for name in material.focus(config) if name in material.training]
    for name in chosen:
        sides = sides_of(material, name, config)
        benign = material.benign_for(name)
        benign_sides = (
            sides_of(material, benign, config) if benign in material.training and benign else None
        )
        for tuned in [name] * options.by_group + [benign] * (benign_sides is not None):
            if tuned is not None and tuned not in everywhere:
                everywhere[tuned] = shifts_everywhere(material, tuned, config)
        unrelated = (
            {}
            if benign is None or benign_sides is None
            else {"benign": everywhere[benign].select(material.outside(benign).prompts().ids)}
        )
        if benign_sides is not None and len(benign_sides.train) != len(sides.train):
            sizes = (
                f"{len(sides.train)} prompts a side,"
                f" its benign control on {len(benign_sides.train)}"
            )
            part.warnings.append(f"{name} is compared on {sizes}: overlap depends on their number")
        part.warnings += _without_reference(name, sides, unrelated.get("benign"))
        if sides.neutral is not None and len(sides.neutral) < len(sides.train):
            sizes = (
                f"neutral text has {len(sides.neutral)} prompts, the other sides {len(sides.train)}"
            )
            part.warnings.append(f"{name}: {sizes}; its overlap is not at equal numbers")
        for site in sides.train.sites:
            for position in config.positions:
                k = min(
                    config.k,
                    *(components_above_rounding(d, b) for d, b in sides.pairs(site, position)),
                )
                if k < config.k:
                    part.warnings.append(_lowered(name, site, position, k, config.k))
                if k == 0:
                    advance(1 / (len(chosen) * len(sides.train.sites) * len(config.positions)))
                    continue
                usable = config.model_copy(update={"k": k})
                control = benign_sides
                if (
                    control is not None
                    and min(
                        components_above_rounding(d, b) for d, b in control.pairs(site, position)
                    )
                    < k
                ):
                    part.warnings.append(
                        f"benign control of {name} at {site}, {position}:"
                        f" its shifts have fewer than {k} components; it is missing there"
                    )
                    control = None
                rows += _cell(
                    name, site, position, sides, control, usable, nulls, material.parent(name).name
                )
                angles += _angles(name, site, position, sides, control, usable)
                place, tuned_pair = (
                    Place(name, site, position),
                    (
                        sides.train[site, position],
                        sides.evaluation[site, position],
                    ),
                )
                before = torch.cat(
                    [sides.before_train[site, position], sides.before_evaluation[site, position]]
                )
                own_pair = (
                    None
                    if control is None
                    else (control.train[site, position], control.evaluation[site, position])
                )
                shared: dict[str, Any] = {
                    "draws": config.draws,
                    "seed": config.seed,
                    "nulls": nulls,
                }
                prompts = (
                    material.parent(name).name,
                    *(
                        acts.provenance["rendered_sha256"]
                        for acts in (sides.before_train, sides.before_evaluation)
                    ),
                )
                if own_pair is not None:
                    reference = (
                        unrelated["benign"][site, position]
                        if position == config.positions[0]
                        else None
                    )
                    leads.append(
                        lead_over_benign(
                            place,
                            tuned_pair,
                            own_pair,
                            reference,
                            k,
                            key=("benign", benign),
                            **shared,
                        )
                    )
                if options.by_group:
                    shifts_by_group = grouped(
                        everywhere[name], site, position, material.domain(name), sides.neutral
                    )
                    apart += by_group(
                        place,
                        tuned_pair[0],
                        shifts_by_group,
                        before,
                        min(k, 4),
                        key=("groups", *prompts),
                        **shared,
                    )
                several += by_k(
                    place,
                    tuned_pair,
                    before,
                    options.ks,
                    benign=own_pair,
                    key=("by k", *prompts),
                    **shared,
                )
                cell, relation = _relation(
                    name, site, position, sides, material, config, options.mantel_draws
                )
                shifts += cell
                relations.append(relation)
                advance(1 / (len(chosen) * len(sides.train.sites) * len(config.positions)))
    if not chosen:
        part.warnings.append(
            "no fine-tune in focus has training prompts: delta overlap was left out"
        )
        return part
    part.tables |= {
        "overlap": pd.DataFrame(rows),
        "angles": pd.DataFrame(angles),
        "shifts": pd.DataFrame(shifts),
        "overlap_shift": pd.DataFrame(relations),
        "noise_floor": noise_floor(material, chosen[0], config),
    }
    further = {"overlap_benign": leads, "overlap_groups": apart, "overlap_by_k": several}
    part.tables |= {label: pd.DataFrame(found) for label, found in further.items() if found}
    _findings(part, config)
    return part


def _cell(
    name: str,
    site: str,
    position: str,
    sides: Sides,
    benign: Sides | None,
    config: StudyConfig,
    nulls: dict[tuple[object, ...], NullDistribution],
    parent: str,
) -> list[dict[str, object]]:
    a, b = sides.train[site, position], sides.evaluation[site, position]
    before = torch.cat(
        [sides.before_train[site, position], sides.before_evaluation[site, position]]
    ).double()
    layer = int(site.rsplit(".", 1)[1])
    rows: list[dict[str, object]] = []

    def add(
        comparison: str,
        center: bool | str,
        value: float,
        low: float = np.nan,
        high: float = np.nan,
        null: NullDistribution | None = None,
        label: str = "",
        n: int = len(a),
    ) -> None:
        rows.append(
            {
                "model": name,
                "site": site,
                "layer": layer,
                "position": position,
                "k": config.k,
                "center": str(center).lower(),
                "measure": "cosine" if center == "means" else MEASURE,
                "comparison": comparison,
                "value": value,
                "low": low,
                "high": high,
                "null": label,
                "null_mean": np.nan if null is None else null.mean,
                "null_sd": np.nan if null is None else null.sd,
                "null_q95": np.nan if null is None else null.quantile(0.95),
                "p": np.nan if null is None else null.p_value(value),
                "n": n,
            }
        )

    def add_means(comparison: str, x: Tensor, y: Tensor) -> None:
        found = cosine_of_means(x.double().numpy(), y.double().numpy())
        value = (
            min(found.value, 1.0)
            if found.defined
            else direction_cosine(x.double().mean(0), y.double().mean(0))
        )
        add(comparison, "means", value, found.low, found.high, n=found.n)

    key: tuple[object, ...]
    for center in (False, True):
        value = _overlap(a, b, center, config.k)
        d = a.shape[1]
        key = ("isotropic", d, config.k)
        if key not in nulls:
            nulls[key] = overlap_null(
                d, config.k, config.k, measure=MEASURE, draws=10_000, seed=config.seed
            )
        add("train–evaluation", center, value, null=nulls[key], label="isotropic")
        rendered = (
            acts.provenance["rendered_sha256"]
            for acts in (sides.before_train, sides.before_evaluation)
        )
        key = ("covariance", parent, site, position, center, config.k, *rendered)
        if key not in nulls:
            moments = torch.cov(before.T) if center else before.T @ before / len(before)
            nulls[key] = covariance_overlap_null(
                moments,
                len(a),
                len(b),
                config.k,
                center=center,
                measure=MEASURE,
                draws=config.draws,
                seed=config.seed,
            )
        add(
            "train–evaluation",
            center,
            value,
            null=nulls[key],
            label="covariance of before activations",
        )
        ceiling = split_half_ceiling(
            a, config.k, center=center, measure=MEASURE, splits=20, seed=config.seed
        )
        add("split-half ceiling", center, ceiling.value, ceiling.low, ceiling.high)
        if benign is not None:
            control = _overlap(
                benign.train[site, position], benign.evaluation[site, position], center, config.k
            )
            add("benign train–evaluation", center, control, n=len(benign.train))
        if (
            sides.neutral is not None
            and components_above_rounding(sides.neutral[site, position], before.to(a.dtype))
            >= config.k
        ):
            add(
                "train–neutral text",
                center,
                _overlap(a, sides.neutral[site, position], center, config.k),
                n=min(len(a), len(sides.neutral)),
            )
    add_means("train–evaluation", a, b)
    if benign is not None:
        add_means(
            "benign train–evaluation",
            benign.train[site, position],
            benign.evaluation[site, position],
        )
    if sides.neutral is not None:
        add_means("train–neutral text", a, sides.neutral[site, position])
    return rows


def _overlap(a: Tensor, b: Tensor, center: bool, k: int) -> float:
    return float(
        subspace_overlap(
            top_k_subspace(a, k, center=center),
            top_k_subspace(b, k, center=center),
            measure=MEASURE,
        )
    )


def _angles(
    name: str, site: str, position: str, sides: Sides, benign: Sides | None, config: StudyConfig
) -> list[dict[str, object]]:
    """Principal angles in degrees, of the tested pair, the benign pair and random subspaces (their
    mean).
    """
    k = config.k
    d = sides.train[site, position].shape[1]
    spectra = {"train–evaluation": _spectrum(sides, site, position, k)}
    if benign is not None:
        spectra["benign train–evaluation"] = _spectrum(benign, site, position, k)
    rng = torch_rng(config.seed, "random subspaces", d, k)
    random = [
        principal_angles(*torch.randn(2, d, k, dtype=torch.float64, generator=rng))
        for _ in range(100)
    ]
    spectra["random subspaces"] = torch.stack(random).mean(0)
    return [
        {
            "model": name,
            "site": site,
            "layer": int(site.rsplit(".", 1)[1]),
            "position": position,
            "comparison": label,
            "index": i + 1,
            "degrees": float(torch.rad2deg(value)),
        }
        for label, spectrum in spectra.items()
        for i, value in enumerate(spectrum)
    ]


def _spectrum(sides: Sides, site: str, position: str, k: int) -> Tensor:
    a, b = (
        top_k_subspace(acts[site, position].double(), k, center=True)
        for acts in (sides.train, sides.evaluation)
    )
    return principal_angles(a, b)


def _relation(
    name: str,
    site: str,
    position: str,
    sides: Sides,
    material: Material,
    config: StudyConfig,
    mantel_draws: int = 199,
) -> tuple[list[dict[str, object]], dict[str, object]]:
    """Per evaluation prompt: overlap of the prompt with the training prompts' subspace, and how
    alike its shift is.

    Both quantities contain the before activation, so the permutation is within domains and length
    and norm are partialled out.
    """
    before = sides.before_evaluation[site, position].double()
    space = top_k_subspace(sides.before_train[site, position].double(), 0.95, center=True)
    random = torch.linalg.qr(
        torch.randn(
            before.shape[1],
            space.k,
            dtype=torch.float64,
            generator=torch_rng(config.seed, "random basis", site, position),
        )
    ).Q
    overlap = prompt_overlap(before, space)
    moved = before - space.mean
    control = (moved @ random).norm(dim=1) / moved.norm(dim=1)
    likeness = cosine_to_mean(
        sides.evaluation[site, position].double(), sides.train[site, position].double().mean(0)
    )
    norms = sides.evaluation[site, position].double().norm(dim=1)
    groups = sides.evaluation.groups
    texts = material.texts
    lengths = np.array([len(texts[q].split()) for q in sides.evaluation.ids], dtype=float)
    layer = int(site.rsplit(".", 1)[1])
    head = {"model": name, "site": site, "layer": layer, "position": position}
    cells: list[dict[str, object]] = [
        {
            **head,
            "id": q,
            "group": g,
            "text": texts[q],
            "prompt_overlap": float(o),
            "random_overlap": float(r),
            "cosine_to_mean_train": float(c),
            "delta_norm": float(s),
        }
        for q, g, o, r, c, s in zip(
            sides.evaluation.ids, groups, overlap, control, likeness, norms, strict=True
        )
    ]
    x, y = overlap.numpy(), likeness.numpy()
    domains = groups if len(set(groups)) > 1 else None  # prompts of one domain are alike
    estimate = pearson(x, y, clusters=domains)
    movable = estimate.defined and len(set(groups)) < len(groups)  # within domains
    null = correlation_null(x, y, strata=groups, draws=999, seed=config.seed) if movable else None
    covariates = np.column_stack(
        [norms.numpy(), before.norm(dim=1).numpy(), *([lengths] if np.ptp(lengths) else [])]
    )
    partial = partial_correlation(x, y, covariates, clusters=domains)
    relation: dict[str, object] = {
        **head,
        "pearson": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "null_mean": np.nan if null is None else null.mean,
        "null_q95": np.nan if null is None else null.quantile(0.95),
        "p": np.nan if null is None else null.p_value(estimate.value, side="two-sided"),
        "partial": partial.value,
        "partial_low": partial.low,
        "partial_high": partial.high,
        "mean_overlap": float(overlap.mean()),
        "mean_random_overlap": float(control.mean()),
        **mantel(
            before,
            sides.evaluation[site, position].double(),
            groups,
            list(lengths),
            draws=mantel_draws,
            seed=config.seed,
        ),
        "n": len(x),
    }
    return cells, relation


def _findings(part: Part, config: StudyConfig) -> None:
    table = part.tables["overlap"]
    tested = table[
        (table["comparison"] == "train–evaluation")
        & (table["center"] == "true")
        & (table["null"] != "isotropic")
    ]
    benign = table[(table["comparison"] == "benign train–evaluation") & (table["center"] == "true")]
    models: Sequence[str] = list(dict.fromkeys(tested["model"]))
    for name in models:
        mine = tested[(tested["model"] == name) & (tested["position"] == config.positions[0])]
        above = mine[mine["p"] * len(mine) < 0.05]
        control = benign[(benign["model"] == name) & (benign["position"] == config.positions[0])]
        leads = part.tables.get(
            "overlap_benign", pd.DataFrame(columns=["model", "position", "lead_low"])
        )
        leads = leads[(leads["model"] == name) & (leads["position"] == config.positions[0])]
        landmark = table[
            (table["model"] == name)
            & (table["null"] == "isotropic")
            & (table["k"] == mine["k"].max())
        ]["null_mean"].iloc[0]
        # with fewer draws no layer could be exceeded
        resolved = len(mine) / (config.draws + 1) < 0.05
        lead = ""
        if len(control):
            own = f"{control['value'].min():.2f}–{control['value'].max():.2f}"
            lead = (
                f"; the benign fine-tune's own overlap ({own}) is exceeded,"
                " with the whole interval of the difference, in "
            )
        beyond = int((leads["lead_low"] > 0).sum()) if len(leads) else None
        part.findings.append(
            Finding(
                "delta_overlap",
                f"{name}: centred top-{mine['k'].max()} shifts on training and unrelated prompts"
                f" overlap by {mine['value'].min():.2f}–{mine['value'].max():.2f} over layers at"
                f" {config.positions[0]}; the isotropic landmark is {landmark:.2f},"
                " the covariance-matched null"
                f" {mine['null_mean'].min():.2f}–{mine['null_mean'].max():.2f},"
                f" exceeded in {len(above)} of {len(mine)} layers (Bonferroni"
                f" .05{'' if resolved else f', which {config.draws} draws cannot reach'})"
                + (f"{lead}{beyond} of {len(mine)}." if lead else "."),
                (
                    "shown"
                    if len(above) == len(mine) and beyond == len(mine)
                    else "not shown"
                    if resolved and len(above) == 0
                    else "undecided"
                ),
            )
        )
    clear = sum(f.status == "shown" for f in part.findings)
    lowest, highest = tested["value"].min(), tested["value"].max()
    chance = tested["null_mean"]
    landmark = table["null_mean"][table["null"] == "isotropic"].max()
    summary = (
        f"Shifts on training and on unrelated prompts share subspaces (centred overlap {lowest:.2f}"
        f" to {highest:.2f} over fine-tunes, layers and positions)."
        f" The isotropic landmark is {landmark:.2f}, but unrelated samples as anisotropic as the"
        f" activations already share {chance.min():.2f} to {chance.max():.2f};"
        " more than that, and more than the benign fine-tune,"
        f" at every layer at {config.positions[0]}, is shared in {clear} of {len(models)}"
        " fine-tunes."
    )
    part.findings.insert(0, Finding("delta_overlap", summary, "summary"))
    if not len(benign):
        part.warnings.append(
            "the benign control is missing from the overlap comparison:"
            " overlap beyond a benign fine-tune is not shown"
        )
    smallest = 1 / (config.draws + 1)
    part.warnings.append(
        f"covariance nulls have {config.draws} draws: no p below {smallest:.2g} can be seen"
    )


class DeltaOverlap(Study):
    """Do shifts on training and on unrelated prompts share a subspace?"""

    name = "delta_overlap"
    title = "Do shifts on training and on unrelated prompts share a subspace?"
    options = Options
    section = SECTION
    cost = 6

    def check(self, context: StudyContext) -> None:
        check(context.material, context.config)

    def run(self, context: StudyContext) -> Part:
        return run(context.material, context.config, context.progress)
