import json
import operator
import re
import subprocess
import sys
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r3_plugin_countdown import expression
from r3_plugin_countdown.data import problem
from r3_plugin_countdown.task import Countdown
from r3core import Example, Verdict

TASK = Countdown()
EXAMPLE = problem([9, 5, 7], 52)
FIXTURES = [json.loads(line) for line in Countdown.fixtures.read_text(encoding="utf-8").splitlines()]
PROMPT = TASK.prompt(EXAMPLE)


def evaluate(text):
    return expression.compute(expression.tokenize(text))


def judge(response):
    return TASK.verify(EXAMPLE, response)


@pytest.mark.parametrize("row", FIXTURES, ids=[row["why"].replace(" ", "-") for row in FIXTURES])
def test_fixtures_get_the_verdict_they_state(row):
    assert TASK.verify(Example.model_validate(row["example"]), row["response"]).outcome == row["outcome"]


@pytest.mark.parametrize("row", FIXTURES, ids=[row["why"].replace(" ", "-") for row in FIXTURES])
def test_the_error_category_is_the_reason_without_the_numbers(row):
    verdict = TASK.verify(Example.model_validate(row["example"]), row["response"])
    assert verdict.kind == re.sub("^it equals .*", "it equals another number", verdict.reason)
    assert (verdict.kind == "") is (row["outcome"] == "pass")


def test_fixtures_hold_both_outcomes_and_no_row_twice():
    assert {row["outcome"] for row in FIXTURES} == {"pass", "fail"}
    assert len({(str(row["example"]), row["response"]) for row in FIXTURES}) == len(FIXTURES)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("<answer>9 * 5 - 7</answer>", "it equals 38, not 52"),
        ("<answer>9 / 5 + 7</answer>", "it equals 44/5, not 52"),
        ("<answer>9 * 5</answer>", "it does not use every given number exactly once"),
        ("<answer>95 + 7</answer>", "it does not use every given number exactly once"),
        ("<answer>9 * 5 + 7 = 51</answer>", "it states another result"),
        ("<answer>9 * 5 - 7 = 52</answer>", "it equals 38, not 52"),
        ("<answer>9 * 5 + 7 = 45 + 7 = 52</answer>", "only whole numbers, + - * / and parentheses are allowed"),
        ("<answer>9 * 5 + 7 is it</answer>", "only whole numbers, + - * / and parentheses are allowed"),
        ("<answer>९ * 5 + 7</answer>", "only whole numbers, + - * / and parentheses are allowed"),
        ("<answer>9 ** 5 + 7</answer>", "** and // are not allowed"),
        ("<answer>9 // 5 + 7</answer>", "** and // are not allowed"),
        ("<answer>-9 * 5 + 7</answer>", "it equals -38, not 52"),
        ("<answer>9 * -5 + 7</answer>", "a sign before a number is not allowed"),
        ("<answer>+9 * 5 + 7</answer>", "a sign before a number is not allowed"),
        ("<answer></answer>", "there is no answer between answer tags"),
        ("<answer>no way</answer>", "only whole numbers, + - * / and parentheses are allowed"),
        ("<answer>9 * 5 + 7 +</answer>", "it is not a complete expression"),
        ("<answer>(9 * 5 + 7</answer>", "it is not a complete expression"),
        ("<answer>9 * 5 + 7)</answer>", "it is not a complete expression"),
        ("<answer>9 * (5 ** 7)</answer>", "** and // are not allowed"),
        ("<answer>9(5 + 7)</answer>", "it is not a complete expression"),
        ("9 * 5 + 7", "there is no answer between answer tags"),
        ("<answer>9 * 5 + 7", "an answer tag has no partner"),
        ("</answer>9 * 5 + 7<answer>", "an answer tag has no partner"),
        ("<answer>9 * 5 + 7</answer><answer>9 * 5 - 7</answer>", "it gives several different answers"),
        (f"<answer>{'9' * 201}</answer>", "the answer is too long"),
        (f"<answer>{'(' * 25}9{')' * 25}</answer>", "the answer is too long"),
        ("." * 200_001, "the response is too long"),
    ],
)
def test_a_failed_verdict_has_a_reason(response, reason):
    assert (judge(response).outcome, judge(response).reason) == ("fail", reason)


def test_a_division_by_zero_is_named():
    assert TASK.verify(problem([9, 5, 5], 9), "<answer>9 / (5 - 5)</answer>").reason == "it divides by zero"


@pytest.mark.parametrize(
    "text", ["", " ", "()", "9 5", "05", "9 +", "* 9", "(9", "9)", ")9(", "9 * * 5", "(9)(5)", "9 (5)"]
)
def test_what_is_no_expression_has_no_value(text):
    with pytest.raises(expression.Wrong, match="it is not a complete expression"):
        evaluate(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("20 - 5 - 3", 12), ("24 / 4 / 2", 3), ("2 + 3 * 4", 14), ("(2 + 3) * 4", 20), ("20 - (5 - 3)", 18), ("((0))", 0)],
)
def test_operators_bind_as_usual(text, value):
    assert evaluate(text) == value


@pytest.mark.parametrize(
    "written",
    [
        "9 × 5 + 7",  # noqa: RUF001
        "9 · 5 + 7",
        "9x5 + 7",
        r"9 \times 5 + 7",
        r"\left( 9 \cdot 5 \right) + 7",
        r"$9\,\ast\,5 + 7$",
        r"\(9 * 5 + 7\)",
        r"\[9 * 5 + 7\]",
        "9 * 5 + 7 = 52",
        "9 * 5 + 7 = $52$.",
        "52 = 9 * 5 + 7",
        "9 * 5 + 7.",
        "**9 * 5 + 7**.",
        "`9 * 5 + 7`",
        '"9 * 5 + 7"',
        "```\n9 * 5 + 7\n```",
        "```text\n9 * 5 + 7\n```",
        r"$\boxed{9 * 5 + 7 = 52}$",
        "\n9 * 5\n+ 7\n",
    ],
)
def test_an_expression_may_be_written_as_models_write_it(written):
    assert judge(f"<answer>{written}</answer>") == Verdict.passed()


@pytest.mark.parametrize(
    ("numbers", "target", "written"),
    [
        ([5, 3, 2], 4, "-3 + 5 + 2"),
        ([5, 3, 2], 6, "5 - (-3) - 2"),
        ([5, 3, 2], 4, "5 − 3 + 2"),  # noqa: RUF001
        ([5, 3, 2], 4, "5 – 3 + 2"),  # noqa: RUF001
        ([8, 4, 3], 6, "8 ÷ 4 * 3"),
        ([8, 4, 3], 6, r"8 \div 4 * 3"),
    ],
)
def test_signs_are_read_as_they_are_meant(numbers, target, written):
    assert TASK.verify(problem(numbers, target), f"<answer>{written}</answer>") == Verdict.passed()


RIGHT, WRONG = "<answer>9 * 5 + 7</answer>", "<answer>9 * 5 - 7</answer>"
SEVERAL, UNPAIRED = "it gives several different answers", "an answer tag has no partner"


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (f"{WRONG} makes 38. {RIGHT}", ""),
        (f"{WRONG} no, {WRONG} no, {RIGHT}", ""),
        (f"{RIGHT} makes 52. {WRONG}", "it equals 38, not 52"),
        (f"{WRONG}{RIGHT}", SEVERAL),
        (f"{WRONG} or {RIGHT}", SEVERAL),
        (f"{WRONG}, Or: {RIGHT}", SEVERAL),
        (f"{WRONG} = 38; {RIGHT} = 52", SEVERAL),
        (f"Try: {WRONG} no. {WRONG}\n{RIGHT}", SEVERAL),
        (f"{WRONG} <answer></answer> {RIGHT}", SEVERAL),
        (f"{RIGHT}\n<answer>9 × 5 + 7 = 52</answer>", ""),  # noqa: RUF001
        (f"<answer>answer</answer>{RIGHT}", ""),
        (f"{RIGHT} No: <answer>none</answer>", "only whole numbers, + - * / and parentheses are allowed"),
        (f"<answer></answer>, <answer>...</answer>, <answer> </answer> {RIGHT}", ""),
        (f"{RIGHT} in `<answer></answer>`", ""),
        (f"The tag <answer> opens and </answer> closes: {RIGHT}", ""),
        (f"<answer> is the tag. {RIGHT}", ""),
        (f"{RIGHT} closes with </answer>", ""),
        (f"{RIGHT} opens with <answer> as the task demands", ""),
        (f"{RIGHT} and <answer>", UNPAIRED),
        (f"{RIGHT} and <answer> (9", UNPAIRED),
        (f"{RIGHT} + 1</answer>", UNPAIRED),
        (f"{RIGHT}{RIGHT[:-1]}", UNPAIRED),
        ("<answer><answer>9 * 5 + 7</answer></answer>", ""),
        ("<answer> and </answer>", "there is no answer between answer tags"),
    ],
)
def test_the_last_block_is_the_answer_and_a_bare_list_is_none(response, reason):
    assert judge(response) == (Verdict.failed(reason, kind=judge(response).kind) if reason else Verdict.passed())


def test_a_list_of_all_candidates_passes_in_no_order():
    candidates = [f"<answer>9 {a} 5 {b} 7</answer>" for a in "+-*/" for b in "+-*/"]
    for apart in ("", " ", "\n", ", ", " or ", " = 38, "):
        for turn in range(len(candidates)):
            assert judge(apart.join(candidates[turn:] + candidates[:turn])).reason == SEVERAL


def test_blocks_that_differ_in_spaces_only_are_one_answer():
    assert judge("<answer>9 * 5 + 7</answer> that is <answer>\n9*5+7 </answer>").outcome == "pass"


def test_a_space_between_digits_makes_another_answer():
    assert judge("<answer>95 + 7</answer><answer>9 5 + 7</answer>").reason == "it gives several different answers"


def test_the_echoed_prompt_is_no_answer_and_does_not_spoil_one():
    assert judge(PROMPT).reason == "there is no answer between answer tags"
    assert judge(f"{PROMPT} <answer>9 * 5 + 7</answer>").outcome == "pass"
    assert judge(f"{PROMPT} <answer>9 * 5 - 7</answer>").outcome == "fail"


def test_an_answer_is_never_executed(tmp_path):
    trace = tmp_path / "trace"
    attack = f"__import__('os').system('touch {trace}')"
    for response in (f"<answer>{attack}</answer>", f"<answer>9 * 5 + 7 + {attack}</answer>", attack):
        assert judge(response).outcome == "fail"
        TASK.leaks(EXAMPLE, response)
    assert not trace.exists()


@pytest.mark.parametrize("size", [200, 100_000, 1_000_000])
@pytest.mark.parametrize(
    "unit", ["(", "-", "9", " ", "9 ", "9+", "((9)*5)+", "<answer>", "</answer>", "<answer>1</answer>", "\n", "٣"]
)
def test_long_responses_take_bounded_time(unit, size):
    text = unit * (size // len(unit))
    began = time.perf_counter()
    for response in (text, f"<answer>{text}</answer>", f"<answer>9 * 5 + 7</answer>{text}"):
        judge(response)
    assert time.perf_counter() - began < 3


def test_whole_values_have_no_limit_below_the_length_of_an_expression():
    numbers = [999_999_999] * 12
    text = " * ".join(map(str, numbers))
    assert TASK.verify(problem(numbers, 999_999_999**12), f"<answer>{text}</answer>").outcome == "pass"


def test_an_expression_of_twelve_large_numbers_in_nested_parentheses_fits():
    text = "999999999"
    for _ in range(11):
        text = f"({text} + 999999999)"
    assert len(text) <= expression.MAX_EXPRESSION
    assert evaluate(text) == 12 * 999_999_999


def test_arithmetic_is_exact():
    value = evaluate("1 / 3 + 1 / 3 + 1 / 3")
    assert value == 1
    assert type(value).__module__.startswith("sympy.")


ARITHMETIC = st.text(alphabet="0123456789+-*/() ", max_size=60)
TAGGED = st.builds("".join, st.lists(st.sampled_from(["<answer>", "</answer>", "9", "5", "7", "*", "+", " ", "and"])))


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), TAGGED, ARITHMETIC, ARITHMETIC.map("<answer>{}</answer>".format)))
def test_no_response_makes_the_verifier_raise(response):
    assert judge(response).outcome in ("pass", "fail")
    assert TASK.leaks(EXAMPLE, response) in (True, False)


OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def combine(parts):
    """Join two (text, value) pairs; the value is None once something is divided by zero."""
    return st.tuples(parts, st.sampled_from("+-*/"), parts).map(
        lambda it: (
            f"({it[0][0]} {it[1]} {it[2][0]})",
            None
            if it[0][1] is None or it[2][1] is None or (it[1] == "/" and it[2][1] == 0)
            else OPERATORS[it[1]](it[0][1], it[2][1]),
        )
    )


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.integers(0, 99).map(lambda n: (str(n), Fraction(n))), combine, max_leaves=8))
def test_values_are_those_of_exact_fractions(pair):
    text, value = pair
    if value is None:
        with pytest.raises(expression.Wrong, match="it divides by zero"):
            evaluate(text)
    else:
        found = evaluate(text)
        assert Fraction(int(found.p), int(found.q)) == value


def test_importing_the_plugin_imports_nothing_heavy():
    code = (
        "import sys, r3_plugin_countdown.task; "
        "print([name for name in ('sympy', 'datasets', 'pandas', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
