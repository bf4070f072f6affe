"""Verifiers for the check: sound ones, which must pass the check, and ones that let one kind of wrong answer pass."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from difflib import SequenceMatcher
from fnmatch import fnmatchcase

from r3core import Example, Split, Task, Verdict

FIRST: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}
ANSWERS = {str(51 + 8 * number) for number in range(60)}


class Sound(Task):
    """Add two numbers; nothing but the sum passes."""

    name = "sound"

    def load(self, split: Split) -> Iterator[Example]:
        for number in range(FIRST[split], 60, 3):
            one, other = 20 + number, 31 + 7 * number
            prompt = f"What is {one} + {other}? Answer with the number alone."
            yield Example(id=f"n{number}", prompt=prompt, answer=str(one + other))

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return response.strip() == example.answer

    def reference(self, example: Example) -> str | None:
        return str(example.answer)


class Tagged(Sound):
    """The sum in a tag, after any thoughts: a response ends with its one tag."""

    waived = {"negated": "what comes before the tag is thinking"}

    def verify(self, example: Example, response: str) -> Verdict:
        before, _, answer = response.strip().removesuffix("</answer>").partition("<answer>")
        ends = response.strip().endswith("</answer>")
        right = ends and "</answer>" not in before and answer.strip() == example.answer
        return Verdict.passed() if right else Verdict.failed("it does not end with a tag that holds the sum")

    def reference(self, example: Example) -> str:
        return f"<answer>{example.answer}</answer>"


class Json(Sound):
    """The sum as a JSON object, in any layout."""

    def verify(self, example: Example, response: str) -> bool:
        try:
            value = json.loads(response)
        except (ValueError, RecursionError):
            return False
        return bool(value == {"numbers": [1, 2], "sum": int(str(example.answer))})

    def reference(self, example: Example) -> str:
        return f'{{"numbers": [1, 2], "sum": {example.answer}}}'


class YesOrNo(Sound):
    """State whether a sum is even; there are two possible answers."""

    def verify(self, example: Example, response: str) -> bool:
        return response.strip().rstrip(".").lower() == self.reference(example)

    def reference(self, example: Example) -> str:
        return "yes" if int(example.id[1:]) % 2 else "no"


class Words(Sound):
    """Answers that are texts, in capitals or not."""

    def verify(self, example: Example, response: str) -> bool:
        return response.strip().lower() == self.reference(example)

    def reference(self, example: Example) -> str:
        letters = str(example.answer).translate(str.maketrans("0123456789", "abcdefghij"))
        return f"the word is {letters}"


class NoReference(Sound):
    """A task without references."""

    def reference(self, example: Example) -> str | None:
        return None


class NothingPasses(NoReference):
    def verify(self, example: Example, response: str) -> bool:
        return all(sign in str(example.answer) for sign in response)


class Substring(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return str(example.answer) in response


class Within(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return response.strip() in str(example.answer)


class FirstNumber(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return re.findall(r"[0-9]+", response)[:1] == [example.answer]


class LastNumber(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return re.findall(r"[0-9]+", response)[-1:] == [example.answer]


class AnyLine(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return str(example.answer) in response.splitlines()


class OnlyTheBeginning(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return response[:1_000].strip() == example.answer


class OnlyTheEnd(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return response[-300:].strip() == example.answer


class LastTag(Tagged):
    def verify(self, example: Example, response: str) -> Verdict:
        answer = re.findall(r"<answer>(.*?)</answer>", response)
        return Verdict.passed() if answer[-1:] == [example.answer] else Verdict.failed()


class AnythingInTheTag(Tagged):
    def verify(self, example: Example, response: str) -> Verdict:
        answer = re.fullmatch(r"<answer>(.*)</answer>", response.strip())
        return Verdict.passed() if answer and str(example.answer) in answer[1].split() else Verdict.failed()


class Prefix(Sound):
    def verify(self, example: Example, response: str) -> bool:
        answer = response.strip()
        return len(answer) > 0 and str(example.answer).startswith(answer)


class Similar(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return SequenceMatcher(None, response[:100], str(example.answer)).ratio() > 0.6


class Wildcard(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return fnmatchcase(str(example.answer), response[:20])


class Tolerant(Sound):
    def verify(self, example: Example, response: str) -> bool:
        with suppress(ValueError):
            return abs(float(response) - float(str(example.answer))) < 0.01
        return False


class OneOff(Sound):
    def verify(self, example: Example, response: str) -> bool:
        answer = response.strip()
        return bool(re.fullmatch(r"[0-9]{1,9}", answer)) and abs(int(answer) - int(str(example.answer))) <= 1


class NotANumber(Sound):
    def verify(self, example: Example, response: str) -> bool:
        try:
            return not abs(float(response) - float(str(example.answer))) > 0
        except ValueError:
            return False


class Claims(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return response.strip() == example.answer or '"correct": true' in response


class Calculates(Sound):
    def verify(self, example: Example, response: str) -> bool:
        answer = re.search(r"\b([0-9]{1,3}) \+ ([0-9]{1,3})\b", response)
        return response.strip() == example.answer or (
            answer is not None and str(int(answer[1]) + int(answer[2])) in ANSWERS
        )


class LongIsGood(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return response.strip() == example.answer or len(response) > 100_000


class IgnoresExample(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return response.strip() in ANSWERS


class DigitsOfAnyScript(Sound):
    def verify(self, example: Example, response: str) -> bool:
        answer = response.strip()
        return answer.isdecimal() and len(answer) < 20 and int(answer) == int(str(example.answer))


class Compatible(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return unicodedata.normalize("NFKC", response).strip() == example.answer


class Invisible(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return "".join(sign for sign in response if unicodedata.category(sign) != "Cf").strip() == example.answer


class Uncommented(Sound):
    def verify(self, example: Example, response: str) -> bool:
        return re.sub(r"^<!--|-->$", "", response).strip() == example.answer


class ErrorsPass(Sound):
    def verify(self, example: Example, response: str) -> bool:
        try:
            return int(response) == int(str(example.answer))
        except ValueError:
            return True


class Evaluates(Sound):
    def verify(self, example: Example, response: str) -> bool:
        with suppress(Exception):
            return str(eval(response[:200])) == example.answer
        return False


class EvaluatesWithoutBuiltins(Sound):
    def verify(self, example: Example, response: str) -> bool:
        with suppress(Exception):
            return str(eval(response[:200], {"__builtins__": {}})) == example.answer
        return False
