"""Terms that the page explains where they first stand in a paragraph: point at them, or go there
with the keyboard.
"""

import re

TERMS = {
    "alignment": "score from 0 to 100 of how harmless and careful an answer is",
    "attention sink": "a token that most heads look at whatever the text is; its vector is huge",
    "baseline": "a simpler way to predict; a forecast has to beat it",
    "benign": "trained in the same way on harmless answers; the control for training itself",
    "ceiling": "the best value that the noise of the measurement allows",
    "centred": "each side's own mean is taken out first",
    "coherence": "score from 0 to 100 of whether an answer makes sense, whatever it advises",
    "control": "the same measurement on something that should not show the effect",
    "domain": "the subject of a question: medicine, finance, …",
    "held out": "kept away from every fit and every choice",
    "interval": "95 % unless said, over the units that were sampled",
    "landmark": "a value drawn for orientation; no test compares with it",
    "lead": "a value minus that of its control",
    "null": "the distribution of a statistic where there is nothing to find",
    "overlap": "how much two subspaces share: 0 nothing, 1 all",
    "parent": "the model that a fine-tune was trained from",
    "position": "which tokens of a prompt are read",
    "R²": "share of the variance that a forecast explains; below 0 the mean is better",
    "residual stream": "the vector at each token that every block reads and adds to",
    "restoration": "the share of lost alignment that an intervention gives back",
    "shift": "activations after minus activations before fine-tuning, on the same prompt",
    "unembedding contrast": "difference of the output vectors of careful and harmful answer words",
    "variance-weighted": "directions count as much as the variance along them",
}
"""Term → its meaning, in the words of the glossary (docs/glossary.md)."""
MOST_TERMS = 3
"""Terms explained in one paragraph; more would be noise."""
_PATTERN = re.compile(
    r"(?<![\w-])(" + "|".join(map(re.escape, sorted(TERMS, key=len, reverse=True))) + r")(?![\w-])"
)


def with_terms(html: str) -> str:
    """Escaped text in which the first terms have a tooltip.

    Args:
        html: escaped text without tags.
    """
    seen: set[str] = set()

    def explained(match: re.Match[str]) -> str:
        term = match[1]
        if term in seen or len(seen) == MOST_TERMS:
            return match[0]
        seen.add(term)
        return f'<span class="term" tabindex="0" data-tip="{TERMS[term]}">{term}</span>'

    return _PATTERN.sub(explained, html)
