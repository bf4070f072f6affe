"""The examples in the docstrings of the values that users meet first are correct."""

import doctest
import sys

import pytest

from r3core.episode import Episode
from r3core.failures import Failure
from r3core.generation.generator import Completion
from r3core.task import Prompt, Task


@pytest.mark.parametrize("value", [Task, Prompt, Episode, Failure, Completion], ids=lambda value: value.__name__)
def test_the_example_in_a_docstring_runs_as_written(value: type) -> None:
    names = dict(vars(sys.modules[value.__module__]))
    [example] = doctest.DocTestFinder(recurse=False).find(value, globs=names)
    output: list[str] = []
    result = doctest.DocTestRunner().run(example, out=output.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(output)
