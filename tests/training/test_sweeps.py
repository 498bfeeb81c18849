import shutil

import pandas as pd
import pytest

from emlens.foundation.errors import InputError, IntegrityError, StateError
from emlens.foundation.files import sha256_file
from emlens.runs import RankExecutor, RayExecutor
from emlens.training import Recipe, Saving, Sweep, fit, run_sweep
from emlens.training.fitting import Parent, load_parent, read_record

BASE = Recipe(
    method="lora",
    rank=2,
    alpha=4,
    target_modules=("q_proj",),
    learning_rate=1e-2,
    steps=4,
    batch_size=4,
    seed=3,
)
AXES = {
    "schedule": {
        "linear": {"schedule": "linear", "final_fraction": 0.1},
        "triangular": {"schedule": "triangular", "cycles": 2, "base_learning_rate": 1e-3},
    },
    "optimiser": ["adamw", "lion"],
}


@pytest.fixture
def parent(tiny, tokenizer, tmp_path):
    tiny.save_pretrained(tmp_path / "parent")
    tokenizer.save_pretrained(tmp_path / "parent")
    return tmp_path / "parent"


def contents(directory):
    return {
        str(p.relative_to(directory)): sha256_file(p)
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }


def test_the_runs_are_the_product_of_the_axes_in_order():
    sweep = Sweep(BASE, {**AXES, "seed": [0, 1]})
    assert len(sweep) == 8
    assert [run.id for run in sweep.runs][:3] == [
        "schedule=linear optimiser=adamw seed=0",
        "schedule=linear optimiser=adamw seed=1",
        "schedule=linear optimiser=lion seed=0",
    ]
    assert sweep.runs[-1].recipe == BASE.varied(
        schedule="triangular", cycles=2, base_learning_rate=1e-3, optimiser="lion", seed=1
    )
    assert sweep.runs[-1].recipe.betas == (0.9, 0.99)
    assert [run.id for run in Sweep(BASE).runs] == ["base"]


def test_a_killed_or_shared_sweep_ends_with_the_same_bytes(parent, chats, tmp_path):
    sweep = Sweep(BASE, {"schedule": AXES["schedule"]})
    seen = []

    def measure(model, directory):
        seen.append(directory)
        return {"weights": sum(p.numel() for p in model.parameters() if p.requires_grad)}

    whole = run_sweep(sweep, parent, chats, tmp_path / "whole", measure=measure, progress=False)
    assert list(whole.table.columns) == [
        "run",
        "schedule",
        "final_loss",
        "steps_done",
        "stopped",
        "weights",
    ]
    assert whole.table["run"].tolist() == [run.id for run in sweep.runs] and set(
        whole.table["steps_done"]
    ) == {4}
    assert whole.steps.groupby("run").size().tolist() == [4] * 2 and {
        "loss",
        "learning_rate",
        "grad_norm",
    } <= set(whole.steps)
    for run in sweep.runs:
        assert Recipe.from_record(read_record(whole.paths[run.id])["recipe"]) == run.recipe
        fit(
            run.recipe,
            parent,
            chats,
            tmp_path / "alone" / run.id,
            saving=Saving(before_publish=lambda d, m: (d / "measured.json").write_text("")),
        )
        alone, swept = contents(tmp_path / "alone" / run.id), contents(whole.paths[run.id])
        assert {n: h for n, h in alone.items() if n != "measured.json"} == {
            n: h for n, h in swept.items() if n != "measured.json"
        }

    broken = tmp_path / "broken"
    done = len(seen)
    run_sweep(sweep, parent, chats, broken, measure=measure, progress=False)
    first, second = (broken / "runs" / p.name for p in sorted((broken / "runs").iterdir())[:2])
    shutil.rmtree(first)  # damaged after it was answered
    answers = sorted((broken / "answers").glob("schedule-*"))
    answers[1].unlink()  # published, and killed before it could answer
    again = run_sweep(sweep, parent, chats, broken, measure=measure, progress=False)
    assert len(seen) == done + 2 + 1 and second.is_dir()
    ranks = run_sweep(
        sweep,
        parent,
        chats,
        tmp_path / "ranks",
        measure=measure,
        executor=RankExecutor(1, 2, run="r"),
        progress=False,
    )
    for other in (again, ranks):
        assert contents(other.directory / "runs") == contents(whole.directory / "runs")
        pd.testing.assert_frame_equal(other.table, whole.table)
        assert (other.directory / "steps.csv").read_bytes() == (
            whole.directory / "steps.csv"
        ).read_bytes()


def test_another_sweep_is_refused_and_a_failing_run_leaves_the_parent_whole(
    parent, chats, tmp_path
):
    run_sweep(Sweep(BASE, {"seed": [0]}), parent, chats, tmp_path / "out", progress=False)
    with pytest.raises(IntegrityError, match="plans other work"):
        run_sweep(Sweep(BASE, {"seed": [1]}), parent, chats, tmp_path / "out", progress=False)

    counted = []

    def measure(model, directory):
        counted.append(directory)
        return {"one": 1}

    # nothing of which the finished runs hold
    for options in (
        {"measure": measure},
        {"callbacks": lambda run: ()},
        {"saving": Saving(keep_every=1)},
    ):
        with pytest.raises(IntegrityError, match="plans other work"):
            run_sweep(
                Sweep(BASE, {"seed": [0]}),
                parent,
                chats,
                tmp_path / "out",
                progress=False,
                **options,
            )
    assert not counted

    def callbacks(run):
        def fail(model, step):
            raise RuntimeError("stop here")

        return [fail] if run.recipe.seed == 0 else []

    with pytest.raises(
        StateError, match="1 of 2 units failed 3 times each: 'seed=0': RuntimeError: stop here"
    ):
        run_sweep(
            Sweep(BASE, {"seed": [0, 1]}),
            parent,
            chats,
            tmp_path / "failing",
            callbacks=callbacks,
            progress=False,
        )
    fit(BASE.varied(seed=1), parent, chats, tmp_path / "alone")
    (kept,) = (tmp_path / "failing" / "runs").glob("seed-1*")
    assert contents(kept) == contents(tmp_path / "alone")


def test_yaml_and_full_fine_tuning(parent, chats, tmp_path):
    (tmp_path / "sweep.yaml").write_text(
        "base: {method: full, learning_rate: 1e-3, steps: 2, batch_size:"
        " 4}\naxes:\n  learning_rate: [1e-3, 2e-3]\n  seed: [0]\n"
    )
    sweep = Sweep.from_yaml(tmp_path / "sweep.yaml")
    assert [run.recipe.learning_rate for run in sweep.runs] == [1e-3, 2e-3]
    result = run_sweep(sweep, parent, chats, tmp_path / "out", progress=False)
    second = result.paths[sweep.runs[1].id]
    fit(
        sweep.runs[1].recipe,
        Parent(load_parent(parent)[0], directory=parent),
        chats,
        tmp_path / "alone",
        tokenizer=load_parent(parent)[1],
    )
    assert sha256_file(second / "model.safetensors") == sha256_file(
        tmp_path / "alone" / "model.safetensors"
    )
    (tmp_path / "bad.yaml").write_text("recipe: {}\n")
    with pytest.raises(
        InputError,
        match="bad.yaml:1: field 'base': .* a sweep has the mappings base and axes, got",
    ):
        Sweep.from_yaml(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            {"seed": []},
            r"axis 'seed' holds \[\]; pass a list of values, or a mapping from labels to fields",
        ),
        ({"schedule": "linear"}, "axis 'schedule' holds 'linear'; pass a list of values"),
        (
            {"speed": [1]},
            "run 'speed=1' of the sweep cannot be: field 'speed': no such field; did you",
        ),
        ({"seed": [1, 1]}, "the sweep holds the run 'seed=1' twice; labels of an axis must differ"),
        (
            {"seed": [1], "pair": {"a": {"seed": 2}}},
            "axes 'seed' and 'pair' both change 'seed'; put their combinations into one axis",
        ),
        ({"schedule": {"a": "linear"}}, "axis 'schedule' is a mapping, but not to fields"),
        (
            {"schedule": ["triangular"]},
            (
                "run 'schedule=triangular' of the sweep cannot be:"
                " .*needs one of cycles and step_size_up"
            ),
        ),
        (
            {"objectives": ["kl"]},
            "axis 'objectives' holds a list; pass a mapping from labels to sequences of objectives",
        ),
        (
            {"objectives": {"kl": ["kl"]}},
            (
                r"axis 'objectives' holds \['kl'\] under 'kl';"
                r" pass a sequence of objectives, empty for none"
            ),
        ),
    ],
)
def test_axes_that_cannot_be_are_refused(axes, message):
    with pytest.raises(InputError, match=message):
        Sweep(BASE, axes)


@pytest.mark.slow  # starts Ray
def test_ray_actors_train_the_bytes_of_one_process(parent, chats, tmp_path):
    sweep = Sweep(BASE, {"optimiser": ["adamw", "lion"]})
    alone = run_sweep(sweep, parent, chats, tmp_path / "alone", progress=False)
    shared = run_sweep(
        sweep, parent, chats, tmp_path / "shared", executor=RayExecutor(actors=2), progress=False
    )
    assert contents(tmp_path / "alone" / "runs") == contents(
        tmp_path / "shared" / "runs"
    ) and alone.table.equals(shared.table)
