"""Chat templates that would not end, or write without end, are refused before a chat is rendered.

A template is a program that comes with a model. Most are a loop over the messages with tests in
it, and cannot be expensive: they are told by what they are written with. One with anything more
(ranges, products, macros that call macros, filters that pad, loops in loops) is tried on chats of
2, 9 and 65 turns under limits of time, memory and output (`emlens.foundation.limited`). That is
done once for each template of a process.
"""

from typing import Any, Final

import jinja2
import jinja2.ext
from jinja2 import nodes

from emlens.foundation.errors import InputError
from emlens.foundation.limited import too_expensive

MOST_WRITTEN: Final = 4 * 2**20
"""Characters that a template may write of a chat with a few thousand."""
_MOST_TEMPLATE: Final = 2**20
_LOOPS: Final = 3
_CHEAP_FILTERS: Final = frozenset(
    (
        *("abs", "capitalize", "count", "d", "default", "dictsort", "first", "int", "items"),
        *("join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr"),
        *("replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string"),
        *("title", "tojson", "trim", "unique", "upper"),
    )
)
_CHEAP_METHODS: Final = frozenset(
    (
        *("append", "capitalize", "endswith", "find", "get", "items", "keys", "lower", "lstrip"),
        *("replace", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper"),
        *("values",),
    )
)
_CHEAP_CALLS: Final = frozenset(("namespace", "dict", "raise_exception", "strftime_now"))
_checked: set[str] = set()
_TRIAL: Final = """
import jinja2, jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
class Generation(jinja2.ext.Extension):
    tags = {"generation"}
    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
def refuse(message):
    raise jinja2.TemplateError(message)
environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
environment.globals["raise_exception"] = refuse
environment.globals["strftime_now"] = lambda form: "2024-07-26"
limited(*limits)  # constants are computed while a template is compiled
template = environment.from_string(work["template"])
for messages in work["chats"]:
    for opens in (True, False):
        written = 0
        try:
            for part in template.generate(
                messages=messages, add_generation_prompt=opens, tools=None, documents=None,
                bos_token="<s>", eos_token="</s>",
            ):
                written += len(part)
                if written > work["most"]:
                    raise MemoryError
        except MemoryError:
            raise
        except Exception:
            pass
"""


class _Generation(jinja2.ext.Extension):
    """The tag `generation`, which marks what the assistant said."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


def require_bounded(template: str) -> str:
    """The template, when it may be rendered.

    Raises:
        InputError: it takes more time or memory than any template of a chat needs, or writes more.
    """
    if template in _checked:
        return template
    if len(template) > _MOST_TEMPLATE:
        raise InputError(f"the chat template has {len(template)} characters; none needs as many")
    if may_be_expensive(template):
        work = {"template": template, "chats": _chats(), "most": MOST_WRITTEN}
        lacking = too_expensive(_TRIAL, work)
        if lacking is not None:
            raise InputError(
                f"the chat template takes too much {lacking} to render a few turns, so no chat is"
                " rendered with it; pass chat_template="
            )
    _checked.add(template)
    return template


def may_be_expensive(template: str) -> bool:
    """Whether it holds more than loops over what it is given, with cheap operations inside."""
    environment = jinja2.Environment(extensions=[_Generation, "jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(template)
    except (jinja2.TemplateError, RecursionError):
        return False  # it cannot be rendered at all, and its renderer says why
    return (
        any(map(_is_expensive, tree.find_all(nodes.Node)))
        or _depth(tree) > _LOOPS
        or any(_calls_a_macro(macro, tree) for macro in tree.find_all(nodes.Macro))
    )


def _is_expensive(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Mul | nodes.Pow | nodes.Include | nodes.Import | nodes.Extends):
        return True
    if isinstance(node, nodes.Filter):
        return node.name not in _CHEAP_FILTERS
    if isinstance(node, nodes.For):
        return node.recursive
    if isinstance(node, nodes.Assign | nodes.AssignBlock):
        # text that grows by itself in every round of a loop may double
        return isinstance(node.target, nodes.NSRef) and _reads_twice(node)
    if isinstance(node, nodes.Call):
        called = node.node
        if isinstance(called, nodes.Getattr):
            return called.attr not in _CHEAP_METHODS
        return not isinstance(called, nodes.Name) or called.name in ("range", "lipsum", "cycler")
    return False


def _reads_twice(node: nodes.Assign | nodes.AssignBlock) -> bool:
    target = node.target
    assert isinstance(target, nodes.NSRef)
    reads = [
        part
        for part in node.find_all(nodes.Getattr)
        if isinstance(part.node, nodes.Name)
        and (part.node.name, part.attr) == (target.name, target.attr)
    ]
    return len(reads) > 1


def _depth(node: nodes.Node) -> int:
    """How many loops lie in each other."""
    below = max((_depth(child) for child in node.iter_child_nodes()), default=0)
    return below + isinstance(node, nodes.For)


def _calls_a_macro(macro: nodes.Macro, tree: nodes.Template) -> bool:
    names = {other.name for other in tree.find_all(nodes.Macro)}
    calls = (call.node for call in macro.find_all(nodes.Call))
    return any(isinstance(called, nodes.Name) and called.name in names for called in calls)


def _chats() -> list[list[dict[str, str]]]:
    """Short chats, one with a system message, one of many turns."""
    text = "Some words of a question. " * 8
    chats = []
    for turns in (1, 8, 64):
        roles = ("user", "assistant")
        chat = [{"role": roles[i % 2], "content": text} for i in range(turns)]
        chats.append([{"role": "system", "content": text}, *chat])
    return [chats[0][1:], *chats]
