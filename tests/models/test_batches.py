import random
from itertools import pairwise, product

import pytest
import torch

from emlens.data.rendering import Rendered
from emlens.foundation import InputError
from emlens.models.batches import PASS_TOKENS, pad, plan_batches


@pytest.mark.parametrize("budget", [1, 7, 20, 1000])
def test_a_plan_is_a_partition_longest_first_under_its_budget(budget):
    generator = torch.Generator().manual_seed(budget)
    lengths = torch.randint(1, 12, (40,), generator=generator).tolist()
    plan = plan_batches(lengths, budget)
    assert sorted(i for batch in plan for i in batch) == list(range(40))
    in_order = [lengths[i] for batch in plan for i in batch]
    assert in_order == sorted(lengths, reverse=True)
    for batch in plan:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget
    assert plan == plan_batches(lengths, budget)


def cost_of(lengths, plan):
    return sum(max(lengths[i] for i in batch) * len(batch) + PASS_TOKENS for batch in plan)


@pytest.mark.parametrize("seed", range(8))
def test_no_other_way_to_cut_the_sorted_rows_costs_less(seed):
    pick = random.Random(seed)
    lengths = [pick.choice([3, 9, 40, 41, 120, 400]) for _ in range(9)]
    budget = pick.choice([100, 500, 5000])
    order = sorted(range(9), key=lambda i: (-lengths[i], i))
    every = []
    for cuts in product([False, True], repeat=8):
        stops = [i + 1 for i, cut in enumerate(cuts) if cut] + [9]
        plan = [order[a:b] for a, b in pairwise([0, *stops])]
        if all(len(batch) == 1 or lengths[batch[0]] * len(batch) <= budget for batch in plan):
            every.append(cost_of(lengths, plan))
    assert cost_of(lengths, plan_batches(lengths, budget)) == min(every)
    assert min(every) < max(every)


def test_a_short_row_does_not_run_as_wide_as_a_long_one():
    """What filling each batch to the budget would do."""
    assert plan_batches([400, 10, 10, 10], 2000) == [[0], [1, 2, 3]]
    assert plan_batches([60, 50, 50, 50], 2000) == [[0, 1, 2, 3]], (
        "a pass of its own would cost more than the padding"
    )


def test_rows_of_one_length_keep_their_order():
    assert plan_batches([3, 3, 3, 5], 6) == [[3], [0, 1], [2]]
    assert plan_batches([], 6) == []


def test_a_budget_below_one_is_refused():
    with pytest.raises(InputError, match=r"batch_tokens=0 must be 1 or more"):
        plan_batches([1], 0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_scopes(side):
    rows = [Rendered("a", "", (5, 6, 7), 2), Rendered("b", "", (8,), 1)]
    batch = pad(rows, [4, 2], 0, side, torch.device("cpu"))
    assert batch.index == (4, 2)
    assert batch.ids.tolist() == [[5, 6, 7], [0, 0, 8] if side == "left" else [8, 0, 0]]
    for i, row in enumerate(rows):
        start = batch.offset(i)
        assert batch.ids[i, start : start + len(row.ids)].tolist() == list(row.ids)
        assert batch.spans[i] == row.spans
    prompt, response, both = (
        batch.padded_rows().mask(scope) for scope in ("prompt", "response", "all")
    )
    assert prompt.sum(1).tolist() == [2, 1] and response.sum(1).tolist() == [1, 0]
    assert torch.equal(prompt | response, both) and not (prompt & response).any()
    assert torch.equal(both, batch.mask) and both.sum() == 4
    assert batch.ids[response].tolist() == [7]
