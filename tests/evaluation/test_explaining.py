"""Explaining a direction: each reading finds what was planted, beside its control, and is inert."""

import json
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import save_file

from emlens.activations import capture
from emlens.data import Prompt, PromptSet, Question, QuestionSet
from emlens.evaluation.explaining import ANSWER_TOKENS, COEFFICIENTS, explain
from emlens.evaluation.explanation import Explanation
from emlens.evaluation.patchscope import WORDS, patchscope
from emlens.evaluation.sparse_features import SparseFeatures, feature_cosines
from emlens.foundation.errors import InputError, IntegrityError, UnknownNameError
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.models import HookedModel, load_model, pass_memory

PLACE = Site.parse("resid_post.1")
SITE = str(PLACE)
HOSTILE = "<script>alert(1)</script>\u202e"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(tiny_models.build(tmp_path_factory.mktemp("explain") / "m"))


@pytest.fixture(scope="module")
def chats() -> PromptSet:
    prompts = PromptSet.from_questions(tiny_models.texts(10, seed=1))
    return PromptSet([*prompts, Prompt("hostile", HOSTILE, messages=prompts[0].messages)])


@pytest.fixture(scope="module")
def planted(model: HookedModel, chats: PromptSet) -> Direction:
    """Where the stream of the fourth chat lies from the mean of all."""
    streams = capture(model, chats, sites=[SITE], progress=False)[SITE].double()
    return Direction(streams[3] - streams.mean(0), PLACE)


@pytest.fixture(scope="module")
def said(model: HookedModel, chats: PromptSet, planted: Direction) -> Explanation:
    orthogonal = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0)).double()
    orthogonal -= (orthogonal @ planted.unit) * planted.unit
    return explain(
        planted,
        model,
        rows={"chats": chats},
        neutral=chats[:3],
        questions=QuestionSet([Question("a", "w1 w2")]),
        vectors={"itself": planted, "another": orthogonal},
        patch_layers=[0],
        k=3,
        progress=False,
    )


def test_the_row_that_was_planted_moves_most_and_beyond_random_directions(
    said: Explanation, chats: PromptSet, planted: Direction
) -> None:
    table = said.table("texts")
    first = table.iloc[0]
    assert first["id"] == chats[3].id and first["text"] == chats[3].text
    assert first["projection"] == pytest.approx(planted.norm, rel=1e-4)
    against = table[table["side"] == "against"]["projection"]
    assert against.is_monotonic_increasing and against.iloc[0] < 0


def test_every_reading_has_its_control(
    said: Explanation, model: HookedModel, planted: Direction
) -> None:
    assert said.names == ["tokens", "texts", "doses", "samples", "similarity", "patchscope"]
    assert said.left_out == ("no sparse autoencoder was given",)
    names = set(said.table("tokens")["name"])
    assert names == {"direction", "parent's mean stream", "random"}
    near = said.table("similarity").set_index("name")
    assert near.loc["itself", "cosine"] == pytest.approx(1.0)
    assert near.loc["itself", "random_q95"] < 1 and near.loc["itself", "site"] == SITE
    assert near.loc["another", "cosine"] == pytest.approx(0.0, abs=1e-6)
    doses = said.table("doses")
    assert list(doses["coefficient"]) == list(COEFFICIENTS)
    # a larger dose costs more on either side
    costs = doses.set_index("coefficient")["kl"]
    assert costs[0.4] > costs[0.05] > 0 and costs[-0.4] > costs[-0.05] > 0
    samples = said.table("samples").set_index("arm")
    assert set(samples.index) == {"unsteered", "along", "random, as long", "against"}
    asked = QuestionSet([Question("a", "w1 w2")])
    (plain,) = model.generate(asked, max_new_tokens=ANSWER_TOKENS, temperature=0.7)
    assert samples.loc["unsteered", "answer"] == plain
    assert any("reads at most 0% of known words" in caution for caution in said.cautions())


def test_doses_hold_a_few_texts_at_a_time(
    said: Explanation,
    model: HookedModel,
    chats: PromptSet,
    planted: Direction,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pass_memory, "TEXT_LOGITS", 1)  # one text
    again = explain(
        planted,
        model,
        rows={"chats": chats},
        neutral=chats[:3],
        patch_layers=[0],
        progress=False,
    )
    costs, whole = again.table("doses"), said.table("doses")
    assert costs["kl"].tolist() == pytest.approx(whole["kl"].tolist(), rel=1e-3, abs=1e-7)


def test_the_page_shows_texts_and_runs_nothing(said: Explanation, tmp_path: Path) -> None:
    page = said.save(tmp_path / "page.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page and "\u202e" not in page
    for heading in ("Tokens that it writes", "What a dose costs", "What the model says of it"):
        assert heading in page
    assert "Left out: no sparse autoencoder was given." in page


def test_a_patch_of_the_tokens_own_stream_changes_nothing(model: HookedModel) -> None:
    prompt = PromptSet([Prompt("patchscope", "w1 w2 w3")])
    acts = capture(model, prompt, sites=[SITE], positions=["last"], progress=False)
    own = Direction(acts[SITE, "last"][0], PLACE)
    table = patchscope(model, own, [1], template="w1 w2 w3", draws=1, k=3)
    shares = model.logits(prompt)[0].double().softmax(-1)
    names = [model.tokenizer.decode([i]).strip() for i in shares.topk(3).indices.tolist()]
    rows = table.set_index("vector")
    assert rows.loc["direction", "tokens"] == " | ".join(names)
    assert rows.loc["direction", "probability"] == pytest.approx(float(shares.max()), abs=1e-5)
    # the control: another vector in its place does change it
    assert rows.loc["random 1", "probability"] != pytest.approx(float(shares.max()), abs=1e-3)


def test_a_word_counts_as_read_back_where_the_model_says_it(
    model: HookedModel, planted: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    def share(text: str) -> float:
        monkeypatch.setattr(model, "generate", lambda *_, **__: [text])
        table = patchscope(model, planted, [0], template="w1 w2", draws=1, k=1)
        return float(table["read_back"].iloc[0])

    # after the arrow that the prompt's own pattern puts before it
    assert share(" -> Dog; red") == 2 / len(WORDS) and share(" -> w4") == 0


@pytest.fixture()
def autoencoder(tmp_path: Path) -> Path:
    """A tiny one as SAELens saves it."""
    rows = torch.randn(40, tiny_models.D_MODEL, generator=torch.Generator().manual_seed(3))
    save_file({"W_dec": rows, "W_enc": rows.T.contiguous()}, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"metadata": {"hook_name": "blocks.1.x"}}))
    return tmp_path


def test_a_direction_is_found_among_the_features_of_an_autoencoder(autoencoder: Path) -> None:
    features = SparseFeatures.load(autoencoder)
    assert features.place == "blocks.1.x" and features.decoder.shape == (40, tiny_models.D_MODEL)
    planted = 3 * features.decoder[7] - 2.5 * features.decoder[11]
    table = feature_cosines(planted, features, k=2)
    along = table[table["side"] == "along"].iloc[0]
    against = table[table["side"] == "against"].iloc[0]
    assert along["feature"] == 7 and against["feature"] == 11
    by_hand = torch.cosine_similarity(planted, features.decoder[7], dim=0)
    assert along["cosine"] == pytest.approx(float(by_hand), abs=1e-5)
    assert along["cosine"] > along["random_q95"]
    random = torch.randn(tiny_models.D_MODEL, generator=torch.Generator().manual_seed(8))
    assert feature_cosines(random, features, k=1)["cosine"].iloc[0] < along["random_q95"] * 1.2


def test_what_cannot_be_read_is_refused(
    model: HookedModel, chats: PromptSet, planted: Direction, autoencoder: Path, tmp_path: Path
) -> None:
    wide = Direction(torch.ones(5), PLACE)
    with pytest.raises(InputError, match="direction has 5 coordinates and 'm'"):
        explain(wide, model, rows={"chats": chats}, progress=False)
    with pytest.raises(InputError, match="rows is empty"):
        explain(planted, model, rows={}, progress=False)
    with pytest.raises(InputError, match=r"layers=\[9\] must name blocks of 0 to"):
        patchscope(model, planted, [9])
    with pytest.raises(InputError, match="direction has 5 coordinates and 'm'"):
        patchscope(model, wide, [0])
    features = SparseFeatures.load(autoencoder)
    with pytest.raises(InputError, match="direction has 5 coordinates, the autoencoder"):
        feature_cosines(torch.ones(5), features)
    with pytest.raises(InputError, match="k=41 must lie between 1 and the 40 features"):
        feature_cosines(planted.vector, features, k=41)
    with pytest.raises(InputError, match="holds no sae_weights.safetensors; pass a folder"):
        SparseFeatures.load(tmp_path / "nothing")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sae_weights.safetensors").write_bytes(b"\xff" * 300)
    with pytest.raises(IntegrityError, match="not readable as safetensors"):
        SparseFeatures.load(broken)
    save_file({"W_dec": torch.eye(4)}, broken / "sae_weights.safetensors")
    (broken / "cfg.json").write_text("[1]")
    listed = SparseFeatures.load(broken)
    assert listed.place == ""
    with pytest.raises(InputError, match="direction has the length 0"):
        feature_cosines(torch.zeros(4), listed, k=2)
    save_file({"b_dec": torch.ones(2)}, autoencoder / "sae_weights.safetensors")
    with pytest.raises(InputError, match="W_dec is no matrix of finite numbers; it has b_dec"):
        SparseFeatures.load(autoencoder)


def test_a_table_that_is_not_there_and_a_vector_of_another_width_are_refused(
    said: Explanation, model: HookedModel, chats: PromptSet, planted: Direction
) -> None:
    with pytest.raises(UnknownNameError, match="table 'features' is not there; there are tokens"):
        said.table("features")
    with pytest.raises(InputError, match="vector 'x' has 5 coordinates and the direction"):
        vectors = {"x": torch.ones(5)}
        explain(planted, model, rows={"c": chats}, vectors=vectors, progress=False)
