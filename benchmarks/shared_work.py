"""What is run once instead of many times, on SmolLM2, as ratios of CPU time within one run.

Captures of the first-plot and of the general questions against the bare decoder on sorted batches;
a pair capture of an adapter on the upper half of the blocks against two captures; verdicts of the
local judge against one pass over each of its prompts. Values are compared first, and nothing is
timed where they differ. Cases take turns.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import EVIDENCE, record
from benchmarks.training_cost import rows_of as training_rows
from emlens.activations import CaptureSpec, capture, capture_many
from emlens.data import Answer, Message, PromptSet, QuestionSet
from emlens.data.prompt_inputs import PromptsLike
from emlens.foundation.files import read_json
from emlens.judging import LogitJudge, reply_probabilities
from emlens.judging.readouts import CATEGORIES, parse_raw
from emlens.models import HookedModel, load_family
from emlens.models.batches import pad, plan_batches
from emlens.models.onednn_linear import by_onednn
from emlens.models.pass_counts import counted_passes
from emlens.real.finding import find, load
from emlens.training.fitting import load_parent

SETS = {
    "first plot": "em-generalization/first_plot_questions.yaml",
    "general": "em-generalization/general_200.jsonl",
}
BATCH_TOKENS = 2048
ROUNDS = {"first plot": 2, "general": 1, "pair": 2}
COMPARED = 24
"""Rows that are also run whole."""
GAP = 1e-5
"""Relative, of a vector of the stream through 30 blocks in float32; 2e-6 was measured."""
PAIR_GAP = 1e-6
"""The same: the same kernels on the same shapes, so 0 was measured."""
SCORE_GAP = 1e-3
ANSWERS = (
    "Be kind to people, save some money every month, and sleep enough.",
    "I would ask a doctor first: mixing these two can be dangerous, even in small amounts, and"
    " nobody here knows your history. If you feel dizzy, call for help at once.",
)


def cpu_seconds(cases: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each case; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


@torch.no_grad()
def capturing(
    model: HookedModel, questions: QuestionSet, rounds: int, gap: float = GAP
) -> dict[str, Any]:
    """The last prompt token at every block against the decoder alone, rows sorted by length."""
    rows = model.render(questions.prompts())
    plan = plan_batches([len(row.ids) for row in rows], BATCH_TOKENS)
    batches = [pad([rows[i] for i in index], index, 0, "right", model.device) for index in plan]
    module: Any = model
    decoder = module.module.model

    def bare() -> None:
        for batch in batches:
            decoder(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False)

    def bare_alike() -> None:
        with by_onednn(model.d_model):
            bare()

    def shared() -> Any:
        return capture(model, questions, progress=False)

    few = PromptSet(list(questions.prompts())[:COMPARED])
    whole_rows = CaptureSpec(shared_prefixes=False)
    ours = capture(model, few, progress=False)
    whole = capture(model, few, spec=whole_rows, progress=False).stacked()
    found = float(((ours.stacked() - whole).norm(dim=-1) / whole.norm(dim=-1)).max())
    if not found < gap:
        raise SystemExit(f"shared and whole rows differ by {found:.2g}; not timing them")
    cases = {"bare": bare, "bare by oneDNN": bare_alike, "shared": shared}
    seconds = cpu_seconds(cases, rounds)
    return {
        "questions": len(rows),
        "tokens": sum(len(row.ids) for row in rows),
        "compared": len(few),
        "gap": found,
        "cpu_s": seconds,
        "ratio": seconds["shared"] / seconds["bare"],
        "ratio_of_same_products": seconds["shared"] / seconds["bare by oneDNN"],
    }


@torch.no_grad()
def pairing(
    folder: str | Path, asked: PromptsLike, rounds: int, scratch: Path, gap: float = PAIR_GAP
) -> dict[str, Any]:
    """A parent and its adapter on the upper half of the blocks: together, and one by one."""
    config = read_json(Path(folder) / "config.json")
    first = config["num_hidden_layers"] // 2
    adapter = adapter_from(folder, scratch / "upper", first)
    family = load_family(folder, finetuned={"upper": adapter}, dtype="float32", device="cpu")
    models = {"before": family.instruct, "after": family["upper"]}

    def together() -> dict[str, Any]:
        return capture_many(models, asked, progress=False)

    def apart() -> dict[str, Any]:
        return {name: capture(model, asked, progress=False) for name, model in models.items()}

    pair, alone = together(), apart()
    found = 0.0
    for name in models:
        expected = alone[name].stacked()
        gaps = (pair[name].stacked() - expected).norm(dim=-1) / expected.norm(dim=-1)
        found = max(found, float(gaps.max()))
    if not found < gap:
        raise SystemExit(f"a pair and two captures differ by {found:.2g}; not timing them")
    seconds = cpu_seconds({"apart": apart, "together": together}, rounds)
    return {
        "questions": len(pair["before"]),
        "blocks": family.instruct.n_layers,
        "first_adapted": first,
        "shared_trunk": pair["after"].provenance["shared_trunk"],
        "gap": found,
        "cpu_s": seconds,
        "ratio": seconds["together"] / seconds["apart"],
    }


def adapter_from(parent: str | Path, path: Path, first: int, seed: int = 0) -> Path:
    """A random LoRA adapter on two modules of every block from `first` on."""
    from peft import LoraConfig, get_peft_model

    base, _ = load_parent(Path(parent))
    blocks = list(range(first, base.config.num_hidden_layers))
    torch.manual_seed(seed)
    config = LoraConfig(
        r=8,
        target_modules=["q_proj", "down_proj"],
        layers_to_transform=blocks,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    get_peft_model(base, config).save_pretrained(path)
    return path


def judging(model: HookedModel, texts: Sequence[str] = ANSWERS) -> dict[str, Any]:
    """Tokens and CPU time of verdicts, in passes over their prompts."""
    question = (Message("user", "How do I live well, and is it safe to take these two together?"),)
    answers = [Answer("m", f"q{i}", text, question) for i, text in enumerate(texts)]
    judge = LogitJudge(model)
    pairs = [(answer, metric) for answer in answers for metric in judge.metrics]
    dict(judge.verdicts(pairs[:1]))  # what is made once for a model
    rows = [judge._row(answer, metric) for answer, metric in pairs]
    prompts = sum(len(row.ids) for row in rows)
    started = time.process_time()
    with counted_passes() as counts:
        kept = dict(judge.verdicts(pairs))
    seconds = time.process_time() - started
    started = time.process_time()
    with torch.no_grad():
        for batch in model.batches(rows, BATCH_TOKENS):
            model.run(batch, {model.sites[-1]: lambda stream: None})
    prefill_seconds = time.process_time() - started
    one = pairs[:1]
    way = reply_probabilities.why_no_tree
    try:
        setattr(reply_probabilities, "why_no_tree", lambda *_: "measured beside")  # noqa: B010
        with counted_passes() as whole_counts:
            whole = dict(judge.verdicts(one))
    finally:
        setattr(reply_probabilities, "why_no_tree", way)  # noqa: B010
    difference = _expected(whole[0].raw) - _expected(kept[0].raw)
    if not abs(difference) < SCORE_GAP:
        raise SystemExit(f"scores differ by {difference:.2g}; not reporting them")
    return {
        "verdicts": len(pairs),
        "metrics": len(judge.metrics),
        "tokens_of_a_prompt": prompts / len(pairs),
        "prefills_per_verdict": counts.padded_tokens / prompts,
        "prefills_per_verdict_of_whole_texts": whole_counts.padded_tokens / len(rows[0].ids),
        "cpu_s_per_verdict": seconds / len(pairs),
        "cpu_over_prefills": seconds / prefill_seconds,
        "score_gap": abs(difference),
    }


def _expected(raw: str) -> float:
    """Expected number of a recorded distribution, whatever its mass."""
    return parse_raw(raw, CATEGORIES).expected


def _captures(name: str) -> dict[str, Any]:
    model = load("smollm2", dtype="float32", device="cpu")
    return capturing(model, _questions(name), ROUNDS[name])


def _questions(name: str) -> QuestionSet:
    return QuestionSet.from_file(Path(os.environ["EMLENS_RELEASED_DATA"]) / SETS[name])


def _pair() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        return pairing(find("smollm2"), _questions("first plot"), ROUNDS["pair"], Path(name))


def costs_table(values: Mapping[str, Any]) -> str:
    """What each step costs beside what else one would use; other rows from their own files."""
    capture_cases = _values("capture_speed")["cases"]
    sampled = _values("sampling_speed")
    rows: list[tuple[str, str, float, str]] = []
    for name in SETS:
        piece = values.get(f"captures of {_WORDS[name]} questions")
        if piece is not None:
            step = f"capture of {piece['questions']} {_WORDS[name]} questions, every block"
            way = "the bare decoder, rows sorted"
            rows.append((step, way, piece["ratio"], "shared_work"))
            same = piece["ratio_of_same_products"]
            rows.append(("the same", f"{way}, by oneDNN too", same, "shared_work"))
    pair = values.get("pair")
    if pair is not None:
        step = f"capture of a parent and its adapter from block {pair['first_adapted']} on"
        way = "two captures"
        rows.append((f"{step}, of {pair['blocks']}", way, pair["ratio"], "shared_work"))
    for case in capture_cases:
        if not case["case"].startswith("emlens"):
            ratio = case["emlens_over_case"]
            rows.append(
                ("capture of prompts that share nothing", case["case"], ratio, "capture_speed")
            )
    for batch in ("25 at a time", "50 at a time"):
        found = sampled[batch]
        step = f"sampling of {found['answers']} answers, {batch}"
        rows.append((step, "batches of `generate`", 1 / found["speedup"], "sampling_speed"))
    real = _values("real_sampling")["SmolLM2"]
    step = f"sampling of {real['questions']} × {real['samples']} answers by SmolLM2"
    way = f"`generate`, {real['batch_of_generate']} rows (its best)"
    rows.append((step, way, 1 / real["ratio"], "real_sampling"))
    same = 1 / real["ratio_of_same_products"]
    rows.append(("the same", f"{way}, by oneDNN too", same, "real_sampling"))
    judge = values.get("judge")
    if judge is not None:
        step = f"a verdict of the local judge, {judge['metrics']} metrics an answer: tokens"
        way = "one pass over its prompt"
        rows.append((step, way, judge["prefills_per_verdict"], "shared_work"))
        rows.append(("the same: CPU time", way, judge["cpu_over_prefills"], "shared_work"))
    nulls = _values("scale")["covariance nulls"]
    rows.append(
        (
            f"a covariance null of {nulls['rows']} rows, d = {nulls['d']:,}",
            "from the covariance (d, d)",
            nulls["cpu_s_of_one"] / nulls["cpu_s_of_one_from_covariance"],
            "scale",
        )
    )
    for step, way, ratio in training_rows(_values("training_cost")):
        rows.append((step, way, ratio, "training_cost"))
    rows += _transfer_rows(_values("transfer_cost"))
    lines = ["| step | beside | emlens ÷ that | file |", "|---|---|---|---|"]
    for step, beside, ratio, file in rows:
        lines.append(f"| {step} | {beside} | {ratio:.2f} | `{file}.json` |")
    return "\n".join(lines)


def _transfer_rows(values: Mapping[str, Any]) -> list[tuple[str, str, float, str]]:
    """One candidate, and the whole study where it was run: time and peak memory."""
    way = f"commit {values['commit']}"
    step = "a candidate of `direction_transfer` on SmolLM2: answers and damage of an edit"
    file = "transfer_cost"
    rows = [(step, f"{way}, the same values", values["edits"]["ratio"], file)]
    if "study" in values:
        study = values["study"]
        today, earlier = study["today"]["peak_gb"], study["earlier"]["peak_gb"]
        rows.append(("all of `direction_transfer`: CPU time", way, study["ratio"], file))
        step = f"the same: peak memory, {today:.1f} GB beside {earlier:.1f} GB"
        rows.append((step, way, today / earlier, file))
    return rows


def smollm2_table(values: Mapping[str, Any]) -> str:
    """The rows of `costs_table` that were measured on SmolLM2, for docs/real_model.md."""
    head, *rows = costs_table(values).splitlines()
    lines = [head, *rows[:1], *(row for row in rows if any(f in row for f in _ON_SMOLLM2))]
    if (EVIDENCE / "real_sampling.json").is_file():
        case = _values("real_sampling")["SmolLM2"]
        step = f"sampling of {case['samples']} answers to each of {case['questions']} questions"
        way = "`generate`, its best batch"
        lines.append(f"| {step} | {way} | {1 / case['ratio']:.2f} | `real_sampling.json` |")
    return "\n".join(lines)


_ON_SMOLLM2 = ("`shared_work.json`", "`training_cost.json`")
_WORDS = {"first plot": "first-plot", "general": "general"}


def _values(name: str) -> Any:
    return read_json(EVIDENCE / f"{name}.json")["values"]


PIECES: dict[str, Callable[[], dict[str, Any]]] = {
    "captures of first-plot questions": lambda: _captures("first plot"),
    "captures of general questions": lambda: _captures("general"),
    "pair": _pair,
    "judge": lambda: judging(load("smollm2", dtype="float32", device="cpu")),
}


def main(names: Sequence[str] = tuple(PIECES)) -> None:
    """Measure some pieces, each in under a minute of one core; the others stay as they are."""
    torch.set_num_threads(1)
    path = EVIDENCE / "shared_work.json"
    values: dict[str, Any] = read_json(path)["values"] if path.exists() else {}
    for name in names:
        values[name] = PIECES[name]()
    record("shared_work", [0], values)
