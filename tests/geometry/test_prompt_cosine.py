"""The cosine prompt by prompt: a common mean does not count, a common response to prompts does."""

import pytest
import torch

from emlens.foundation.errors import InputError
from emlens.geometry.prompt_cosine import centred_prompt_cosine

D = 24


def rows(seed: int, n: int = 400) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, D + 1, dtype=torch.float64) ** -0.5
    return torch.randn(n, D, dtype=torch.float64, generator=generator) * scales


def test_a_shared_mean_and_a_shared_spectrum_are_not_alike_and_a_shared_response_is() -> None:
    mean = 10 * rows(3, 1)
    unrelated = centred_prompt_cosine(rows(1) + mean, rows(2) + mean)
    # one cosine has a standard deviation of about √(Σλ²)/Σλ ≈ .33, so their mean one of .017
    assert abs(unrelated) < 0.07
    response = rows(4)
    alike = centred_prompt_cosine(rows(1) + response, rows(2) + response + mean)
    assert 0.4 < alike < 0.6
    assert centred_prompt_cosine(response, 3 * response - mean) == pytest.approx(1.0)
    assert centred_prompt_cosine(response, mean - response) == pytest.approx(-1.0)


def test_it_does_not_change_under_a_common_rotation() -> None:
    a, b = rows(1) + rows(4), rows(2) + rows(4)
    turn = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64)).Q
    assert centred_prompt_cosine(a @ turn, b @ turn) == pytest.approx(centred_prompt_cosine(a, b))


def test_other_prompts_and_shifts_that_are_alike_everywhere_are_refused(unchecked: None) -> None:
    with pytest.raises(InputError, match=r"a has shape \(400, 24\) and b \(30, 24\); pass the shi"):
        centred_prompt_cosine(rows(1), rows(2, 30))
    with pytest.raises(InputError, match="a or b has a row that equals its mean"):
        centred_prompt_cosine(torch.ones(4, D), rows(2, 4))
