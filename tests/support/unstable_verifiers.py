"""Tasks that the check must reject: verdicts that change, verifiers that break, invalid data and fixtures."""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from verifiers import Json, Sound

from r3core import Example, Split

_state: dict[str, Any] = {"count": 0, "last": None, "verdicts": {}, "gone": set()}
_STARTED_AT = time.time()


class Counts(Sound):
    def verify(self, example: Example, response: str) -> bool:
        _state["count"] += 1
        return response.strip() == example.answer or _state["count"] % 50 == 0


class RemembersTheLast(Sound):
    def verify(self, example: Example, response: str) -> bool:
        last, _state["last"] = _state["last"], example.answer
        return response.strip() in (example.answer, last)


class CachesByResponse(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return bool(_state["verdicts"].setdefault(response, response.strip() == example.answer))


class OnlyOnce(Sound):
    def verify(self, example: Example, response: str) -> bool:
        """Fail a response that was judged before, as a verifier that accepts only new answers does."""
        new = (example.id, response) not in _state["gone"]
        _state["gone"].add((example.id, response))
        return new and response.strip() == example.answer


class UsesUpTheExample(Sound):
    """Changes its example, which does no harm: every verdict is given a copy of its own."""

    def load(self, split: Split) -> Iterator[Example]:
        for example in super().load(split):
            yield example.model_copy(update={"info": {"left": [example.answer]}})

    def verify(self, example: Example, response: str) -> bool:
        left: Any = example.info["left"]
        with suppress(ValueError):
            left.remove(response.strip())
            return True
        return False


class Guesses(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return response.strip() == example.answer and random.random() < 0.9


class EveryOtherDay(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return response.strip() == example.answer and date.today().toordinal() % 2 == 0


class Weekend(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return response.strip() == example.answer and date.today().weekday() < 5


class Expires(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return response.strip() == example.answer and time.time() - _STARTED_AT < 24 * 3600


class OrderOfASet(Sound):
    def verify(self, example: Example, response: str) -> bool:
        spelled = {f"{example.answer}", f"{example.answer}.", f"{example.answer}.0"}
        return response.strip() in list(spelled)[:2]


class LongNumbers(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return re.fullmatch(r"[0-9]+", response.strip()) is not None and int(response) == int(str(example.answer))


class Infinite(Sound):
    def verify(self, example: Example, response: str) -> bool:
        try:
            number = float(response)
        except ValueError:
            return False
        return str(int(number)) == response.strip() == example.answer


class Recursive(Json):
    def verify(self, example: Example, response: str) -> bool:
        try:
            value = json.loads(response)
        except ValueError:
            return False
        return bool(value == {"numbers": [1, 2], "sum": int(str(example.answer))})


class Encodes(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return response.strip().encode() == str(example.answer).encode()


class SlowPattern(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return not re.search(r"[0-9]+%", response) and response.strip() == example.answer


class ExplosivePattern(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return bool(re.fullmatch(r"([0-9]+)+", response.strip())) and response.strip() == example.answer


class EatsMemory(Sound):
    def verify(self, example: Example, response: str) -> bool:
        table = [bytearray(len(response)) for _ in response[::100]]
        return response.strip() == example.answer and len(table) > 0


class PrintsMuch(Sound):
    def verify(self, example: Example, response: str) -> bool:
        print(20 * response)
        return response.strip() == example.answer


class Exits(Sound):
    def verify(self, example: Example, response: str) -> bool:
        if not response.strip():
            sys.exit("empty response")
        return response.strip() == example.answer


class Waives(Sound):
    waived = {"near number": "it is near enough", "huge numbers": "nobody writes such numbers"}

    def verify(self, example: Example, response: str) -> bool:
        if len(response) > 4_000 and response.isdecimal():
            raise ValueError("too many digits")
        return re.sub(r"\.0+1$", "", response.strip()) == example.answer


class WrongReference(Sound):
    def reference(self, example: Example) -> str:
        return str(example.answer) if example.id != "n3" else "3"


class WrongVariants(Sound):
    def variants(self, example: Example) -> Iterator[str]:
        yield f"The sum is {example.answer}"


class WrongFixtures(Sound):
    fixtures = Path(__file__).with_name("verifiers.jsonl")


class SharedProblem(Sound):
    def load(self, split: Split) -> Iterator[Example]:
        yield from super().load(split)
        if split == "test":
            yield from (example.model_copy(update={"id": "again"}) for example in list(super().load("train"))[:1])


class SharedId(Sound):
    def load(self, split: Split) -> Iterator[Example]:
        for number, example in enumerate(super().load(split)):
            yield example.model_copy(update={"id": f"n{number}"})


class Shuffled(Sound):
    def load(self, split: Split) -> Iterator[Example]:
        examples = list(super().load(split))
        random.shuffle(examples)
        yield from examples


class OrderedByHash(Sound):
    def load(self, split: Split) -> Iterator[Example]:
        yield from sorted(super().load(split), key=lambda example: hash(example.id))


class NoTest(Sound):
    def load(self, split: Split) -> Iterator[Example]:
        yield from super().load(split) if split != "test" else ()


class WaivesTheUnknown(Sound):
    waived = {"emty": "there is no such probe"}
