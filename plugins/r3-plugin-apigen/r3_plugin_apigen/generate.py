"""A seeded generator of function-calling problems: a query in English, tools, and the calls that it asks for.

A query determines its calls: every argument of a call is written in the form that the schema requires, or in one that
is plainly equivalent (`7:30 pm`, `March 3, 2026`, `seven`), and no two tools of a split do the same.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from pydantic import JsonValue

from r3_plugin_apigen.catalog import Form, forms
from r3_plugin_apigen.values import draw_unlike
from r3_plugin_apigen.words import Stated, choose
from r3core import Example, Split

_T = TypeVar("_T")

MOST_CALLS = 4
MOST_DISTRACTORS = 8
SIZES: dict[Split, int] = {"train": 20_000, "validation": 5_000, "test": 5_000}
"""How many problems a split has at most."""
_DRAWS_PER_PROBLEM = 2_000  # draws without a new problem after which the space counts as exhausted
_SAME_TOOL = 0.2  # of the further calls use a tool that the query has already requested

_QUESTIONS = ("What", "How", "Which", "Is", "Are", "Where", "When")
# {A} begins with a capital letter, {a} does not
_REQUEST = (
    "{A}.",
    "{A}.",
    "{A}.",
    "Please {a}.",
    "{A}, please.",
    "Can you {a}?",
    "Could you {a}?",
    "I want you to {a}.",
)
_QUESTION = ("{A}?", "{A}?", "{A}?", "Tell me: {a}?")
_NEXT_REQUEST = ("{A}.", "Also, {a}.", "Then {a}.", "After that, {a}.", "And please {a}.")
_NEXT_QUESTION = ("{A}?", "Also, {a}?", "And {a}?")
_TWO_REQUESTS = ("{A}, and also {b}.", "{A} and then {b}.", "Please {a}, and {b}.", "Can you {a} and also {b}?")
_IN_ONE_SENTENCE = 0.5  # of the pairs of requests


class Space(NamedTuple):
    """The problems that the generator draws from."""

    calls: tuple[int, ...] = (1,)
    """Numbers of calls that a query may request; with 0, no offered tool fits and the answer is the empty list."""
    distractors: int = 1
    """How many tools are offered that no call needs (one at least with 0 calls); half of them, rounded up, are of the
    same domain as far as there are such."""
    optional: float = 0.5
    """The share of the optional arguments that queries state."""
    nested: bool = False
    """Whether tools may take objects as arguments."""
    terse: bool = True
    """Whether schemas are small: parameters have no descriptions and ranges, and a tool has at most one optional
    argument."""


class Request(NamedTuple):
    """A call that the query requests, and the text that requests it."""

    form: Form
    stated: dict[str, Stated]
    """The arguments that the query states, by their names in the form."""
    text: str

    @property
    def call(self) -> dict[str, JsonValue]:
        """The call as a value of JSON."""
        return {"name": self.form.name, "arguments": {name: value for name, (value, _) in self.stated.items()}}

    @property
    def question(self) -> bool:
        return self.text.split()[0] in _QUESTIONS


class Problem(NamedTuple):
    """A query, the tools on offer, and the expected calls."""

    query: str
    offered: list[Form]
    requests: list[Request]
    """What the query asks for; for no calls, something that no tool on offer does."""
    calls: list[dict[str, JsonValue]]

    def example(self) -> Example:
        """Return the problem as an example of the task."""
        tools: list[JsonValue] = [form.offer for form in self.offered]
        content = json.dumps([self.query, tools, self.calls], sort_keys=True).encode()
        name = self.calls[0]["name"] if self.calls else "nothing"
        digest = hashlib.sha256(content).hexdigest()[:12]
        info = {"query": self.query, "tools": tools}
        return Example.model_validate({"id": f"{name}-{digest}", "answer": self.calls, "info": info})


def fault(space: Space) -> str | None:
    """Return why no problem can be in a space, or `None` when some may be."""
    if not space.calls or not all(0 <= count <= MOST_CALLS for count in space.calls):
        return f"calls={list(space.calls)} should be numbers from 0 to {MOST_CALLS}, one at least"
    if not 0 <= space.distractors <= MOST_DISTRACTORS:
        return f"distractors={space.distractors} is not between 0 and {MOST_DISTRACTORS}"
    if not 0 <= space.optional <= 1:
        return f"optional={space.optional} is not between 0 and 1"
    return None


def generate(space: Space, split: Split, seed: int) -> Iterator[Example]:
    """Yield distinct problems of one split, until their number is that of `SIZES` or no new ones are found.

    The splits share no tool. No two problems of a split ask the same, or for the same calls, except for none.
    """
    rng = random.Random(f"{space}{split}{seed}")
    known = forms(split, nested=space.nested, terse=space.terse)
    seen: set[str] = set()
    made = idle = 0
    while made < SIZES[split] and idle < _DRAWS_PER_PROBLEM:
        idle += 1
        problem = draw(rng, known, space)
        calls = sorted(json.dumps(call, sort_keys=True) for call in problem.calls)
        keys = {problem.query, " ".join(calls) or problem.query}
        if seen.isdisjoint(keys) and len(set(calls)) == len(calls):
            seen |= keys
            made += 1
            idle = 0
            yield problem.example()


def draw(rng: random.Random, known: Sequence[Sequence[Form]], space: Space) -> Problem:
    """Draw a problem from tools, each of which is known in some forms; two of its calls may be the same."""
    count = choose(rng, space.calls)
    wanted, offered = _choose_forms(rng, known, count, space.distractors)
    requests = [_request(rng, form, space.optional) for form in wanted]
    return Problem(_compose(rng, requests), offered, requests, [request.call for request in requests[:count]])


def ask_for(rng: random.Random, form: Form, offered: list[Form], *, optional: float) -> Problem:
    """Draw a problem that asks for one call of a tool."""
    request = _request(rng, form, optional)
    return Problem(_compose(rng, [request]), offered, [request], [request.call])


def _choose_forms(
    rng: random.Random, known: Sequence[Sequence[Form]], count: int, distractors: int
) -> tuple[list[Form], list[Form]]:
    """Return the form of the tool that each request asks for, and all forms on offer, in any order.

    For no calls there is a request nevertheless: for a tool that is not on offer.
    """
    shuffled = [choose(rng, known[index]) for index in _shuffle(rng, range(len(known)))]
    wanted = [shuffled.pop()]
    while len(wanted) < count:
        wanted.append(choose(rng, wanted) if rng.random() < _SAME_TOOL else shuffled.pop())
    domains = {form.tool.domain for form in wanted}
    near = [form for form in shuffled if form.tool.domain in domains]
    far = [form for form in shuffled if form.tool.domain not in domains]
    distractors = distractors if count else max(distractors, 1)
    others = near[: (distractors + 1) // 2]
    others += far[: distractors - len(others)]
    needed = list({form.name: form for form in wanted}.values()) if count else []
    return wanted, _shuffle(rng, [*needed, *others])


def _request(rng: random.Random, form: Form, optional: float) -> Request:
    """Sample a call of a tool and the text that requests it."""
    stated: dict[str, Stated] = {}
    ask, more = choose(rng, form.tool.asks), ""
    for name, value in form.tool.takes.items():
        if name not in form.arguments or (value.optional and rng.random() >= optional):
            continue
        others = [one for one in stated.values() if isinstance(one.value, str)]
        stated[name] = draw_unlike(lambda value=value: value.ask(rng), others)  # type: ignore[misc]
        if value.optional:
            more += " " + (value.say or "{}").format(stated[name].text)
    texts = {name: one.text for name, one in stated.items()}
    return Request(form, {form.arguments[name]: one for name, one in stated.items()}, ask.format_map(texts) + more)


def _compose(rng: random.Random, requests: Sequence[Request]) -> str:
    """Put requests into sentences."""
    if len(requests) == 2 and not any(one.question for one in requests) and rng.random() < _IN_ONE_SENTENCE:
        return _fill(choose(rng, _TWO_REQUESTS), *(one.text for one in requests))
    first, *others = requests
    sentences = [_fill(choose(rng, _QUESTION if first.question else _REQUEST), first.text)]
    for one in others:
        sentences.append(_fill(choose(rng, _NEXT_QUESTION if one.question else _NEXT_REQUEST), one.text))
    return " ".join(sentences)


def _fill(pattern: str, one: str, other: str = "") -> str:
    return pattern.format(A=one[:1].upper() + one[1:], a=one[:1].lower() + one[1:], b=other[:1].lower() + other[1:])


def _shuffle(rng: random.Random, items: Sequence[_T]) -> list[_T]:
    return [item for _, item in sorted(((rng.random(), item) for item in items), key=lambda pair: pair[0])]
