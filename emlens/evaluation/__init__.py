"""What an intervention does: arms, controls, doses, transfer, selection, damage."""

from emlens.evaluation.ablation_forms import AblationForm, affine_form
from emlens.evaluation.arms import evaluate_arms
from emlens.evaluation.controls import ablation_arms, text_contrast, unembedding_contrast
from emlens.evaluation.damage import text_damage
from emlens.evaluation.dosing import dose_response, usable_window
from emlens.evaluation.question_roles import QuestionRoles
from emlens.evaluation.restoring import restoration
from emlens.evaluation.selecting import select_candidate, select_direction
from emlens.evaluation.transfer import transfer_matrix

__all__ = [
    "AblationForm",
    "QuestionRoles",
    "ablation_arms",
    "affine_form",
    "dose_response",
    "evaluate_arms",
    "restoration",
    "select_candidate",
    "select_direction",
    "text_contrast",
    "text_damage",
    "transfer_matrix",
    "unembedding_contrast",
    "usable_window",
]
