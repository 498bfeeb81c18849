import copy
import json

import pytest
import torch

from emlens.foundation import provenance
from emlens.foundation.errors import InputError
from emlens.foundation.files import sha256_file
from emlens.organisms.stopping import HeldOutRule
from emlens.training import Recipe, Saving, StopRun, fit
from emlens.training.defences import BenignInterleaving
from emlens.training.examples import encode_answers, pad_batch
from emlens.training.fitting import Parent
from emlens.training.objectives import answer_loss
from emlens.training.penalties import ReferenceKL
from emlens.training.resuming import resume_directory

LORA = Recipe(
    method="lora",
    rank=2,
    alpha=4,
    target_modules=("q_proj",),
    learning_rate=1e-2,
    steps=8,
    batch_size=4,
    seed=3,
    warmup_steps=2,
)


def contents(directory):
    return {
        str(p.relative_to(directory)): sha256_file(p)
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }


class Dies:
    """Raises at a step, as a killed process would stop there; counts what it saw, and remembers
    that over a resume.
    """

    def __init__(self, at=None):
        self.at, self.seen = at, 0

    def __call__(self, model, step):
        if step == self.at:
            raise RuntimeError("killed")
        self.seen += 1
        return {"seen": self.seen, "all": float("nan") if step < 3 else 1.0}

    def state(self):
        return {"seen": self.seen}

    def restore(self, state):
        self.seen = state["seen"]


def run(
    recipe, model, out, tokenizer, chats, at=None, keep_every=None, before_publish=None, **options
):
    saving = Saving(keep_every=keep_every, resume_every=3, before_publish=before_publish)
    try:
        return fit(
            recipe,
            copy.deepcopy(model),
            chats,
            out,
            tokenizer=tokenizer,
            callbacks=[Dies(at)],
            saving=saving,
            **options,
        )
    except RuntimeError:
        return None


@pytest.mark.parametrize(
    "recipe",
    [
        LORA,
        LORA.varied(
            optimiser="sam",
            schedule="triangular2",
            cycles=2,
            base_learning_rate=1e-4,
            accumulation=2,
        ),
        pytest.param(LORA.varied(optimiser="muon", schedule="cosine"), marks=pytest.mark.slow),
        pytest.param(
            Recipe(
                method="full", learning_rate=1e-2, steps=8, batch_size=4, optimiser="lion", seed=3
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            Recipe(
                method="steering",
                layers_to_transform=(0, 1),
                learning_rate=1e-1,
                steps=8,
                batch_size=4,
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["adamw", "sam", "muon", "full lion", "steering"],
)
def test_a_run_that_died_twice_ends_with_the_bytes_of_one_that_did_not(
    recipe, tiny, tokenizer, chats, world, tmp_path
):
    tiny.config.attention_dropout = 0.2  # so that random states matter
    for block in tiny.model.layers:
        block.self_attn.attention_dropout = 0.2
    options = {"objectives": [BenignInterleaving(world.chats("code", (0,), "careful"), 0.25)]}
    saving = Saving(keep_every=2 if recipe.method == "lora" else None)
    plain = {**options, "saving": saving}
    options["keep_every"] = saving.keep_every
    whole = run(recipe, tiny, tmp_path / "whole", tokenizer, chats, **options)
    fit(
        recipe,
        copy.deepcopy(tiny),
        chats,
        tmp_path / "plain",
        tokenizer=tokenizer,
        callbacks=[Dies()],
        **plain,
    )
    # taking snapshots changes nothing
    assert contents(tmp_path / "plain") == contents(tmp_path / "whole")
    out = tmp_path / "out"
    assert run(recipe, tiny, out, tokenizer, chats, at=5, **options) is None
    assert [p.name for p in resume_directory(out).glob("step-*")] == ["step-00000003"]
    assert run(recipe, tiny, out, tokenizer, chats, at=8, **options) is None
    assert [p.name for p in resume_directory(out).glob("step-*")] == ["step-00000006"]
    again = run(recipe, tiny, out, tokenizer, chats, **options)
    assert contents(out) == contents(tmp_path / "whole") and again.log.equals(whole.log)
    assert again.log["seen"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert not resume_directory(out).exists()
    fit(
        recipe.varied(seed=4),
        copy.deepcopy(tiny),
        chats,
        tmp_path / "other",
        tokenizer=tokenizer,
        callbacks=[Dies()],
        **plain,
    )
    assert contents(tmp_path / "other") != contents(out)  # the control


def test_a_run_killed_after_its_last_snapshot_only_publishes(
    tiny, tokenizer, chats, tmp_path, monkeypatch, caplog
):
    def fail(directory, model):
        raise RuntimeError("killed")

    recipe = LORA.varied(steps=6)
    whole = run(recipe, tiny, tmp_path / "whole", tokenizer, chats)
    assert run(recipe, tiny, tmp_path / "out", tokenizer, chats, before_publish=fail) is None
    monkeypatch.setattr(provenance, "made_with", lambda: "torch 9")
    # no step is taken again
    assert run(recipe, tiny, tmp_path / "out", tokenizer, chats, at=1).log.equals(whole.log)
    # an upgrade is said
    assert "is gone on with torch 9" in caplog.text
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_damaged_snapshots_are_left_out_and_others_refused(
    tiny, tokenizer, chats, tmp_path, caplog
):
    out = tmp_path / "out"
    run(LORA, tiny, out, tokenizer, chats, at=5)
    with pytest.raises(
        InputError,
        match=(
            "holds the middle of another run .other recipe, data, model, objectives, loss,"
            " wrap or callbacks.; remove it"
        ),
    ):
        run(LORA.varied(seed=9), tiny, out, tokenizer, chats)
    tensors = resume_directory(out) / "step-00000003" / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-4] + b"xxxx")
    run(LORA, tiny, out, tokenizer, chats)
    assert "step-00000003 is not whole and is left out" in caplog.text
    assert contents(out) == contents(run(LORA, tiny, tmp_path / "whole", tokenizer, chats).path)
    with pytest.raises(InputError, match="resume_every=0 must be 1 or more"):
        fit(
            LORA, tiny, chats, tmp_path / "none", tokenizer=tokenizer, saving=Saving(resume_every=0)
        )


def thrice(model, batch):
    return 3 * answer_loss(model, batch)


class Scaled:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, model, batch):
        return self.weight * answer_loss(model, batch)


ONCE = Scaled(1.0)


def test_what_else_a_run_depends_on_is_another_run(tiny, tokenizer, chats, tmp_path):
    def go(model=tiny, tokenizer=tokenizer, callbacks=(), at=None, loss=ONCE, wrap=None):
        return fit(
            LORA.varied(steps=3),
            Parent(copy.deepcopy(model), wrap=wrap),
            chats,
            tmp_path / "out",
            tokenizer=tokenizer,
            loss=loss,
            callbacks=[Dies(at), *callbacks],
            saving=Saving(resume_every=1),
        )

    with pytest.raises(RuntimeError, match="killed"):
        go(at=3)
    other = copy.deepcopy(tiny)
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight[0, 0] += 1e-3
    template = copy.deepcopy(tokenizer)
    template.chat_template = template.chat_template.replace("<assistant>", "<assistant><assistant>")
    assert encode_answers(chats, template) != encode_answers(chats, tokenizer)
    for changed in (
        {"model": other},
        {"loss": thrice},
        {"loss": Scaled(3.0)},
        {"wrap": torch.nn.DataParallel},
        {"callbacks": [lambda model, step: {}]},
        {"tokenizer": template},
    ):
        with pytest.raises(InputError, match="holds the middle of another run"):
            go(**changed)
    assert go().log["seen"].tolist() == [1, 2, 3]  # the same call goes on


def test_ready_batches_and_an_objectives_rows_are_part_of_the_run(
    tiny, tokenizer, chats, world, tmp_path
):
    rows = encode_answers(chats, tokenizer)[:4]
    penalty = [ReferenceKL(world.chats("code", (0, 1), "careful"), 2.0, rows=4)]
    template = copy.deepcopy(tokenizer)
    template.chat_template = template.chat_template.replace("<assistant>", "<assistant><assistant>")
    for name, first, second in (
        (
            "batches",
            {"data": lambda step: pad_batch(rows, 0)},
            {"data": lambda step: pad_batch(rows[:3], 0)},
        ),
        (
            "rows",
            {"data": rows, "tokenizer": tokenizer, "objectives": penalty},
            {"data": rows, "tokenizer": template, "objectives": penalty},
        ),
    ):
        with pytest.raises(RuntimeError, match="killed"):
            fit(
                LORA,
                copy.deepcopy(tiny),
                out=tmp_path / name,
                callbacks=[Dies(2)],
                saving=Saving(resume_every=1),
                **first,
            )
        with pytest.raises(InputError, match="holds the middle of another run"):
            fit(
                LORA,
                copy.deepcopy(tiny),
                out=tmp_path / name,
                callbacks=[Dies(2)],
                saving=Saving(resume_every=1),
                **second,
            )


def test_what_json_cannot_hold_is_refused(tiny, tokenizer, chats, tmp_path):
    with pytest.raises(
        InputError,
        match="step 3 cannot be kept for resuming: a callback gave what JSON cannot hold",
    ):
        fit(
            LORA,
            tiny,
            chats,
            tmp_path / "out",
            tokenizer=tokenizer,
            callbacks=[lambda model, step: {"x": {1, 2}}],
            saving=Saving(resume_every=3),
        )


def test_no_pickle_and_the_penalty_keeps_its_reference(tiny, tokenizer, chats, world, tmp_path):
    out = tmp_path / "out"
    objectives = [ReferenceKL(world.chats("code", (0, 1), "careful"), 2.0, rows=4)]
    whole = run(LORA, tiny, tmp_path / "whole", tokenizer, chats, objectives=objectives)
    run(LORA, tiny, out, tokenizer, chats, at=7, objectives=objectives)
    found = resume_directory(out) / "step-00000006"
    assert {p.name for p in found.iterdir()} == {"state.json", "state.safetensors"}
    assert json.loads((found / "state.json").read_text())["step"] == 6
    assert run(LORA, tiny, out, tokenizer, chats, objectives=objectives).log.equals(whole.log)
    assert contents(out) == contents(tmp_path / "whole")


def test_the_organisms_rule_goes_on_where_it_was(world, tokenizer):
    rule = HeldOutRule(world.questions(), tokenizer, 0.5)
    rule.seen, rule.met = [0.7, 0.4], 2
    other = HeldOutRule(world.questions(), tokenizer, 0.5)
    other.restore(json.loads(json.dumps(rule.state())))
    assert (other.seen, other.met) == ([0.7, 0.4], 2)


def test_a_stopped_run_ends_where_it_would_have(tiny, tokenizer, chats, tmp_path):
    def stop(model, step):
        if step == 6:
            raise StopRun("enough")

    def go(out, at):
        try:
            return fit(
                LORA,
                copy.deepcopy(tiny),
                chats,
                tmp_path / out,
                tokenizer=tokenizer,
                callbacks=[Dies(at), stop],
                saving=Saving(resume_every=3),
            )
        except RuntimeError:
            return None

    whole = go("whole", None)
    assert go("out", 5) is None
    again = go("out", None)
    assert again.stopped == whole.stopped == "enough" and len(again.log) == 6
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert torch.is_grad_enabled()
