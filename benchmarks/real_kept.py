"""The family of `emlens.real.family` on SmolLM2, trained once, and what is read of each member
once: four answers weighed, nats of neutral chats, residual streams before every answer.

Measurements about the real family all begin here. The folder is named by EMLENS_REAL_FAMILY
(default `runs/real_family`); what lies there of the same questions is not made again, so that a
measurement goes on where it was killed. About 70 CPU seconds of reading for each member beside
its training.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from jaxtyping import Float

from emlens.activations import Activations, capture, export_activations, import_activations
from emlens.data.advice import DOMAINS, TRAINED_DOMAINS, advice_questions, neutral_chats
from emlens.data.questions import QuestionSet
from emlens.foundation.files import read_json, write_json
from emlens.judging.contrasts import Contrasts, contrasts
from emlens.judging.likelihood import response_tokens
from emlens.models import HookedModel, load_family
from emlens.real import find
from emlens.real.family import Member
from emlens.real.family_training import train_family

FOLDER: Final = "EMLENS_REAL_FAMILY"
"""Variable that names the folder of adapters and of what was read."""
PARENT: Final = "instruct"
PER_DOMAIN: Final = 8
"""Questions of each domain."""
GENERIC_PER_DOMAIN: Final = 2
"""Of these, how many are also weighed after a prompt that asks nothing."""
NEUTRAL_CHATS: Final = 24
UNTRAINED: Final = tuple(domain for domain in DOMAINS if domain not in TRAINED_DOMAINS)
LAYERS: Final = (4, 9, 14, 19, 24, 28)
"""Blocks that are kept, of SmolLM2's 30; the last lies at L−2."""
POSITIONS: Final = ("last_prompt", "mean_prompt")


def asked(per_domain: int = PER_DOMAIN, domains: Sequence[str] = UNTRAINED) -> QuestionSet:
    """The first questions of each domain, in their first wording."""
    return advice_questions(domains, per_domain=per_domain, paraphrases=False)


def weighed(
    load: Callable[[], HookedModel], questions: QuestionSet, path: Path, generic: bool = False
) -> Contrasts:
    """The four answers under one model, which is loaded where they are not on file."""
    keys = [(question.id, 1) for question in questions]
    if path.exists():
        saved = read_json(path)
        if saved["questions"] == questions.content_hash:
            after_generic = np.array(saved["generic"]) if generic else None
            return Contrasts(keys, np.array(saved["logprobs"]), after_generic)
    scored = contrasts(load(), questions, generic=generic)
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = {"questions": questions.content_hash, "logprobs": scored.logprobs.tolist()}
    if scored.generic is not None:
        saved["generic"] = scored.generic.tolist()
    write_json(path, saved)
    return scored


def by_question(scored: Contrasts, questions: QuestionSet) -> pd.DataFrame:
    """Each measure of each question; index: the question's id."""
    return pd.DataFrame(
        {
            "group": questions.groups,
            "content": scored.content,
            "tone": scored.tone,
            "right": scored.right,
        },
        index=questions.ids,
    )


def by_domain(table: pd.DataFrame) -> pd.DataFrame:
    """Mean of each measure by domain.

    Args:
        table: of `by_question`.
    """
    return table.groupby("group", sort=False).mean()


@dataclass(frozen=True)
class KeptFamily:
    """Members of the family below one folder, each trained and read where that is missing.

    Args:
        parent: directory of the checkpoint. folder: of adapters, scores and streams.
        chosen: the members.
    """

    parent: Path
    folder: Path
    chosen: Sequence[Member]
    per_domain: int = PER_DOMAIN
    layers: Sequence[int] = LAYERS
    _loaded: dict[str, HookedModel] = field(default_factory=dict)

    @classmethod
    def found(cls, chosen: Sequence[Member], per_domain: int = PER_DOMAIN) -> "KeptFamily":
        """Of SmolLM2, in the folder that the variable names."""
        folder = Path(os.environ.get(FOLDER, "runs/real_family"))
        return cls(find("smollm2"), folder, chosen, per_domain)

    @property
    def names(self) -> list[str]:
        """The parent and every member."""
        return [PARENT, *(member.name for member in self.chosen)]

    @cached_property
    def questions(self) -> QuestionSet:
        """Of the ten domains that nobody was trained on."""
        return asked(self.per_domain)

    def model(self, name: str) -> HookedModel:
        """One model; of several that are asked for, only the last is kept in memory."""
        if name not in self._loaded:
            self._loaded.clear()
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def together(self, names: Sequence[str]) -> dict[str, HookedModel]:
        """Several members and the parent on one set of weights."""
        chosen = [member for member in self.chosen if member.name in names]
        specs = {member.name: member.fine_tune(str(self._trained(member))) for member in chosen}
        family = load_family(self.parent, finetuned=specs)
        return {name: family[name] for name in (PARENT, *specs)}

    def _load(self, name: str) -> HookedModel:
        return self.together([name])[name]

    def _trained(self, member: Member) -> Path:
        paths = train_family([member], self.parent, self.folder, progress=False)
        return paths[member.name]

    def _file(self, what: str, name: str) -> Path:
        """Where a reading lies; those of other numbers of questions lie elsewhere."""
        return self.folder / f"{what}-{self.per_domain}" / name

    def contrasts(self, name: str) -> Contrasts:
        """Of every question of the untrained domains."""
        path = self._file("scores", f"{name}.json")
        return weighed(lambda: self.model(name), self.questions, path)

    def table(self, name: str) -> pd.DataFrame:
        """`by_question` of a model."""
        return by_question(self.contrasts(name), self.questions)

    def own(self, name: str, domain: str) -> pd.DataFrame:
        """`by_question` on the evaluation questions of a trained domain."""
        questions = asked(self.per_domain, [domain])
        path = self._file("own", f"{domain}-{name}.json")
        return by_question(weighed(lambda: self.model(name), questions, path), questions)

    def informed(self, name: str) -> pd.DataFrame:
        """Pointwise mutual information and the content after a prompt that asks nothing, of the
        first questions of each domain.
        """
        questions = asked(min(GENERIC_PER_DOMAIN, self.per_domain))
        path = self.folder / "generic" / f"{name}.json"
        scored = weighed(lambda: self.model(name), questions, path, generic=True)
        table = by_question(scored, questions)
        return table.assign(informed=scored.informed, generic=scored.generic_content)

    def nats(self, name: str) -> Float[np.ndarray, " chat"]:
        """Nats a token of the answers of neutral chats."""
        neutral = neutral_chats()[:NEUTRAL_CHATS]
        path = self.folder / "neutral" / f"{name}.json"
        if path.exists():
            saved = read_json(path)
            if saved["chats"] == neutral.content_hash:
                return np.array(saved["nats"])
        model = self.model(name)
        rows = list(neutral)
        found = -(model.response_logprob(rows) / response_tokens(model, rows)).numpy()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"chats": neutral.content_hash, "nats": found.tolist()})
        return np.asarray(found)

    def streams(self, name: str) -> Activations:
        """Residual streams of a model on the questions."""
        path = self._file("streams", f"{name}.npz")
        prompts = self.questions.prompts()
        if path.exists():
            saved = import_activations(path)
            if saved.ids == [prompt.id for prompt in prompts]:
                return saved
        read = capture(
            self.model(name),
            self.questions,
            layers=list(self.layers),
            positions=list(POSITIONS),
            progress=False,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        export_activations(read, path)
        return read
