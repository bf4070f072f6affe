from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import ConfigDict, Field, model_validator

from r3core import Example, Split, Task, TaskError
from r3core.plugins.options import Option, options_of, set_options, type_text


class Apples(Task):
    """A task with options of several types."""

    name = "apples"

    basket: Path
    numbers: tuple[Annotated[int, Field(ge=1)], ...] = (3,)
    kind: Literal["red", "green"] = "red"
    largest: int = Field(default=20, ge=1)
    seeds: list[int] = Field(default_factory=lambda: [1, 2])

    @model_validator(mode="after")
    def _largest_is_reachable(self) -> "Apples":
        if self.largest > 1000:
            raise ValueError("no apple is larger than 1000")
        return self

    def load(self, split: Split) -> Iterable[Example]:
        return []

    def verify(self, example: Example, response: str) -> bool:
        return True


def test_an_option_has_a_name_a_type_and_a_default() -> None:
    assert options_of(Apples) == [
        Option(name="basket", type="Path", required=True),
        Option(name="numbers", type="tuple[int, ...]", default=[3]),
        Option(name="kind", type='"red" | "green"', default="red"),
        Option(name="largest", type="int", default=20),
        Option(name="seeds", type="list[int]", default=[1, 2]),
    ]


@pytest.mark.parametrize(
    ("annotation", "text"),
    [(int | None, "int | None"), (dict[str, list[Path]], "dict[str, list[Path]]"), (Any, "Any")],
)
def test_a_type_is_written_as_in_source_code(annotation: object, text: str) -> None:
    assert type_text(annotation) == text


def test_options_are_set() -> None:
    task = set_options(Apples, {"basket": "/here", "numbers": [3, 4]})
    assert task.options() == {"basket": "/here", "numbers": [3, 4], "kind": "red", "largest": 20, "seeds": [1, 2]}


def test_an_error_distinguishes_a_wrong_default_from_a_wrong_value() -> None:
    class Unset(Apples):
        model_config = ConfigDict(validate_default=True)

        largest: int = None  # type: ignore[assignment]  # a wrong value is what is tested

    with pytest.raises(
        TaskError, match=r"`apples`: the default of option `largest` \(int\) cannot be None: input should"
    ):
        set_options(Unset, {"basket": "."})
    assert set_options(Unset, {"basket": ".", "largest": 3}).options()["largest"] == 3


def test_an_exception_in_a_constructor_is_reported_with_its_line() -> None:
    class Fixed(Apples):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.seen = set()  # type: ignore[misc, attr-defined]  # a wrong value is what is tested

    class Lost(Apples):
        def model_post_init(self, _: Any) -> None:
            (self.basket / "apples.txt").read_text()

    for task, message in (
        (Fixed, "task `apples`: `{}(...)` raised ValidationError of Fixed: `seen` is set(): instance is frozen"),
        (
            Lost,
            "task `apples`: `{}(...)` raised FileNotFoundError: [Errno 2] No such file or directory: 'no/apples.txt'",
        ),
    ):
        with pytest.raises(TaskError) as raised:
            set_options(task, {"basket": "no"})
        assert raised.value.message.startswith(message.format(task.__qualname__))
        assert "(test_options.py, line " in raised.value.message


@pytest.mark.parametrize(
    ("options", "message", "hints"),
    [
        (
            {"basket": ".", "numbrs": 4},
            "task `apples` has no option `numbrs`; its options: basket, numbers, kind, largest, seeds",
            ("did you mean `numbers`?",),
        ),
        ({}, "task `apples` requires the option `basket` (Path)", ("--task-option basket=...",)),
        (
            {"basket": ".", "largest": "many"},
            "task `apples`: option `largest` (int) cannot be 'many': input should be a valid integer, "
            "unable to parse string as an integer",
            (),
        ),
        (
            {"basket": ".", "numbers": [1, 0]},
            "task `apples`: option `numbers` (tuple[int, ...]) cannot be 0: input should be greater than or equal to 1",
            (),
        ),
        (
            {"basket": ".", "kind": "blue", "largest": 0},
            "task `apples`: option `kind` (\"red\" | \"green\") cannot be 'blue': input should be 'red' or 'green'; "
            "task `apples`: option `largest` (int) cannot be 0: input should be greater than or equal to 1",
            (),
        ),
        ({"basket": ".", "largest": 2000}, "task `apples`: no apple is larger than 1000", ()),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_what_is_allowed(
    options: dict[str, object], message: str, hints: tuple[str, ...]
) -> None:
    with pytest.raises(TaskError) as error:
        set_options(Apples, options)
    assert (error.value.message, error.value.hints) == (message, hints)


def test_a_path_means_the_same_file_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    options = set_options(Apples, {"basket": "here/basket.json"}).options()
    assert options["basket"] == str(tmp_path / "here/basket.json")
    monkeypatch.chdir("/")
    assert set_options(Apples, options).options() == options
    assert set_options(Apples, {"basket": "~/b"}).options()["basket"] == str(tmp_path / "home/b")
