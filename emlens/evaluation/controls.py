"""The arms of one direction: the direction under test and its controls.

Every control is removed in the same form (`emlens.evaluation.ablation_forms`) as the direction
under test. A control that restores as much as the direction shows that the effect does not need
this direction. A control that is nearly parallel to it shows nothing, so each has its cosine beside
it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.activations import Activations, capture
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
    instruct_activations: Activations | Float[Tensor, "row d_model"],
    deltas: Activations | Float[Tensor, "row d_model"],
    forms: Sequence[AblationForm] = (PLAIN,),
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

    Controls: no ablation; directions drawn from the activation covariance (an isotropic one carries
    almost no variance and would pass by construction); other centred components of the deltas, as
    far as these lie above rounding; the benign fine-tune's direction; the unembedding contrast of
    the answer words; the direction's massive coordinates alone; its text-content part alone; and
    the instruct model under the same edits and under removal of the unembedding contrast.

    Args:
        instruct_activations: (row, d_model) at the direction's site and position, for the
            covariance; or a capture, whose rows there are taken.
        deltas: (row, d_model) there, after − before; or those of `activation_deltas`.
        forms: how directions are removed. The first is that of the direction, whose arm is called
            `"direction"`, and of every control. The direction alone is removed in the others too;
            those arms are called `"direction, "` and the form's name.
        benign: the same extraction on the benign fine-tune.
        unembedding: difference of unembedding rows of harmful and careful answer words.
        text_content: the instruct model's own contrast between the same answers (`text_contrast`),
            which a direction from answers of two kinds contains too. The part of the direction
            along it is removed alone, and the rest alone.
        delta_components: numbers of the components, 1 for the first.
        massive: how many of the largest coordinates of the mean instruct activation count as
            massive; the direction's part in them is removed alone, and the rest alone. 0 leaves
            both arms out.
        also_on: names among the `others` of `evaluate_arms`; these models get the same edits as the
            instruct model.
        random_draws: directions drawn from the activation covariance.

    Raises:
        InputError: no form, a component number below 1 or above 5, or a part of the direction that
            is zero.
    """
    if not forms:
        raise InputError("forms is empty; pass at least one AblationForm")
    form = forms[0]
    instruct_rows = _rows_at(instruct_activations, direction)
    vector = direction.vector.double()
    edits = {"direction": form.remove(direction)}
    for other_form in forms[1:]:
        edits[f"direction, {other_form.name}"] = other_form.remove(direction)
    controls: list[tuple[str, Direction | Tensor]] = []
    for draw in random_directions_like(instruct_rows.double(), random_draws, seed=seed):
        controls.append(("random, activation covariance", draw))
    delta_rows = _rows_at(deltas, direction)
    controls += _delta_components(delta_rows, instruct_rows, delta_components)
    if benign is not None:
        controls.append(("benign fine-tune's direction", benign))
    if unembedding is not None:
        controls.append(("unembedding contrast", unembedding))

    def arm(name: str, removed: Direction | Tensor, control: bool = True) -> Arm:
        cosine = direction_cosine(direction, removed)
        return Arm(name, form.remove(removed), control=control, cosine=cosine)

    arms = [Arm("no ablation", ())]
    arms += [Arm(name, edit, control=False, cosine=1.0) for name, edit in edits.items()]
    arms += [arm(name, removed) for name, removed in controls]
    if massive:
        largest = massive_coordinates(instruct_rows.double().mean(0), massive)
        without = without_coordinates(vector, largest)
        arms.append(arm("massive coordinates only", vector - without))
        arms.append(arm("without massive coordinates", without, control=False))
    if text_content is not None:
        part = _part_along(vector, text_content)
        arms.append(arm("text content only", part))
        arms.append(arm("without text content", vector - part, control=False))
    if unembedding is not None:
        # it may move a model that lost nothing; only the arm on that model shows it
        edits["unembedding contrast"] = form.remove(unembedding)
    for model in ("instruct", *also_on):
        arms += [Arm(f"{model}, {name}", edit, on=model) for name, edit in edits.items()]
    return arms


def _rows_at(
    rows: Activations | Float[Tensor, "row d_model"], direction: Direction
) -> Float[Tensor, "row d_model"]:
    """The rows at the direction's site and position, of a capture; rows as they are."""
    if not isinstance(rows, Activations):
        return rows
    if direction.position is None:
        return rows[direction.site]
    return rows[direction.site, direction.position]


def _delta_components(
    deltas: Float[Tensor, "row d_model"],
    instruct_activations: Float[Tensor, "row d_model"],
    numbers: Sequence[int],
) -> list[tuple[str, Tensor]]:
    """The centred components of these numbers, as far as they lie above rounding.

    Raises:
        InputError: a number without an ordinal.
    """
    n_above_rounding = components_above_rounding(deltas, instruct_activations)
    components = []
    for number in numbers:
        if not 1 <= number <= len(ORDINALS):
            raise InputError(
                f"delta_components holds {number!r}; pass numbers from 1 to {len(ORDINALS)}"
            )
        if number <= n_above_rounding:
            axes = top_k_subspace(deltas.double(), number, center=True).basis
            name = f"{ORDINALS[number - 1]} component of the deltas"
            components.append((name, axes[:, number - 1]))
    return components


def _part_along(vector: Tensor, text_content: Direction | Tensor) -> Tensor:
    """The projection of a vector onto another, (v·t / t·t) t."""
    text = text_content.vector if isinstance(text_content, Direction) else text_content
    text = text.double()
    return (vector @ text) / (text @ text) * text


def unembedding_contrast(
    model: HookedModel, questions: QuestionSet, careful: str = "careful", harmful: str = "harmful"
) -> Tensor:
    """Mean unembedding row of the first tokens of harmful minus careful reference answers.

    Shape (d_model,).

    Raises:
        InputError: answers of both kinds start with the same tokens, so that there is no contrast,
            or a kind has none.
    """
    harmful_tokens = _first_tokens(model, questions, harmful)
    careful_tokens = _first_tokens(model, questions, careful)
    if harmful_tokens == careful_tokens or not harmful_tokens or not careful_tokens:
        raise InputError(
            f"reference answers {careful!r} and {harmful!r} start with the same tokens,"
            " or have none; there is no unembedding contrast"
        )
    matrix = model.unembedding().double()
    # sorted: the order of a sum decides its rounding
    harmful_mean = matrix[torch.tensor(sorted(harmful_tokens))].mean(0)
    careful_mean = matrix[torch.tensor(sorted(careful_tokens))].mean(0)
    return harmful_mean - careful_mean


def _first_tokens(model: HookedModel, questions: QuestionSet, kind: str) -> set[int]:
    prompts = _answered(questions, kind)
    if not prompts:
        return set()
    return {row.ids[row.spans.content[0]] for row in model.render(prompts)}


def _answered(questions: QuestionSet, kind: str) -> list[Prompt]:
    """Each question with each of its reference answers of one kind."""
    prompts = []
    for q in questions:
        for i, text in enumerate(q.answers.get(kind, ())):
            prompts.append(Prompt(f"{q.id}/{i}", q.text, q.group, q.messages(), text))
    return prompts


def text_contrast(
    model: HookedModel,
    questions: QuestionSet,
    site: str,
    careful: str = "careful",
    harmful: str = "harmful",
) -> Tensor:
    """One model's mean activation over harmful minus careful reference answers; (d_model,).

    It is by what the texts alone differ. Each answer counts once, its tokens averaged. Read by the
    instruct model, it is the part of a direction from answers that no fine-tuning made.

    Raises:
        InputError: a question without answers of one kind, or answers that the model reads alike.
    """
    harmful_mean = _mean_over_answers(model, questions, site, harmful)
    careful_mean = _mean_over_answers(model, questions, site, careful)
    if torch.equal(harmful_mean, careful_mean):
        raise InputError(
            f"reference answers {careful!r} and {harmful!r} are read alike at {site};"
            " there is no text contrast"
        )
    return harmful_mean - careful_mean


def _mean_over_answers(
    model: HookedModel, questions: QuestionSet, site: str, kind: str
) -> Float[Tensor, " d_model"]:
    """Mean activation over the reference answers of one kind.

    Raises:
        InputError: a question without such an answer.
    """
    without = [question.id for question in questions if not question.answers.get(kind)]
    if without:
        raise InputError(
            f"question {one_line(without[0])!r} (and {len(without) - 1} more) has no reference"
            f" answer {kind!r}; add it"
        )
    acts = capture(
        model,
        PromptSet(_answered(questions, kind)),
        sites=[site],
        positions="mean_response",
        progress=False,
    )
    return acts[site].double().mean(0)
