"""Nothing that a direction is taken from or chosen on is what it is judged on: asked of every call, not of the table of sets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from emlens.studies import direction_transfer
from emlens.studies.config import read_config
from emlens.studies.material import load_material


def test_every_call_sees_only_its_own_questions(config_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = yaml.safe_load(config_path.read_text())
    path = config_path.with_name("leaks.yaml")
    path.write_text(yaml.safe_dump({**record, "focus": ["bad@0"], "random_directions": 1, "neutral": None}))
    config = read_config(path)
    seen: dict[str, set[str]] = {"extract": set(), "select": set(), "report": set()}

    def watch(name: str, use: Callable[..., tuple[str, Any]]) -> None:
        inner = getattr(direction_transfer, name)

        def watched(*given: Any, **options: Any) -> Any:
            kind, questions = use(*given)
            seen[kind].update(questions.ids)
            return inner(*given, **options)

        monkeypatch.setattr(direction_transfer, name, watched)

    def by_layer(arms: Any) -> bool:
        return any(arm.name.startswith("resid_post.") for arm in arms)

    watch("capture_many", lambda models, prompts: ("extract", prompts))
    watch("capture", lambda model, questions: ("extract", questions))
    watch("evaluate_arms", lambda tuned, parent, questions, arms: ("select" if by_layer(arms) else "report", questions))
    watch("score_by_likelihood", lambda model, questions: ("report", questions))
    part = direction_transfer.run(load_material(config), config, lambda share: None)
    sets = part.tables["question_sets"].groupby("used_to")["question"].agg(set)
    for use, questions in seen.items():
        assert questions and questions <= sets[use], use
    assert not (sets["extract"] & sets["select"] or sets["extract"] & sets["report"] or sets["select"] & sets["report"])
