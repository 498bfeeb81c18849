"""What a direction means: one call, every reading beside its control.

Tokens that it writes (beside what the parent writes there itself, and random directions); training
rows and answers that move most along it; samples of the model steered within its usable window
(beside a random direction of the same length); its cosine with given vectors; features of a sparse
autoencoder; what the model says of it (a patchscope). What needs material that was not given is
left out, and said. Nothing here proves what a direction is for: each reading is a look.

Cost on a model of 135M parameters: docs/explain.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.activations import Activations, capture, capture_pair
from emlens.data import PromptSet, QuestionSet
from emlens.data.prompt_inputs import PromptsLike, as_prompts
from emlens.evaluation.damage import text_damage, token_damage, unedited_logprobs
from emlens.evaluation.dosing import UsableWindow, usable_window
from emlens.evaluation.explanation import Explanation
from emlens.evaluation.patchscope import patchscope
from emlens.evaluation.sparse_features import SparseFeatures, feature_cosines
from emlens.foundation.errors import InputError
from emlens.geometry import Direction
from emlens.geometry.random_directions import random_directions_like
from emlens.interventions import logit_lens, steer
from emlens.models import HookedModel
from emlens.runs.progress import progress_bar

DRAWS: Final = 200
"""Random directions of the controls of projections and cosines."""
COEFFICIENTS: Final = (-0.4, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.4)
"""Doses, in lengths of the stream."""
MAX_KL: Final = 0.5
"""Nats per token of neutral text that a dose may cost at most to count as usable."""
ANSWER_TOKENS: Final = 32
"""Length of a steered answer at most."""
TEXT_LETTERS: Final = 600
"""Letters of a text that a table keeps."""


@dataclass(frozen=True)
class _Place:
    """Where a direction is read, and the parent's streams there.

    Args:
        before: the parent's streams of all rows (row, d_model).
        length: median length of these, in units of the stream.
    """

    site: str
    position: str
    before: Float[Tensor, "row d_model"]
    length: float


def explain(
    direction: Direction,
    model: HookedModel,
    *,
    rows: Mapping[str, PromptsLike],
    tuned: HookedModel | None = None,
    neutral: PromptSet | None = None,
    questions: QuestionSet | None = None,
    vectors: Mapping[str, Direction | Float[Tensor, " d_model"]] | None = None,
    features: SparseFeatures | None = None,
    patch_layers: Sequence[int] | None = None,
    k: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> Explanation:
    """Everything that can be read of a direction, or of a mean shift, with its controls.

    Args:
        direction: of this model, with its site; its position is `last_prompt` where it names none.
        model: the parent.
        rows: name → training chats, answers or prompts, of which those that move most are shown.
        tuned: the fine-tune, whose shift from the parent is projected; None: the parent's streams,
            less their mean.
        neutral: unrelated chats on which doses are measured; None: no steered samples.
        questions: asked of the steered model.
        vectors: name → vectors that it is compared with, such as released ones.
        features: a sparse autoencoder of the same place.
        patch_layers: blocks of the patchscope; None: four, evenly spaced.
        k: tokens, rows and features on each side.

    Raises:
        InputError: a direction of another width, no rows, a layer or site that the model lacks.
    """
    if direction.d_model != model.d_model:
        raise InputError(
            f"direction has {direction.d_model} coordinates and {model.name!r} {model.d_model};"
            " pass a direction of this model"
        )
    if not rows:
        raise InputError("rows is empty; pass at least one set of chats, answers or prompts")
    tables: dict[str, pd.DataFrame] = {}
    window: UsableWindow | None = None
    with progress_bar("explain", 5, progress) as advance:
        place, texts = _moved(direction, model, tuned, rows, k, seed)
        tables["texts"] = texts
        advance()
        tables["tokens"] = _tokens(direction, model, place, k, seed)
        advance()
        if neutral is not None:
            tables["doses"], window = _doses(direction, model, place, neutral)
        if neutral is not None and questions is not None and window is not None:
            tables["samples"] = _samples(direction, model, place, window, questions, seed)
        advance()
        if vectors:
            tables["similarity"] = _similarity(direction, vectors, place, seed)
        if features is not None:
            tables["features"] = feature_cosines(
                direction, features, k=k, like=place.before, seed=seed
            )
        advance()
        layers = _spread(model.n_layers) if patch_layers is None else list(patch_layers)
        tables["patchscope"] = patchscope(model, direction, layers, like=place.before, seed=seed)
        advance()
    facts = {
        "model": model.name,
        "fine-tune": "" if tuned is None else tuned.name,
        "site": place.site,
        "position": place.position,
        "length of the direction": f"{direction.norm:.4g}",
        "median length of the stream": f"{place.length:.4g}",
    }
    return Explanation(tables, facts, tuple(_left_out(tables, neutral, questions)), window)


def _spread(n_layers: int) -> list[int]:
    """Four blocks, evenly spaced, without the last."""
    return sorted({round(share * (n_layers - 2)) for share in (0.1, 0.35, 0.6, 0.85)})


def _left_out(
    tables: Mapping[str, pd.DataFrame], neutral: PromptSet | None, questions: QuestionSet | None
) -> Iterator[str]:
    if neutral is None:
        yield "no neutral text was given, so no dose was measured and nothing was steered"
    elif questions is None:
        yield "no questions were given, so nothing was sampled from the steered model"
    if "similarity" not in tables:
        yield "no vectors were given to compare it with"
    if "features" not in tables:
        yield "no sparse autoencoder was given"


def _moved(
    direction: Direction,
    model: HookedModel,
    tuned: HookedModel | None,
    rows: Mapping[str, PromptsLike],
    k: int,
    seed: int,
) -> tuple[_Place, pd.DataFrame]:
    """Where the direction is read, and the rows of each set that move most along and against it."""
    site, position = str(direction.site), direction.position or "last_prompt"
    before, moved, sets = [], {}, {}
    for name, texts in rows.items():
        prompts = as_prompts(texts)
        streams, shifts = _streams(model, tuned, prompts, site, position)
        before.append(streams)
        moved[name], sets[name] = shifts, prompts
    all_before = torch.cat(before)
    place = _Place(site, position, all_before, float(all_before.norm(dim=1).median()))
    draws = random_directions_like(all_before, DRAWS, seed).double()
    parts = []
    for name, shifts in moved.items():
        projections = (shifts @ direction.unit.double().cpu()).numpy()
        greatest = (shifts @ draws.T).amax(dim=0).numpy()
        q95 = float(np.quantile(greatest, 0.95))
        parts.append(_extreme_rows(name, sets[name], projections, q95, k))
    return place, pd.concat(parts, ignore_index=True)


def _streams(
    model: HookedModel, tuned: HookedModel | None, prompts: PromptSet, site: str, position: str
) -> tuple[Tensor, Tensor]:
    """The parent's streams, and what is projected: shifts, or streams less their mean."""

    def of(acts: Activations) -> Tensor:
        return acts[site, position].double().cpu()

    if tuned is None:
        streams = of(capture(model, prompts, sites=[site], positions=[position], progress=False))
        return streams, streams - streams.mean(dim=0)
    pair = capture_pair(model, tuned, prompts, sites=[site], positions=[position], progress=False)
    before, after = map(of, pair)
    return before, after - before


def _extreme_rows(
    name: str, prompts: PromptSet, projections: np.ndarray, q95: float, k: int
) -> pd.DataFrame:
    order = np.argsort(-projections, kind="stable")
    k = min(k, len(order) // 2 or 1)
    rows: list[dict[str, Any]] = []
    for side, indices in (("along", order[:k]), ("against", order[::-1][:k])):
        for rank, i in enumerate(indices, start=1):
            prompt = prompts[int(i)]
            rows.append(
                {
                    "set": name,
                    "side": side,
                    "rank": rank,
                    "id": prompt.id,
                    "projection": float(projections[i]),
                    "random_q95": q95,
                    "text": prompt.text[:TEXT_LETTERS],
                    "response": (prompt.response or "")[:TEXT_LETTERS],
                }
            )
    return pd.DataFrame(rows)


def _tokens(
    direction: Direction, model: HookedModel, place: _Place, k: int, seed: int
) -> pd.DataFrame:
    """Logit lens of the direction, of the parent's own mean stream there, and of a random one."""
    random = random_directions_like(place.before, 1, seed)[0]
    vectors: dict[str, Direction | Tensor] = {
        "direction": direction,
        "parent's mean stream": place.before.mean(dim=0),
        "random": random,
    }
    return logit_lens(model, vectors, k=k)


def _doses(
    direction: Direction, model: HookedModel, place: _Place, neutral: PromptSet
) -> tuple[pd.DataFrame, UsableWindow]:
    """What each dose costs on neutral text, and the window in which that is little."""
    unedited = unedited_logprobs(model, neutral)
    rows = []
    for coefficient in COEFFICIENTS:
        edit = _added(direction.unit, coefficient, place)
        damage = text_damage(token_damage(model, neutral, [edit], unedited)).kl
        rows.append(
            {
                "coefficient": coefficient,
                "kl": damage.value,
                "kl_low": damage.low,
                "kl_high": damage.high,
            }
        )
    table = pd.DataFrame(rows)
    window = usable_window(table, max_coherence_loss=None, max_kl=MAX_KL)
    inside = table["coefficient"].isin(window.coefficients)
    return table.assign(usable=inside), window


def _added(unit: Tensor, coefficient: float, place: _Place) -> Any:
    """A dose: the unit vector times a share of the stream's length, at the direction's site."""
    return steer(unit, coefficient * place.length, unit="unit", at=[place.site])


def _samples(
    direction: Direction,
    model: HookedModel,
    place: _Place,
    window: UsableWindow,
    questions: QuestionSet,
    seed: int,
) -> pd.DataFrame:
    """One answer of each arm to each question, with the same random numbers."""
    random = random_directions_like(place.before, 1, seed)[0]
    arms: list[tuple[str, Tensor, float]] = [("unsteered", direction.unit, 0.0)]
    if window.coefficients and window.high > 0:
        arms += [
            ("along", direction.unit, window.high),
            ("random, as long", random, window.high),
        ]
    if window.coefficients and window.low < 0:
        arms.append(("against", direction.unit, window.low))
    prompts = questions.prompts()
    rows = []
    for name, vector, coefficient in arms:
        edits = [_added(vector, coefficient, place)] if coefficient else []
        with model.intervene(edits):
            texts = model.generate(
                prompts, max_new_tokens=ANSWER_TOKENS, temperature=0.7, seed=seed
            )
        for prompt, text in zip(prompts, texts, strict=True):
            head = {"arm": name, "coefficient": coefficient}
            rows.append({**head, "question": prompt.text[:TEXT_LETTERS], "answer": text})
    return pd.DataFrame(rows)


def _similarity(
    direction: Direction,
    vectors: Mapping[str, Direction | Tensor],
    place: _Place,
    seed: int,
) -> pd.DataFrame:
    """Cosine with each vector, beside the 95 % quantile of that of random directions, unsigned."""
    draws = random_directions_like(place.before, DRAWS, seed).double()
    rows = []
    for name, compared in vectors.items():
        vector = compared.vector if isinstance(compared, Direction) else compared
        if len(vector) != direction.d_model:
            raise InputError(
                f"vector {name!r} has {len(vector)} coordinates and the direction"
                f" {direction.d_model}; only vectors of this model can be compared"
            )
        unit = vector.double().cpu() / vector.double().norm().cpu()
        site = str(compared.site) if isinstance(compared, Direction) else ""
        rows.append(
            {
                "name": name,
                "site": site,
                "cosine": float(unit @ direction.unit.double().cpu()),
                "random_q95": float(torch.quantile((draws @ unit).abs(), 0.95)),
            }
        )
    return pd.DataFrame(rows)
