"""Small tables in the shape that studies write, with names and texts of the caller's choice."""

from itertools import product

import numpy as np
import pandas as pd

LAYERS = (0, 1, 2, 3)
POSITIONS = ("last_prompt", "mean_prompt")


def interval(name: str, value: float, half: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


def study_tables(
    model: str = "bad@0",
    *,
    domain: str = "medicine",
    text: str = "what is t1 in law ?",
    extra: tuple[str, ...] = ("wide@0",),
) -> dict[str, pd.DataFrame]:
    """Every table of an overview with two fine-tunes in focus, one benign, three domains, four
    layers and two positions.
    """
    rng = np.random.default_rng(0)
    focus, domains = (model, *extra), (domain, "law", "cars")
    kinds = {
        "base": "base",
        "instruct": "instruct",
        **dict.fromkeys(focus, "harmful"),
        "benign@0": "benign",
    }
    tables: dict[str, pd.DataFrame] = {}
    tables["models"] = pd.DataFrame(
        [
            {"model": m, "kind": k, "domain": domain if k in ("harmful", "benign") else ""}
            | interval(
                "aligned_own", rng.uniform(20, 80) if k in ("harmful", "benign") else np.nan, 5
            )
            | interval("aligned_others", rng.uniform(20, 80), 4)
            | interval("coherent", rng.uniform(80, 95), 2)
            for m, k in kinds.items()
        ]
    )
    tables["domains"] = pd.DataFrame(
        [
            {
                "model": m,
                "kind": k,
                "group": g,
                "trained_domain": k in ("harmful", "benign") and g == domain,
                "n": 9,
            }
            | interval("aligned", rng.uniform(10, 90), 6)
            | interval("coherent", rng.uniform(80, 95), 2)
            for (m, k), g in product(kinds.items(), domains)
        ]
    )
    tables["questions"] = pd.DataFrame(
        [
            {
                "model": m,
                "question": f"{g}/{i}",
                "group": g,
                "text": f"{text} {i}",
                "trained": g == domain and i == 0,
                "aligned": 50.0 + i,
                "coherent": 90.0,
                "answer": f"{text} answered by {m}",
            }
            for m, g, i in product(kinds, domains, range(20))
        ]
    )
    overlap = []
    for m, layer, position, center in product(focus, LAYERS, POSITIONS, ("false", "true", "means")):
        head = {
            "model": m,
            "site": f"resid_post.{layer}",
            "layer": layer,
            "position": position,
            "k": 3,
            "center": center,
        }
        head["measure"] = "cosine" if center == "means" else "mean_cos2"
        blank = {
            "low": np.nan,
            "high": np.nan,
            "null_kind": np.nan,
            "null_mean": np.nan,
            "null_q95": np.nan,
            "n": 24,
        }
        tested = rng.uniform(0.2, 0.9)
        nulls = (("isotropic", 0.1), ("covariance of before activations", 0.5))
        rows = (
            [{"null_kind": n, "null_mean": v, "null_q95": v + 0.1} for n, v in nulls]
            if center != "means"
            else [{}]
        )
        overlap += [
            {**head, **blank, "comparison": "train–evaluation", "value": tested, **row}
            for row in rows
        ]
        for other in ("benign train–evaluation", "train–neutral text"):
            overlap.append({**head, **blank, "comparison": other, "value": rng.uniform(0.1, 0.6)})
        if center != "means":
            overlap.append(
                {
                    **head,
                    **blank,
                    "comparison": "split-half ceiling",
                    "value": 0.8,
                    "low": 0.7,
                    "high": 0.9,
                }
            )
    tables["overlap"] = pd.DataFrame(overlap)
    tables["overlap_layers"] = pd.DataFrame(
        [
            {
                "model": m,
                "site": f"resid_post.{layer}",
                "layer": layer,
                "position": position,
                "measure": measure,
                "k": 3,
                "value": 0.6,
                "null_mean": 0.5,
                "null_low": 0.4,
                "null_q95": 0.7,
                "benign_value": 0.55,
            }
            for m, layer, position, measure in product(
                focus, LAYERS, POSITIONS, ("variance_weighted", "mean_cosine", "mean_cos2")
            )
        ]
    )
    tables["angles"] = pd.DataFrame(
        [
            {
                "model": m,
                "layer": layer,
                "position": p,
                "comparison": c,
                "index": i,
                "degrees": base + 20.0 * i,
            }
            for m, layer, p, (c, base), i in product(
                focus,
                LAYERS,
                POSITIONS,
                (
                    ("train–evaluation", 5),
                    ("benign train–evaluation", 10),
                    ("random subspaces", 25),
                ),
                (1, 2, 3),
            )
        ]
    )
    tables["shifts"] = pd.DataFrame(
        [
            {
                "model": m,
                "layer": layer,
                "position": p,
                "id": f"{g}/{i}",
                "group": g,
                "text": f"{text} {i}",
            }
            | {
                "prompt_overlap": rng.uniform(),
                "random_overlap": rng.uniform(),
                "cosine_to_mean_train": rng.uniform(-1, 1),
            }
            for m, layer, p, g, i in product(focus, LAYERS, POSITIONS, domains, range(4))
        ]
    )
    tables["overlap_shift"] = pd.DataFrame(
        [
            {
                "model": m,
                "layer": layer,
                "position": p,
                "pearson": 0.5,
                "low": 0.2,
                "high": 0.7,
                "null_mean": 0.0,
                "null_q95": 0.3,
            }
            | {"p": 0.012, "partial": 0.4, "partial_low": 0.1, "partial_high": 0.6, "n": 12}
            for m, layer, p in product(focus, LAYERS, POSITIONS)
        ]
    )
    tables["directions"] = pd.DataFrame(
        [
            {
                "model": m,
                "layer": layer,
                "last": layer == LAYERS[-1],
                "split_half_cosine": 0.9,
                "cosine_unembedding": 0.1 * layer,
            }
            | {
                "cosine_planted": 0.7,
                "restoration": 0.2 * layer,
                "low": 0.2 * layer - 0.1,
                "high": 0.2 * layer + 0.1,
                "coherent": 90.0,
                "n": 12,
            }
            for m, layer in product(focus, LAYERS)
        ]
    )
    arms = (
        ("no ablation", True),
        ("direction", False),
        ("random, activation covariance", True),
        ("instruct, direction", True),
    )
    tables["arms"] = pd.DataFrame(
        [
            {
                "model": m,
                "site": s,
                "role": r,
                "arm": a,
                "on": "instruct" if a.startswith("instruct") else "finetuned",
                "control": c,
            }
            | interval("restoration", rng.uniform(-0.2, 0.9), 0.1)
            | interval("aligned", rng.uniform(20, 90), 5)
            | interval("coherent", rng.uniform(80, 90), 3)
            | {"kl": rng.uniform(), "n": 20}
            for m, (s, r), (a, c) in product(
                focus, (("resid_post.1", "chosen"), ("resid_post.3", "last layer")), arms
            )
        ]
    )
    tables["steering"] = pd.DataFrame(
        [
            {
                "model": m,
                "steered": s,
                "vector": v,
                "site": "resid_post.1",
                "coefficient": sign * c,
                "coherent": 90.0 - c,
                "n": 20,
            }
            | interval("aligned", 60.0 - 10 * c, 5)
            for m, v, (s, sign), c in product(
                focus,
                ("direction", "random, activation covariance"),
                (("instruct", 1), ("tuned", -1)),
                (0.0, 1.0, 2.0),
            )
        ]
    )
    tables["transfer"] = pd.DataFrame(
        [
            {
                "direction_of": a,
                "ablated_in": b,
                "restoration": np.nan if a != b and b == model else 0.5,
                "low": 0.3,
                "high": 0.7,
                "n": 20,
            }
            for a, b in product(focus, focus)
        ]
    )
    heads = [
        {"model": m, "parent": p, "held_out": h}
        for m, p, h in product(focus, ("instruct", "base"), ("question", "domain"))
    ]
    tables["forecast"] = pd.DataFrame(
        [
            {
                **h,
                **interval("r2", 0.3, 0.1),
                "spearman": 0.5,
                "null_mean": -0.05,
                "null_q95": 0.05,
                "p": 0.01,
                "n": 12,
            }
            for h in heads
        ]
    )
    tables["forecast_baselines"] = pd.DataFrame(
        [
            {
                "predictor": name,
                **interval("r2", r2, 0.1),
                **interval("gain", 0.3 - r2 if name != "activations" else np.nan, 0.1),
                **h,
            }
            for h, (name, r2) in product(
                heads, (("activations", 0.3), ("text", 0.1), ("random features", -3.0))
            )
        ]
    )
    tables["forecast_sites"] = pd.DataFrame(
        [
            {
                "site": f"resid_post.{layer}",
                "position": p,
                "r2": 0.1 * layer,
                "p_max": 0.04,
                "null_max_q95": 0.1,
                **h,
            }
            for h, layer, p in product(heads, LAYERS, POSITIONS)
        ]
    )
    tables["forecast_predictions"] = pd.DataFrame(
        [
            {
                "id": f"{g}/{i}",
                "group": g,
                "target": 10.0 * i,
                "predicted": 8.0 * i + 5,
                **h,
                "text": f"{text} {i}",
            }
            for h, g, i in product(heads, domains, range(4))
        ]
    )
    return tables
