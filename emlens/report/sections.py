"""Which sections the page of a result has: one per part of its study, in the order of the study."""

from collections.abc import Iterable
from dataclasses import dataclass

from emlens.results import Section, StudyResult
from emlens.studies.registry import COMPOSITES, INCLUDED, find_study, parts_of


@dataclass(frozen=True)
class PageSection:
    """The section of one part.

    Args:
        name: of the part, which its findings also have.
        title: the question it answers.
        records: its method, tables and plots.
    """

    name: str
    title: str
    records: Section


def sections_of(result: StudyResult) -> list[PageSection]:
    """The sections of the page: one per part of the study, in its order.

    The result of a study that is not registered gets the sections of every part of which it holds a
    table.
    """
    if result.study in COMPOSITES or find_study(result.study) is not None:
        return _sections(parts_of(result.study, triggers=bool(result.config.get("triggers"))))
    sections = _sections(dict.fromkeys([*COMPOSITES["overview"], *INCLUDED]))
    return [section for section in sections if set(section.records.tables) & set(result.tables)]


def _sections(parts: Iterable[str]) -> list[PageSection]:
    """The sections of the parts that are registered and have one."""
    sections = []
    for part in parts:
        study = find_study(part)
        if study is not None and study.section is not None:
            sections.append(PageSection(part, study.title, study.section))
    return sections
