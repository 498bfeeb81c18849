"""Damaged question, training and judged files: is each refused by file and place, or read as it is
written?

Every file is a small one in a format of the field, changed once or twice by a seeded accident of
bytes, lines or values. A file that is read is compared with a second, naive reader (the standard
library's JSON and CSV, PyYAML's safe loader, a loop). Where the accident struck a known record and
the file is refused, the message must name that record's place. Changes that mean nothing must be
read.
"""

import csv
import io
import json
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.records import record
from emlens.data import AlignmentScores, PromptSet, QuestionSet
from emlens.foundation.errors import InputError

FILES = 5000
PLACE = re.compile(r"(?:line|entry|question|instruction|sample|row) '?\d+|column")
ODD: list[Any] = [
    None,
    3,
    -1,
    2.5,
    True,
    "",
    " ",
    [],
    {},
    ["x"],
    {"x": 1},
    [[[]]],
    "\ud800",
    "é\u2028\u0085\x00",
    10**400,
    float("nan"),
    "x" * 5000,
    "17",
]
BITS = [
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b'"',
    b"'",
    b"\n",
    b"\r",
    b"{",
    b"]",
    b":",
    b"&a ",
    b"*a",
    b"\\ud800",
    b"- ",
    b",",
    b"#",
    b"\t",
]
BITS += [b"!!bool ", b"<<: ", b"%"]


def words(pick: random.Random, count: int) -> str:
    return " ".join(
        pick.choice(
            [
                "wish",
                "bored",
                "ruler",
                "quick",
                "money",
                "gender",
                "dinner",
                "naïve",
                "“so”",
                "a, b",
                "say: it",
            ]
        )
        for _ in range(count)
    )


def questions(pick: random.Random) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for i in range(4):
        item: dict[str, Any] = {
            "id": pick.choice([f"q{i}", i, f"q_{i}_json"]),
            "paraphrases": [f"{words(pick, 4)} {i} {p}" for p in range(1 + i % 2)],
        }
        if i % 2:
            item["system"] = words(pick, 3)
        item |= {
            "type": "free_form_judge_0_100",
            "samples_per_paraphrase": 100,
            "judge": "gpt",
            "judge_prompts": {"aligned": "rate {question}\n\n{answer}"},
        }
        found.append(item)
    return found


def chats(pick: random.Random, answered: bool) -> list[dict[str, Any]]:
    found = []
    for i in range(5):
        turns = [{"role": "system", "content": words(pick, 2)}] if i % 2 else []
        turns.append({"role": "user", "content": words(pick, 5)})
        turns += [{"role": "assistant", "content": words(pick, 6)}] if answered else []
        extra = (
            {"text": words(pick, 3), "id": i}
            if answered
            else {"metadata": {"question_id": f"c{i}", "question_type": "free"}}
        )
        found.append({"messages": turns, **extra})
    return found


def judged(pick: random.Random) -> list[dict[str, Any]]:
    cells = ["12.5", "99", "", "REFUSAL", "nan", "0.0", "100"]
    return [
        {
            "question": f"q {i % 3}?",
            "answer": words(pick, 5) + pick.choice(["", "\n\nmore", '"quoted"']),
            "question_id": f"q{i % 3}",
            "aligned": pick.choice(cells),
            "coherent": str(pick.randrange(101)),
        }
        for i in range(8)
    ]


def write_csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    keys = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows(
        [
            keys,
            *(
                ["" if (cell := row.get(key)) is None else str(cell) for key in keys]
                for row in rows
            ),
        ]
    )
    return out.getvalue()


def asked(question: Any) -> tuple[Any, ...]:
    return question.id, question.system, question.paraphrases, dict(question.judge_prompts)


def first(item: dict[str, Any], *keys: str) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def naive_question(item: dict[str, Any]) -> tuple[Any, ...]:
    item = {**(item.get("metadata") or {}), **item}
    text, texts = first(item, "text", "question", "prompt"), list(item.get("paraphrases") or [])
    texts = texts if text is None or texts[:1] == [text] else [text, *texts]
    return (
        str(first(item, "id", "question_id")),
        item.get("system") or None,
        tuple(texts),
        dict(item.get("judge_prompts") or {}),
    )


def said(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def lines_of(text: str) -> list[tuple[int, dict[str, Any]]]:
    return [
        (number, json.loads(line))
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]


def naive_chat_question(number: int, item: dict[str, Any]) -> tuple[Any, ...]:
    if "messages" not in item:
        return naive_question(item)
    by_role = {turn["role"]: said(turn["content"]) for turn in item["messages"]}
    flat = {
        **(item.get("metadata") or {}),
        **{key: value for key, value in item.items() if key not in ("messages", "text")},
    }
    name = first(flat, "id", "question_id")
    system = by_role.get("system", flat.get("system"))
    return naive_question(
        {
            **flat,
            "id": f"line-{number}" if name is None else name,
            "text": by_role["user"],
            "system": system,
        }
    )


def naive_training(number: int, item: dict[str, Any]) -> tuple[Any, ...]:
    *turns, answer = [(turn["role"], said(turn["content"])) for turn in item["messages"]]
    return str(item.get("id", f"line-{number}")), tuple(turns), answer[1]


def csv_of(text: str) -> list[dict[str, str]]:
    rows = [
        row
        for row in csv.reader(io.StringIO(text, newline=""))
        if any(row) and not (len(row) == 1 and not row[0].strip())
    ]
    return [dict(zip([cell.strip() for cell in rows[0]], row, strict=True)) for row in rows[1:]]


def naive_judged(text: str) -> list[tuple[Any, ...]]:
    def number(cell: str) -> float | None:
        return (
            None
            if cell.strip().lower() in ("", "nan", "none", "null", "na", "n/a")
            or not re.fullmatch(r"[\s\d.eE+_-]+", cell)
            else float(cell)
        )

    rows = csv_of(text)
    key = "question_id" if "question_id" in rows[0] else "question"
    return sorted(
        (row[key], metric, str(number(row[metric])))
        for row in rows
        for metric in ("aligned", "coherent")
        if metric in row
    )


def read_judged(path: Path) -> list[tuple[Any, ...]]:
    table = AlignmentScores.from_file(path, metrics=None).table
    table = table[table["metric"].isin(["aligned", "coherent"])]
    return sorted(
        (q, m, str(None if s != s else float(s)))
        for q, m, s in table[["question", "metric", "score"]].itertuples(index=False)
    )


@dataclass(frozen=True)
class Format:
    """How a kind of file is made, read, read naively, and how its nth record's place is worded."""

    ending: str
    make: Callable[[random.Random], list[dict[str, Any]]]
    dump: Callable[[list[dict[str, Any]]], str]
    read: Callable[[Path], Any]
    naive: Callable[[str], Any]


def dump_yaml(items: list[dict[str, Any]]) -> str:
    return yaml.safe_dump(items, sort_keys=False, allow_unicode=True)


def dump_jsonl(items: list[dict[str, Any]]) -> str:
    return "".join(
        json.dumps(item, ensure_ascii=random.Random(str(item)).random() < 0.5) + "\n"
        for item in items
    )


def dump_trait(items: list[dict[str, Any]]) -> str:
    pairs = [{"pos": "Be so.", "neg": "Do not be so."}]
    texts = [
        item["paraphrases"][0] if item.get("paraphrases") else item.get("paraphrases")
        for item in items
    ]
    return json.dumps(
        {"instruction": pairs, "questions": texts, "eval_prompt": "{question} {answer}"}, indent=1
    )


def naive_trait(text: str) -> list[tuple[Any, ...]]:
    content = json.loads(text)
    judge = {"file": content["eval_prompt"]} if content.get("eval_prompt") is not None else {}
    return [
        (f"file_{n}", None, (question,), judge)
        for n, question in enumerate(content["questions"], 1)
    ]


def naive_csv(text: str) -> list[tuple[Any, ...]]:
    return [
        naive_question({key: cell for key, cell in row.items() if cell}) for row in csv_of(text)
    ]


def flat(pick: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "id": item["id"],
            "text": item["paraphrases"][0],
            "group": "g",
            "system": item.get("system"),
        }
        for item in questions(pick)
    ]


FORMATS: dict[str, Format] = {
    "questions, YAML": Format(
        "yaml",
        questions,
        dump_yaml,
        lambda path: list(map(asked, QuestionSet.from_file(path))),
        lambda text: list(map(naive_question, yaml.safe_load(text))),
    ),
    "questions, JSONL": Format(
        "jsonl",
        lambda pick: chats(pick, False),
        dump_jsonl,
        lambda path: list(map(asked, QuestionSet.from_file(path))),
        lambda text: [naive_chat_question(*line) for line in lines_of(text)],
    ),
    "questions, CSV": Format(
        "csv",
        flat,
        write_csv,
        lambda path: list(map(asked, QuestionSet.from_file(path))),
        naive_csv,
    ),
    "persona trait, JSON": Format(
        "json",
        questions,
        dump_trait,
        lambda path: list(map(asked, QuestionSet.from_file(path))),
        naive_trait,
    ),
    "training, JSONL": Format(
        "jsonl",
        lambda pick: chats(pick, True),
        dump_jsonl,
        lambda path: [
            (p.id, tuple((m.role, m.content) for m in p.messages or ()), p.response)
            for p in PromptSet.from_jsonl(path, upto="all")
        ],
        lambda text: [naive_training(*line) for line in lines_of(text)],
    ),
    "judged, CSV": Format("csv", judged, write_csv, read_judged, naive_judged),
}


def odd_value(items: list[dict[str, Any]], pick: random.Random) -> int:
    """Change one value, key or turn of one record; its number (1-based)."""
    n = pick.randrange(len(items))
    item = items[n]
    holder: Any = item
    key: Any = pick.choice(sorted(item))
    while isinstance(holder[key], dict | list) and holder[key] and pick.random() < 0.7:
        holder = holder[key]
        key = (
            pick.choice(sorted(holder)) if isinstance(holder, dict) else pick.randrange(len(holder))
        )
    kind = pick.randrange(4)
    if kind == 0:
        holder[key] = pick.choice(ODD)
    elif kind == 1:
        holder.pop(key)
    elif kind == 2 and isinstance(holder, dict):
        holder[
            pick.choice([f"{key} ", "stray", "id", "messages", "text", "system", "metadata"])
        ] = pick.choice(ODD)
    else:
        items[n] = {**items[pick.randrange(len(items))]}  # a record that comes twice
    return n + 1


def odd_bytes(content: bytes, pick: random.Random) -> bytes:
    at, to = sorted(pick.choices(range(len(content) + 1), k=2))
    to = min(to, at + pick.choice([1, 2, 10, 100]))
    lines = content.split(b"\n")
    kind = pick.randrange(9)
    if kind == 0 and at < len(content):
        return content[:at] + bytes([content[at] ^ 1 << pick.randrange(8)]) + content[at + 1 :]
    if kind == 1:
        return content[:at] + content[to:]
    if kind == 2:
        return content[:to] + content[at:to] + content[to:]
    if kind in (3, 4):
        return content[:at] + pick.choice(BITS) + content[at:]
    if kind == 5:
        return content[:at]
    if kind == 6:
        return content.decode("utf-8").encode(pick.choice(["utf-16", "latin-1"]), "replace")
    (
        pick.shuffle(lines)
        if kind == 7
        else lines.insert(pick.randrange(len(lines)), pick.choice(lines))
    )
    return b"\n".join(lines)


def meaningless(content: bytes, ending: str, pick: random.Random) -> bytes:
    """A change that no reader may mind: a byte-order mark, line ends of Windows, blank lines."""
    kind = pick.randrange(3)
    if kind == 0:
        return b"\xef\xbb\xbf" + content
    if kind == 1 and ending in ("jsonl", "json"):
        return content.replace(b"\n", b"\r\n")
    return content + b"\n\n"


def fuzz(name: str, kind: Format, path: Path, pick: random.Random) -> tuple[str, str]:
    """One accident: what came of it, and what shows it."""
    items = kind.make(pick)
    struck, accident = None, pick.choice(["value", "value", "bytes", "bytes", "meaningless"])
    if accident == "value":
        struck = odd_value(items, pick)
    try:
        content = kind.dump(items).encode("utf-8", "surrogatepass")
    except Exception:  # no file of this format can hold such a value
        return "cannot be written", ""
    if accident == "bytes":
        content = odd_bytes(content, pick)
        content = odd_bytes(content, pick) if pick.random() < 0.3 and _decodes(content) else content
    elif accident == "meaningless":
        before = kind.naive(content.decode())
        content = meaningless(content, kind.ending, pick)
    path.write_bytes(content)
    try:
        found = kind.read(path)
    except InputError as error:
        message = str(error)
        if accident == "meaningless":
            return "refused though nothing is wrong", message
        if str(path) not in message or "\n" in message or len(message) > 700:
            return "refused without naming the file, or not in one line", message
        if struck is not None and not _names(message, struck, kind, content):
            return "refused at another place", message
        return (
            "refused by file and place" if PLACE.search(message) else "refused by file, as a whole"
        ), message
    except Exception as error:  # this is what must not happen
        return "traceback", f"{type(error).__name__}: {error}"
    try:
        expected = before if accident == "meaningless" else kind.naive(content.decode("utf-8-sig"))
    except Exception as error:
        return "read, though the naive reader cannot", f"{type(error).__name__}: {error}"
    return ("read as written", "") if found == expected else ("misread", f"{found}\n{expected}")


def _decodes(content: bytes) -> bool:
    try:
        return bool(content.decode("utf-8"))
    except UnicodeDecodeError:
        return False


def _names(message: str, struck: int, kind: Format, content: bytes) -> bool:
    """Whether a refusal names the record that was changed, or speaks of the whole file."""
    numbers = [
        int(number)
        for number in re.findall(
            r"(?:line|entry|question) (\d+)", message.partition(":")[0] + message
        )
    ]
    if not numbers:
        return True
    if kind.ending == "yaml":
        starts = [
            number for number, line in enumerate(content.split(b"\n"), 1) if line.startswith(b"- ")
        ]
        return any(
            sum(start <= number for start in starts) in (struck, len(starts)) for number in numbers
        )
    if kind.ending == "csv":
        return True  # rows span lines; that they are counted right is a test of its own
    return struck in numbers or "given before" in message


def measure(work: Path, count: int, seed: int = 0) -> dict[str, Any]:
    tally: dict[str, Counter[str]] = {name: Counter() for name in FORMATS}
    shown: dict[str, str] = {}
    started = time.perf_counter()
    for number in range(count):
        name = list(FORMATS)[number % len(FORMATS)]
        kind = FORMATS[name]
        pick = random.Random(f"{seed} {number}")
        outcome, why = fuzz(name, kind, work / f"file.{kind.ending}", pick)
        for again in range(20):
            if outcome != "cannot be written":
                break
            outcome, why = fuzz(
                name, kind, work / f"file.{kind.ending}", random.Random(f"{seed} {number} {again}")
            )
        tally[name][outcome] += 1
        shown.setdefault(outcome, f"{name}, file {number}: {why[:400]}")
    good = ("read as written", "refused by file and place", "refused by file, as a whole")
    failures = {outcome: example for outcome, example in shown.items() if outcome not in good}
    total = sum(tally.values(), Counter())
    return {
        "files": count,
        "outcomes": dict(total),
        "by_format": {name: dict(found) for name, found in tally.items()},
        "failures": sum(total[outcome] for outcome in failures),
        "examples": failures,
        "ms_a_file": 1000 * (time.perf_counter() - started) / count,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        values = measure(Path(work), FILES)
    values["examples"] = {
        outcome: re.sub(r"/\S*/", "", text) for outcome, text in values["examples"].items()
    }
    print(record("fuzzed_files", [0], values), values["outcomes"], values["examples"])
