"""Every architecture on every backend: the same streams as routes that know no hooks, and as each
other.

Each test also holds its row of the table in docs/backends.md. To write the rows again:
EMLENS_WRITE_TABLE=1 python -m pytest tests/contracts/test_backends.py
"""

import os
import re

import pytest
import tiny_models
from tiny_models import KINDS, need_backend

from emlens.models.backends import BACKENDS
from emlens.models.parity import CONDITIONS, RELATIVE, RELATIVE_FLOAT64, check_parity

HEAD = "| architecture | blocks | sites a block | transformers | transformer_lens | nnsight |"
FUSED = "it splits fused projections into copies without the adapter"
ALWAYS = ("qwen2", "llama", "gemma2", "gemma3_text", "gpt2")
"""Architectures that no backend may refuse."""
EVERY = [condition for condition in CONDITIONS if condition != "right-padded"]
"""Conditions of these kinds: rows of all of them may be padded on the left."""
TWICE = (*ALWAYS, "qwen3_moe", "gpt_neox")
"""Run again in float64: one of each way to build a block; the rest where float32 disagrees."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_backend_reads_the_same_stream(kind, checkpoint, repository):
    """One test a kind, so that parallel workers do not measure it twice."""
    for backend in BACKENDS:
        need_backend(backend)
    root = checkpoint(kind)
    parity = check_parity(
        root / "model",
        adapter=root / "adapter",
        float64=True if kind in TWICE else None,
        device="cpu",
    )
    second = (
        with_mlp_adapter(kind, root)
        if FUSED in parity.refused.get("transformer_lens", "")
        else None
    )
    every_site_agrees(parity, second, twice=kind in TWICE)
    nothing_was_left_out(parity, second, kind)
    the_documented_row(parity, second, kind, repository / "docs" / "backends.md")


def with_mlp_adapter(kind, root):
    """What TransformerLens says to an adapter that leaves fused projections alone."""
    tiny_models.build_adapter(
        root / "mlp", root / "model", targets=tiny_models.MLP_TARGETS[kind.split(",")[0]]
    )
    return check_parity(
        root / "model", adapter=root / "mlp", backends=["transformer_lens"], device="cpu"
    )


def ran(parity, backend):
    return [condition for condition in CONDITIONS if parity.of(backend, condition)]


def every_site_agrees(parity, second, *, twice):
    for found in filter(None, (parity, second)):
        assert not found.failed
        for difference in found.differences:
            assert difference.value <= RELATIVE, difference
    for difference in parity.differences if twice else ():
        assert difference.value64 is not None and difference.value64 <= RELATIVE_FLOAT64, difference


def nothing_was_left_out(parity, second, kind):
    kinds = set(parity.site_kinds)
    assert ("resid_mid" in kinds) == (kind not in ("gpt_neox", "falcon", "falcon, two norms"))
    for backend in BACKENDS:
        for condition in ran(parity, backend):
            found = parity.of(backend, condition)
            assert {d.kind for d in found if d.against == "hidden_states"} == {
                "resid_pre",
                "resid_post",
                "final_norm",
            }
            assert "resid_post" in {d.kind for d in found if d.against == "additivity"}
            if backend != "transformers":
                assert {d.kind for d in found if d.against == "transformers"} == kinds
    assert ran(parity, "transformers") == ran(parity, "nnsight") == EVERY
    if kind in ALWAYS:
        assert ran(second or parity, "transformer_lens") == EVERY


def the_documented_row(parity, second, kind, page):
    row = (
        f"| {kind} | {'sequential' if 'resid_mid' in parity.site_kinds else 'parallel'} |"
        f" {len(parity.site_kinds) - 1} | "
    )
    row += " | ".join(cell(parity, second, backend) for backend in BACKENDS) + " |"
    text = page.read_text(encoding="utf-8")
    if os.environ.get("EMLENS_WRITE_TABLE"):
        kept = [line for line in table(text) if not line.startswith(f"| {kind} |")]
        order = sorted([*kept, row], key=lambda line: KINDS.index(line.split("|")[1].strip()))
        start, end = (
            re.search(rf"{re.escape(HEAD)}\n\|[-|]+\|\n", text).end(),
            text.index("\n\n<!-- parity: end -->"),
        )
        page.write_text(text[:start] + "\n".join(order) + text[end:], encoding="utf-8")
    else:
        assert row in table(text), (
            f"docs/backends.md is out of date, it should read {row}; EMLENS_WRITE_TABLE=1 writes it"
        )


def test_no_row_of_the_documentation_is_unmeasured(repository):
    text = (repository / "docs" / "backends.md").read_text(encoding="utf-8")
    assert [line.split("|")[1].strip() for line in table(text)] == KINDS


def table(text):
    return [
        line
        for line in text.split(HEAD)[1].split("<!-- parity: end -->")[0].splitlines()[2:]
        if line
    ]


def cell(parity, second, backend):
    if not all(d.agrees for condition in CONDITIONS for d in parity.of(backend, condition)):
        return "differs"
    if ran(parity, backend) == EVERY:
        return "agrees"
    if second is not None and ran(second, backend) == EVERY:
        return "agrees ¹"
    return "refused ²"
