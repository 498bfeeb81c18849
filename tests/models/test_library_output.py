"""Reports of other libraries repeat names from files; none of them steers the terminal."""

import json
import logging
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import tiny_models

from emlens.foundation.errors import LoadError
from emlens.models import load_model
from emlens.models.library_output import escaped, escaped_output

STEERS = "\x1b]0;owned\x07\x1b[2J\u202e"


def test_errors_about_a_model_repeat_nothing_that_steers(tmp_path: Path) -> None:
    path = tiny_models.build(tmp_path / "m")
    tensors = safetensors.torch.load_file(path / "model.safetensors")
    tensors[f"model.{STEERS}.weight"] = tensors.pop("model.norm.weight")
    safetensors.torch.save_file(tensors, path / "model.safetensors", {"format": "pt"})
    messages = []
    for _ in range(2):
        with pytest.raises(LoadError) as caught:
            load_model(path)
        messages.append(str(caught.value))
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "model_type": STEERS}))
    assert "owned" in messages[1]
    assert all(message.isprintable() for message in messages)


def test_logs_and_warnings_are_escaped_while_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("transformers.some.module")
    logger.setLevel(logging.WARNING)  # whatever an earlier test asked of the library
    handler = logging.StreamHandler()
    logging.getLogger("transformers").addHandler(handler)
    before = warnings.formatwarning
    try:
        with escaped_output():
            logger.warning("%s\tend", f"\x1b[31mred\x1b[0m{STEERS}")
            shown = warnings.formatwarning(f"a{STEERS}", UserWarning, "f.py", 1)
        logger.warning("%s", STEERS)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert first == "red\\x1b]0;owned\\x07\\x1b[2J\\u202e\tend"
    assert "\x1b" in second and warnings.formatwarning is before
    assert "\x1b" not in shown and shown.endswith("\n")
    assert escaped("naïve – “so”\n") == "naïve – “so”\n"
