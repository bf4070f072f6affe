"""Discovery is tried on real distributions: folders with a module and a `dist-info` that the path finder reads."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from r3core import TaskError, get_task
from r3core.plugins.discovery import Broken, discover, find_task

pytestmark = pytest.mark.usefixtures("imports_restored")

Install = Callable[..., None]

TASK = """
from r3core import Task, Verdict, hookimpl

class {name}(Task):
    \"\"\"A task of a test.\"\"\"

    name = "{name}"
    numbers: tuple[int, ...] = (3,)
    largest: int = 20

    def load(self, split):
        return []

    def verify(self, example, response):
        return Verdict.passed()
"""
HOOK = """
@hookimpl
def r3_tasks():
    return [{name}]
"""


def plugin(name: str) -> str:
    return TASK.format(name=name) + HOOK.format(name=name)


def broken(name: str) -> Broken:
    return next(broken for broken in discover().broken if broken.distribution == f"r3-plugin-{name}")


def test_an_installed_task_is_found_with_its_distribution(install: Install) -> None:
    install("apples", plugin("apples"), version="2.5")
    installed = discover().tasks["apples"]
    assert (installed.distribution, installed.version) == ("r3-plugin-apples", "2.5")
    assert get_task("apples", numbers=(3, 4)).options() == {"numbers": [3, 4], "largest": 20}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_module_that_nobody_has", "No module named 'a_module_that_nobody_has'"),
        ("def (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (TASK.format(name="x"), "it implements no hook; the hooks: r3_engines, r3_objectives, r3_tasks"),
        (
            plugin("x").replace("r3_tasks", "r3_task"),
            "there is no hook `r3_task`; the hooks: r3_engines, r3_objectives, r3_tasks; did you mean",
        ),
        (plugin("x").replace("r3_tasks", "tasks"), "there is no hook `tasks`"),
        (plugin("x") + "\ndef r3_task(): ...", "there is no hook `r3_task`"),
        (plugin("x").replace("@hookimpl", ""), "its function `r3_tasks` is not marked as a hook"),
        (plugin("x").replace("r3_tasks()", "r3_tasks(split)"), "split"),
        (plugin("x").replace("return [x]", "return [1 / 0]"), "ZeroDivisionError"),
        (plugin("x").replace("return [x]", "return x"), "did not return a list of tasks"),
        (plugin("x").replace("return [x]", "pass"), "did not return a list of tasks"),
        (plugin("x").replace("return [x]", "return [x()]"), "leave out the parentheses after its name"),
        (plugin("x").replace("return [x]", "return [int]"), "<class 'int'> is not a subclass of `r3core.Task`"),
        (plugin("x").replace("def verify", "def judge"), "`x` does not define `verify`"),
        (plugin("x").replace('    name = "x"', ""), "`x` has the attribute `name` = None; its type must be str"),
        (plugin("x").replace('"x"', '"my task"'), "`x` has the name 'my task'; letters, digits"),
        (plugin("x").replace("largest: int", "prompt: int"), "`x` has an option `prompt`, an attribute of every task"),
        (
            plugin("x").replace("largest: int", "largest"),
            "cannot be imported: an option needs a type, as in `size: int = 3`",
        ),
    ],
)
def test_a_broken_plugin_is_reported_and_the_others_work(install: Install, source: str, reason: str) -> None:
    install("bad", source, version="0.3")
    install("good", plugin("good"))
    found = broken("bad")
    assert (found.name, found.version) == ("bad", "0.3")
    assert reason in found.reason
    assert "\n" not in found.reason
    assert get_task("good").name == "good"
    with pytest.raises(TaskError, match=r"the plugin `bad` of r3-plugin-bad 0\.3 is broken"):
        get_task("bad")


def test_two_tasks_with_the_same_name_are_refused_and_both_are_listed(install: Install) -> None:
    install("red", plugin("apples"), version="1.0")
    install("green", plugin("apples"), version="2.0")
    found = discover()
    assert "apples" not in found.tasks
    assert {clash.distribution for clash in found.broken if clash.name == "apples"} == {
        "r3-plugin-red",
        "r3-plugin-green",
    }
    assert "r3-plugin-green 2.0 (r3_plugin_green:apples)" in broken("red").reason
    with pytest.raises(TaskError) as error:
        get_task("apples")
    assert "2 tasks are called `apples`" in error.value.message
    assert "r3-plugin-red 1.0 (r3_plugin_red:apples)" in error.value.message
    assert "r3-plugin-green 2.0 (r3_plugin_green:apples)" in error.value.message
    assert get_task("r3_plugin_green:apples").name == "apples"


def test_a_clash_leaves_the_other_tasks_of_both_plugins_alone(install: Install) -> None:
    both = TASK.format(name="apples") + TASK.format(name="pears") + HOOK.format(name="apples, pears")
    install("red", plugin("apples"))
    install("green", both)
    assert "pears" in discover().tasks


def test_a_plugin_that_is_on_the_path_twice_does_not_clash_with_itself(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("apples", plugin("apples"))
    (tmp_path / "again").symlink_to(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "again")
    assert discover().clashes == {}
    assert "apples" in discover().tasks


def test_what_a_plugin_prints_stays_out_of_standard_output(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("noisy", "print('hello')\n" + plugin("noisy"))
    discover()
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\n")


def test_a_wrong_name_lists_what_is_installed_and_suggests_the_nearest(install: Install) -> None:
    install("apples", plugin("apples"))
    install("pears", plugin("pears"))
    with pytest.raises(TaskError) as error:
        find_task("aples")
    installed = ", ".join(discover().tasks)
    assert error.value.message == f"no task is called `aples`; installed: {installed}"
    assert error.value.hints[0] == "did you mean `apples`?"
    assert error.value.exit_code == 2


def test_a_name_that_resembles_no_task_gets_a_hint_how_to_name_one() -> None:
    with pytest.raises(TaskError, match="no task is called `zzzzzzzz`") as error:
        find_task("zzzzzzzz")
    assert error.value.hints == ("install its package first, or name a task in a file as `path/to/file.py:Class`",)


def test_a_file_without_a_class_gets_a_hint_which_classes_it_has(apples: Path) -> None:
    with pytest.raises(TaskError, match="does not name the task's class") as error:
        find_task(str(apples))
    assert error.value.hints == (f"write `{apples}:Apples`",)


@pytest.fixture
def apples(tmp_path: Path) -> Path:
    path = tmp_path / "apples.py"
    path.write_text("import seeds\n" + TASK.format(name="Apples"))
    (tmp_path / "seeds.py").write_text("")
    return path


def test_a_file_names_a_task_and_imports_its_neighbours(apples: Path) -> None:
    assert get_task(f"{apples}:Apples", largest=9).options()["largest"] == 9


def test_a_task_of_a_file_survives_pickling_when_the_file_is_loaded_again(apples: Path) -> None:
    first, again = get_task(f"{apples}:Apples", largest=1), get_task(f"{apples}:Apples", largest=2)
    assert pickle.loads(pickle.dumps([first, again])) == [first, again]


def test_an_edited_file_gives_the_edited_task(apples: Path) -> None:
    find_task(f"{apples}:Apples")
    apples.write_text(apples.read_text().replace('name = "Apples"', 'name = "edited-apples"'))
    assert find_task(f"{apples}:Apples").name == "edited-apples"


def test_a_module_of_the_working_directory_names_a_task(apples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(apples.parent)
    assert get_task("apples:Apples").name == "Apples"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("apples.py", "`apples.py` does not name the task's class"),
        ("apples.py:", "`apples.py:` is not a task"),
        (":Apples", "`:Apples` is not a task"),
        ("nothing.py:Apples", "there is no file `nothing.py`"),
        ("apples.py:Aples", "`apples.py` has no class called `Aples`; its task classes: Apples"),
        ("apples.py:Verdict", "`apples.py:Verdict` is not a task: <class 'r3core.task.Verdict'> is not a subclass"),
        ("sows.py:sow", "`sows.py:sow` is not a task: <function sow at "),
        ("apples.py:seeds", "`apples.py:seeds` is not a task: <module 'seeds' from "),
        (
            "shadow.py:Apples",
            "`shadow.py:Apples` is not a task: `Apples` has an option `load`, an attribute of every task",
        ),
        ("untyped.py:Apples", "`untyped.py` cannot be imported: an option needs a type, as in `size: int = 3`"),
        ("apples.py:Task", "`apples.py:Task` is not a task: `Task` does not define `load`, `verify`"),
        ("raises.py:Apples", "`raises.py` cannot be imported: ZeroDivisionError: division by zero (line 2)"),
        ("unclosed.py:Apples", "`unclosed.py` cannot be imported: SyntaxError: '(' was never closed"),
        ("nothing:Apples", "there is no module `nothing`"),
        ("raises:Apples", "`raises` cannot be imported: ZeroDivisionError"),
        ("lacking:Apples", "`lacking` cannot be imported: ModuleNotFoundError: No module named 'nothing'"),
    ],
)
def test_an_error_names_what_is_wrong_with_a_location(
    apples: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str
) -> None:
    (apples.parent / "raises.py").write_text("\n1 / 0\n")
    (apples.parent / "unclosed.py").write_text("(")
    (apples.parent / "lacking.py").write_text("import nothing")
    (apples.parent / "sows.py").write_text("def sow(): ...")
    (apples.parent / "shadow.py").write_text(apples.read_text().replace("largest: int", "load: int"))
    (apples.parent / "untyped.py").write_text(apples.read_text().replace("largest: int", "largest"))
    monkeypatch.chdir(apples.parent)
    with pytest.raises(TaskError) as error:
        find_task(spec)
    assert error.value.message.startswith(message)


def test_a_wrong_option_is_an_error_of_the_task(apples: Path) -> None:
    with pytest.raises(TaskError, match="task `Apples` has no option `numbrs`; its options: numbers, largest"):
        get_task(f"{apples}:Apples", numbrs=4)
