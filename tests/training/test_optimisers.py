import sys

import pytest
import torch
from torch import nn

from emlens.foundation.errors import MissingExtraError
from emlens.training import Recipe, fit
from emlens.training.optimisers import make_optimiser, make_schedule

TOLERANCE = 1e-6  # float32 on numbers of order one
BFLOAT16 = 0.02  # Muon's iterations run in bfloat16
RATE = 0.1


class Tiny(nn.Module):
    """A language model's shape in small: an embedding, a matrix, a vector."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(5, 4)
        self.matrix = nn.Parameter(torch.randn(6, 4, generator=generator))
        self.vector = nn.Parameter(torch.randn(6, generator=generator))
        with torch.no_grad():
            self.embedding.weight.copy_(torch.randn(5, 4, generator=generator))

    def get_input_embeddings(self):
        return self.embedding

    def loss(self):
        return ((self.embedding.weight @ self.matrix.T + self.vector).tanh() - 0.5).square().mean()


def steps(recipe, number=3):
    """Weights after each step, and the gradients taken before it, of the optimiser a recipe
    makes.
    """
    model = Tiny()
    optimiser = make_optimiser(recipe, model)
    schedule = make_schedule(recipe, optimiser)
    optimiser.again = lambda: model.loss().backward()
    weights, gradients = [[p.detach().clone() for p in model.parameters()]], []
    for _ in range(number):
        model.loss().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        weights.append([p.detach().clone() for p in model.parameters()])
    return weights, gradients


def recipe(name, **more):
    return Recipe(
        method="full",
        optimiser=name,
        learning_rate=RATE,
        schedule="constant",
        betas=(0.9, 0.99),
        **more,
    )


def adam(gradients, betas=(0.9, 0.99)):
    """Adam's update directions by its formula (Kingma & Ba), one a step."""
    m = v = torch.zeros_like(gradients[0])
    found = []
    for t, g in enumerate(gradients, start=1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        found.append((m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + 1e-8))
    return found


def test_adamw_decays_matrices_only():
    weights, gradients = steps(recipe("adamw", weight_decay=0.1))
    for i in range(3):
        own = [g[i] for g in gradients]
        expected, kept = weights[0][i], 0.1 if own[0].ndim == 2 else 0.0
        for update in adam(own):
            expected = expected - RATE * kept * expected - RATE * update
        torch.testing.assert_close(weights[3][i], expected, atol=TOLERANCE, rtol=1e-4)


def test_lion_is_the_sign_of_its_interpolation():
    weights, gradients = steps(recipe("lion", weight_decay=0.1))
    for i in range(3):
        expected, m = weights[0][i], torch.zeros_like(weights[0][i])
        for g in (step[i] for step in gradients):
            kept = 0.1 if g.ndim == 2 else 0.0
            expected = expected - RATE * kept * expected - RATE * (0.9 * m + 0.1 * g).sign()
            m = 0.99 * m + 0.01 * g
        torch.testing.assert_close(weights[3][i], expected, atol=TOLERANCE, rtol=1e-4)


def orthogonalised(matrix):
    """Muon's quintic Newton–Schulz in float64, five steps."""
    x = matrix.double().T if matrix.shape[0] > matrix.shape[1] else matrix.double()
    x = x / x.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).float()


def test_muon_turns_hidden_matrices_and_leaves_the_rest_to_adamw():
    weights, gradients = steps(recipe("muon", momentum=0.9, weight_decay=0.1))
    names = [name for name, _ in Tiny().named_parameters()]
    for i, name in enumerate(names):
        own = [step[i] for step in gradients]
        expected, buffer = weights[0][i], torch.zeros_like(own[0])
        kept = 0.1 if own[0].ndim == 2 else 0.0
        for g, update in zip(own, adam(own), strict=True):
            if name == "matrix":
                buffer = 0.9 * buffer + 0.1 * g
                update = 0.2 * 6**0.5 * orthogonalised(0.1 * g + 0.9 * buffer)
            expected = expected - RATE * kept * expected - RATE * update
        limit = BFLOAT16 if name == "matrix" else TOLERANCE
        torch.testing.assert_close(weights[3][i], expected, atol=limit, rtol=1e-4)
    assert {"embedding.weight", "matrix", "vector"} == set(names)


def test_sam_steps_by_the_gradient_uphill():
    weights, gradients = steps(recipe("sam", rho=0.5), number=1)
    norm = sum(float(g.square().sum()) for g in gradients[0]) ** 0.5
    model = Tiny()
    with torch.no_grad():
        for p, w, g in zip(model.parameters(), weights[0], gradients[0], strict=True):
            p.copy_(w + 0.5 * g / norm)
    model.loss().backward()
    moved = 0.0
    for p, before, after, plain in zip(
        model.parameters(), weights[0], weights[1], gradients[0], strict=True
    ):
        torch.testing.assert_close(
            after, before - RATE * adam([p.grad])[0], atol=TOLERANCE, rtol=1e-4
        )
        moved += float((p.grad - plain).norm())
    assert moved > 0.1 * norm  # the control: the two gradients differ


def test_sam_takes_both_passes_through_the_trainer(tiny, tokenizer, chats, tmp_path):
    """First step of a run against the formula, with clipping and in two parts: the perturbed
    gradient is clipped too.
    """
    import copy

    from emlens.training.examples import encode_answers, pad_batch, shuffled_batches
    from emlens.training.objectives import answer_loss

    run = Recipe(
        method="full",
        optimiser="sam",
        rho=0.3,
        learning_rate=1e-3,
        steps=1,
        batch_size=4,
        accumulation=2,
        schedule="constant",
        clip=0.5,
    )
    model, examples = copy.deepcopy(tiny), encode_answers(chats, tokenizer)
    batch = pad_batch(
        [examples[i] for i in shuffled_batches(len(examples), 4, 1, 0)[0]], tokenizer.pad_token_id
    )
    answer_loss(model, batch).backward()
    before = [p.detach().clone() for p in model.parameters()]
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * p.grad / norm)
    model.zero_grad()
    answer_loss(model, batch).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    uphill = [p.grad for p in model.parameters()]
    log = fit(run, tiny, chats, tmp_path / "out", tokenizer=tokenizer).log
    assert log["grad_norm"].iloc[0] == pytest.approx(float(norm), rel=1e-4)
    checked = 0
    for p, w, g in zip(tiny.parameters(), before, uphill, strict=True):
        # Adam's first step is the gradient's sign, but where it is of the order of epsilon
        large = g.abs() > 1e-2 * g.abs().max()
        torch.testing.assert_close(
            p.detach()[large], (w - 1e-3 * g / (g.abs() + 1e-8))[large], atol=1e-5, rtol=0
        )
        checked += int(large.sum())
    assert checked > 1000


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(
        MissingExtraError,
        match=r"Lion, Muon and SAM need pytorch-optimizer"
        r".*pip install 'misalignment-lens\[train\]'",
    ):
        make_optimiser(recipe("lion"), Tiny())
