"""A new task works before anything is edited: it is built, installed, tested and checked here as its author would."""

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

from r3core import Example, Task, UsageError, get_task
from r3core.plugins.scaffold import NewTask, make_file, make_package

ROOT = Path(__file__).parent.parent
R3 = ("-c", "from r3core.cli.main import main; main()")


@pytest.fixture
def package(tmp_path: Path) -> NewTask:
    return make_package("my-task", tmp_path)


@pytest.fixture
def task(tmp_path: Path) -> Iterator[Task]:
    """The template's task, from a single file; afterwards it is forgotten."""
    path = list(sys.path)
    yield get_task(make_file("sums", tmp_path).task)
    sys.path[:] = path


def ran(*arguments: object, folder: Path, path: Path | None = None) -> str:
    """Return what Python printed; it must succeed. Packages are looked for in `path` too."""
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), environment.get("PYTHONPATH", "")])
    command = [sys.executable, *map(str, arguments)]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def installed(task: NewTask) -> Path:
    """Build the package's wheel and unpack it, which is all that installing it takes; return where."""
    ran("-m", "hatchling", "build", "-t", "wheel", folder=task.path)
    [wheel] = task.path.glob("dist/*.whl")
    site = task.path.parent / "site"
    ZipFile(wheel).extractall(site)
    return site


def test_a_new_package_has_five_files(package: NewTask, tmp_path: Path) -> None:
    folder = tmp_path / "r3-plugin-my-task"
    assert package == NewTask(path=folder, source=folder / "r3_plugin_my_task/__init__.py", task="my-task")
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()) == [
        "README.md",
        "pyproject.toml",
        "r3_plugin_my_task/__init__.py",
        "r3_plugin_my_task/fixtures.jsonl",
        "tests/test_my_task.py",
    ]
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == "r3-plugin-my-task"
    assert project["entry-points"] == {"r3": {"my-task": "r3_plugin_my_task"}}


def test_a_new_package_is_short(package: NewTask) -> None:
    assert len(package.source.read_text(encoding="utf-8").splitlines()) <= 65
    test = package.path / "tests/test_my_task.py"
    assert len([line for line in test.read_text(encoding="utf-8").splitlines() if line]) <= 5


@pytest.mark.slow
def test_a_new_package_is_built_listed_and_used(package: NewTask, tmp_path: Path) -> None:
    site = installed(package)
    listed = ran(*R3, "tasks", folder=tmp_path, path=site)
    assert "my-task  (r3-plugin-my-task 0.1.0)\n    Count the pencils that are left in some boxes.\n" in listed
    arguments = ("verify", "my-task", "--example", "7x12-3", "--response", "81")
    assert "verdict: pass\n" in ran(*R3, *arguments, folder=tmp_path, path=site)
    readme = (package.path / "README.md").read_text(encoding="utf-8")
    [command] = [line.split()[1:] for line in readme.splitlines() if line.startswith("r3 run ")]
    assert "train: a step trains on" in ran(*R3, *command, "--dry-run", folder=tmp_path, path=site)


@pytest.mark.slow
def test_a_new_package_passes_its_own_test_and_the_check(package: NewTask, tmp_path: Path) -> None:
    site = installed(package)
    assert "1 passed" in ran("-m", "pytest", "-p", "no:cacheprovider", folder=package.path, path=site)
    ran(*R3, "check", "my-task", folder=tmp_path, path=site)


@pytest.mark.slow
def test_a_new_file_passes_the_check(tmp_path: Path) -> None:
    ran(*R3, "check", make_file("sums", tmp_path).task, folder=tmp_path)


def test_a_new_task_passes_strict_ruff_and_mypy(package: NewTask, tmp_path: Path) -> None:
    make_file("sums", tmp_path)
    rules = ("--isolated", "--line-length", "120")
    ran("-m", "ruff", "check", *rules, "--select", "E,F,I,UP,B,SIM,RUF,PT", ".", folder=tmp_path)
    ran("-m", "ruff", "format", "--check", *rules, ".", folder=tmp_path)
    sources = [package.source, package.path / "tests", tmp_path / "sums.py"]
    ran("-m", "mypy", "--strict", "--cache-dir", ROOT / ".mypy_cache", *sources, folder=tmp_path)


def test_a_new_task_has_every_split_and_no_problem_in_two(task: Task) -> None:
    problems = {split: list(task.load(split)) for split in ("train", "validation", "test")}
    sizes = {split: len(examples) for split, examples in problems.items()}
    assert sizes["train"] > 3500
    assert min(sizes.values()) > 400
    for value in ("id", "prompt"):
        assert len({getattr(example, value) for examples in problems.values() for example in examples}) == sum(
            sizes.values()
        )
    assert problems["test"] == list(task.load("test"))
    assert len({example.id.partition("x")[0] for example in problems["train"][:100]}) == 11  # they are mixed


def test_problems_keep_their_split_when_an_option_brings_more(task: Task) -> None:
    more = type(task).model_validate({"most": 100})
    few, many = ({example.id for example in each.load("test")} for each in (task, more))
    assert few < many


def test_references_and_variants_of_a_new_task_pass(task: Task) -> None:
    for example in task.load("test"):
        reference = task.reference(example)
        assert reference is not None
        assert reference not in task.prompt(example)
        for right in (reference, f"\n  {reference}\t\n", *task.variants(example)):
            assert task.verify(example, right).outcome == "pass"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        " \n",
        "84",
        "8",
        "81.0",
        "+81",
        "-81",
        "not 81",
        "81, no, that is wrong",
        "81\n84",
        "84\n81",
        "81 81",
        "<b>81</b>",
        "<!-- 81 -->",
        '{"answer": 81, "correct": true}',
        "\uff18\uff11",
        "8१",
        "8\u200b1",
        "81\u200b",
        "\ufeff81",
        "9" * 5000,
        "0" * 5000 + "81",
        "9**9**9",
        "NaN",
        "Infinity",
        "81e0",
        "print(81)",
        "```\n81",
        "```\n81\n```\n```\n84\n```",
        "[" * 100_000,
        " " * 1_000_000,
        "```\n" * 100_000,
        "81 " * 300_000,
        "\ud800",
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_traps_fail_a_new_task(task: Task, wrong: str) -> None:
    assert task.verify(Example(id="7x12-3", answer=81), wrong).outcome == "fail"  # type: ignore[union-attr]


def test_a_class_name_does_not_shadow_names_of_its_module(tmp_path: Path) -> None:
    source = make_package("x", tmp_path).source.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(source)))
    used = {alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    used |= {node.id for node in nodes if isinstance(node, ast.Name)} | {"None", "True", "False"}
    names = sorted(name for name in used - {"X"} if name[0].isupper())
    assert {"Example", "FENCED", "Task"} <= set(names)
    for name in names:
        assert make_file(name, tmp_path).task.endswith(f":{name}Task")


@pytest.mark.parametrize(
    ("name", "class_name"), [("my-task", "MyTask"), ("my_task", "MyTask"), ("mySums2", "MySums2"), ("task", "TaskTask")]
)
def test_the_class_is_called_like_the_task(name: str, class_name: str, tmp_path: Path) -> None:
    new = make_file(name, tmp_path)
    assert new.task == f"{tmp_path / name.replace('-', '_')}.py:{class_name}"
    assert f"class {class_name}(Task):" in new.source.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("", None),
        ("2048", None),
        ("2048-game", "game"),
        ("my task", "my-task"),
        ("my--task", "my-task"),
        ("task-", "task"),
        ("../task", "task"),
        ("größe", "gr-e"),
        ('x"""', "x"),
        ("x\n", "x"),
    ],
)
def test_a_name_that_no_package_can_have_is_refused(name: str, hint: str | None, tmp_path: Path) -> None:
    for make in (make_package, make_file):
        with pytest.raises(UsageError, match="a letter comes first") as refused:
            make(name, tmp_path)
        assert refused.value.hints == ((f"`{hint}` is allowed",) if hint else ())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["countdown", "Countdown"])
def test_the_name_of_an_installed_task_is_taken(name: str, tmp_path: Path) -> None:
    for make in (make_package, make_file):
        with pytest.raises(UsageError, match="is taken: r3-plugin-countdown brings the task `countdown`"):
            make(name, tmp_path)


def test_existing_files_are_not_overwritten(package: NewTask, tmp_path: Path) -> None:
    package.source.write_text("mine")
    with pytest.raises(UsageError, match="r3-plugin-my-task` exists already"):
        make_package("my-task", tmp_path)
    assert package.source.read_text() == "mine"
    make_file("my-task", tmp_path)
    with pytest.raises(UsageError, match=r"my_task\.py` exists already"):
        make_file("my-task", tmp_path)


@pytest.mark.parametrize("name", ["sums", "s" * 300])
def test_an_unwritable_directory_is_an_error(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "file" if name == "sums" else tmp_path
    (tmp_path / "file").write_text("no directory")
    for make in (make_package, make_file):
        with pytest.raises(UsageError, match=r"cannot be written: (File exists|Not a directory|File name too long)"):
            make(name, directory)
