"""Whether a text gives a Countdown problem's answer away, tagged as an answer or not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from r3_plugin_countdown import expression
from r3_plugin_countdown.answer import MAX_RESPONSE

_MAX_TEXT = MAX_RESPONSE
_MAX_STEPS = 1_000
_MAX_STATES = 500

_LIST_LABEL = re.compile(r"^[ \t]*[0-9]{1,3}[.)][ \t]+", re.MULTILINE)
_RUN = re.compile(r"[0-9+\-*/() \t]+")
_AROUND = " \t+-*/"
_STATED = re.compile(r"(?:=|->|→|is|gives|makes|equals)[ \t]*(-?[0-9]+(?:\.[0-9]+)?)")


class _Step(NamedTuple):
    used: tuple[int, ...]
    value: int
    sound: bool  # False when the text states another result


def gives_away(text: str, numbers: Sequence[int], target: int) -> bool:
    """Return whether the text's arithmetic leads from the given numbers to the target.

    A step is an expression of at least two numbers, without or with its right result ("9 * 5 = 45"). It takes numbers
    that are available and puts its value back. Steps count in the order of the text, with others in between (a search
    has tries that fail). A single expression that uses all numbers and makes the target counts even if the text states
    another result. Steps with fractions in between are not seen. The search ends after 1,000 steps or 500 different
    hands.
    """
    goal, start = (target,), tuple(sorted(numbers))
    hands = {start}
    for step in _steps(text):
        if step.used == start and step.value == target:
            return True
        if not step.sound:
            continue
        hands |= {_play(hand, step) for hand in hands if _holds(hand, step.used)}
        if goal in hands and len(start) > 1:
            return True
        if len(hands) > _MAX_STATES:
            return False
    return False


def _holds(hand: tuple[int, ...], used: tuple[int, ...]) -> bool:
    return len(used) <= len(hand) and all(hand.count(number) >= used.count(number) for number in used)


def _play(hand: tuple[int, ...], step: _Step) -> tuple[int, ...]:
    left = list(hand)
    for number in step.used:
        left.remove(number)
    return tuple(sorted([*left, step.value]))


def _steps(text: str) -> Iterator[_Step]:
    """Yield the expressions of a text that have a whole value, in their order."""
    plain = _LIST_LABEL.sub("", expression.plain(text[:_MAX_TEXT]))
    seen = 0
    for run in _RUN.finditer(plain):
        written = _trim(run.group())
        try:
            tokens = expression.tokenize(written)
            used = tuple(sorted(int(token) for token in tokens if token.isdecimal()))
            if len(used) < 2:
                continue
            seen += 1
            if seen > _MAX_STEPS:
                return
            value = expression.compute(tokens)
        except expression.Wrong:
            continue
        if value.q == 1:
            stated = _STATED.match(plain, run.end())
            yield _Step(used, int(value), stated is None or stated.group(1) == str(value))


def _trim(run: str) -> str:
    """Return a run without what belongs to the sentence around it: bullets, bold marks, half a pair of parentheses."""
    run = run.strip(_AROUND)
    if len(run) > expression.MAX_EXPRESSION:
        return ""
    while run.startswith("(") and run.count("(") > run.count(")"):
        run = run[1:].strip(_AROUND)
    while run.endswith(")") and run.count(")") > run.count("("):
        run = run[:-1].strip(_AROUND)
    return run
