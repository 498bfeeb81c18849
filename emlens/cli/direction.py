"""`emlens direction`: a direction from two files of texts, or from judged answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emlens.cli.loaded import MODEL_SETTINGS, load_named, model_options
from emlens.cli.printing import print_json, print_line, print_table
from emlens.cli.settings import (
    Setting,
    help_text,
    layer_numbers,
    lines_of_text,
    read_settings,
    text,
    yes_or_no,
)

if TYPE_CHECKING:
    from emlens.geometry import Direction
    from emlens.models.hooked import HookedModel

SETTINGS: Mapping[str, Setting] = {
    **MODEL_SETTINGS,
    "position": text("token position of texts (last_prompt)"),
    "chat": yes_or_no("ask each text as a user turn through the chat template (no)"),
}


def direction(
    model: Annotated[str, typer.Argument(help="Directory or hub id.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Folder with a direction per layer; or a file: .safetensors (steering vectors),"
            " .gguf (control vectors).",
        ),
    ],
    positive: Annotated[
        Path | None, typer.Option(help="Texts, one a line, that the direction points to.")
    ] = None,
    negative: Annotated[
        Path | None, typer.Option(help="Texts, one a line, that it points away from.")
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="Instead: answers of this model (JSONL, CSV, …); misaligned − aligned."),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Their scores; left out, those in the file of answers.")
    ] = None,
    adapter: Annotated[str, typer.Option(help="Adapter of the model that is read.")] = "",
    layers: Annotated[str, typer.Option(help="Comma-separated; left out, all.")] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", help=help_text(SETTINGS))] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Write mean-difference directions of the residual stream, `resid_post` of each layer."""
    import pandas as pd

    from emlens.foundation.errors import InputError
    from emlens.foundation.files import require_writable

    require_writable(out)
    values = read_settings(settings or (), SETTINGS)
    from_texts = positive is not None and negative is not None and answers is None
    from_answers = answers is not None and positive is None and negative is None
    if not (from_texts or from_answers):
        raise InputError("pass --positive FILE with --negative FILE, or --answers FILE")
    adapters = [adapter] if adapter else []
    [loaded] = load_named(model, adapters, model_options(values)).values()
    wanted = layer_numbers(layers)
    if positive is not None and negative is not None:
        directions = _of_texts(loaded, positive, negative, wanted, values)
    else:
        directions = _of_answers(loaded, Path(str(answers)), scores, wanted)
    written = _write(directions, out, loaded)
    rows = [
        {"site": site, "norm": found.norm, **{name: len(ids) for name, ids in found.ids.items()}}
        for site, found in directions.items()
    ]
    if json:
        print_json({"directions": rows, "out": written})
        return
    print_table(pd.DataFrame(rows), f"written to {out}")


def _of_texts(
    model: "HookedModel",
    positive: Path,
    negative: Path,
    layers: Sequence[int] | None,
    values: Mapping[str, object],
) -> "dict[str, Direction]":
    from emlens.directions.text_directions import directions_from_texts

    return directions_from_texts(
        model,
        lines_of_text(positive),
        lines_of_text(negative),
        layers=layers,
        position=str(values.get("position", "last_prompt")),
        chat=bool(values.get("chat", False)),
    )


def _of_answers(
    model: "HookedModel", answers: Path, scores: Path | None, layers: Sequence[int] | None
) -> "dict[str, Direction]":
    from emlens.activations import CaptureSpec
    from emlens.data import AlignmentScores, Answers
    from emlens.directions import extract_directions

    spec = CaptureSpec("resid_post", layers, "mean_response")
    return extract_directions(
        model, Answers.from_file(answers), AlignmentScores.from_file(scores or answers), spec
    )


def _write(directions: "Mapping[str, Direction]", out: Path, model: "HookedModel") -> list[str]:
    from emlens.directions import write_control_vectors, write_steering_vectors

    if out.suffix == ".safetensors":
        return [str(write_steering_vectors(out, directions))]
    if out.suffix == ".gguf":
        later = {site: found for site, found in directions.items() if found.site.layer}
        if len(later) < len(directions):
            print_line("resid_post.0 is left out: llama.cpp has no place for it")
        # llama.cpp's names: Qwen2ForCausalLM is qwen2
        hint = str(model.provenance["architecture"]).removesuffix("ForCausalLM").lower()
        return [str(write_control_vectors(out, later, model_hint=hint))]
    return [str(found.save(out / site)) for site, found in directions.items()]
