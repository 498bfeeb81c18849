"""Blocks of edits: each leaves by identity, and none is seen outside its own context."""

import asyncio
import contextvars
import gc
import threading

import pytest
import torch

from emlens.interventions import steer
from emlens.models.edit_blocks import _BLOCKS


@pytest.fixture
def edits():
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(3, 32, generator=generator)
    return [steer(vector, 1.0, at=["resid_post.1"]) for vector in vectors]


@pytest.fixture(autouse=True)
def nothing_left(model):
    before = _BLOCKS.get()  # of other tests' models in this process, if any
    yield
    assert model.interventions == () and set(_BLOCKS.get()) <= set(before)


def test_blocks_end_in_any_order(model, edits):
    a, b = model.intervene(edits[:1]), model.intervene(edits[1:2])
    a.__enter__()
    b.__enter__()
    assert model.interventions == (edits[0], edits[1])
    a.__exit__(None, None, None)
    assert model.interventions == (edits[1],)
    b.__exit__(None, None, None)
    assert model.interventions == ()


def test_coroutines_under_gather_run_under_their_own_edits(model, edits, prompts):
    untouched = model.logits(prompts)
    steered = []
    for edit in edits:
        with model.intervene([edit]):
            steered.append(model.logits(prompts))

    async def steering(edit):
        with model.intervene([edit]):
            await asyncio.sleep(0)
            return model.logits(prompts)

    async def clean():
        await asyncio.sleep(0)
        return model.logits(prompts)

    async def together():
        return await asyncio.gather(*map(steering, edits), clean())

    *own, last = asyncio.run(together())
    assert all(map(torch.equal, own, steered)) and torch.equal(last, untouched)
    assert not torch.equal(own[0], untouched)


def test_a_task_keeps_the_edits_it_was_created_under(model, edits):
    async def seen():
        return model.interventions

    async def main():
        with model.intervene(edits[:1]):
            task = asyncio.create_task(seen())
        return await task, model.interventions

    assert asyncio.run(main()) == ((edits[0],), ())


def test_callbacks_and_copied_contexts_run_under_open_blocks_only(model, edits):
    seen = []

    def look():
        seen.append(model.interventions)

    async def run():
        loop = asyncio.get_running_loop()
        with model.intervene(edits[:1]):
            copied = contextvars.copy_context()
            loop.call_soon(look)
            loop.call_later(0.01, look)
            await asyncio.sleep(0)
        copied.run(look)
        await asyncio.sleep(0.05)

    asyncio.run(run())
    assert seen == [(edits[0],), (), ()]


def test_a_plain_generator_shares_the_context_of_its_caller(model, edits):
    def holding(edit):
        with model.intervene([edit]):
            yield

    first, second = holding(edits[0]), holding(edits[1])
    next(first)
    next(second)
    assert model.interventions == (edits[0], edits[1])
    first.close()
    assert model.interventions == (edits[1],)
    del second  # forgotten, not closed
    gc.collect()


def test_a_block_left_in_another_thread_ends_where_it_was_opened(model, edits):
    def holding():
        with model.intervene(edits[:1]):
            yield

    generator = holding()
    next(generator)
    thread = threading.Thread(target=generator.close)
    thread.start()
    thread.join()
    assert model.interventions == ()
    with model.intervene(edits[1:2]):  # what ended is dropped where the next block is left
        pass


def test_answers_run_under_the_edits_of_the_call_whenever_they_are_taken(model, edits, prompts):
    with model.intervene(edits[:1]):
        expected = model.generate(prompts, max_new_tokens=4)
        chunks = model.generate_each(prompts, max_new_tokens=4)
    with model.intervene(edits[1:2]):
        answers = {index: text for chunk in chunks for index, text, _ in chunk}
        assert model.interventions == (edits[1],)
        assert model.generate(prompts, max_new_tokens=4) != expected
    assert [answers[i] for i in range(len(prompts))] == expected
