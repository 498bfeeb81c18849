"""Answers → scores: sampling, endpoints, judges, readouts, agreement, corrected rates."""

from emlens.judging.agreement import judge_agreement, judge_noise
from emlens.judging.endpoint import Endpoint
from emlens.judging.endpoint_judge import EndpointJudge
from emlens.judging.judge_prompts import JudgePrompts
from emlens.judging.judges import Judge, Verdict
from emlens.judging.likelihood import score_by_likelihood
from emlens.judging.logit_judge import LogitJudge
from emlens.judging.prediction_powered import corrected_em_rate
from emlens.judging.readouts import rescore
from emlens.judging.rule_judge import ReferenceJudge, WordJudge
from emlens.judging.sampling import sample_answers
from emlens.judging.scoring import judge_answers, score_alignment
from emlens.judging.surrogate import SurrogateJudge

__all__ = [
    "Endpoint",
    "EndpointJudge",
    "Judge",
    "JudgePrompts",
    "LogitJudge",
    "ReferenceJudge",
    "SurrogateJudge",
    "Verdict",
    "WordJudge",
    "corrected_em_rate",
    "judge_agreement",
    "judge_answers",
    "judge_noise",
    "rescore",
    "sample_answers",
    "score_alignment",
    "score_by_likelihood",
]
