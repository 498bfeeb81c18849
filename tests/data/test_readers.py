from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from emlens.data.readers import read_json_text, read_jsonl, read_text, read_yaml
from emlens.foundation import InputError


def test_text_loses_its_byte_order_mark_and_keeps_line_ends(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read_text(tmp_path / "t") == "a\r\nb"


def test_text_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such file"):
        read_text(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a directory; pass a file"):
        read_text(tmp_path)
    (tmp_path / "t").write_bytes(b"a\nb\xff")
    with pytest.raises(
        InputError, match=r"t, line 2: not UTF-8 text \(invalid start byte at byte 3\)"
    ):
        read_text(tmp_path / "t")
    with pytest.raises(InputError, match=r"t/below: cannot be read \(Not a directory\)"):
        read_text(tmp_path / "t" / "below")
    with pytest.raises(InputError, match=r"is not a path \(embedded null byte\)"):
        read_text("a\0b")


def test_jsonl_skips_blank_lines_and_keeps_line_numbers(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b'{"a": "\xe2\x80\xa8"}\r\n\n  \n{"a": 2}')
    assert list(read_jsonl(tmp_path / "j")) == [(1, {"a": "\u2028"}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n{", "j, line 2: not valid JSON: Expecting property name"),
        ("3", "j, line 1: holds a int; each line must be a JSON object"),
        ("[" * 100_000, "j, line 1: not valid JSON: nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "j, line 1: not valid JSON: Exceeds the limit"),
        ('{"a": 1, "a": 2}', "j, line 1: not valid JSON: key 'a' is given twice"),
        (
            '{"a": [{"b": "\\ud800"}]}',
            "j, line 1: b holds half a surrogate pair, which is not text",
        ),
        ('{"\\ud800": 1}', "j, line 1: a key holds half a surrogate pair, which is not text"),
    ],
)
def test_jsonl_refuses_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "j").write_text(text)
    with pytest.raises(InputError, match=message):
        list(read_jsonl(tmp_path / "j"))


def test_yaml_keys_may_stand_over_merged_ones(tmp_path: Path) -> None:
    (tmp_path / "y").write_text(
        "a: &x {k: 1, l: 2}\nb: &y {<<: *x, k: 3}\nc: {d: {<<: *y, l: 4}, k: {<<: [*x, *y]}}\n1:"
        " a\n'1': b\n"
    )
    read = read_yaml(tmp_path / "y")
    assert (
        read["b"] == {"k": 3, "l": 2}
        and read["c"] == {"d": {"k": 3, "l": 4}, "k": {"k": 1, "l": 2}}
        and (read[1], read["1"]) == ("a", "b")
    )


def test_yaml_resolves_anchors_and_builds_no_objects(tmp_path: Path) -> None:
    (tmp_path / "y").write_text("a: &x [1, 2]\nb: *x\n")
    assert read_yaml(tmp_path / "y") == {"a": [1, 2], "b": [1, 2]}
    (tmp_path / "y").write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(
        InputError, match="y, line 1: not valid YAML: could not determine a constructor"
    ):
        read_yaml(tmp_path / "y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [\n", "y, line 3: not valid YAML: while parsing a flow"),
        ("a: *nowhere\n", "y, line 1: not valid YAML: found undefined alias"),
        ("a: 1\nb: \x07\n", "y, line 2: not valid YAML: special characters are not allowed"),
        ("[" * 3000, "y, line 1: not valid YAML: nested too deeply"),
        ("a: " + "1:" * 500 + "1", "y, line 1: not valid YAML: a number of 1001 characters"),
        ("a: 2001-99-99\n", "y, line 1: not valid YAML: ValueError: month must be in"),
        ("a: !!bool maybe\n", "y, line 1: not valid YAML: KeyError"),
        ("a: !!int ''\n", "y, line 1: not valid YAML: IndexError"),
        (
            'a: b\nc: "\\ud800"\n',
            "y, line 2: not valid YAML: half a surrogate pair, which is not text",
        ),
        ("a: &a [*a]\n", r"y: a holds itself \(an alias inside its own anchor\)"),
        ("k: 1\na: 2\nk: 3\n", "y, line 3: not valid YAML: key 'k' is given twice"),
        ("a:\n  - {k: 1, k: 1}\n", "y, line 2: not valid YAML: key 'k' is given twice"),
        ("a: !!timestamp soon\n", "y, line 1: not valid YAML: AttributeError"),
    ],
)
def test_yaml_refuses_by_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "y").write_text(text)
    with pytest.raises(InputError, match=message):
        read_yaml(tmp_path / "y")


def test_aliases_and_merges_count_as_what_they_stand_for(tmp_path: Path) -> None:
    """Thirty anchors that each name the last one twice: a billion values to whoever follows every
    path. Merges of merges grow ninefold a line.
    """
    rows = ["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 31))]
    (tmp_path / "y").write_text("\n".join(rows[:11]))
    assert len(read_yaml(tmp_path / "y")) == 11
    (tmp_path / "y").write_text("\n".join(rows))
    with pytest.raises(InputError, match="y, line 16: .* more than 100000 values, with those of"):
        read_yaml(tmp_path / "y")
    many = ", ".join(["*{0}"] * 9)
    rows = ["a0: &a0 {k: 1, l: 2}"]
    rows += [f"a{i}: &a{i} {{<<: [{many.format(f'a{i - 1}')}]}}" for i in range(1, 12)]
    (tmp_path / "y").write_text("\n".join(rows))
    with pytest.raises(InputError, match="y, line [4-7]: .* more than 100000 values"):
        read_yaml(tmp_path / "y")


def test_json_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "j").write_text('{"a":\n 1,}\n')
    with pytest.raises(
        InputError,
        match="j, line 2: not valid JSON: (Illegal trailing comma|Expecting property name)",
    ):
        read_json_text(tmp_path / "j")
    (tmp_path / "j").write_text("{a}")
    with pytest.raises(InputError, match="j, line 1: not valid JSON: Expecting property name"):
        read_json_text(tmp_path / "j")
    (tmp_path / "j").write_text('{"a":\n 1}\n')
    assert read_json_text(tmp_path / "j") == {"a": 1}


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=40))
def test_any_bytes_are_read_or_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.bin"
    path.write_bytes(content)
    for read in (read_text, read_json_text, read_yaml, lambda where: list(read_jsonl(where))):
        try:
            read(path)
        except InputError as error:
            assert path.name in str(error)
