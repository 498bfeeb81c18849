"""Studies on captures: the same tables as with the models, and refusals of what differs."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_family
import yaml

from emlens.activations import ActivationStore, CaptureSpec, capture
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import write_json
from emlens.foundation.provenance import hash_json
from emlens.studies import read_config, run_study
from emlens.studies.capturing import capture_family, capture_for_study
from emlens.studies.material import Material
from emlens.studies.material_loading import load_material
from emlens.studies.registry import get_study, parts_of
from emlens.studies.running import _reasons_to_leave_out
from emlens.studies.streams import read_streams
from emlens.studies.study import StudyContext

PARTS = ("delta_overlap", "priors", "layer_position_grid")
SMALL: dict[str, Any] = {
    "focus": ["bad@0"],
    "layers": [0, -1],
    "positions": ["last_prompt"],
    "folds": 2,
    "options": {"delta_overlap": {"by_group": False, "mantel_draws": 19, "landmark_draws": 0}},
}


def write(folder: Path, name: str, record: dict[str, Any]) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(record))
    return path


@pytest.fixture(scope="module")
def live(config_path: Path) -> Material:
    plain = {**yaml.safe_load(config_path.read_text()), **SMALL}
    return load_material(read_config(write(config_path.parent, "captured.yaml", plain)))


@pytest.fixture(scope="module")
def record(config_path: Path, judged: dict[str, Any]) -> dict[str, Any]:
    return {**yaml.safe_load(config_path.read_text()), **SMALL, "scores": judged}


@pytest.fixture(scope="module")
def stores(
    live: Material, config_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """One command for all models; one call for one of them gives the same."""
    config, folder = config_path.parent / "captured.yaml", tmp_path_factory.mktemp("captures")
    stores = capture_family(config, folder / "all", progress=False)
    capture_for_study(live.family["bad@0"], config, folder / "one", progress=False)
    one, same = (ActivationStore.open(path) for path in (folder / "one", stores["bad@0"]))
    assert one.provenance == same.provenance and one.ids == same.ids
    assert all(one.value(key).equal(same.value(key)) for key in one.keys)
    return stores


def on_captures(
    record: dict[str, Any], stores: Mapping[str, Path], **changes: Any
) -> dict[str, Any]:
    """The configuration of a machine without the models."""
    captures = {name: str(path) for name, path in stores.items()}
    family = {**record["family"], "instruct": {"path": "not/here"}}
    return {**record, "family": family, "captures": captures, **changes}


@pytest.fixture(scope="module")
def judged(live: Material, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Scores as a judge's files hold them: the likelihoods of the models, one CSV for each."""
    folder = tmp_path_factory.mktemp("judged")
    files = {}
    for name in live.family:
        table = {"question_id": live.questions.ids}
        for metric in ("aligned", "coherent"):
            table[metric] = live.per_question(name, metric).to_list()
        files[name] = str(folder / f"{len(files)}.csv")
        pd.DataFrame(table).to_csv(files[name], index=False)
    return {"how": "judged", "files": files}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_gives_what_it_gives_with_the_models(
    part: str,
    config_path: Path,
    record: dict[str, Any],
    stores: dict[str, Path],
    tmp_path: Path,
) -> None:
    options = {key: value for key, value in record["options"].items() if key == part}
    results = {}
    for name, config in (
        ("live", {**record, "study": part, "options": options}),
        ("captured", on_captures(record, stores, study=part, options=options)),
    ):
        path = write(config_path.parent, f"{name}-{part}.yaml", config)
        results[name] = run_study(path, tmp_path / name, progress=False)
    left_out = set(results["live"].tables) - set(results["captured"].tables)
    assert left_out == ({"noise_floor"} if part == "delta_overlap" else set())
    for name, table in results["captured"].tables.items():
        live = results["live"].tables[name]
        if name == "forecast_baselines":  # captures hold no template, which the page says
            is_text = table["predictor"].isin(["text", "length"])
            assert any("without the template" in line for line in results["captured"].warnings)
            table, live = table[~is_text], live[~is_text]
        if name == "overlap_test":
            assert table["why"].str.contains("only captures are here").any()
            table, live = table.drop(columns="why"), live.drop(columns="why")
        # other batches, so that values differ by rounding alone
        pd.testing.assert_frame_equal(table, live, rtol=1e-3, atol=1e-4)
    facts = results["captured"].facts["models"]["bad@0"]
    assert facts["adapter"]["r"] == 2 and facts["captured_sha256"]


def test_what_needs_models_or_other_prompts_is_left_out(
    config_path: Path, record: dict[str, Any], stores: dict[str, Path], tmp_path: Path
) -> None:
    changed = on_captures(record, stores, study="full")
    other = tiny_family.write_chats(tmp_path / "other.jsonl", 24, 99)
    bad = {**changed["family"]["finetuned"]["bad@0"], "training": str(other)}
    finetuned = {**changed["family"]["finetuned"], "bad@0": bad}
    changed["family"] = {**changed["family"], "finetuned": finetuned}
    config = read_config(write(config_path.parent, "seed.yaml", changed))
    material = load_material(config)
    contexts = {}
    for name in parts_of("full"):
        options = config.options_of(name, get_study(name).options)
        contexts[name] = StudyContext(material, config, options, tmp_path)
    reasons = _reasons_to_leave_out("full", contexts)
    assert {"profile", "priors"} <= set(contexts) - set(reasons)
    assert reasons["direction_transfer"].startswith("it needs the models, and the study runs on")
    for name in ("delta_overlap", "layer_position_grid"):
        assert "captures of 'instruct'" in reasons[name] and "hold 0 of 24 prompts" in reasons[name]
    alone = {**changed, "study": "direction_transfer", "options": {}}
    with pytest.raises(InputError, match="direction_transfer was left out: it needs the models"):
        run_study(write(config_path.parent, "alone.yaml", alone), tmp_path)


def test_questions_captured_by_hand_serve_what_reads_questions(
    live: Material, config_path: Path, record: dict[str, Any], tmp_path: Path
) -> None:
    spec = CaptureSpec(sites=["resid_post.0", "resid_post.2"], positions=["last_prompt"])
    by_hand = {name: tmp_path / name for name in ("instruct", "bad@0")}
    for name, store in by_hand.items():
        capture(live.family[name], live.questions, spec=spec, store=store, progress=False)
    path = write(config_path.parent, "by_hand.yaml", on_captures(record, by_hand))
    config = read_config(path)
    material = load_material(config)
    prompts = material.questions.prompts()[10:20]
    pair = {name: material.family[name] for name in ("instruct", "bad@0")}
    read = read_streams(pair, prompts, config)
    assert read["bad@0"].ids == prompts.ids and tuple(read["instruct"].sites) == spec.sites
    own = ActivationStore.open(by_hand["bad@0"]).select(prompts.ids)
    assert own["resid_post.2"].equal(read["bad@0"]["resid_post.2"])
    with pytest.raises(InputError, match=r"hold no site resid_pre\.0, but resid_post\.0, resid"):
        read_streams(pair, prompts, config, sites="resid_pre.0", positions="last_prompt")
    with pytest.raises(InputError, match="model 'bad@0' is not here, only what was captured"):
        material.family["bad@0"].logits(prompts)
    assert {"good@0", "full@0"} <= set(" ".join(material.left_out).split("'"))


CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "template": (
        "bad@0",
        lambda said: said["model"].update(chat_template_sha256="f" * 64),
        r"differ in model\.chat_template_sha256 \('.*' and 'f{64}'\): another chat template",
    ),
    "weights": (
        "bad@0",
        lambda said: said["model"].update(weights_sha256="f" * 64),
        r"captures of 'bad@0' were taken on a parent whose weights_sha256 is f{64}, but those of",
    ),
    "prompts": (
        "bad@0",
        lambda said: said.update(rendered_sha256="f" * 64),
        r"differ in rendered_sha256 \('.*' and 'f{64}'\): other prompts",
    ),
    "dtype": (
        "full@0",
        lambda said: said["model"].update(dtype="bfloat16"),
        r"differ in model\.dtype \('float32' and 'bfloat16'\): weights in another dtype",
    ),
    "threads": (
        "good@0",
        lambda said: said.update(threads=64),
        r"differ in threads \(1 and 64\): another thread count; capture both with one",
    ),
    "positions": (
        "base",
        lambda said: said.update(positions=["mean_prompt"]),
        r"captures of 'instruct' and 'base' differ in positions",
    ),
    "parent": (
        "bad@0",
        lambda said: said["model"].update(parent="base"),
        r"captures of 'bad@0' say parent 'base', but the configuration says 'instruct'",
    ),
    "system": (
        "good@0",
        lambda said: said["model"].update(system="Be good."),
        r"captures of 'good@0' say system 'Be good\.', but the configuration says ''",
    ),
    "interventions": (
        "instruct",
        lambda said: said.update(interventions=[{"kind": "ablate"}]),
        "was captured under interventions; capture the model as it is",
    ),
    "nothing": ("base", lambda said: said.pop("n_layers"), "does not say n_layers"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_captures_that_differ_are_refused_with_both_values(
    case: str, config_path: Path, record: dict[str, Any], stores: dict[str, Path], tmp_path: Path
) -> None:
    name, change, message = CHANGES[case]
    copied = {**stores, name: tmp_path / "copy"}
    shutil.copytree(stores[name], copied[name])
    manifest = copied[name] / "manifest.json"
    body = json.loads(manifest.read_text())
    del body["sha256"]
    change(body["provenance"])
    write_json(manifest, {**body, "sha256": hash_json(body)})
    path = write(config_path.parent, "differs.yaml", on_captures(record, copied))
    with pytest.raises((InputError, IntegrityError), match=message):
        load_material(read_config(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captures": {"bad@0": "x"}}, "captures lack 'instruct'; name the store of the instruct"),
        (
            {"captures": {"instruct": "x", "other": "y"}},
            "captures name 'other', which is not under finetuned of the family; it has bad@0",
        ),
        ({"captures": {}}, "family: 'instruct' has no path; give a directory or hub id, or captur"),
        (
            {"family": {"organism": "planted"}, "captures": {"instruct": "x"}},
            "give captures or an organism, not both",
        ),
    ],
)
def test_captures_that_fit_no_family_are_refused(
    changes: dict[str, Any], message: str, record: dict[str, Any]
) -> None:
    family = {**record["family"], "instruct": {"revision": "main"}}
    with pytest.raises(InputError, match=message):
        read_config({**record, "family": family, **changes})


def test_captures_alone_make_a_family(
    stores: dict[str, Path], judged: dict[str, Any], config_path: Path
) -> None:
    questions = str(config_path.parent / "questions.jsonl")
    captures = {name: str(stores[name]) for name in ("instruct", "bad@0")}
    judged = {**judged, "files": {name: judged["files"][name] for name in captures}}
    material = load_material(
        read_config({"captures": captures, "questions": questions, "scores": judged})
    )
    assert material.captured and material.family.names == ["instruct", "bad@0"]
    assert material.family.specs["bad@0"].parent == "instruct"
    # the configured scores are judged files alone
    with pytest.raises(InputError, match=r"scores: \{how: likelihood\} needs the models, and the"):
        load_material(read_config({"captures": captures, "questions": questions}))
