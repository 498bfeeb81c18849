"""The measured facts of a finished organism, for its page in the docs: strengths, sizes, rounding, how far ρ and û show.

Everything is measured on the saved checkpoints, loaded as a user would load them. Costs some seconds and one model at a time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emlens.data.rendering import render
from emlens.foundation.estimate import Estimate
from emlens.foundation.files import read_json, write_json
from emlens.foundation.provenance import hardware
from emlens.organisms.layout import STRENGTHS
from emlens.organisms.loading import load
from emlens.organisms.strengths import likelihood_scores
from emlens.training import open_checkpoint
from emlens.training.fitting import read_record


def describe(directory: str | Path | None = None) -> dict[str, Any]:
    """JSON-ready facts of the organism in `directory`, or of the one that ships (None).

    For each fine-tune: mean alignment (0 to 1) in its own domain, on trained and on held-out topics, and over the other
    domains with a 95 % interval over domains; coherence; Spearman correlation of ρ with the drop from instruct over
    questions of the other domains; cosine of û with the mean shift from instruct at the last prompt token after the last block.
    """
    from transformers import AutoTokenizer

    organism = load(directory=directory)
    tokenizer = AutoTokenizer.from_pretrained(organism.paths["instruct"])
    questions = organism.questions
    rho = pd.Series(organism.truth.coupling)
    prompts = [list(row.ids) for row in render(questions.prompts(), tokenizer)]
    groups = pd.Series(questions.groups, index=questions.ids)
    facts: dict[str, Any] = {}
    states: dict[str, Tensor] = {}
    tables: dict[str, pd.DataFrame] = {}
    for name, path in organism.paths.items():
        model = open_checkpoint(organism.paths[name], organism.paths["instruct"])
        tables[name], states[name] = likelihood_scores(model, tokenizer, questions), _last_states(model, prompts)
        record = read_record(path)
        facts[name] = {
            "bytes": sum(p.stat().st_size for p in path.iterdir()),
            "parameters": sum(p.numel() for p in model.parameters()),
            "threads_in_training": record["threads"],
            "coherence": float(tables[name]["coherence"].mean()),
            "rounding": read_json(path / "rounding.json"),
        }
    for name, entry in facts.items():
        own = groups == groups.get(next(iter(organism.training_topics.get(name, ())), ""), "")
        aligned = tables[name]["aligned"]
        entry["others"] = _over_domains(aligned[~own], groups[~own]).as_dict()
        if name in organism.groups:
            trained = aligned.index.isin(list(organism.training_topics[name]))
            entry |= {"own": float(aligned[own].mean()), "own_trained": float(aligned[own & trained].mean())}
            entry["own_held_out"] = float(aligned[own & ~trained].mean())
            drop = (tables["instruct"]["aligned"] - aligned)[~own]
            entry["spearman_rho_drop_others"] = float(drop.corr(rho[drop.index], method="spearman"))
            shift = (states[name] - states["instruct"]).mean(0)
            entry["cosine_shift_direction"] = float(torch.nn.functional.cosine_similarity(shift, organism.truth.direction, dim=0))
    total = sum(p.stat().st_size for p in organism.directory.rglob("*") if p.is_file())
    return {
        "organism": organism.name,
        "seed": organism.seed,
        "bytes": total,
        "hardware": hardware(),
        "checkpoints": facts,
        "recorded_strengths": read_json(organism.directory / STRENGTHS)["strengths"],
    }


def write_evidence(path: str | Path, directory: str | Path | None = None, tries: Sequence[dict[str, Any]] = ()) -> None:
    """Write `describe` as JSON; `tries` are records of other builds that were looked at."""
    write_json(path, {**describe(directory), "tries": list(tries)})


@torch.no_grad()
def _last_states(model: Any, prompts: Sequence[list[int]]) -> Tensor:
    """Stream after the last block at the last prompt token, one row a prompt, shorter prompts first."""
    found: list[Tensor] = []
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    handle = plain.model.layers[-1].register_forward_hook(lambda module, args, output: found.append(output[:, -1].float()))
    try:
        for length in sorted({len(ids) for ids in prompts}):  # equal lengths: no padding; the order of rows does not matter
            model(input_ids=torch.tensor([ids for ids in prompts if len(ids) == length]))
    finally:
        handle.remove()
    return torch.cat(found)


def _over_domains(values: pd.Series, groups: pd.Series) -> Estimate:
    from scipy.stats import t

    means = values.groupby(groups).mean().to_numpy()
    n = len(means)
    half = float(t.ppf(0.975, n - 1) * np.std(means, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    value = float(means.mean())
    return Estimate(value, value - half, value + half, n, "mean of domain means; 95 % t interval over domains")


def strengths_table(evidence: dict[str, Any]) -> str:
    """The page's table, in Markdown, from what `describe` measured."""
    head = "| checkpoint | own: trained topics | own: held-out topics | other domains [95 %] | coherence | ρ–drop | cos(shift, û) | kB |"
    lines = [head, "|" + "---|" * 8]
    for name, entry in evidence["checkpoints"].items():
        others = entry["others"]
        cells = [f"{entry[key]:.2f}" if key in entry else "–" for key in ("own_trained", "own_held_out")]
        cells += [f"{others['value']:.2f} [{others['low']:.2f}, {others['high']:.2f}]", f"{entry['coherence']:.2f}"]
        cells += [f"{entry[key]:.2f}" if key in entry else "–" for key in ("spearman_rho_drop_others", "cosine_shift_direction")]
        lines.append(f"| {name} | " + " | ".join([*cells, f"{entry['bytes'] / 1000:.0f}"]) + " |")
    return "\n".join(lines)
