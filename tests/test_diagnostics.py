"""What is wrong with a class is tried on source, as an author writes it."""

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
from r3core.plugins.diagnostics import blamed, fault_of, told

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
        made: object = vars(module)["X"]
        return made

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
def test_a_task_has_no_fault(written: Any, body: str) -> None:
    assert fault_of(written(body)) is None


def test_a_method_may_be_made_of_another() -> None:
    class Said(Toy):
        def say(self, text: str, example: Example) -> str:
            return text

        prompt = partialmethod(say, "Say 1.")  # type: ignore[assignment]

    assert fault_of(Said) is None
    assert fault_of(Toy) is None


@pytest.mark.filterwarnings("ignore:Field name .* shadows an attribute:UserWarning")
@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (NAME + LOAD, "`X` does not define `verify`"),
        (NAME, "`X` does not define `load`, `verify`"),
        (LOAD + VERIFY, "`X` has no class attribute `name`"),
        (LOAD + VERIFY + "    name = 3", "the name of `X` is 3; letters, digits"),
        (LOAD + VERIFY + "    name = 'my task'", "the name of `X` is 'my task'; letters, digits"),
        (
            LOAD + VERIFY + "    name: str = 'x'",
            "`X` makes an option of `name`; write `name = 'x'`, without annotation",
        ),
        (LOAD + VERIFY + "    name: str", "`X` makes an option of `name`; write `name = ...`, without annotation"),
        (WHOLE + "    version: int = 2", "`X` makes an option of `version`; write `version = 2`, without annotation"),
        (WHOLE + "    fixtures: Path = Path('f')", "`X` makes an option of `fixtures`"),
        (NAME + VERIFY + "    load: int = 3", "the option `load` of `X` has the name of something that every task has"),
        (WHOLE + "    options: dict = {}", "the option `options` of `X` has the name of something"),
        (WHOLE + "    copy: bool = True", "the option `copy` of `X` has the name of something"),
        (WHOLE + "    version = 2", "`version` of `X` is 2; it should be a str"),
        (
            WHOLE + "    fixtures = 'f.jsonl'",
            "`fixtures` of `X` is 'f.jsonl'; it should be a Path as in `Path(__file__)",
        ),
        (WHOLE + "    waived = ['empty']", "`waived` of `X` is ['empty']; it should be a dict of probes and reasons"),
        (
            WHOLE + "    def refrence(self, example): ...",
            "r3 does not call `X.refrence`; did you mean `reference`? If not",
        ),
        (WHOLE + "    def variant(self, example): ...", "r3 does not call `X.variant`; did you mean `variants`?"),
        (
            NAME + LOAD + "    def verify(self, response, example): return True",
            "`X.verify` takes response, example; it is called with example, response",
        ),
        (WHOLE + "    wording = 'Again.'", "`wording` of `X` is 'Again.'; it should be a Wording"),
        (NAME + VERIFY + "    def load(self): return []", "`X.load` takes nothing; it is called with split"),
        (
            NAME + LOAD + "    def verify(self, response): return True",
            "`X.verify` takes response; it is called with example, response",
        ),
        (
            NAME + LOAD + "    def verify(self, example, response, strict): return True",
            "`X.verify` takes example, response, strict; it is called with example, response",
        ),
        (
            NAME + LOAD + "    def verify(example, response): return True",
            "`X.verify` takes response; it is called with",
        ),
        (WHOLE + "    def prompt(self): return 'Say 1.'", "`X.prompt` takes nothing; it is called with example"),
        (
            WHOLE + "    @property\n    def prompt(self): return 'Say 1.'",
            "`X.prompt` is no method; write `def prompt(self, example)`",
        ),
        (NAME + LOAD + "    async def verify(self, example, response): return True", "`X.verify` is `async`; write it"),
        (NAME + VERIFY + "    async def load(self, split): yield 1", "`X.load` is `async`; write it as a plain `def`"),
        (
            WHOLE + "    price: Decimal = None",
            "an option of `X` has the type `Decimal`, which is not known; import it in `a_task_of_a_test`, and",
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
        (Toy(), "Toy(problems=24) is not a subclass of `r3core.Task` but a task of one; leave out the brackets"),
        (Alone, f"{Alone} is not a subclass of `r3core.Task`; write `class Alone(Task):`"),
        (int, "<class 'int'> is not a subclass of `r3core.Task`"),
        (fault_of, "the function `fault_of` is not a subclass of `r3core.Task`"),
        (sys, "the module `sys` is not a subclass of `r3core.Task`"),
        ("toy", "'toy' is not a subclass of `r3core.Task`"),
        (None, "None is not a subclass of `r3core.Task`"),
        (Task, "`Task` does not define `load`, `verify`"),
    ],
)
def test_what_is_no_task_is_told_apart(found: object, fault: str) -> None:
    assert str(fault_of(found)).startswith(fault)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            WHOLE + "    size = 3",
            "`size = 3` has no type; an option has one, as in `size: int = 3`, all else is a `ClassVar`",
        ),
        (
            WHOLE + "    fixture = Path('f')",
            "`fixture = PosixPath('f')` is nothing that a task has; did you mean `fixtures`?",
        ),
        (WHOLE + "    prompt = 'Say 1.'", "`prompt = 'Say 1.'` is no method; write `def prompt(self, example)`"),
        (
            WHOLE + "    class Kind: ...\n    kind: Kind = None",
            "an option has the type <class 'a_task_of_a_test.X.Kind'>; allowed are str, int,",
        ),
        (
            WHOLE + "    model_dump: int = 3",
            "the option `model_dump` has the name of something that every task has; call it otherwise",
        ),
        (
            NAME + VERIFY + "    load: int = 3",  # pydantic's warning, which is an error in these tests
            "the option `load` has the name of something that every task has; call it otherwise",
        ),
        (WHOLE + "    size: int = 1 / 0", "ZeroDivisionError: division by zero"),
        (WHOLE + "    size = Decimal(3)", "NameError: name 'Decimal' is not defined"),
    ],
)
def test_a_class_that_pydantic_cannot_make_is_told_in_words(written: Any, body: str, said: str) -> None:
    with pytest.raises((Exception, UserWarning)) as raised:
        written(body + "\n")
    assert told(raised.value).startswith(said)
    assert "errors.pydantic.dev" not in told(raised.value)


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError(), "ValueError"),
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (KeyError("words"), "KeyError: 'words'"),
        (SystemExit(3), "SystemExit: 3"),
        (Mute(), "Mute (its message cannot be shown)"),
    ],
)
def test_an_exception_is_one_line(error: BaseException, said: str) -> None:
    assert told(error) == said


def test_an_error_for_people_goes_through_as_it_is() -> None:
    error = TaskError("there is no file `words.txt`", "make one")
    with pytest.raises(TaskError) as raised, blamed(Toy(), "`load('train')`"):
        raise error
    assert raised.value is error


def test_the_user_can_interrupt_a_task() -> None:
    with pytest.raises(KeyboardInterrupt), blamed(Toy, "`load('train')`"):
        raise KeyboardInterrupt


class Odd(Toy):
    """A task whose `load` does what a test says."""

    does: Any

    def load(self, split: Split) -> Any:
        return self.does(split)


def stops_after_one(split: Split) -> Iterator[Example]:
    yield Example(id="n1")
    yield Example(id=2)  # type: ignore[arg-type]  # the mistake that is tested


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
            lambda _: [Example(id="n1", question="1?")],  # type: ignore[call-arg]  # the mistake that is tested
            "`load('test')` raised ValidationError of Example: there is no `question`; there are `id`, `prompt`,",
        ),
        (
            lambda _: setattr(Toy(), "problems", 3),
            "`load('test')` raised ValidationError of Toy: `problems` cannot be set: a task never changes; what it",
        ),
        (
            stops_after_one,
            "`load('test')` raised ValidationError of Example: `id` cannot be 2: input should be a valid string "
            f"(test_diagnostics.py, line {stops_after_one.__code__.co_firstlineno + 2})",
        ),
    ],
)
def test_a_load_that_breaks_is_told_in_words(does: Any, message: str) -> None:
    with pytest.raises(TaskError) as raised:
        list(load_examples(Odd(does=does), "test"))
    assert raised.value.message.startswith(f"task `toy`: {message}")


def test_problems_come_one_by_one() -> None:
    assert next(load_examples(Odd(does=stops_after_one), "test")).id == "n1"
