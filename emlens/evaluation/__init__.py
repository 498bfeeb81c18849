"""Questions → answers → scores, and what an intervention changes."""

from emlens.evaluation.agreement import Agreement, JudgeNoise, judge_agreement, judge_noise
from emlens.evaluation.arms import Arm, evaluate_arms
from emlens.evaluation.contrasting import Contrasts, contrast
from emlens.evaluation.controls import ablation_arms, text_contrast, unembedding_contrast
from emlens.evaluation.damage import TextDamage, mean_kl, text_damage, token_damage
from emlens.evaluation.dosing import UsableWindow, dose_response, usable_window
from emlens.evaluation.endpoint import Endpoint
from emlens.evaluation.endpoint_judge import EndpointJudge
from emlens.evaluation.extraction import contrast_answers, extract_directions, shift_directions
from emlens.evaluation.forms import AblationForm, affine_form
from emlens.evaluation.judge_prompts import JudgePrompts
from emlens.evaluation.judges import AskingJudge, Judge, Verdict
from emlens.evaluation.judging import judge_answers, score_alignment
from emlens.evaluation.likelihood import score_by_likelihood
from emlens.evaluation.logit_judge import LogitJudge
from emlens.evaluation.personas import contrast_personas, persona_questions
from emlens.evaluation.prediction_powered import (
    CorrectedRate,
    corrected_em_rate,
    prediction_powered_mean,
)
from emlens.evaluation.readings import rescore
from emlens.evaluation.restoring import paired_change, restoration, restoration_lead
from emlens.evaluation.row_filters import ChosenRows, RowFilter
from emlens.evaluation.rule_judge import ReferenceJudge, WordJudge
from emlens.evaluation.sampling import sample_answers
from emlens.evaluation.selecting import (
    QuestionRoles,
    Selection,
    require_disjoint,
    require_unused,
    score_candidates,
    select_candidate,
    select_direction,
)
from emlens.evaluation.transfer import transfer_matrix
from emlens.evaluation.trials import Trials, question_scores

__all__ = [
    "AblationForm",
    "Agreement",
    "Arm",
    "AskingJudge",
    "ChosenRows",
    "Contrasts",
    "CorrectedRate",
    "Endpoint",
    "EndpointJudge",
    "Judge",
    "JudgeNoise",
    "JudgePrompts",
    "LogitJudge",
    "QuestionRoles",
    "ReferenceJudge",
    "RowFilter",
    "Selection",
    "TextDamage",
    "Trials",
    "UsableWindow",
    "Verdict",
    "WordJudge",
    "ablation_arms",
    "affine_form",
    "contrast",
    "contrast_answers",
    "contrast_personas",
    "corrected_em_rate",
    "dose_response",
    "evaluate_arms",
    "extract_directions",
    "judge_agreement",
    "judge_answers",
    "judge_noise",
    "mean_kl",
    "paired_change",
    "persona_questions",
    "prediction_powered_mean",
    "question_scores",
    "require_disjoint",
    "require_unused",
    "rescore",
    "restoration",
    "restoration_lead",
    "sample_answers",
    "score_alignment",
    "score_by_likelihood",
    "score_candidates",
    "select_candidate",
    "select_direction",
    "shift_directions",
    "text_contrast",
    "text_damage",
    "token_damage",
    "transfer_matrix",
    "unembedding_contrast",
    "usable_window",
]
