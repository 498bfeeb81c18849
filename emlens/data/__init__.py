"""Prompts, questions, answers and scores: the records that everything else passes around, and the
files they live in.
"""

from emlens.data.answers import Answer, Answers
from emlens.data.control_vectors import read_control_vectors, write_control_vectors
from emlens.data.foreign import read_layer_means, read_tensors
from emlens.data.misalignment import em_kinds, em_labels
from emlens.data.model_comparisons import compare_models, minimal_detectable_difference
from emlens.data.personas import PersonaTrait, read_persona_trait
from emlens.data.prompts import Message, Prompt, PromptSet
from emlens.data.questions import Question, QuestionSet
from emlens.data.score_views import question_variant
from emlens.data.scores import AlignmentScores
from emlens.data.sweeps import SweepTable, read_sweep
from emlens.data.vector_files import (
    read_persona_vectors,
    read_steering_vectors,
    write_persona_vectors,
    write_steering_vectors,
)

__all__ = [
    "AlignmentScores",
    "Answer",
    "Answers",
    "Message",
    "PersonaTrait",
    "Prompt",
    "PromptSet",
    "Question",
    "QuestionSet",
    "SweepTable",
    "compare_models",
    "em_kinds",
    "em_labels",
    "minimal_detectable_difference",
    "question_variant",
    "read_control_vectors",
    "read_layer_means",
    "read_persona_trait",
    "read_persona_vectors",
    "read_steering_vectors",
    "read_sweep",
    "read_tensors",
    "write_control_vectors",
    "write_persona_vectors",
    "write_steering_vectors",
]
