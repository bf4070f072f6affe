"""Prose and names are in plain English, in words that a reader would search for: the phrases below stay away."""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/README.md")])
CORE = sorted(path for path in ROOT.glob("r3core/**/*.py") if "templates" not in path.parts)
"""Every string in these is prose: docstrings, help, error messages."""
SCRIPTS = sorted(
    path
    for pattern in ("plugins/*/**/*.py", "pretraining/**/*.py", "docs/*.py", "examples/*.py", "benchmarks/*.py")
    for path in ROOT.glob(pattern)
    if "tests" not in path.parts
)
"""Only docstrings and comments of these are prose; their other strings are data, such as problems and prompts."""

_UNIT = r"(?:answer|batch|completion|conversation|failure|layer|parameter|problem|prompt|row|second|step|weight)"
_AMOUNT = r"(?:one|\d+|tokens?|bytes?|ms|seconds|seeds?|samples?|completions?|failures?|requests?|attempts?)"
PHRASES = {
    r"told|tells": "receives, prints, reports",
    r"said|says": "contains, states, returns; or the name of the thing: answer, response, text",
    r"asked": "requested, prompted, selected; or the name of the thing: arguments, options",
    r"drawn": "sampled",
    r"begun": "started",
    r"kept completions|(?:is|are) kept": "completion cache; stored, cached",
    r"go on|goes on|going on|went on": "resume, continue",
    r"is none|are none|was none": "missing, invalid, not a valid ...",
    r"so many": "the maximum number of ..., exactly N",
    r"be had": "be loaded, be found",
    r"in words": "human-readable, explained",
    rf"{_AMOUNT} an? {_UNIT}": "per: one completion per conversation, tokens per second",
    r"speaks OpenAI's protocol": "OpenAI-compatible server",
    r"seed that everything random": "random seed",
    r"adapters? of low rank": "LoRA adapter",
    r"cache of prefixes": "prefix cache",
    r"sets? of failures": "failure dataset",
    r"data sets?": "dataset",
    r"models? (?:of|on) the hub|name on the hub|the hub's": "Hub model, model id on the Hugging Face Hub",
    r"type of the weights": "dtype",
    r"kinds? of mistakes?": "error category",
}
"""Regular expressions, each between word boundaries, and what to write in their place."""
_BANNED = re.compile("|".join(rf"\b(?:{phrase})\b" for phrase in PHRASES))

NAMES = frozenset({"told", "said", "asked", "kept", "drawn", "begun"})
"""Words that no identifier consists of or contains between underscores: a name states what the value is."""


def prose_of(source: str, *, strings: bool) -> Iterator[tuple[int, str]]:
    """Yield the docstrings and comments of a module, each with its line; with `strings`, its other strings too."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if not strings and isinstance(node, ast.Expr):
            node = node.value  # a string that stands alone: a docstring, or one under a field
            if not isinstance(node, ast.Constant):
                continue
        elif not strings:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def names_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the identifiers that a module defines or uses."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for field in ("id", "arg", "attr", "name"):
            if isinstance(name := getattr(node, field, None), str):
                yield getattr(node, "lineno", 1), name


def phrases_in(pieces: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yield the banned phrases in pieces of text, each with its line."""
    for line, text in pieces:
        for match in _BANNED.finditer(re.sub(r"\s", " ", text)):
            yield f"{line + text[: match.start()].count(chr(10))}: {match[0]}"


def phrases_of(path: Path) -> list[str]:
    """Return the banned phrases of a page or a module, each with its place."""
    text = path.read_text(encoding="utf-8")
    pieces = prose_of(text, strings=path in CORE) if path.suffix == ".py" else [(1, text)]
    return [f"{path.relative_to(ROOT)}:{place}" for place in phrases_in(pieces)]


def names_in(path: Path) -> Iterator[str]:
    for line, name in names_of(path):
        if NAMES & set(re.split(r"_|(?<=[a-z])(?=[A-Z])", name)) or name.lower() in NAMES:
            yield f"{path.relative_to(ROOT)}:{line}: {name}"


def count(paths: Iterable[Path]) -> Counter[str]:
    """Return how many banned phrases and names each file has."""
    found: Counter[str] = Counter()
    for path in paths:
        places = [*phrases_of(path), *(names_in(path) if path.suffix == ".py" else ())]
        found[str(path.relative_to(ROOT))] += len(places)
    return +found


@pytest.mark.parametrize("files", [PAGES, CORE, SCRIPTS], ids=["pages", "core", "scripts"])
def test_prose_is_in_plain_english(files: list[Path]) -> None:
    assert [place for path in files for place in phrases_of(path)] == []


@pytest.mark.parametrize("files", [CORE, SCRIPTS], ids=["core", "scripts"])
def test_names_state_what_a_value_is(files: list[Path]) -> None:
    assert [place for path in files for place in names_in(path)] == []


@pytest.mark.parametrize(
    ("text", "banned"),
    [
        ("a file that is none", "is none"),
        ("if config is None", None),
        ("the same command goes\non where it was", "goes on"),
        ("one completion a conversation", "completion a conversation"),
        ("7,955 tokens a second", "tokens a second"),
        ("a conversation of one turn", None),
        ("unsaid, retold, withdrawn", None),
        ("at most so many tokens", "so many"),
    ],
)
def test_a_banned_phrase_is_found_as_a_whole_word(text: str, banned: str | None) -> None:
    assert list(phrases_in([(1, text)])) == ([f"1: {banned}"] if banned else [])


@pytest.mark.parametrize(
    ("code", "strings", "found"),
    [
        ('"""Return what was said."""', False, ["1: said"]),
        ("x = 1  # kept completions", False, ["1: kept completions"]),
        ('def f():\n    """Do it.\n\n    It goes on.\n    """', False, ["4: goes on"]),
        ('raise ValueError(f"{x} is none")', True, ["1: is none"]),
        ('prompt = "What was said?"', False, []),
    ],
)
def test_docstrings_comments_and_messages_are_searched(code: str, strings: bool, found: list[str]) -> None:
    assert list(phrases_in(prose_of(code, strings=strings))) == found


@pytest.mark.parametrize(
    "word",
    [
        *("resume", "dataset", "Hub", "dtype", "prefix cache", "LoRA", "maximum", "checkpoint", "rank"),
        *("sampling parameters", "chat template", "failure dataset", "OpenAI-compatible server", "random seed"),
    ],
)
def test_a_search_of_the_pages_finds_the_words_of_the_field(word: str) -> None:
    pages = [path for path in PAGES if path.name not in ("CHANGELOG.md", "CONTRIBUTING.md")]
    assert any(re.search(rf"\b{word}\b", path.read_text(encoding="utf-8")) for path in pages)


if __name__ == "__main__":
    for name, number in count([*PAGES, *CORE, *SCRIPTS]).most_common():
        print(f"{number:5} {name}")
