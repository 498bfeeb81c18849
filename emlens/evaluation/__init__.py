"""Questions → answers → scores, and what an intervention changes."""

from emlens.evaluation.arms import Arm, ablation_arms, evaluate_arms, mean_kl, unembedding_contrast
from emlens.evaluation.extraction import extract_directions
from emlens.evaluation.judging import Judge, ReferenceJudge, Verdict, judge_answers, score_alignment
from emlens.evaluation.likelihood import score_by_likelihood
from emlens.evaluation.sampling import sample_answers

__all__ = [
    "Arm",
    "Judge",
    "ReferenceJudge",
    "Verdict",
    "ablation_arms",
    "evaluate_arms",
    "extract_directions",
    "judge_answers",
    "mean_kl",
    "sample_answers",
    "score_alignment",
    "score_by_likelihood",
    "unembedding_contrast",
]
