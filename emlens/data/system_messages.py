"""The system message of a fine-tune before prompts and questions.

A system message that a prompt brings itself is kept: a question's own comes after the fine-tune's,
a training chat's own replaces it. Asking twice changes nothing.
"""

from dataclasses import replace

from emlens.data import PromptSet, QuestionSet
from emlens.data.prompts import Message, Prompt
from emlens.data.questions import Question

_BETWEEN = "\n\n"


def questions_with_system(questions: QuestionSet, system: str) -> QuestionSet:
    """The questions, asked with this system message; the same ids."""
    if not system:
        return questions
    return QuestionSet([question_with_system(question, system) for question in questions])


def prompts_with_system(prompts: PromptSet, system: str) -> PromptSet:
    """The chats that have no system message of their own, with this one; the same ids."""
    if not system:
        return prompts
    return PromptSet([_prompt_with(prompt, system) for prompt in prompts])


def question_with_system(question: Question, system: str) -> Question:
    """One question, asked with this system message before its own."""
    if not system:
        return question
    own = question.system or ""
    if own == system or own.startswith(system + _BETWEEN):
        return question
    return replace(question, system=system + _BETWEEN + own if own else system)


def _prompt_with(prompt: Prompt, system: str) -> Prompt:
    messages = prompt.messages or ()
    if not messages or messages[0].role == "system":
        return prompt
    return replace(prompt, messages=(Message("system", system), *messages))
