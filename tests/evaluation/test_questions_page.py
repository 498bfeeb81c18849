"""The snippets of the page on questions run as they stand, one after the other."""

import re
from pathlib import Path


def test_snippets_run(repository: Path) -> None:
    text = (repository / "docs" / "questions.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/questions.md", "exec"), names)
    assert len(snippets) == 2
    assert "questions.yaml, line 7: an entry of paraphrases holds a int" in str(names["refused"])
