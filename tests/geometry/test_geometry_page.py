"""The snippets of the geometry page run as they stand, one after the other."""

import re
from pathlib import Path

import torch


def test_snippets_run(repository: Path) -> None:
    text = (repository / "docs" / "geometry.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/geometry.md", "exec"), names)
    assert len(snippets) == 4
    assert isinstance(names["table"], dict) and len(names["table"]) == 16
    assert isinstance(names["summary"].signal_to_noise, torch.Tensor) and names[
        "summary"
    ].signal_to_noise.shape == (4,)  # type: ignore[attr-defined]
