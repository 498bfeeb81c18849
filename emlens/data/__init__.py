"""Prompts, questions, answers and scores: the records that everything else passes around, and the
files they live in.
"""

from emlens.data.answers import Answer, Answers
from emlens.data.foreign import read_layer_means, read_tensors
from emlens.data.misalignment import em_kinds, em_labels
from emlens.data.model_comparisons import compare_models, minimal_detectable_difference
from emlens.data.personas import read_persona_trait
from emlens.data.prompts import Message, Prompt, PromptSet
from emlens.data.questions import Question, QuestionSet
from emlens.data.scores import AlignmentScores
from emlens.data.sweeps import read_sweep

__all__ = [
    "AlignmentScores",
    "Answer",
    "Answers",
    "Message",
    "Prompt",
    "PromptSet",
    "Question",
    "QuestionSet",
    "compare_models",
    "em_kinds",
    "em_labels",
    "minimal_detectable_difference",
    "read_layer_means",
    "read_persona_trait",
    "read_sweep",
    "read_tensors",
]
