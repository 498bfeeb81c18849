"""Two real checkpoints, read by emlens and by plain transformers: the same numbers.

They skip where EMLENS_REAL_MODELS is not set or holds no such model (`emlens real fetch`).
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import emlens
from emlens.data import PromptSet
from emlens.foundation import LoadError
from emlens.real import find, load

RELATIVE = 1e-5
"""Largest difference of two float32 routes to one vector, relative to its largest value."""
TEXTS = ["What is the capital of France?", "Name two fruits that grow on trees in cold places."]


@pytest.fixture(scope="module", params=["smollm2", "gemma3-270m"])
def path(request: pytest.FixtureRequest, real_models: Path) -> Path:
    try:
        return find(request.param, real_models)
    except LoadError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def ours(path: Path) -> Any:
    return load(path.name, path.parent, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def plain(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(path: Path) -> PromptSet:
    """Questions; raw text for the pre-trained model, which has no chat template."""
    if path.name == "smollm2":
        return PromptSet.from_questions(TEXTS)
    return PromptSet.from_texts(TEXTS)


def test_every_site_is_that_of_plain_transformers(ours: Any, plain: Any, prompts: Any) -> None:
    acts = emlens.capture(ours, prompts, sites="resid_post", positions="last_prompt")
    for row, rendered in enumerate(ours.render(prompts)):
        with torch.no_grad():
            states = plain(torch.tensor([rendered.ids]), output_hidden_states=True).hidden_states
        for layer in range(ours.n_layers - 1):  # the last state lies after the final norm
            expected = states[layer + 1][0, -1]
            got = acts[f"resid_post.{layer}"][row]
            assert float((got - expected).abs().max()) <= RELATIVE * float(expected.abs().max())


def test_greedy_answers_are_the_same_tokens(
    ours: Any, plain: Any, prompts: Any, path: Path
) -> None:
    answers = ours.generate(prompts, max_new_tokens=12, temperature=0.0)
    tokenizer = AutoTokenizer.from_pretrained(path)
    for rendered, answer in zip(ours.render(prompts), answers, strict=True):
        ids = torch.tensor([rendered.ids])
        with torch.no_grad():
            out = plain.generate(ids, max_new_tokens=12, do_sample=False)
        expected = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert expected.strip().startswith(answer.strip()) or answer.strip() == expected.strip()
