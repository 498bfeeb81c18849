"""The parts of `benchmarks.gpu` about verdicts of a local judge and about a study; see
`benchmarks.gpu_parts`.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoTokenizer

from benchmarks import gpu_models, scale
from benchmarks.gpu_models import FIRST, word
from benchmarks.gpu_parts import Sizes, chats, questions, refuse, stream_gap
from benchmarks.turns import compared, wait
from emlens.data import Answer, Prompt, PromptSet
from emlens.data.rendering import Rendered, render
from emlens.foundation.files import read_json
from emlens.foundation.seeds import numpy_rng
from emlens.judging import LogitJudge
from emlens.judging.readouts import CATEGORIES, parse_raw
from emlens.models import load_family
from emlens.models.batches import Batch, pad, plan_batches
from emlens.models.continuation_tree import why_no_tree
from emlens.models.pass_counts import counted_passes
from emlens.models.transformers_backend import TransformersModel
from emlens.studies import run_study

SCORE_GAP: Final = 1e-3
"""On the scale of 100, in float32."""
STREAM_GAP: Final = 5e-5
"""Relative, of a vector of the stream in float32: another attention kernel."""
ADAPTERS: Final = ("bad", "good")


# ---- judging


def answers_to_judge(sizes: Sizes) -> list[Answer]:
    """Answers of random words to random questions."""
    words, rng = sizes.small["vocab_size"], numpy_rng(0, "judged")
    answers = []
    for prompt in questions(sizes.judged, words).prompts():
        text = " ".join(map(word, rng.integers(FIRST, words, sizes.answer)))
        answers.append(Answer("random", prompt.id, text, prompt.messages or ()))
    return answers


def judging(sizes: Sizes, device: torch.device, deadline: float) -> dict[str, Any]:
    """Verdicts of `LogitJudge` beside one plain pass over the prompt of each."""
    model = gpu_models.build(sizes.small, device)
    answers = answers_to_judge(sizes)
    with gpu_models.in_float32(model) as exact:
        judge = LogitJudge(exact, floor=0.0)
        pairs = [(answer, metric) for answer in answers[:1] for metric in judge.metrics]
        verdicts = dict(judge.verdicts(pairs))
        gaps = []
        for number, (answer, metric) in enumerate(pairs):
            found = parse_raw(verdicts[number].raw, CATEGORIES).expected
            gaps.append(abs(found - plain_score(exact, judge._row(answer, metric))))
    refuse("verdicts and plain scores", max(gaps), SCORE_GAP)
    # a random model gives digits so little that the floor would leave most replies out
    judge = LogitJudge(model, floor=0.0)
    pairs = [(answer, metric) for answer in answers for metric in judge.metrics]
    rows = [judge._row(answer, metric) for answer, metric in pairs]
    batches = sorted_batches(model, rows, sizes.batch_tokens)
    with counted_passes() as counts:
        dict(judge.verdicts(pairs))
    tokens = sum(len(row.ids) for row in rows)
    cases = {
        "emlens": lambda: dict(judge.verdicts(pairs)),
        "plain": partial(last_logits, model.module, batches),
    }
    return {
        "verdicts": len(pairs),
        "metrics": len(judge.metrics),
        "tokens_of_a_prompt": tokens / len(pairs),
        "prefills_per_verdict": counts.padded_tokens / tokens,
        "whole_texts": why_no_tree(model, max(len(row.ids) for row in rows)),
        "score_gap_in_float32": max(gaps),
        **compared(cases, sizes.rounds, device, deadline),
    }


def sorted_batches(
    model: TransformersModel, rows: Sequence[Rendered], batch_tokens: int
) -> list[Batch]:
    plan = plan_batches([len(row.ids) for row in rows], batch_tokens)
    # padded on the left, so that the last column is the last token of every row
    return [pad([rows[i] for i in index], index, 0, "left", model.device) for index in plan]


@torch.no_grad()
def last_logits(module: Any, batches: Sequence[Batch]) -> None:
    """A pass over each batch, with logits at its last tokens."""
    for batch in batches:
        module(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            use_cache=False,
            logits_to_keep=1,
        )


@torch.no_grad()
def plain_score(model: TransformersModel, row: Rendered) -> float:
    """Expected number from 0 to 100 as the reply to a prompt, from plain passes over whole rows.

    P(k) is that of its digits, times that of no further digit after them. Spaces before a number
    are left out: a random model does not write them.
    """
    digits = model.tokenizer.convert_tokens_to_ids(list("0123456789"))
    beginnings = [()] + [tuple(str(k)) for k in range(101)]
    ids = [[*row.ids, *(digits[int(d)] for d in text)] for text in beginnings]
    next_digit = {}
    for text, whole in zip(beginnings, ids, strict=True):
        inputs = torch.tensor([whole], device=model.device)
        logits = model.module(inputs, use_cache=False).logits[0, -1]
        next_digit[text] = logits.double().softmax(-1)[digits].tolist()
    total = weighted = 0.0
    for k in range(101):
        text = tuple(str(k))
        p = 1.0 - sum(next_digit[text])
        for place, digit in enumerate(text):
            p *= next_digit[text[:place]][int(digit)]
        total += p
        weighted += k * p
    return weighted / total


# ---- a study


def studying(sizes: Sizes, device: torch.device, deadline: float) -> dict[str, Any]:
    """`delta_overlap` of a parent and two adapters, loading included, beside loading them plainly
    and one pass of each over every prompt.
    """
    words = sizes.small["vocab_size"]
    asked = questions(sizes.asked, words)
    pairs = {
        name: chats(sizes.chats, words, sizes.answer, seed)
        for seed, name in enumerate(ADAPTERS, start=1)
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parent = gpu_models.save(gpu_models.build(sizes.small, device), folder / "model")
        asked.to_jsonl(folder / "questions.jsonl")
        config = scale.overlap_of(folder, parent, pairs, sizes.layers)
        config["family"] |= {"device": str(device), "dtype": "bfloat16"}
        adapters = {each: folder / each for each in ADAPTERS}
        gap = shift_gap(parent, adapters, asked.prompts(), device)
        refuse("captures of the family and hidden states", gap, STREAM_GAP)
        prompts = PromptSet([*asked.prompts(), *map(without_answer, chain(*pairs.values()))])
        loading: list[float] = []

        def plain() -> None:
            loading.append(plain_passes(parent, adapters, prompts, sizes.batch_tokens, device))

        numbers = count()
        cases = {
            "emlens": lambda: run_study(config, folder / f"out-{next(numbers)}", progress=False),
            "plain": plain,
        }
        found = compared(cases, sizes.rounds, device, deadline)
        ran = read_json(folder / "out-0" / "run.json")["parts"]["delta_overlap"]
    return {
        "questions": len(asked),
        "chats": sizes.chats,
        "layers": list(sizes.layers),
        "tokens_of_the_study": ran["padded_tokens"],
        "plain_loading_s": loading,
        "gap_in_float32": gap,
        **found,
    }


def without_answer(chat: Prompt) -> Prompt:
    return Prompt(chat.id, chat.text, messages=chat.messages)


def shift_gap(
    parent: Path, adapters: Mapping[str, Path], asked: PromptSet, device: torch.device
) -> float:
    """Largest relative gap between captures of the family and hidden states of plain modules, in
    float32.
    """
    few = PromptSet(list(asked)[:4])
    family = load_family(parent, finetuned=dict(adapters), dtype="float32", device=str(device))
    plain = plain_family(parent, adapters, torch.float32, device)
    gaps = []
    with plain.disable_adapter():
        gaps.append(stream_gap(family.instruct, plain.get_base_model(), few))
    for name in adapters:
        plain.set_adapter(name)
        gaps.append(stream_gap(family[name], plain.get_base_model(), few))
    return max(gaps)


def plain_family(
    parent: Path, adapters: Mapping[str, Path], dtype: torch.dtype, device: torch.device
) -> Any:
    """A parent with all adapters, by transformers and peft."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(parent, dtype=dtype).to(device)
    model: Any = None
    for name, path in adapters.items():
        if model is None:
            model = PeftModel.from_pretrained(base, path, adapter_name=name)
        else:
            model.load_adapter(path, adapter_name=name)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def plain_passes(
    parent: Path,
    adapters: Mapping[str, Path],
    prompts: PromptSet,
    batch_tokens: int,
    device: torch.device,
) -> float:
    """A pass of the parent and of each adapter over every prompt, rows sorted by length.

    Returns:
        Seconds until the models were loaded.
    """
    began = time.perf_counter()
    model = plain_family(parent, adapters, torch.bfloat16, device)
    wait(device)
    loaded = time.perf_counter() - began
    rows = render(prompts, AutoTokenizer.from_pretrained(parent))
    plan = plan_batches([len(row.ids) for row in rows], batch_tokens)
    batches = [pad([rows[i] for i in index], index, 0, "right", device) for index in plan]
    decoder = model.get_base_model().model

    def all_batches() -> None:
        for batch in batches:
            decoder(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False)

    with model.disable_adapter():
        all_batches()
    for name in adapters:
        model.set_adapter(name)
        all_batches()
    return loaded
