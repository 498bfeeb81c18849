"""Blocks below the lowest edit are run once, and every value is that of whole passes."""

import pytest
import tiny_models
import torch
from chats_that_share import after_every_token, chats

from emlens.interventions import ablate, steer
from emlens.models import load_model
from emlens.models.lower_blocks import LowerStreams, keeping_lower_blocks, start_above

LAYERS = 4


@pytest.fixture
def model(tmp_path):
    return load_model(tiny_models.build(tmp_path / "m", num_hidden_layers=LAYERS))


def counting(model):
    """How often each block was run."""
    ran = [0] * LAYERS

    def count(i):
        def hook(*_args):
            ran[i] += 1

        return hook

    for i, block in enumerate(model.module.model.layers):
        # inside the block: a block that hands on what was kept runs nothing of its own
        block.mlp.register_forward_hook(count(i))
    return ran


def pushed(dose, site="resid_post.1"):
    return [steer(torch.linspace(-1, 1, tiny_models.D_MODEL), dose, at=[site])]


def test_doses_of_one_site_start_above_it(model, monkeypatch):
    rows, starts = chats()

    def values(edits):
        with model.intervene(edits):
            sums = model._summed_logprobs(rows, starts, 2048)
            return torch.cat([sums.float(), *map(torch.flatten, texts(edits))])

    def texts(_edits):
        return after_every_token(model, rows, monkeypatch)[0]

    doses = [pushed(1.0), pushed(-2.0), [*pushed(0.5), *pushed(3.0, "mlp_out.3")]]
    whole = [values(edits) for edits in doses]
    ran = counting(model)
    kept = LowerStreams()
    with keeping_lower_blocks(kept):
        values(doses[0])
        first = list(ran)
        assert first == [4, 4, 5, 5]  # two passes; the proof ran three, of which one from block 2
        found = [values(edits) for edits in doses]
    assert [a - b for a, b in zip(ran, first, strict=True)] == [0, 0, 6, 6]
    assert len(kept.outputs) == 2
    for one, other in zip(found, whole, strict=True):
        assert tiny_models.close(one, other)
    assert not tiny_models.close(whole[0], whole[1], 0.01)
    values(doses[0])  # outside the block
    assert ran[0] == first[0] + 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_models_in_sixteen_bits_start_above_it_too(dtype, tmp_path):
    model = load_model(tiny_models.build(tmp_path / "m", num_hidden_layers=LAYERS), dtype=dtype)
    rows, starts = chats()

    def sums(dose):
        with model.intervene(pushed(dose)):
            return model._summed_logprobs(rows, starts, 2048)

    whole = [sums(dose) for dose in (1.0, -2.0)]
    kept = LowerStreams()
    with keeping_lower_blocks(kept):
        found = [sums(dose) for dose in (1.0, -2.0)]
    assert len(kept.outputs) == 1 and all(map(torch.equal, found, whole))


SITES = [
    (["resid_pre.2"], 2),
    (["attn_out.2"], 2),
    (["resid_post.2"], 3),
    (["final_norm"], LAYERS),
    (["resid_post.0", "final_norm"], 1),
    (["attn_out.0"], 0),
]


@pytest.mark.parametrize("sites, start", SITES)
def test_the_lowest_edit_decides(sites, start, model):
    rows, starts = chats(questions=1)
    edit = [ablate(torch.linspace(-1, 1, tiny_models.D_MODEL), at=sites)]
    assert start_above(model) == 0  # without an edit
    with model.intervene(edit):
        assert start_above(model) == 0  # outside the block
        whole = model._summed_logprobs(rows, starts, 2048)
        with keeping_lower_blocks(LowerStreams()):
            assert start_above(model) == start
            for _ in range(2):
                assert tiny_models.close(model._summed_logprobs(rows, starts, 2048), whole)
        other = [steer(torch.ones(tiny_models.D_MODEL), 1.0, at=["resid_pre.0"])]
        with keeping_lower_blocks(LowerStreams()), model.intervene(other):
            assert start_above(model) == 0


def test_other_rows_adapters_and_blocks_are_told_apart(model, tmp_path):
    rows, starts = chats(questions=1)
    others, _ = chats(seed=4, questions=1)
    kept = LowerStreams()
    with keeping_lower_blocks(kept):
        for given in (rows, others, rows):
            with model.intervene(pushed(1.0)):
                model._summed_logprobs(given, starts, 2048)
        assert len(kept.outputs) == 2
        with model.intervene(pushed(1.0, "resid_post.2")):
            model._summed_logprobs(rows, starts, 2048)
        assert len({key[2] for key in kept.outputs}) == 2
    [size] = {stream.nbytes for _, stream in list(kept.outputs.values())[:1]}
    small = LowerStreams(room=size)
    with keeping_lower_blocks(small):
        for given in (rows, others):
            with model.intervene(pushed(1.0)):
                model._summed_logprobs(given, starts, 2048)
    assert sum(stream.nbytes for _, stream in small.outputs.values()) <= size


def test_a_model_whose_blocks_read_more_than_the_stream_runs_all_of_them(model):
    seen = []

    def keep(_module, _args, output):
        seen.append(output.flip(0))

    model.module.model.layers[0].mlp.register_forward_hook(keep)
    # what the last block adds is what the first one left elsewhere
    model.module.model.layers[-1].mlp.register_forward_hook(lambda _m, _a, out: out + seen[-1])
    with keeping_lower_blocks(LowerStreams()), model.intervene(pushed(1.0)):
        assert start_above(model) == 0
