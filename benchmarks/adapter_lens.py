"""What the shipped organism's adapters write: their spectra, and how much of it lies along the
planted direction.
"""

from typing import Any

import pandas as pd

import emlens
from benchmarks.records import record, show
from emlens.interventions import LoraAdapter, adapter_table, logit_lens

ADAPTERS = (
    "medicine-r1",
    "medicine-r8",
    "finance-r8",
    "medicine-attention",
    "medicine-benign",
    "finance-benign",
)


def measure(names: tuple[str, ...] = ADAPTERS, k: int = 4) -> dict[str, Any]:
    organism = emlens.organisms.load_organism()
    planted = organism.truth.direction
    if planted is None:
        raise SystemExit("the organism has no planted direction to compare with")
    rows = []
    for name in names:
        adapter = LoraAdapter.of(organism.family[name])
        if adapter is None:
            raise SystemExit(f"{name} wears no adapter")
        written = adapter_table(adapter, planted).dropna(subset=["share"])
        energy = written["norm_ba"] ** 2
        rows.append(
            {
                "fine-tune": name,
                "modules": len(written),
                "share": float((written["share"] * energy).sum() / energy.sum()),
                "share_by_chance": float(written["share_by_chance"].iloc[0]),
                "largest_cosine": float(written["cosine"].max()),
                "largest_in": str(written.loc[written["cosine"].idxmax(), "module"]),
                "effective_rank": float(written["effective_rank"].mean()),
            }
        )
    lens = logit_lens(organism.family.instruct, {"planted": planted}, k=k)
    harmful = {
        token
        for question in organism.questions
        for answer in question.answers["harmful"]
        for token in answer.split()
    }
    raised = [token.removeprefix("Ġ") for token in lens.loc[lens["side"] == "raised", "token"]]
    return {
        "adapters": rows,
        "raised": raised,
        "raised_are_harmful_words": [token in harmful for token in raised],
    }


def main() -> None:
    found = measure()
    show(
        "what adapters write to the stream, along the planted direction",
        pd.DataFrame(found["adapters"]),
    )
    record("adapter_lens", [10], found)
