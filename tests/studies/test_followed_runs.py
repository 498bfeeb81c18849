"""What is measured again: an adapter with other weights, not one beside which a file changed."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from emlens.runs import UnitLog
from emlens.studies.followed_runs import _CheckpointMeasurer
from emlens.studies.solution_pairs import Pair, measured_pair

ADAPTER = (
    Path(__file__).parents[2] / "emlens" / "organisms" / "assets/planted/finetuned/medicine-r8"
)


@pytest.mark.parametrize("study", ["run", "pair"])
def test_an_adapter_is_measured_again_where_its_weights_changed(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, log = tmp_path / "adapter", UnitLog(tmp_path / "log")
    shutil.copytree(ADAPTER, path)
    measured: list[object] = []

    def measure(*args: Any) -> dict[str, Any]:
        measured.append(args)
        return {}

    def again() -> int:
        if study == "run":
            monkeypatch.setattr(_CheckpointMeasurer, "inputs", {})
            monkeypatch.setattr(_CheckpointMeasurer, "_measure", measure)
            _CheckpointMeasurer(None, None, 1, "", None).at_step(1, path, log)  # type: ignore[arg-type]
        else:
            monkeypatch.setattr("emlens.studies.solution_pairs._measure", measure)
            ground: Any = SimpleNamespace(source=SimpleNamespace(name="none"))
            measured_pair(Pair(0, path, path), ground, None, log, {})  # type: ignore[arg-type]
        return len(measured)

    assert again() == again() == 1
    (path / "tokenizer_config.json").write_text("{}")
    (path / "emlens.json").write_text("{}")
    assert again() == 1
    weights = load_file(path / "adapter_model.safetensors")
    next(iter(weights.values())).add_(1)
    save_file(weights, path / "adapter_model.safetensors")
    assert again() == 2
