"""The arms of one direction: what else has to be removed before its effect is its own.

Every control is removed in the same form (`emlens.evaluation.ablation_forms`) as the direction
under test. A control that restores as much as the direction says that the effect needs no such
direction; one that is nearly parallel to it says nothing, so the cosine stands beside each.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.activations import capture
from emlens.data.prompts import Prompt, PromptSet
from emlens.data.questions import QuestionSet
from emlens.evaluation.ablation_forms import PLAIN, AblationForm
from emlens.evaluation.arms import Arm
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.geometry import (
    Direction,
    direction_cosine,
    massive_coordinates,
    random_directions_like,
    top_k_subspace,
    without_coordinates,
)
from emlens.geometry.shifts import components_above_rounding
from emlens.models.hooked import HookedModel

ORDINALS = ("first", "second", "third", "fourth", "fifth")


def ablation_arms(
    direction: Direction,
    *,
    instruct_activations: Float[Tensor, "row d_model"],
    deltas: Float[Tensor, "row d_model"],
    form: AblationForm = PLAIN,
    other_forms: Sequence[AblationForm] = (),
    benign: Direction | None = None,
    unembedding: Float[Tensor, " d_model"] | None = None,
    text_content: Direction | Float[Tensor, " d_model"] | None = None,
    delta_components: Sequence[int] = (2, 3),
    massive: int = 0,
    random_draws: int = 8,
    also_on: Sequence[str] = (),
    seed: int = 0,
) -> list[Arm]:
    """The direction under test and its controls, all removed in one form.

    Controls: none; directions drawn from the activation covariance (an isotropic one carries almost
    no variance and would pass by construction); other centred components of the deltas, where they
    have them; the benign fine-tune's direction; the unembedding contrast of the answer words; the
    direction's massive coordinates alone; its text-content part alone; and the instruct model under
    the same edits.

    Args:
        instruct_activations: (row, d_model) at the direction's site and position, for the
            covariance.
        deltas: (row, d_model) there, fine-tuned − instruct.
        form: how the direction and every control are removed; its arm is called `"direction"`.
        other_forms: further forms for the direction alone; their arms are called `"direction, "`
            and the form's name.
        benign: the same extraction on the benign fine-tune.
        unembedding: difference of unembedding rows of harmful and careful answer words.
        text_content: what the instruct model itself shows between the same answers
            (`text_contrast`): a direction from answers of two kinds holds it too. The part of the
            direction along it is removed alone, and the rest alone.
        delta_components: numbers of the components, 1 for the first.
        massive: how many of the largest coordinates of the mean instruct activation count as
            massive; the direction's part in them is removed alone, and the rest alone. 0 leaves
            both arms out.
        also_on: further models, known to `evaluate_arms` as `others`, that get the edits the
            instruct model gets.

    Raises:
        InputError: a component number below 1 or above 5, or a part of the direction that is zero.
    """
    forms = {"direction": form.remove(direction)} | {
        f"direction, {other.name}": other.remove(direction) for other in other_forms
    }
    arms = [Arm("no ablation", ())]
    arms += [Arm(name, edits, control=False, cosine=1.0) for name, edits in forms.items()]

    def arm(name: str, vector: Direction | Tensor, control: bool = True) -> Arm:
        return Arm(
            name,
            form.remove(vector),
            control=control,
            cosine=abs(direction_cosine(direction, vector)),
        )

    vector = direction.vector.double()
    for drawn in random_directions_like(instruct_activations.double(), random_draws, seed=seed):
        arms.append(arm("random, activation covariance", drawn))
    held = components_above_rounding(deltas, instruct_activations)
    for number in delta_components:
        if not 1 <= number <= len(ORDINALS):
            raise InputError(
                f"delta_components holds {number!r}; pass numbers from 1 to {len(ORDINALS)}"
            )
        if held >= number:
            axis = top_k_subspace(deltas.double(), number, center=True).basis[:, number - 1]
            arms.append(arm(f"{ORDINALS[number - 1]} component of the deltas", axis))
    if benign is not None:
        arms.append(arm("benign fine-tune's direction", benign))
    if unembedding is not None:
        arms.append(arm("unembedding contrast", unembedding))
    if massive:
        largest = massive_coordinates(instruct_activations.double().mean(0), massive)
        rest = without_coordinates(vector, largest)
        arms.append(arm("massive coordinates only", vector - rest))
        arms.append(arm("without massive coordinates", rest, control=False))
    if text_content is not None:
        text = (
            text_content.vector.double()
            if isinstance(text_content, Direction)
            else text_content.double()
        )
        part = (vector @ text) / (text @ text) * text
        arms.append(arm("text content only", part))
        arms.append(arm("without text content", vector - part, control=False))
    arms += [
        Arm(f"{model}, {name}", edits, on=model)
        for model in ("instruct", *also_on)
        for name, edits in forms.items()
    ]
    return arms


def unembedding_contrast(
    model: HookedModel, questions: QuestionSet, careful: str = "careful", harmful: str = "harmful"
) -> Tensor:
    """Mean unembedding row of the first tokens of harmful reference answers minus that of careful
    ones; (d_model,).

    Raises:
        InputError: answers of both kinds start with the same tokens, so that there is no contrast,
            or a kind has none.
    """
    first = {
        kind: {
            ids[0]
            for q in questions
            for text in q.answers.get(kind, ())
            if (ids := model.tokenizer(text, add_special_tokens=False)["input_ids"])
        }
        for kind in (harmful, careful)
    }
    if first[harmful] == first[careful] or not first[harmful] or not first[careful]:
        raise InputError(
            f"reference answers {careful!r} and {harmful!r} start with the same tokens,"
            " or have none; there is no unembedding contrast"
        )
    matrix = model.unembedding().double()
    bad, good = (matrix[torch.tensor(sorted(first[kind]))].mean(0) for kind in (harmful, careful))
    return bad - good


def text_contrast(
    model: HookedModel,
    questions: QuestionSet,
    site: str,
    careful: str = "careful",
    harmful: str = "harmful",
) -> Tensor:
    """What the texts alone differ by: one model's mean activation over harmful reference answers
    minus that over careful ones; (d_model,).

    Each answer counts once, its tokens averaged. Read by the instruct model, it is the part of a
    direction from answers that no fine-tuning made.

    Raises:
        InputError: a question without answers of one kind, or answers that the model reads alike.
    """
    means = []
    for kind in (harmful, careful):
        lacking = [q.id for q in questions if not q.answers.get(kind)]
        if lacking:
            raise InputError(
                f"question {one_line(lacking[0])!r} (and {len(lacking) - 1} more) has no reference"
                f" answer {kind!r}; add it"
            )
        read = PromptSet(
            Prompt(f"{q.id}/{i}", q.text, q.group, q.messages(), text)
            for q in questions
            for i, text in enumerate(q.answers[kind])
        )
        means.append(
            capture(model, read, sites=[site], positions="mean_response", progress=False)[site]
            .double()
            .mean(0)
        )
    if torch.equal(*means):
        raise InputError(
            f"reference answers {careful!r} and {harmful!r} are read alike at {site};"
            " there is no text contrast"
        )
    return means[0] - means[1]
