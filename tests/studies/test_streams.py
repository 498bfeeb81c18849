"""`layers:` of a configuration: what is read, and that nothing changes at what is read."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import yaml

from emlens.foundation.errors import InputError
from emlens.studies import read_config, run_study
from emlens.studies.direction_candidates import is_last
from emlens.studies.material_loading import load_material
from emlens.studies.parent_views import parent_views
from emlens.studies.phase_transition import Options, PhaseTransition
from emlens.studies.shift_candidates import shift_candidates
from emlens.studies.streams import read_layers, read_sites
from emlens.studies.study import StudyContext

if TYPE_CHECKING:
    from conftest import Finished

READ = ["resid_post.0", "resid_post.1"]


def with_layers(config_path: Path, layers: list[int], **changes: object) -> Path:
    record = {**yaml.safe_load(config_path.read_text()), "layers": layers, **changes}
    path = config_path.parent / f"layers{'_'.join(map(str, layers))}.yaml"
    path.write_text(yaml.safe_dump(record))
    return path


def test_a_study_of_two_layers_is_the_whole_study_at_these_layers(
    config_path: Path, finished: "Finished", tmp_path: Path
) -> None:
    options = {"delta_overlap": {"by_group": False, "mantel_draws": 19}}
    path = with_layers(
        config_path, [-2, 0], study="delta_overlap", focus=["bad@0"], options=options
    )
    few = run_study(path, tmp_path / "few", progress=False)
    assert few.config["layers"] == [-2, 0]
    for name in ("overlap", "angles", "noise_floor"):
        every = finished.result.tables[name]
        if "model" in every:
            every = every[every["model"] == "bad@0"]
        assert set(every["site"]) == {*READ, "resid_post.2"}
        same = every[every["site"].isin(READ)].reset_index(drop=True)
        pd.testing.assert_frame_equal(few.tables[name], same)


def test_directions_and_forecasts_read_these_layers_alone(config_path: Path) -> None:
    config = read_config(with_layers(config_path, [-2, 0]))
    material = load_material(config)
    candidates = shift_candidates(material, "bad@0", material.questions[:6], config)
    assert candidates.before.sites == READ
    # without the last block there is no direction of the last block to set beside
    deepest = [direction for direction in candidates.directions.values()][-1]
    assert not is_last(deepest, material.family["bad@0"])
    views = parent_views(material, config, plain=False)
    assert {name: view.activations.sites for name, view in views.items()} == {
        "instruct": READ,
        "base": READ,
    }
    assert views["base"].embedding.sites == ["resid_pre.0"]


def test_kinds_stand_for_the_configured_layers() -> None:
    config = read_config({"family": {"organism": "planted"}, "layers": [3, -1]})
    sites = read_sites(["resid_mid", "resid_pre.0", "final_norm"], config, 6)
    assert [*map(str, sites)] == ["resid_pre.0", "resid_mid.3", "resid_mid.5", "final_norm"]
    assert read_layers(config, 6) == [3, 5]
    assert read_layers(read_config({"family": {"organism": "planted"}}), 2) == [0, 1]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([1, 7], r":\d+: layers names block 7, but the model has 3 blocks; pass 0 to 2"),
        ([1, -2], r":\d+: layers names block 1 twice, as 1 and -2; name each once"),
        ([], r"field 'layers': "),
    ],
)
def test_layers_that_do_not_exist_are_refused_with_their_line(
    config_path: Path, tmp_path: Path, layers: list[int], message: str
) -> None:
    path = with_layers(config_path, layers, study="profile")
    with pytest.raises(InputError, match=message):
        run_study(path, tmp_path / "out", progress=False)


def test_a_tested_layer_must_be_read(config_path: Path) -> None:
    config = read_config(with_layers(config_path, [0]))
    context = StudyContext(load_material(config), config, Options(layer=1), Path())
    with pytest.raises(InputError, match=r"layer=1 is not among the layers that are read \(0\)"):
        PhaseTransition().check(context)
