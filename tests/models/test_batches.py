from itertools import pairwise

import pytest
import torch

from emlens.data.rendering import Rendered
from emlens.foundation import InputError
from emlens.models.batches import pad, plan_batches


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
    for batch, following in pairwise(plan):
        assert lengths[batch[0]] * (len(batch) + 1) > budget, f"{following[0]} would have fitted"
    assert plan == plan_batches(lengths, budget)


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
    prompt, response, both = (batch.scope_mask(scope) for scope in ("prompt", "response", "all"))
    assert prompt.sum(1).tolist() == [2, 1] and response.sum(1).tolist() == [1, 0]
    assert torch.equal(prompt | response, both) and not (prompt & response).any()
    assert torch.equal(both, batch.mask) and both.sum() == 4
    assert batch.ids[response].tolist() == [7]
