"""Settings as they are written in files and on the command line: values are read by the type of their field."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from r3core import ConfigError
from r3core.settings import Text, assignments, merged, nested, read_file, typed


class Language(Enum):
    NORWEGIAN = "no"


class Inner(BaseModel):
    label: str = ""
    count: int = 0


class Options(BaseModel):
    lang: str = "en"
    short: Annotated[str, Field(max_length=9)] = ""
    code: Language | None = None
    mode: Literal["on", "off"] | None = None
    level: Literal[1, "high"] = 1
    path: Path | None = None
    note: str | None = None
    rate: float = 0.0
    sizes: tuple[int, ...] = ()
    inner: Inner = Inner()
    names: dict[str, str] = {}
    free: dict[str, Any] | None = None
    either: int | str = 0


AS_TYPED = [
    *("no", "007", "1e-3", "null", "~", "", " two  spaces ", "Try: again, please", "Costs ${x}", "${oc.env:HOME}"),
    *("a # b", "# b", "[", "{", "[1, 2]", "{a: 1}", "'quoted'", '"quoted"', "a=b", "- x", "2026-01-01", "1:30"),
    *(r"a\nb", "a\nb", "\t", "é", "!!python/name:os.system", "*alias", "&anchor", "%", "@", "`", "true", "???"),
]


@pytest.mark.parametrize("text", AS_TYPED)
def test_text_for_a_string_stays_as_it_was_typed(text: str) -> None:
    for field in ("lang", "short"):
        assert typed({field: Text(text)}, Options) == {field: text}
    assert typed({"inner": {"label": Text(text)}, "names": {"x": Text(text)}}, Options) == {
        "inner": {"label": text},
        "names": {"x": text},
    }
    if text != "null":
        assert typed({"note": Text(text), "path": Text(text)}, Options) == {"note": text, "path": text}


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("note", "null", None),
        ("path", "null", None),
        ("code", "no", "no"),
        ("mode", "on", "on"),
        ("mode", "null", None),
        ("level", "1", 1),
        ("level", "high", "high"),
        ("rate", "1e-3", 0.001),
        ("rate", ".5e3", 500.0),
        ("rate", "1.5E+3", 1500.0),
        ("rate", "null", None),
        ("sizes", "[3, 4]", [3, 4]),
        ("sizes", " 3 ", 3),
        ("inner.count", "007", 7),
        ("inner", "{label: no, count: 1}", {"label": False, "count": 1}),
        ("free", "null", None),
        ("free.scheduler", "cosine", "cosine"),
        ("free.scheduler", "'no'", "no"),
        ("free.scheduler", "no", False),
        ("free.rate", "5e-7", 5e-7),
        ("free.rate", "-3", -3),
        ("free.deep.list", "[a, 1, null]", ["a", 1, None]),
        ("free.empty", "", None),
        ("free.name", "Costs ${x}", "Costs ${x}"),
        ("free.date", "2026-01-01", "2026-01-01"),
        ("free.comment", "a # b", "a"),
        ("either", "3", 3),
        ("unknown", "3", 3),
        ("lang.deeper", "3", 3),
    ],
)
def test_other_text_is_yaml(key: str, text: str, value: object) -> None:
    found = typed(nested({key: Text(text)}), Options)
    assert found == nested({key: value})
    for name in key.split("."):
        found = found[name]
    assert type(found) is type(value)


def test_values_that_were_not_typed_stay_as_they_are() -> None:
    values = {"lang": False, "sizes": "[1]", "path": Path("x")}
    assert typed(values, Options) == values


def test_text_that_is_not_yaml_is_named_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"`inner.count=\[1` cannot be read: "):
        typed({"inner": {"count": Text("[1")}}, Options)


def test_an_assignment_is_split_at_its_first_equals_sign() -> None:
    given = ["a.b=c=d", "e=", "f= g\nh "]
    assert assignments(given, flag="--set", example="") == [("a.b", "c=d"), ("e", ""), ("f", " g\nh ")]


@pytest.mark.parametrize("text", ["", "a", "=a", "a b=c"])
def test_what_is_not_an_assignment_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="is not of the form name=value\nhint: for example --lora r=32"):
        assignments([text], flag="--lora", example="r=32")


@pytest.mark.parametrize(
    ("layers", "tree"),
    [
        ([{"a": {"b": 1}}, {"a": {"c": 2}}], {"a": {"b": 1, "c": 2}}),
        ([{"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2, "d": 3}}}], {"a": {"b": {"c": 2, "d": 3}}}),
        ([{"a": [1, 2]}, {"a": [3]}], {"a": [3]}),
        ([{"a": {"b": 1}}, {"a": None}], {"a": None}),
        ([{"a": None}, {"a": {"b": 1}}], {"a": {"b": 1}}),
        ([{"a": {"b": 1}}, {"a": {}}], {"a": {"b": 1}}),
        ([], {}),
    ],
)
def test_layers_are_merged_key_by_key(layers: list[dict[str, Any]], tree: dict[str, Any]) -> None:
    before = [str(layer) for layer in layers]
    assert merged(*layers) == tree
    assert [str(layer) for layer in layers] == before


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {}),
        ("# only a comment\n", {}),
        (
            "grpo: {learning_rate: 5e-7, run_name: 2026-01-01}",
            {"grpo": {"learning_rate": 5e-7, "run_name": "2026-01-01"}},
        ),
        (
            "wording: {retry: 'Costs ${x}'}\nmodel: ${nowhere}",
            {"wording": {"retry": "Costs ${x}"}, "model": "${nowhere}"},
        ),
        ("wording:\n  retry: |-\n    Two\n    lines", {"wording": {"retry": "Two\nlines"}}),
        ("a: &a {b: 1}\nc: {<<: *a, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
    ],
)
def test_a_file_is_plain_yaml(tmp_path: Path, text: str, settings: dict[str, Any]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    assert read_file(path) == settings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"mine: [", "cannot be read: "),
        (b"- a list", "should map keys to values"),
        (b"a: 1\na: 2", "repeated key: a"),
        (b"a: {b: 1, b: 2}", "repeated key: b"),
        (b"a: !!python/name:os.system x", "cannot be read: could not determine a constructor"),
        (b"a: \xff", "cannot be read: "),
    ],
)
def test_a_file_that_is_not_settings_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_file(path)
    assert caught.value.message.startswith(f"the configuration file {path} ")
    assert message in caught.value.message
