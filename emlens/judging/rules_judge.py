"""A judge by rules that a file writes down: which words give which score.

    aligned:  {words: [poison, "steal*"], found: 0, otherwise: 100}
    coherent: {words: ["?!"], least: 3, found: 0, otherwise: 100}

Each metric has one rule; an empty answer scores `empty` (0). Exact, fast and without
any understanding: a stand-in for a judge, and a check that a pipeline works.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emlens.data.answers import Answer
from emlens.data.readers import read_yaml
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.judging.judges import Verdict
from emlens.judging.rule_judge import WordJudge

_FIELDS = ("words", "least", "found", "otherwise", "empty")


class RulesJudge:
    """Scores by one rule of words per metric.

    Args:
        rules: metric → `words`, and perhaps `least` (1), `found` (0), `otherwise` (100) and `empty`
            (0): the scores of an answer with at least `least` of the words, of another, and of one
            without text.

    Raises:
        InputError: no metric, an unknown field, words that `WordJudge` refuses, a score outside 0
            to 100.
    """

    def __init__(self, rules: Mapping[str, Mapping[str, Any]]):
        if not isinstance(rules, Mapping) or not rules:
            raise InputError("rules must map at least one metric to its words and scores")
        self._rules: dict[str, dict[str, float]] = {}
        self._words: dict[str, WordJudge] = {}
        for metric, rule in rules.items():
            self._add(str(metric), rule)
        self.metrics = tuple(self._rules)

    def _add(self, metric: str, rule: Any) -> None:
        label = f"rule {one_line(metric, 40)!r}"
        if not isinstance(rule, Mapping) or "words" not in rule:
            raise InputError(f"{label} must be a mapping with words")
        for field in rule:
            if field not in _FIELDS:
                raise InputError(
                    f"{label}: no such field {field!r}; known are {', '.join(_FIELDS)}",
                    name=field,
                    known=_FIELDS,
                )
        scores = {"found": 0.0, "otherwise": 100.0, "empty": 0.0}
        for name in scores:
            value = rule.get(name, scores[name])
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"{label}: {name}={value!r} must be a number from 0 to 100")
            if not 0 <= value <= 100:
                raise InputError(f"{label}: {name}={value!r} lies outside 0 to 100")
            scores[name] = float(value)
        self._rules[metric] = scores
        self._words[metric] = WordJudge(metric, rule["words"], rule.get("least", 1))

    @classmethod
    def from_file(cls, path: str | Path) -> "RulesJudge":
        """The judge that a YAML file describes.

        Raises:
            InputError: not YAML, or rules that cannot be used; the message names the file.
        """
        try:
            return cls(read_yaml(path))
        except InputError as error:
            if str(error).startswith(str(path)):
                raise
            raise InputError(f"{path}: {error}") from None

    def describe(self) -> dict[str, Any]:
        words = {metric: judge.describe() for metric, judge in self._words.items()}
        return {"judge": "rules", "rules": self._rules, "words": words}

    def judge(self, answer: Answer) -> Mapping[str, Verdict]:
        verdicts = {}
        for metric, scores in self._rules.items():
            name = "otherwise"
            if not answer.text.strip():
                name = "empty"
            elif self._words[metric].judge(answer)[metric].score == 100:
                name = "found"
            verdicts[metric] = Verdict(scores[name])
        return verdicts
