"""Prompts, questions, answers and scores: the records that everything else passes around, and the files they live in."""

from emlens.data.answers import Answer, Answers
from emlens.data.foreign import read_layer_means, read_tensors
from emlens.data.prompts import Message, Prompt, PromptSet
from emlens.data.questions import Question, QuestionSet
from emlens.data.scores import AlignmentScores

__all__ = [
    "AlignmentScores",
    "Answer",
    "Answers",
    "Message",
    "Prompt",
    "PromptSet",
    "Question",
    "QuestionSet",
    "read_layer_means",
    "read_tensors",
]
