"""What goes to another tool's file and back is the same, and other tools' own indices and names are
met.
"""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from emlens.activations import (
    ActivationStore,
    CaptureSpec,
    capture,
    export_activations,
    import_activations,
)
from emlens.activations.exchange import from_hidden_states, to_hidden_states
from emlens.foundation import InputError, LoadError, Site, UnknownNameError

EVERY = ["resid_pre.0", "resid_post", "final_norm"]


def plain_states(model, prompts):
    """`output_hidden_states` of each prompt alone at its last prompt token: (index, row, d_model).

    On a copy: transformers leaves hooks of its own on a module that was asked for them once.
    """
    module, found = copy.deepcopy(model.module), []
    for row in model.render(prompts):
        with torch.no_grad():
            out = module(torch.tensor([row.ids]), output_hidden_states=True)
        found.append(torch.stack([layer[0, row.prompt_end - 1] for layer in out.hidden_states]))
    return torch.stack(found, 1)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_npz_keeps_everything(model, prompts, tmp_path, dtype):
    acts = capture(
        model,
        prompts,
        spec=CaptureSpec(
            sites=["resid_post.0", "final_norm"], positions=["last_prompt", "all"], dtype=dtype
        ),
        progress=False,
    )
    back = import_activations(export_activations(acts, tmp_path / "a.npz"))
    assert (back.ids, back.groups, back.sites, back.positions) == (
        acts.ids,
        acts.groups,
        acts.sites,
        acts.positions,
    )
    assert json.loads(json.dumps(back.provenance)) == json.loads(json.dumps(acts.provenance))
    for site in acts.sites:
        assert torch.equal(back[site], acts[site]) and back[site].dtype == acts[site].dtype
        mine, theirs = back.tokens(site), acts.tokens(site)
        assert all(
            torch.equal(getattr(mine, name), getattr(theirs, name))
            for name in ("values", "offsets", "token_ids")
        )
    export_activations(back, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:  # as anybody reads it
        assert archive["final_norm@last_prompt"].shape == (9, 32)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_persona_vectors_indices_are_those_of_hidden_states(model, prompts, tmp_path, suffix):
    acts = capture(model, prompts, EVERY, progress=False)
    path = export_activations(acts, tmp_path / f"a.{suffix}", layout="persona_vectors")
    expected = plain_states(model, prompts)
    name, written = next(
        (n, v)
        for n, v in (np.load(path).items() if suffix == "npz" else load_file(path).items())
        if n != "ids"
    )
    assert name == "activations" and tuple(written.shape) == (4, 9, 32)
    torch.testing.assert_close(torch.as_tensor(written), expected, rtol=1e-4, atol=1e-4)
    # off by one would be seen
    assert not torch.allclose(torch.as_tensor(written)[1:], expected[:-1], atol=1e-2)
    back = import_activations(path, layout="persona_vectors", ids=acts.ids)
    # never resid_post of the last block
    assert back.sites == ["resid_pre.0", "resid_post.0", "resid_post.1", "final_norm"]
    assert all(torch.equal(back[site], acts[site]) for site in back.sites)
    assert torch.equal(to_hidden_states(back), to_hidden_states(acts))
    if suffix == "npz":
        assert import_activations(path, layout="persona_vectors").ids == acts.ids


def test_one_vector_a_layer_as_the_released_pt_files_hold_it(tmp_path):
    vectors = torch.arange(12.0).view(4, 3)
    torch.save(vectors, tmp_path / "v.pt")
    found = import_activations(
        tmp_path / "v.pt", layout="persona_vectors", position="mean_response", ids=["evil"]
    )
    assert found.ids == ["evil"] and found.positions == ["mean_response"]
    assert [found[site].tolist() for site in found.sites] == [[row] for row in vectors.tolist()]
    assert found.sites == ["resid_pre.0", "resid_post.0", "resid_post.1", "final_norm"]


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_transformer_lens_names(model, prompts, tmp_path, suffix):
    acts = capture(model, prompts, [*EVERY, "attn_out.1"], progress=False)
    path = export_activations(acts, tmp_path / f"a.{suffix}", layout="transformer_lens")
    written = dict(np.load(path)) if suffix == "npz" else load_file(path)
    assert {
        "blocks.0.hook_resid_pre",
        "blocks.1.hook_attn_out",
        "blocks.2.hook_resid_post",
        "ln_final.hook_out",
    } <= set(written)
    assert torch.equal(torch.as_tensor(written["blocks.2.hook_resid_post"]), acts["resid_post.2"])
    back = import_activations(path, layout="transformer_lens", ids=acts.ids, groups=acts.groups)
    assert back.sites == acts.sites and all(
        torch.equal(back[site], acts[site]) for site in acts.sites
    )
    assert all(Site.parse(Site.parse(site).lens_name) == Site.parse(site) for site in acts.sites)


def test_a_store_is_exported_like_memory(model, prompts, tmp_path):
    acts = capture(model, prompts, EVERY, positions=["last_prompt", "last"], progress=False)
    store = ActivationStore.open(acts.save(tmp_path / "s"))
    for path, chosen in ((tmp_path / "a.npz", acts), (tmp_path / "b.npz", store)):
        export_activations(chosen, path, layout="persona_vectors", position="last")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with pytest.raises(UnknownNameError, match=r"hold positions \['last_prompt', 'last'\]"):
        export_activations(store, tmp_path / "c.npz", layout="transformer_lens")
    assert not (tmp_path / "c.npz").exists()


def test_what_cannot_be_exported(model, prompts, tmp_path, unchecked):
    acts = capture(model, prompts, progress=False)
    with pytest.raises(
        InputError,
        match="layout='pt' is unknown; pass one of npz, persona_vectors, transformer_lens",
    ):
        export_activations(acts, tmp_path / "a.npz", layout="pt")
    for layout, name in (("npz", "a.safetensors"), ("transformer_lens", "a.pt")):
        with pytest.raises(InputError, match=f"the {layout} layout is written as .npz"):
            export_activations(acts, tmp_path / name, layout=layout)
    with pytest.raises(
        InputError,
        match=(
            "the persona-vectors layout needs resid_pre.0, final_norm, which were not captured;"
            " capture sites="
        ),
    ):
        export_activations(acts, tmp_path / "a.npz", layout="persona_vectors")
    named = import_activations(
        export_activations(acts, tmp_path / "a.npz", layout="transformer_lens"),
        layout="transformer_lens",
    )
    with pytest.raises(InputError, match="do not say how many blocks their model has"):
        to_hidden_states(named)
    with pytest.raises(InputError, match=r"x: has shape \(1, 3\); the persona-vectors layout is"):
        from_hidden_states(torch.zeros(1, 3), "x")


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("code ran while a file was read",))


def test_what_cannot_be_imported(tmp_path, unchecked):
    with pytest.raises(InputError, match="layout='x' is unknown"):
        import_activations(tmp_path / "a.npz", layout="x")
    with pytest.raises(LoadError, match=r"a\.npz: no such file"):
        import_activations(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"PK not a zip")
    with pytest.raises(LoadError, match="not an npz file of plain arrays"):
        import_activations(tmp_path / "a.npz")
    np.savez(tmp_path / "evil.npz", emlens=np.array([Evil()], dtype=object))
    with pytest.raises(LoadError, match="not an npz file of plain arrays"):
        import_activations(tmp_path / "evil.npz")
    torch.save({"layer_0": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(LoadError, match="holds Python objects"):
        import_activations(tmp_path / "evil.pt", layout="persona_vectors")
    np.savez(tmp_path / "b.npz", x=np.zeros(3))
    with pytest.raises(
        InputError, match="is not an npz file of emlens .*; pass layout= for another tool's"
    ):
        import_activations(tmp_path / "b.npz")
    save_file({"blocks.0.hook_pattern": torch.zeros(2, 3)}, tmp_path / "c.safetensors")
    with pytest.raises(
        InputError,
        match=r"'blocks.0.hook_pattern' is not a hook that emlens has a site for; leave it out",
    ):
        import_activations(tmp_path / "c.safetensors", layout="transformer_lens")
    save_file(
        {
            "blocks.0.hook_resid_post": torch.zeros(2, 3),
            "blocks.1.hook_resid_post": torch.zeros(4, 3),
        },
        tmp_path / "d.safetensors",
    )
    with pytest.raises(InputError, match=r"holds 2 arrays; the persona-vectors layout is one"):
        import_activations(tmp_path / "d.safetensors", layout="persona_vectors")
    with pytest.raises(
        InputError,
        match=r"holds arrays of shapes \[\(2, 3\), \(4, 3\)\]; pass one \(row, d_model\) per site",
    ):
        import_activations(tmp_path / "d.safetensors", layout="transformer_lens")
    save_file({"blocks.0.hook_resid_post": torch.zeros(2, 3)}, tmp_path / "e.safetensors")
    with pytest.raises(InputError, match="holds 2 rows, but there are 3 ids; pass one for each"):
        import_activations(
            tmp_path / "e.safetensors", layout="transformer_lens", ids=["a", "b", "c"]
        )
