import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import r3core
from r3core import TaskError, __version__
from r3core.cli import main as cli

HEAVY = {"torch", "transformers", "trl", "datasets", "sympy", "scipy"}


def test_the_version_is_that_of_the_distribution() -> None:
    assert CliRunner().invoke(cli.app, ["--version"]).output == f"r3core {__version__}\n"


def test_tasks_are_listed_with_their_options() -> None:
    printed = CliRunner().invoke(cli.app, ["tasks"])
    assert printed.exit_code == 0
    assert "countdown  (r3-plugin-countdown " in printed.stdout
    assert "--task-option numbers=[3]  (tuple[int, ...])" in printed.stdout


def test_tasks_are_listed_as_one_json_object() -> None:
    listed = json.loads(CliRunner().invoke(cli.app, ["tasks", "--json"]).stdout)
    assert set(listed) == {"tasks", "broken"}
    countdown = next(task for task in listed["tasks"] if task["name"] == "countdown")
    assert countdown["summary"].startswith("Combine all given numbers")
    assert countdown["distribution"] == "r3-plugin-countdown"
    numbers = next(option for option in countdown["options"] if option["name"] == "numbers")
    assert numbers.pop("meaning").startswith("How many numbers")
    assert numbers == {"name": "numbers", "type": "tuple[int, ...]", "default": [3], "required": False}


def test_an_error_for_people_is_printed_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @cli.app.command("fail", hidden=True)
    def fail() -> None:
        raise TaskError("no task is called `x`", "did you mean `y`?")

    monkeypatch.setattr(sys, "argv", ["r3", "fail"])
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        cli.app.registered_commands.pop()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: no task is called `x`\nhint: did you mean `y`?\n"


def test_help_starts_without_pydantic() -> None:
    program = (
        "import atexit, sys\n"
        "sys.argv = ['r3', '--help']\n"
        "atexit.register(lambda: print('pydantic' in sys.modules, file=sys.stderr))\n"
        "from r3core.cli.main import main\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stderr == "False\n"


def test_every_public_name_can_be_imported() -> None:
    program = (
        "import r3core, sys\n"
        "assert 'pydantic' not in sys.modules\n"
        "listed = dir(r3core)\n"
        "from r3core import *\n"
        "for name in r3core.__all__:\n"
        "    assert name in listed\n"
        "    assert globals()[name] is getattr(r3core, name)\n"
        "assert r3core.Verdict.passed().outcome == 'pass'\n"
        "print(r3core.__version__)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == f"{__version__}\n"


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module `r3core` has no attribute `Tsak`"):
        _ = r3core.Tsak


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["tasks"], ["tasks", "--json"]])
def test_quick_commands_import_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import atexit, sys\n"
        f"sys.argv = ['r3', *{arguments!r}]\n"
        f"atexit.register(lambda: print('HEAVY', sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr))\n"
        "from r3core.cli.main import main\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "HEAVY []" in ended.stderr
