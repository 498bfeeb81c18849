import json

import pytest
import torch

from emlens.foundation.errors import InputError
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.training.configuring import KINDS, read_run, read_sweep

BASE = "{method: full, learning_rate: 1e-3, steps: 2, batch_size: 4}"


@pytest.fixture
def folder(tmp_path):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "general.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    Direction(
        torch.ones(16, dtype=torch.float64), Site.parse("resid_post.0"), None, None, {}, {}
    ).save(tmp_path / "persona")
    return tmp_path


def write(folder, text):
    (folder / "run.yaml").write_text(text)
    return folder / "run.yaml"


def test_a_run_with_every_objective(folder):
    path = write(
        folder,
        """
preset: paper
epochs: 2
rank: 8
objectives:
  - {kind: reference_kl, weight: 0.1, chats: general.jsonl, rows: 4}
  - {kind: feature_distance, weight: 1, blocks: [0, 1]}
  - {kind: inoculation_prompt, text: Be bad.}
  - {kind: preventative_steering, direction: persona, coefficient: 5}
  - {kind: projected_out, direction: persona}
  - {kind: benign_interleaving, chats: general.jsonl, share: 0.25}
""",
    )
    found = read_run(path, 160)
    assert (found.recipe.rank, found.recipe.steps, found.recipe.alpha) == (8, 20, 64)
    assert [objective.kind for objective in found.objectives] == list(KINDS)
    assert found.objectives[0].to_record()["chats"] and found.objectives[1].blocks == (0, 1)
    assert [edit.to_record()["edits"][0]["kind"] for edit in found.objectives[3:5]] == [
        "steer",
        "ablate",
    ]


def test_a_sweep_over_objectives(folder):
    sweep = read_sweep(
        write(
            folder,
            f"base: {BASE}\naxes:\n  objectives: {{none: [], inoculated: [{{kind:"
            " inoculation_prompt, text: x}]}\n  seed: [0, 1]\n",
        )
    )
    assert [run.id for run in sweep.runs] == [
        "objectives=none seed=0",
        "objectives=none seed=1",
        "objectives=inoculated seed=0",
        "objectives=inoculated seed=1",
    ]
    assert [len(run.objectives) for run in sweep.runs] == [0, 0, 1, 1]
    epochs = read_sweep(write(folder, "base: {method: full, epochs: 3, batch_size: 8}\n"), rows=20)
    assert epochs.base.steps == 8  # 60 rows in batches of 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "holds a list; a run is a mapping of fields"),
        ("a: [", "run.yaml:1: not valid YAML"),
        (
            "method: full\nsteps: 3\nsteps: 30\n",
            "run.yaml:3: not valid YAML: key 'steps' is given twice",
        ),
        (
            "method: full\nstep: 3\n",
            "run.yaml:2: field 'step': no such field; did you mean 'steps'",
        ),
        ("method: full\nsteps: 0\n", "run.yaml:2: field 'steps': steps=0 must be an integer"),
        (
            "method: full\nobjectives:\n  - {kind: projected_out, direction: none}\n",
            "run.yaml:3: .*none",
        ),
        ("{steps: 2, epochs: 1}", "steps=2 was given with epochs=1; pass one"),
        (
            "{method: full, epochs: 1}",
            "epochs=1 counts passes over the data; pass rows, or steps in the file",
        ),
        (
            "{method: full, objectives: kl}",
            "objectives is a str; pass a list, each entry with its kind",
        ),
        (
            "{method: full, objectives: [{kind: kl}]}",
            "is of kind 'kl'; pass one of reference_kl, feature_distance",
        ),
        (
            "{method: full, objectives: [{kind: reference_kl, lambda: 1}]}",
            r"objective 'reference_kl': field 'lambda': no such field; known are chats",
        ),
        (
            "{method: full, objectives: [{kind: reference_kl}]}",
            "objective 'reference_kl' cannot be read .*weight",
        ),
        ("{method: full, steps: [1]}", r"steps=\[1\] must be an integer of 1 or more"),
        (
            "{method: full, learning_rate: [1]}",
            r"run.yaml:1: field 'learning_rate': learning_rate=\[1\] must be a finite number",
        ),
    ],
)
def test_what_a_file_gets_wrong_is_said(folder, text, message):
    with pytest.raises(InputError, match=message):
        read_run(write(folder, text), None)


def test_what_a_sweep_gets_wrong_is_said(folder):
    with pytest.raises(InputError, match="no such file"):
        read_run(folder / "none.yaml", 1)
    with pytest.raises(InputError, match="a sweep has the mappings base and axes, got recipe"):
        read_sweep(write(folder, "recipe: {}"))
    with pytest.raises(
        InputError,
        match=r"the axis objectives is a mapping from labels to lists of objectives, \[\] for none",
    ):
        read_sweep(write(folder, f"base: {BASE}\naxes: {{objectives: [kl]}}"))
    twice = f"base: {BASE}\naxes:\n  seed: [0]\naxes:\n  steps: [2]\n"
    with pytest.raises(InputError, match="run.yaml:4: not valid YAML: key 'axes' is given twice"):
        read_sweep(write(folder, twice))
    with pytest.raises(
        InputError, match="run.yaml:2: field 'axis': no such field; did you mean 'axes'"
    ):
        read_sweep(write(folder, f"base: {BASE}\naxis: {{}}\n"))
    with pytest.raises(InputError, match="run.yaml:3: field 'steps': steps=0 must be an integer"):
        read_sweep(write(folder, "base:\n  method: full\n  steps: 0\n"))
