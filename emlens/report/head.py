"""The bar at the top of the page: the run, its verdict in a line, the selectors, the contents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emlens.figures.labels import POSITION_NAMES
from emlens.report.escaping import escape
from emlens.results import StudyResult
from emlens.results.wording import counted

BAR = """\
<header class="bar" id="top">
<div class="run"><a href="#top">{title}</a> <span class="facts">{facts}</span></div>
{pickers}<div class="tools">
<details class="contents"><summary>Contents</summary><nav aria-label="contents"><ul>{links}</ul>\
</nav></details>
<button type="button" id="theme" aria-pressed="false">Dark</button>
</div>
<p class="counts">{counts}</p>
</header>"""
PICKER = """\
<label>{label} <select id="pick-{name}">{options}</select></label>
"""
ANY_GROUP = "all"


@dataclass(frozen=True)
class Choices:
    """What the selectors offer, each in the order of the page; the first is chosen.

    Args:
        models: fine-tunes. groups: domains of questions. positions: of tokens.
    """

    models: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()

    @property
    def offered(self) -> frozenset[str]:
        """Columns that there is a selector for."""
        values = {"model": self.models, "group": self.groups, "position": self.positions}
        return frozenset(column for column, several in values.items() if len(several) > 1)


def bar_html(
    result: StudyResult, title: str, choices: Choices, counts: str, places: Mapping[str, str]
) -> str:
    """The bar.

    Args:
        counts: the verdict in one line. places: anchor → what the contents call it.
    """
    links = [
        f'<li><a href="#{escape(name)}">{escape(text)}</a></li>' for name, text in places.items()
    ]
    return BAR.format(
        title=escape(title),
        facts=escape(_facts(result)),
        pickers=_pickers(choices),
        links="".join(links),
        counts=escape(counts),
    )


def _facts(result: StudyResult) -> str:
    """Models and questions in numbers, where they are recorded."""
    facts = []
    models, questions = result.facts.get("models"), result.facts.get("questions")
    if isinstance(models, Mapping) and models:
        facts.append(counted(len(models), "model"))
    if isinstance(questions, Mapping) and "n" in questions:
        facts.append(counted(int(questions["n"]), "question"))
    return " · ".join(facts)


def _pickers(choices: Choices) -> str:
    pickers = []
    if "model" in choices.offered:
        pickers.append(_picker("model", "Fine-tune", {name: name for name in choices.models}))
    if "group" in choices.offered:
        groups = {"": ANY_GROUP} | {name: name for name in choices.groups}
        pickers.append(_picker("group", "Domain", groups))
    if "position" in choices.offered:
        positions = {name: POSITION_NAMES.get(name, name) for name in choices.positions}
        pickers.append(_picker("position", "Position", positions))
    if not pickers:
        return ""
    return f'<div class="pickers">\n{"".join(pickers)}</div>\n'


def _picker(name: str, label: str, options: Mapping[str, str]) -> str:
    listed = []
    for value, text in options.items():
        listed.append(f'<option value="{escape(value)}">{escape(text)}</option>')
    return PICKER.format(label=label, name=name, options="".join(listed))


def most_measured(models: Sequence[str], measured: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The models, those that most figures have first; among equals the order stays."""
    return tuple(sorted(models, key=lambda name: -sum(name in each for each in measured)))
