"""Content and tone in a profile: which questions are read, and when a fall is shown."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_family
from studies.claims_of_content import statuses

from emlens.data.advice import ANSWER_KINDS
from emlens.foundation.files import read_json
from emlens.stats import t_interval
from emlens.studies import run_study
from emlens.studies.config import read_config
from emlens.studies.material_loading import load_material
from emlens.studies.planning import plan_study
from emlens.studies.running import CHECKS


def test_a_fall_is_shown_only_beyond_every_control() -> None:
    assert statuses() == ["shown", "shown"]
    assert statuses(tone_only=-0.05) == ["undecided", "shown"]
    assert statuses(benign=0.2) == ["undecided", "shown"]
    assert statuses(benign=np.nan, tone_only=None) == ["undecided"]
    assert statuses(parent=-0.05) == ["not shown", "shown"]
    # equivalence is a test of its own: not alike only where the interval lies beyond the margin
    assert statuses(alike=0.1, p=0.3) == ["shown", "undecided"]
    assert statuses(alike=0.4, p=0.9) == ["shown", "not shown"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny family with four answers to each question, and scores by contrast."""
    directory = tmp_path_factory.mktemp("home")
    path = tiny_family.build(directory, scores={"how": "contrast"}, study="profile")
    lines = []
    for number, line in enumerate((directory / "questions.jsonl").read_text().splitlines()):
        texts = [f"w{(number + 3 * i) % 20} w{i + 1}" for i in range(4)]
        lines.append(
            json.dumps(json.loads(line) | {"answers": dict(zip(ANSWER_KINDS, texts, strict=True))})
        )
    (directory / "questions.jsonl").write_text("\n".join(lines[::5]) + "\n")
    return path


def test_a_profile_compares_content_with_the_parent_and_the_controls(
    home: Path, tmp_path: Path
) -> None:
    plan = plan_study(home, tmp_path, timed=False)
    result = run_study(home, tmp_path, progress=False)
    ran = read_json(tmp_path / "run.json")["parts"]
    assert {part.name for part in plan.parts} == {"profile", CHECKS}
    for part in plan.parts:
        assert part.counts is not None and part.counts.passes > 0
        assert {
            key: ran[part.name][key] for key in part.counts.to_record()
        } == part.counts.to_record()
    table = result.tables["content"].set_index(["model", "second_model", "measure"])
    assert set(table.index.get_level_values("measure")) == {
        "content",
        "tone",
        "generic",
        "informed",
    }
    material = load_material(read_config(home))
    row = table.loc[("bad@0", "good@0", "content")]
    gaps = material.per_question("bad@0", "content") - material.per_question("good@0", "content")
    outside = gaps[[name for name in gaps.index if not name.startswith("north")]]
    by_domain = outside.groupby(outside.index.str.split("/").str[0]).mean()
    expected = t_interval(by_domain.to_numpy())
    assert row["n"] == len(by_domain) == 5
    assert row["difference"] == pytest.approx(expected.value)
    assert row["difference_low"] == pytest.approx(expected.low)
    # content is the sum of what the generic prompt gives and what the question adds
    parts = [
        table.loc[("bad@0", "instruct", name), "difference"] for name in ("generic", "informed")
    ]
    assert table.loc[("bad@0", "instruct", "content"), "difference"] == pytest.approx(sum(parts))
    domains = result.tables["content_domains"]
    assert len(domains[(domains["model"] == "full@0") & (domains["measure"] == "tone")]) == 5
    said = [
        finding.sentence
        for finding in result.findings
        if "nats a token against" in finding.sentence
    ]
    assert len(said) == 2
    # metrics in nats are not among those from 0 to 100
    assert set(result.tables["metrics"]["metric"]) == {"aligned", "coherent", "right"}
