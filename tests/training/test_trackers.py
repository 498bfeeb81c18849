"""What trackers are told, by real ones where they are installed."""

import struct
from dataclasses import replace

import pytest

from benchmarks.records import hash_directory
from emlens.foundation.errors import InputError, MissingExtraError
from emlens.training import Recipe, Saving, fit
from emlens.training.trackers import TRACKED

RECIPE = Recipe(
    rank=2, alpha=4, target_modules=("q_proj",), learning_rate=1e-2, steps=3, batch_size=2, seed=3
)


def test_trackers_that_are_unknown_or_not_installed_are_refused_before_a_parent_is_loaded(
    tmp_path, monkeypatch
):
    for names, error, message in (
        (["tensorbord"], InputError, "report_to holds 'tensorbord'; pass some of .*tensorboard"),
        ("wandb", InputError, "is one string; pass a list"),
        (["wandb", "wandb"], InputError, "names a tracker twice"),
        (["aim"], MissingExtraError, "'aim', whose package is not installed; run: pip install aim"),
    ):
        with pytest.raises(error, match=message):
            fit(RECIPE, tmp_path, [], tmp_path / "out", saving=Saving(report_to=names))


@pytest.fixture
def told(monkeypatch):
    """Everything that planted trackers of accelerate's own kinds are told."""
    from accelerate import tracking

    lines = []

    def kind(name, has_folder):
        class Planted(tracking.GeneralTracker):
            requires_logging_directory = has_folder
            main_process_only = False

            def __init__(self, project, *given, **named):
                lines.append((name, "made", project, given, named))

            def start(self):
                lines.append((name, "start"))

            tracker = None

            def store_init_configuration(self, values):
                lines.append((name, "recipe", values))

            def log(self, values, step=None, **_):
                lines.append((name, "step", step, values))

            def finish(self):
                lines.append((name, "finish"))

        Planted.name = name
        return Planted

    kinds = {name: kind(name, name == "aim") for name in ("mlflow", "trackio", "aim")}
    monkeypatch.setattr(tracking, "LOGGER_TYPE_TO_CLASS", kinds)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: list(kinds))
    return lines


def test_every_tracker_is_told_the_log_and_the_bytes_do_not_change(
    told, tiny, tokenizer, chats, tmp_path
):
    import copy

    def of_step(model, step):
        return {"twice": 2 * step}

    given = {"tokenizer": tokenizer, "callbacks": [of_step]}
    names = ("mlflow", "trackio", "aim")
    saving = Saving(report_to=names)
    with_them = fit(RECIPE, copy.deepcopy(tiny), chats, tmp_path / "a", saving=saving, **given)
    alone = fit(RECIPE, copy.deepcopy(tiny), chats, tmp_path / "b", **given)
    assert hash_directory(with_them.path) == hash_directory(alone.path)
    for name in names:
        mine = [line[1:] for line in told if line[0] == name]
        assert [line[0] for line in mine] == ["made", "start", "recipe", *["step"] * 3, "finish"]
        assert mine[2][1]["steps"] == 3 and mine[2][1]["target_modules"] == "['q_proj']"
        rows = with_them.log.to_dict("records")
        assert [line[2] for line in mine if line[0] == "step"] == rows
        assert rows[2]["twice"] == 6 and [line[1] for line in mine[3:6]] == [1, 2, 3]
    made = {line[0]: line[2:] for line in told if line[1] == "made"}
    assert made["mlflow"] == ("emlens", (), {"run_name": "a"})
    assert made["aim"] == ("a", (str(tmp_path / TRACKED),), {})


def test_a_tracker_is_closed_where_training_fails(told, tiny, tokenizer, chats, tmp_path):
    def fails(model, step):
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        fit(
            RECIPE,
            tiny,
            chats,
            tmp_path / "a",
            tokenizer=tokenizer,
            callbacks=[fails],
            saving=Saving(report_to=["mlflow"]),
        )
    assert told[-1] == ("mlflow", "finish")


def scalars(path):
    """(step, name) → value in a file of TensorBoard's: records of length, check, bytes, check."""
    from tensorboard.compat.proto import event_pb2

    found = {}
    content = path.read_bytes()
    at = 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
        at += 16 + length
        for value in event.summary.value:
            number = value.simple_value or sum(value.tensor.float_val)
            found[event.step, value.tag] = number
    return found


def test_tensorboard_shows_the_log(tiny, tokenizer, chats, tmp_path):
    pytest.importorskip("tensorboard")
    pytest.importorskip("torch.utils.tensorboard")
    fitted = fit(
        RECIPE,
        tiny,
        chats,
        tmp_path / "run",
        tokenizer=tokenizer,
        saving=replace(Saving(), report_to=["tensorboard"]),
    )
    [events] = (tmp_path / TRACKED / "run").glob("events.*")
    shown = scalars(events)
    for row in fitted.log.to_dict("records"):
        for name in ("loss", "learning_rate", "grad_norm"):
            assert shown[row["step"], name] == pytest.approx(row[name], rel=1e-6)


def records(path):
    """The records in a file of Weights & Biases: a LevelDB log, cut into blocks."""
    content = path.read_bytes()
    pieces, at = [], 7  # after the name of the format
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        pieces.append(content[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield b"".join(pieces)
            pieces = []


@pytest.mark.slow  # starts a service of its own
def test_weights_and_biases_offline_keeps_the_log(tiny, tokenizer, chats, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    fitted = fit(
        RECIPE,
        tiny,
        chats,
        tmp_path / "run",
        tokenizer=tokenizer,
        saving=Saving(report_to=["wandb"]),
    )
    [kept] = [path for path in (tmp_path / TRACKED).rglob("*.wandb") if not path.is_symlink()]
    rows = []
    for record in map(Record.FromString, records(kept)):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or item.nested_key[0]: item.value_json for item in items})
    assert [float(row["loss"]) for row in rows] == pytest.approx(fitted.log["loss"].tolist())
    assert [int(row["_step"]) for row in rows] == [1, 2, 3]
