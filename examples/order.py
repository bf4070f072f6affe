"""Turn an order in plain English into JSON: one gold answer, compared value by value."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable
from typing import Any

from pydantic import Field

from r3core import Example, Split, Task, Verdict, hookimpl

PEOPLE = ("Ada", "Grace", "Linus", "Mary", "Rosa")
GOODS = ("apples", "candles", "lemons", "pencils", "plates", "roses")
FENCE = re.compile(r"```(?:json)?\n(.*)\n```", re.DOTALL)
SPLITS: dict[Split, range] = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}


class Order(Task):
    """Write an order as JSON, with the customer's name and the number of each good."""

    name = "order"

    most: int = Field(default=6, ge=1)
    """The largest number of one good."""

    def load(self, split: Split) -> Iterable[Example]:
        numbers = range(1, self.most + 1)
        for person, goods, counts in itertools.product(
            PEOPLE, itertools.combinations(GOODS, 2), itertools.product(numbers, numbers)
        ):
            gold: dict[str, Any] = {"customer": person, "items": dict(zip(goods, counts, strict=True))}
            key = json.dumps(gold)
            if hashlib.sha256(key.encode()).digest()[0] % 10 in SPLITS[split]:
                yield Example(id=key, prompt=_request(gold), answer=gold)

    def verify(self, example: Example, response: str) -> Verdict:
        text = response.strip()
        fenced = FENCE.fullmatch(text)
        try:
            value = json.loads(fenced[1] if fenced else text, object_pairs_hook=_without_repeats)
            # Compared as text, because in Python 3 == 3.0 and 1 == True. The order of keys does not matter.
            same = json.dumps(value, sort_keys=True) == json.dumps(example.answer, sort_keys=True)
        except (ValueError, RecursionError) as error:  # invalid JSON is a wrong answer, not an error of the verifier
            return Verdict.failed(f"it is not JSON: {error}")
        return Verdict.passed() if same else Verdict.failed("another customer, good or number was ordered")

    def reference(self, example: Example) -> str:
        return json.dumps(example.answer)


def _request(gold: dict[str, Any]) -> str:
    (one, few), (other, many) = gold["items"].items()
    return (
        f"{gold['customer']} wants {few + many} things from us: {many} of them are {other}, the rest are {one}.\n"
        'Write this order as JSON like {"customer": "...", "items": {"...": 0}}, and nothing else.'
    )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


@hookimpl
def r3_tasks() -> list[type[Task]]:
    return [Order]
