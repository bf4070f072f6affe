"""The documentation agrees with the code: generated parts, links, code blocks, commands."""

import importlib.util
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from r3core import TaskError, get_task
from r3core.cli.main import app
from r3core.cli.sweep_file import cells_of, read_sweep
from r3core.config import chosen_task, configure, read_settings
from r3core.errors import R3Error
from r3core.plugins.discovery import discover
from r3core.runs import RunRecord
from r3core.training.grpo_options import check_grpo, explain_batch

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/README.md")])
FENCE = re.compile(r"^```(?P<kind>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("", "sh", "console")
TUTORIAL = ROOT / "docs/write-a-task.md"
PLANNED = ("run", "mine", "train", "eval")
"""The commands that have --dry-run."""
EXECUTED = ("new", "verify", "check")
"""The commands that need no model and no run: the tests execute them."""
SMALL = [
    *("mine.limit=24", "mine.probe=0", "evaluate.limit=8", "evaluate.controls=false", "evaluate.cross=false"),
    *("grpo.max_steps=1", "grpo.per_device_train_batch_size=8", "grpo.num_generations=4", "batch_size=24"),
]
"""Settings under which the built-in model trains in seconds, and learns nothing."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_of(page: Path, *kinds: str) -> Iterator[tuple[str, str | None, str]]:
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        if match["kind"] in kinds:
            yield match["kind"], match["title"], match["code"]


def commands_of(page: Path) -> Iterator[list[str]]:
    for _, _, code in blocks_of(page, *SHELL):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if re.match(r"(\$ )?r3 ", line) else []
            if words:
                yield words[1:]


def pages_with(*kinds: str) -> list[Path]:
    return [page for page in PAGES if next(blocks_of(page, *kinds), None)]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with the repository's examples; modules imported from it are removed afterwards."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_titled_blocks(page: Path, folder: Path) -> None:
    for _, title, code in blocks_of(page, "python", "toml"):
        if title is not None:
            (folder / title).write_text(code, encoding="utf-8")


def install(folder: Path) -> None:
    """Install a project for plugin discovery as pip would: write the entry points of its pyproject.toml to metadata."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))


@pytest.mark.slow
def test_generated_pages_are_up_to_date(generate: ModuleType) -> None:
    stale = [name_of(page) for page, text in generate.pages().items() if page.read_text(encoding="utf-8") != text]
    assert stale == [], "run `make docs`"


def test_the_figures_in_the_text_of_the_study_are_in_its_tables() -> None:
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    generated = re.compile(r"<!-- generated: .*?<!-- /generated -->", re.DOTALL)
    tables = "".join(generated.findall(page)).replace("+", "")
    text = generated.sub("", page).replace("+", "").replace("\n", " ")
    interval = r"\[-?[0-9.]+, -?[0-9.]+\]"
    figures = re.findall(rf"-?[0-9.]+ (?:points )?{interval}", text)
    assert len(figures) > 10
    unknown = [one for one in figures if one.replace("points ", "") not in tables]
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_point_to_existing_pages_and_headings(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors_of(path)):
            broken.append(f"{target}#{anchor}" if anchor else target)
    assert broken == []


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_python_blocks_run(page: Path, workplace: Path) -> None:
    write_titled_blocks(page, workplace)
    names: dict[str, object] = {"__name__": "docs"}
    for _, title, code in blocks_of(page, "python"):
        exec(compile(code, title or name_of(page), "exec"), names)
    for name, test in list(names.items()):
        if name.startswith("test_") and callable(test):
            test()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if next(commands_of(page), None)], ids=name_of)
def test_commands_are_valid(page: Path, workplace: Path) -> None:
    write_titled_blocks(page, workplace)
    if (workplace / "pyproject.toml").exists():
        install(workplace)
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command, *rest in commands_of(page):
        if command.startswith("-"):
            continue
        assert command in known
        known[command].make_context(command, list(rest), resilient_parsing=False).close()
        planned = command in PLANNED and {"--task", "--config"} & set(rest)  # the others need an existing run
        if planned or command == "sweep":
            printed([command, *rest, *([] if "--dry-run" in rest else ["--dry-run"])])
        elif command in EXECUTED:
            printed([command, *rest])


def printed(words: list[str]) -> str:
    """Return the standard output of a command that succeeds."""
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"r3 {shlex.join(words)}: {done.exception}\n{done.output}"
    return done.stdout


def test_an_invalid_command_is_an_error() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="No such option: --nope"):
        known["run"].make_context("run", ["--nope"])
    assert isinstance(CliRunner().invoke(app, ["run", "--task", "countdwn", "--dry-run"]).exception, TaskError)


@pytest.mark.parametrize("page", pages_with("yaml"), ids=name_of)
def test_yaml_blocks_are_configurations(page: Path, workplace: Path) -> None:
    for _, _, code in blocks_of(page, "yaml"):
        check_configuration(workplace / "block.yaml", code)


@pytest.mark.parametrize("file", sorted(ROOT.glob("examples/*.yaml")), ids=name_of)
def test_example_files_are_configurations(file: Path, workplace: Path) -> None:
    text = file.read_text(encoding="utf-8")
    check_configuration(workplace / file.name, text)
    sweep = "\nruns:\n"
    wrong = text.replace(sweep, f"{sweep}  other: {{wrong: 1}}\n") if sweep in text else f"{text}wrong: 1\n"
    with pytest.raises(R3Error, match="there is no configuration key `wrong`"):
        check_configuration(workplace / file.name, wrong)


def check_configuration(path: Path, text: str) -> None:
    """Check the text of a configuration file, or every cell of a sweep."""
    path.write_text(text, encoding="utf-8")
    settings = read_settings(path)
    for one in [cell.tree for cell in cells_of(read_sweep(path))] if "base" in settings else [settings]:
        check_settings(one)


def check_settings(settings: dict[str, Any]) -> None:
    name, options = chosen_task(settings)
    config = configure(get_task(name, **options), settings)
    check_grpo(config.grpo)
    explain_batch(config.grpo_options())


def test_the_package_of_the_tutorial_is_discovered(workplace: Path) -> None:
    write_titled_blocks(TUTORIAL, workplace)
    assert "capitals" not in discover().tasks
    install(workplace)
    assert discover().tasks["capitals"].distribution == "r3-plugin-capitals"


def test_the_tutorials_rule_passes_the_first_answer_and_fails_the_second(workplace: Path) -> None:
    write_titled_blocks(TUTORIAL, workplace)
    commands = [words for words in commands_of(TUTORIAL) if words[:2] == ["verify", "no_times.py:NoTimes"]]
    assert [json.loads(printed([*words, "--json"]))["outcome"] for words in commands] == ["pass", "fail"]


@pytest.mark.slow
def test_the_tutorials_run_trains_without_a_download(workplace: Path) -> None:
    write_titled_blocks(TUTORIAL, workplace)
    (command,) = [words for words in commands_of(TUTORIAL) if words[0] == "run" and "--model" not in words]
    settings = [word for setting in SMALL for word in ("--set", setting)]
    result = json.loads(printed([*command, *settings, "--output-dir", "run", "--json"]))
    assert result["trained"]["first"]["total"] == 8
    assert [row["step"] for row in RunRecord(workplace / "run").read("train")] == [1]


def test_the_readme_contains_an_example_verbatim() -> None:
    blocks = [code for _, _, code in blocks_of(ROOT / "README.md", "python")]
    assert blocks == [(ROOT / "examples/sentence.py").read_text(encoding="utf-8")]


def test_the_readme_links_to_every_page() -> None:
    linked = re.findall(r"\]\((docs/[^)#]+\.md)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert sorted(linked and set(linked)) == sorted({name_of(p) for p in PAGES if p.parent == ROOT / "docs"})


def test_no_page_installs_the_unrelated_package_called_r3() -> None:
    sources = [path for folder in ("r3core", "plugins", "docs", "examples") for path in (ROOT / folder).rglob("*.py")]
    for path in [*PAGES, *sources]:
        assert not re.search(r"(pip install|uv add) r3(?![\w-])", path.read_text(encoding="utf-8")), path
