"""What an intervention does, beside every arm that could have done the same for another reason.

Restoration R = (S_ablated − S_finetuned) / (S_instruct − S_finetuned), S the mean score over questions *outside* the
training domain, a ratio of means with domains resampled together; undefined, and said so, where the denominator's
interval includes 0. Damage is the mean KL divergence (nats a token) that the intervention causes on neutral text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from emlens.data.prompts import PromptSet
from emlens.data.questions import QuestionSet
from emlens.data.scores import AlignmentScores
from emlens.evaluation.likelihood import score_by_likelihood
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.intervention import Intervention
from emlens.geometry import (
    Direction,
    components_above_rounding,
    direction_cosine,
    random_directions_like,
    top_k_subspace,
)
from emlens.interventions import ablate
from emlens.models.hooked import HookedModel
from emlens.runs.progress import progress_bar
from emlens.stats import bootstrap_mean, ratio_of_means


@dataclass(frozen=True)
class Arm:
    """One row of the comparison.

    Args:
        name: how tables call it; arms that share a name are draws of one control and are averaged.
        interventions: applied together.
        on: `"finetuned"` or `"instruct"`, the model that is edited.
        control: False for the direction under test.
        cosine: |cosine| of the arm's direction with the one under test, where that means something.
    """

    name: str
    interventions: tuple[Intervention, ...]
    on: str = "finetuned"
    control: bool = True
    cosine: float | None = None


def ablation_arms(
    direction: Direction,
    *,
    instruct_activations: Float[Tensor, "row d_model"],
    deltas: Float[Tensor, "row d_model"],
    instruct_means: Mapping[str, Float[Tensor, " d_model"]] | None = None,
    benign: Direction | None = None,
    unembedding: Float[Tensor, " d_model"] | None = None,
    random_draws: int = 8,
    seed: int = 0,
) -> list[Arm]:
    """The direction under test and its controls, all removed after every block at every token.

    Beside it the affine form, about the instruct mean of each site. Controls: none; directions drawn from the activation covariance (an isotropic
    one carries almost no variance and would pass by construction); the deltas' second centred component, where they have one; the benign
    fine-tune's direction; the unembedding contrast of the answer words; and the instruct model under the same edits.

    Args:
        instruct_activations: (row, d_model) at the direction's site and position, for the covariance.
        deltas: (row, d_model) there, fine-tuned − instruct.
        instruct_means: mean instruct activation over tokens at each edited site (`resid_post` of every block), for the affine form;
            without it that arm is left out.
        benign: the same extraction on the benign fine-tune.
        unembedding: difference of unembedding rows of harmful and careful answer words.
    """
    affine = tuple(ablate(direction, at=[site], baseline=mean) for site, mean in (instruct_means or {}).items())
    arms = [Arm("no ablation", ()), Arm("direction", (ablate(direction),), control=False, cosine=1.0)]
    if affine:
        arms.append(Arm("direction, affine form", affine, control=False, cosine=1.0))

    def control(name: str, vector: Direction | Tensor) -> Arm:
        return Arm(name, (ablate(vector),), cosine=abs(direction_cosine(direction, vector)))

    for vector in random_directions_like(instruct_activations.double(), random_draws, seed=seed):
        arms.append(control("random, activation covariance", vector))
    if components_above_rounding(deltas, instruct_activations) >= 2:
        arms.append(control("second component of the deltas", top_k_subspace(deltas.double(), 2, center=True).basis[:, 1]))
    if benign is not None:
        arms.append(control("benign fine-tune's direction", benign))
    if unembedding is not None:
        arms.append(control("unembedding contrast", unembedding))
    arms.append(Arm("instruct, direction", (ablate(direction),), on="instruct"))
    if affine:
        arms.append(Arm("instruct, direction, affine form", affine, on="instruct"))
    return arms


def evaluate_arms(
    finetuned: HookedModel,
    instruct: HookedModel,
    questions: QuestionSet,
    arms: Sequence[Arm],
    *,
    exclude_groups: Sequence[str] = (),
    neutral: PromptSet | None = None,
    progress: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """Score every arm on the same questions.

    Args:
        exclude_groups: groups left out of restoration (the training domain).
        neutral: prompts on which damage is measured; None leaves it out.

    Returns:
        One row an arm: arm, on, control, draws, restoration (value, low, high; of the mean over draws), aligned and coherent
        (value, low, high), lead (value, low, high: restoration of the first arm that is no control minus this one's, paired by
        question), restoration_max_draw, kl (mean nats a token, of the edited against the unedited model), cosine, n
        (questions), method (how restoration was made, or why it is undefined).

    Raises:
        InputError: questions of fewer than two groups left, no arm, or an arm on an unknown model.
    """
    left = [q for q in questions if q.group not in set(exclude_groups)]
    spanned = len({q.group for q in left})
    if spanned < 2:
        raise InputError(f"questions outside {sorted(set(exclude_groups))} span {spanned} groups; restoration resamples groups and needs 2")
    if not arms:
        raise InputError("arms is empty; pass at least one, such as those of ablation_arms")
    kept = QuestionSet(left)
    models = {"finetuned": finetuned, "instruct": instruct}
    for arm in arms:
        if arm.on not in models:
            raise InputError(f"arm {arm.name!r} is on {arm.on!r}; pass 'finetuned' or 'instruct'")
    plain = {name: score_by_likelihood(model, kept) for name, model in models.items()}
    references = {name: models[name].token_logprobs(neutral) for name in {arm.on for arm in arms}} if neutral is not None else {}
    by_name: dict[tuple[str, str], list[Arm]] = {}
    for arm in arms:
        by_name.setdefault((arm.name, arm.on), []).append(arm)
    scores: dict[tuple[str, str], list[AlignmentScores]] = {}
    kl: dict[tuple[str, str], list[float]] = {}
    with progress_bar("ablation arms", len(arms), progress) as advance:
        for (name, on), members in by_name.items():
            scored, damage = [], []
            for arm in members:
                with models[on].intervene(arm.interventions):
                    scored.append(score_by_likelihood(models[on], kept))
                    if neutral is not None:
                        damage.append(mean_kl(references[on], models[on].token_logprobs(neutral)))
                advance()
            scores[name, on], kl[name, on] = scored, damage
    tested = next((key for key, members in by_name.items() if key[1] == "finetuned" and not members[0].control), None)
    main = None if tested is None else _aligned(scores[tested])
    return pd.DataFrame([_row(key[1], members, scores[key], kl[key], plain, main, kept.groups, seed) for key, members in by_name.items()])


def _aligned(scored: Sequence[AlignmentScores]) -> NDArray[np.float64]:
    """Each question's alignment, averaged over the draws of one arm."""
    return np.asarray(np.mean([s.per_question("aligned").to_numpy() for s in scored], axis=0))


def _row(
    on: str,
    members: Sequence[Arm],
    scored: Sequence[AlignmentScores],
    damage: Sequence[float],
    plain: Mapping[str, AlignmentScores],
    main: NDArray[np.float64] | None,
    groups: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    aligned = _aligned(scored)
    coherent = np.mean([s.per_question("coherent").to_numpy() for s in scored], axis=0)
    tuned, goal = (plain[key].per_question("aligned").to_numpy() for key in ("finetuned", "instruct"))
    if on == "instruct":
        restored = lead = Estimate.undefined("the instruct model has nothing to restore", len(set(groups)))
    elif goal.mean() < tuned.mean():
        restored = lead = Estimate.undefined("the fine-tune lost no alignment, so there is none to restore", len(set(groups)))
    else:
        restored = ratio_of_means(aligned - tuned, goal - tuned, clusters=groups, seed=seed)
        lead = Estimate.undefined("no arm is under test") if main is None else ratio_of_means(main - aligned, goal - tuned, clusters=groups, seed=seed)
    row: dict[str, Any] = {"arm": members[0].name, "on": on, "control": members[0].control, "draws": len(members)}
    for label, estimate in (
        ("restoration", restored),
        ("aligned", bootstrap_mean(aligned, seed=seed)),
        ("coherent", bootstrap_mean(coherent, seed=seed)),
        ("lead", lead),
    ):
        row |= {label: estimate.value, f"{label}_low": estimate.low, f"{label}_high": estimate.high}
    cosines = [arm.cosine for arm in members if arm.cosine is not None]
    several = restored.defined and len(scored) > 1
    row |= {
        "restoration_max_draw": max(float((_aligned([s]) - tuned).mean() / (goal - tuned).mean()) for s in scored) if several else float("nan"),
        "kl": float(np.mean(damage)) if damage else float("nan"),
        "cosine": float(np.mean(cosines)) if cosines else float("nan"),
        "n": len(aligned),
        "method": restored.method,
    }
    return row


def mean_kl(reference: Sequence[Float[Tensor, "token vocab"]], other: Sequence[Float[Tensor, "token vocab"]]) -> float:
    """Mean over all tokens of KL(reference ‖ other) in nats, from log-probabilities of the same rows; 0 or more.

    Raises:
        InputError: rows that do not fit, or none.
    """
    total, count = 0.0, 0
    for a, b in zip(reference, other, strict=True):
        if a.shape != b.shape:
            raise InputError(f"rows have shapes {tuple(a.shape)} and {tuple(b.shape)}; pass log-probabilities of the same prompts")
        p = a.double()
        total += float(torch.where(p.exp() > 0, p.exp() * (p - b.double()), 0.0).sum())
        count += len(a)
    if not count:
        raise InputError("reference is empty; pass at least one prompt")
    return total / count


def unembedding_contrast(model: HookedModel, questions: QuestionSet, careful: str = "careful", harmful: str = "harmful") -> Tensor:
    """Mean unembedding row of the first tokens of harmful reference answers minus that of careful ones; (d_model,).

    Raises:
        InputError: answers of both kinds start with the same tokens, so that there is no contrast, or a kind has none.
    """
    first = {
        kind: {ids[0] for q in questions for text in q.answers.get(kind, ()) if (ids := model.tokenizer(text, add_special_tokens=False)["input_ids"])}
        for kind in (harmful, careful)
    }
    if first[harmful] == first[careful] or not first[harmful] or not first[careful]:
        raise InputError(f"reference answers {careful!r} and {harmful!r} start with the same tokens, or have none; there is no unembedding contrast")
    matrix = model.unembedding().double()
    bad, good = (matrix[torch.tensor(sorted(first[kind]))].mean(0) for kind in (harmful, careful))
    return bad - good
