"""Faults of a task class are tested on source code, as an author writes it."""

import sys
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from toy import Toy

from r3core import Example, Split, Task, TaskError
from r3core.dataset import load_examples
from r3core.plugins.diagnostics import as_task_error, describe, fault_of

HEAD = """from __future__ import annotations
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from r3core import Example, Task, Verdict, Wording
if TYPE_CHECKING:
    from decimal import Decimal
class X(Task):
"""
NAME = "    name = 'x'\n"
LOAD = "    def load(self, split): return []\n"
VERIFY = "    def verify(self, example, response): return True\n"
WHOLE = NAME + LOAD + VERIFY


@pytest.fixture
def written() -> Iterator[Any]:
    """Return a function that makes the class `X` of the lines in its body, in a module of its own."""
    module = ModuleType("a_task_of_a_test")
    sys.modules[module.__name__] = module

    def written(body: str) -> object:
        exec(HEAD + body, vars(module))
        created: object = vars(module)["X"]
        return created

    yield written
    del sys.modules[module.__name__]


@pytest.mark.parametrize(
    "body",
    [
        WHOLE,
        WHOLE
        + "    size: int = 3\n    folder: Path = Path()\n    later: Later | None = None\nclass Later(Example): ...\n",
        WHOLE + "    version: ClassVar[str] = '2'\n    waived = {'empty': 'by rule'}\n    wording = Wording()\n",
        WHOLE + "    prompt = lambda self, example: 'Say 1.'\n",
        WHOLE + "    def prompt(self, *all): return 'Say 1.'\n",
        WHOLE + "    def _refrence(self, example): ...\n    def loads(self, text): ...\n",
        WHOLE + "    def variants(self, example): return []\n    def variant(self, example): ...\n",
        WHOLE + "    @staticmethod\n    def reference(example): return '1'\n",
        WHOLE + "    @classmethod\n    def reference(cls, example, more=1): return '1'\n",
    ],
)
def test_a_valid_class_has_no_fault(written: Any, body: str) -> None:
    assert fault_of(written(body)) is None


def test_a_method_may_be_a_partial_method() -> None:
    class Partial(Toy):
        def say(self, text: str, example: Example) -> str:
            return text

        prompt = partialmethod(say, "Say 1.")  # type: ignore[assignment]

    assert fault_of(Partial) is None
    assert fault_of(Toy) is None


@pytest.mark.filterwarnings("ignore:Field name .* shadows an attribute:UserWarning")
@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (NAME + LOAD, "`X` does not define `verify`"),
        (NAME, "`X` does not define `load`, `verify`"),
        (LOAD + VERIFY, "`X` has the attribute `name` = None; its type must be str"),
        (LOAD + VERIFY + "    name = 3", "`X` has the attribute `name` = 3; its type must be str"),
        (LOAD + VERIFY + "    name = 'my task'", "`X` has the name 'my task'; letters, digits"),
        (
            LOAD + VERIFY + "    name: str = 'x'",
            "`X` has an option `name`, an attribute of every task; set it without annotation",
        ),
        (LOAD + VERIFY + "    name: str", "`X` has an option `name`, an attribute of every task"),
        (WHOLE + "    version: int = 2", "`X` has an option `version`, an attribute"),
        (WHOLE + "    fixtures: Path = Path('f')", "`X` has an option `fixtures`, an attribute of every task"),
        (NAME + VERIFY + "    load: int = 3", "`X` has an option `load`, an attribute of every task"),
        (WHOLE + "    options: dict = {}", "`X` has an option `options`, an attribute"),
        (WHOLE + "    copy: bool = True", "`X` has an option `copy`, an attribute"),
        (WHOLE + "    version = 2", "`X` has the attribute `version` = 2; its type must be str"),
        (
            WHOLE + "    fixtures = 'f.jsonl'",
            "`X` has the attribute `fixtures` = 'f.jsonl'; its type must be pathlib.Path | None",
        ),
        (WHOLE + "    waived = ['empty']", "`X` has the attribute `waived` = ['empty']; its type must be dict"),
        (
            WHOLE + "    def refrence(self, example): ...",
            "`X` has a method `refrence` that nothing calls; did you mean `reference`? If not",
        ),
        (
            WHOLE + "    def variant(self, example): ...",
            "`X` has a method `variant` that nothing calls; did you mean `variants`?",
        ),
        (
            NAME + LOAD + "    def verify(self, response, example): return True",
            "`X` must define `verify` as `def verify(self, example, response)`",
        ),
        (WHOLE + "    wording = 'Again.'", "`X` has the attribute `wording` = 'Again.'; its type must be Wording"),
        (NAME + VERIFY + "    def load(self): return []", "`X` must define `load` as `def load(self, split)`"),
        (
            NAME + LOAD + "    def verify(self, response): return True",
            "`X` must define `verify` as `def verify(self, example, response)`",
        ),
        (
            NAME + LOAD + "    def verify(self, example, response, strict): return True",
            "`X` must define `verify` as `def verify(self, example, response)`",
        ),
        (
            NAME + LOAD + "    def verify(example, response): return True",
            "`X` must define `verify` as `def verify(self, example, response)`",
        ),
        (WHOLE + "    def prompt(self): return 'Say 1.'", "`X` must define `prompt` as `def prompt(self, example)`"),
        (
            WHOLE + "    @property\n    def prompt(self): return 'Say 1.'",
            "`X` must define `prompt` as `def prompt(self, example)`",
        ),
        (
            NAME + LOAD + "    async def verify(self, example, response): return True",
            "`X` must define `verify` as `def verify(self, example, response)`",
        ),
        (
            WHOLE + "    price: Decimal = None",
            "`X` has an option of the unknown type `Decimal`; an import under `TYPE_CHECKING`",
        ),
    ],
)
def test_a_fault_of_a_class_is_named(written: Any, body: str, fault: str) -> None:
    assert str(fault_of(written(body + "\n"))).startswith(fault)


class Alone:
    def verify(self) -> None: ...


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (Toy(), "Toy(problems=24) is an instance and not a subclass of `r3core.Task`; leave out the parentheses"),
        (Alone, f"{Alone} is not a subclass of `r3core.Task`"),
        (int, "<class 'int'> is not a subclass of `r3core.Task`"),
        (fault_of, f"{fault_of} is not a subclass of `r3core.Task`"),
        (sys, f"{sys} is not a subclass of `r3core.Task`"),
        ("toy", "'toy' is not a subclass of `r3core.Task`"),
        (None, "None is not a subclass of `r3core.Task`"),
        (Task, "`Task` does not define `load`, `verify`"),
    ],
)
def test_an_object_that_is_not_a_task_class_is_a_fault(found: object, fault: str) -> None:
    assert str(fault_of(found)).startswith(fault)


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (
            WHOLE + "    size = 3",
            ["an option needs a type, as in `size: int = 3`, and a method a `def` (", "`size = 3`"],
        ),
        (WHOLE + "    fixture = Path('f')", ["an option needs a type", "`fixture = PosixPath('f')`"]),
        (WHOLE + "    prompt = 'Say 1.'", ["an option needs a type", "and a method a `def`", "`prompt = 'Say 1.'`"]),
        (
            WHOLE + "    class Kind: ...\n    kind: Kind = None",
            ["the type of an option may be str, int, float, bool, Path,", "<class 'a_task_of_a_test.X.Kind'>"],
        ),
        (WHOLE + "    model_dump: int = 3", ["ValueError: Field 'model_dump' conflicts with member"]),
        # A warning of pydantic, which is an error in these tests.
        (NAME + VERIFY + "    load: int = 3", ['Field name "load" in "X" shadows an attribute in parent "Task"']),
        (WHOLE + "    size: int = 1 / 0", ["ZeroDivisionError: division by zero"]),
        (WHOLE + "    size = Decimal(3)", ["NameError: name 'Decimal' is not defined"]),
    ],
)
def test_an_error_of_pydantic_about_a_class_is_one_line_with_advice(written: Any, body: str, parts: list[str]) -> None:
    with pytest.raises((Exception, UserWarning)) as raised:
        written(body + "\n")
    text = describe(raised.value)
    assert all(part in text for part in parts)
    assert "errors.pydantic.dev" not in text
    assert "\n" not in text


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError(), "ValueError"),
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (KeyError("words"), "KeyError: 'words'"),
        (SystemExit(3), "SystemExit: 3"),
        (Unprintable(), "Unprintable (its message cannot be shown)"),
    ],
)
def test_an_exception_is_one_line(error: BaseException, text: str) -> None:
    assert describe(error) == text


def test_an_error_of_r3_passes_unchanged() -> None:
    error = TaskError("there is no file `words.txt`", "make one")
    with pytest.raises(TaskError) as raised, as_task_error(Toy(), "`load('train')`"):
        raise error
    assert raised.value is error


def test_the_user_can_interrupt_a_task() -> None:
    with pytest.raises(KeyboardInterrupt), as_task_error(Toy, "`load('train')`"):
        raise KeyboardInterrupt


class Odd(Toy):
    """A task whose `load` is a function of the test."""

    does: Any

    def load(self, split: Split) -> Any:
        return self.does(split)


def stops_after_one(split: Split) -> Iterator[Example]:
    yield Example(id="n1")
    yield Example(id=2)  # type: ignore[arg-type]  # a wrong value is what is tested


@pytest.mark.parametrize(
    ("does", "message"),
    [
        (lambda _: None, "`load('test')` returned None"),
        (lambda _: 3, "`load('test')` returned 3"),
        (lambda _: "n1", "`load('test')` returned 'n1'"),
        (lambda _: {"n1": 1}, "`load('test')` returned {'n1': 1}"),
        (lambda _: Example(id="n1"), "`load('test')` returned Example(id='n1'"),
        (lambda _: ["n1"], "`load('test')` yielded 'n1'"),
        (lambda _: [None], "`load('test')` yielded None"),
        (lambda _: [Example(id="n1")] * 2, "two examples of the split `test` have the id 'n1'"),
        (
            lambda _: Path("no/words.txt").read_text(),
            "`load('test')` raised FileNotFoundError: [Errno 2] No such file or",
        ),
        (lambda _: sys.exit("no words"), "`load('test')` raised SystemExit: no words (test_diagnostics.py, line "),
        (
            lambda _: [Example(id="n1", question="1?")],  # type: ignore[call-arg]  # a wrong value is what is tested
            "`load('test')` raised ValidationError of Example: `question` is '1?': extra inputs are not permitted",
        ),
        (
            lambda _: setattr(Toy(), "problems", 3),
            "`load('test')` raised ValidationError of Toy: `problems` is 3: instance is frozen",
        ),
        (
            stops_after_one,
            "`load('test')` raised ValidationError of Example: `id` is 2: input should be a valid string "
            f"(test_diagnostics.py, line {stops_after_one.__code__.co_firstlineno + 2})",
        ),
    ],
)
def test_a_broken_load_is_reported_with_what_it_returned_or_raised(does: Any, message: str) -> None:
    with pytest.raises(TaskError) as raised:
        list(load_examples(Odd(does=does), "test"))
    assert raised.value.message.startswith(f"task `toy`: {message}")


def test_examples_are_loaded_lazily() -> None:
    assert next(load_examples(Odd(does=stops_after_one), "test")).id == "n1"
