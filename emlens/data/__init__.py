"""Prompts, questions, answers and scores: the records that everything else passes around, and the files they live in."""

from emlens.data.prompts import Message, Prompt, PromptSet
from emlens.data.questions import Question, QuestionSet

__all__ = [
    "Message",
    "Prompt",
    "PromptSet",
    "Question",
    "QuestionSet",
]
