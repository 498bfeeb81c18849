"""Prompts that share much, for tests of passes that share work."""

import random

from emlens.data.rendering import Rendered
from emlens.models.pass_counts import counted_passes

SYSTEM = 20


def chats(seed=3, questions=3, answers=3, question=14):
    """Answers to questions under one system turn, and where each answer starts."""
    pick = random.Random(seed)

    def some(count):
        return [pick.randrange(6, 46) for _ in range(count)]

    system, rows, starts = some(SYSTEM), [], []
    for i in range(questions):
        prompt = [*system, *some(question + 2 * i)]
        for j in range(answers):
            rows.append(Rendered(f"q{i}a{j}", "", (*prompt, *some(3 + j)), len(prompt)))
            starts.append(len(prompt))
    return rows, starts


def after_every_token(model, rows, monkeypatch):
    """`token_logprobs` of rendered rows, with the passes that it took."""
    monkeypatch.setattr(model, "render", lambda prompts: list(prompts))
    with counted_passes() as counts:
        return model.token_logprobs(rows), counts
