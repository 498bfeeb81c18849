from collections.abc import Iterator

import pytest
import tiny_models
import torch
from tiny_models import D_MODEL

from emlens.activations import capture
from emlens.data import PromptSet
from emlens.foundation import Index, Site, Span
from emlens.geometry import Direction, top_k_subspace
from emlens.interventions import ablate, mean_ablate, resample_ablate, steer, swap
from emlens.models import HookedModel, load_model
from emlens.models.transformers_backend import no_hooks_left


@pytest.fixture(scope="session")
def loaded(tmp_path_factory) -> HookedModel:
    return load_model(tiny_models.build(tmp_path_factory.mktemp("interventions") / "model"))


@pytest.fixture
def model(loaded) -> Iterator[HookedModel]:
    """One loaded model; after each test it carries no hook and no intervention."""
    with no_hooks_left(loaded.module):
        yield loaded
    assert loaded.interventions == ()


@pytest.fixture(scope="session")
def prompts() -> PromptSet:
    """Chats of different lengths with their answers kept."""
    chats = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in zip(tiny_models.texts(6), tiny_models.texts(6, seed=1), strict=True)
    ]
    return PromptSet.from_messages(chats, upto="all")


@pytest.fixture
def every_kind(model, prompts):
    """Every kind of intervention, with every kind of place, positions and baseline."""
    u, v = torch.randn(2, D_MODEL, generator=torch.Generator().manual_seed(0))
    run = capture(model, prompts, ["attn_out.1", "resid_post.1"], progress=False)
    means = {site: run[site].mean(0) for site in run.sites}
    return [
        ablate(Direction(u, Site("resid_post", 1))),
        ablate(
            top_k_subspace(torch.randn(9, D_MODEL), k=2, center=False),
            at="inputs_and_writes",
            positions="prompt",
        ),
        ablate(u, at=["resid_post.-1", Site("final_norm")], baseline=v),
        ablate(u, at=list(means), baseline=means),
        steer(u, -1.5, unit="resid_norm", at="all_layers", positions=Index(-1, of="prompt")),
        steer(
            Direction(v, Site("attn_out", 0)),
            2.0,
            positions=Span(1, None, of="prompt", skip_first=1),
        ),
        mean_ablate(means, positions="response"),
        mean_ablate(
            {site: x.bfloat16() for site, x in means.items()}, at=["resid_post.1"], direction=u
        ),
        resample_ablate({site: run[site] for site in run.sites}, seed=5, per="prompt"),
        swap(run, source=dict.fromkeys(prompts.ids, prompts.ids[0])),
    ]
