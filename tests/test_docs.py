"""The documentation says what the code does: generated parts, links, code blocks, commands, examples."""

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

import pytest
import typer.main
from typer.testing import CliRunner

from r3core import Example, TaskError, get_task
from r3core.cli import app
from r3core.config import chosen_task, resolve
from r3core.errors import R3Error
from r3core.grpo import check_grpo, explain_batch
from r3core.plugins import discover

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/README.md")])
FENCE = re.compile(r"^```(?P<kind>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("", "sh", "console")
EXPLAINED = ("run", "mine", "train", "eval")
"""The commands that have --dry-run."""


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
    """Stand in a directory that has the repository's examples; what is imported from there is forgotten afterwards."""
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
    """Do what pip does for the discovery of plugins: put the entry points of a pyproject.toml where Python looks."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))


def test_what_is_generated_is_what_is_committed(generate: ModuleType) -> None:
    stale = [name_of(page) for page, text in generate.pages().items() if page.read_text(encoding="utf-8") != text]
    assert stale == [], "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    lost = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors_of(path)):
            lost.append(f"{target}#{anchor}" if anchor else target)
    assert lost == []


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_python_blocks_run(page: Path, workplace: Path) -> None:
    write_titled_blocks(page, workplace)
    names: dict[str, object] = {"__name__": "docs"}
    for _, title, code in blocks_of(page, "python"):
        exec(compile(code, title or name_of(page), "exec"), names)
    for name, test in list(names.items()):
        if name.startswith("test_") and callable(test):
            test()


@pytest.mark.parametrize("page", [page for page in PAGES if next(commands_of(page), None)], ids=name_of)
def test_commands_can_be_read(page: Path, workplace: Path) -> None:
    write_titled_blocks(page, workplace)
    if (workplace / "pyproject.toml").exists():
        install(workplace)
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command, *rest in commands_of(page):
        if command.startswith("-"):
            continue
        assert command in known
        known[command].make_context(command, list(rest), resilient_parsing=False).close()
        if command in EXPLAINED and {"--task", "--config"} & set(rest):  # the others need a run that is there
            asked = [command, *rest, *([] if "--dry-run" in rest else ["--dry-run"])]
            explained = CliRunner().invoke(app, asked)
            assert explained.exit_code == 0, f"r3 {shlex.join(asked)}: {explained.exception}\n{explained.output}"


def test_a_command_that_cannot_be_read_is_found() -> None:
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
    check_configuration(workplace / file.name, file.read_text(encoding="utf-8"))
    with pytest.raises(R3Error, match="there is no configuration key `wrong`"):
        check_configuration(workplace / file.name, file.read_text(encoding="utf-8") + "wrong: 1\n")


def check_configuration(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    name, options = chosen_task(path)
    config = resolve(get_task(name, **options), path)
    check_grpo(config.grpo)
    explain_batch(config.grpo_options())


def test_the_package_of_the_tutorial_is_discovered(workplace: Path) -> None:
    write_titled_blocks(ROOT / "docs/write-a-task.md", workplace)
    assert "capitals" not in discover().tasks
    install(workplace)
    assert discover().tasks["capitals"].distribution == "r3-plugin-capitals"


def test_the_readme_has_an_example_word_for_word() -> None:
    blocks = [code for _, _, code in blocks_of(ROOT / "README.md", "python")]
    assert blocks == [(ROOT / "examples/sentence.py").read_text(encoding="utf-8")]


def test_every_page_is_reached_from_the_readme() -> None:
    linked = re.findall(r"\]\((docs/[^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert sorted(linked and set(linked)) == sorted({name_of(p) for p in PAGES if p.parent.name == "docs"})


EXAMPLES = {
    "sentence.py:Sentence": {},
    "order.py:Order": {},
    "questions.py:Questions": {"file": "questions.jsonl"},
}


@pytest.fixture
def problems(workplace: Path) -> dict[str, list[Example]]:
    rows = [{"question": f"What is {n} + {n}?", "answer": 2 * n} for n in range(60)]
    (workplace / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        f"{name}/{split}": list(get_task(f"examples/{name}", **options).load(split))
        for name, options in EXAMPLES.items()
        for split in ("train", "validation", "test")
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_references_of_examples_pass_and_wrong_answers_fail(name: str, problems: dict[str, list[Example]]) -> None:
    task = get_task(f"examples/{name}", **EXAMPLES[name])
    asked: set[str] = set()
    for split in ("train", "validation", "test"):
        examples = problems[f"{name}/{split}"]
        assert examples
        for example, other in zip(examples, [*examples[1:], examples[0]], strict=True):
            reference = task.reference(example)
            prompt = task.prompt(example)
            assert reference is not None
            assert isinstance(prompt, str)
            assert task.verify(example, reference).outcome == "pass"  # type: ignore[union-attr]
            for wrong in ("", "no", "[" * 100_000, prompt, task.reference(other) or ""):
                assert task.verify(example, wrong).outcome == "fail"  # type: ignore[union-attr]
            assert prompt not in asked
            asked.add(prompt)


@pytest.mark.parametrize(
    ("name", "wrong", "reason"),
    [
        ("sentence.py:Sentence", "The apple and bridge.", "it has 4 words, not 8"),
        ("sentence.py:Sentence", "An apple and a bridge and an island.", "a word is there twice"),
        ("sentence.py:Sentence", "Apple bridge. We saw it near the house.", "it is not one sentence"),
        ("sentence.py:Sentence", "apple bridge we saw it near the house", "it is not one sentence"),
        ("sentence.py:Sentence", "We saw it near the old garden house.", "`apple` is missing"),
        ("order.py:Order", '{"customer": "Ada", "items": {"apples": true, "candles": 1}}', "another customer"),
        ("order.py:Order", '{"customer": "Ada", "items": {"apples": 1.0, "candles": 1}}', "another customer"),
        ("order.py:Order", '{"customer": "Ada", "items": {"apples": "1", "candles": 1}}', "another customer"),
        ("order.py:Order", '{"customer": "Ada", "items": {"apples": 1, "apples": 1, "candles": 1}}', "a key is there"),
        ("order.py:Order", 'Here: {"customer": "Ada", "items": {"apples": 1, "candles": 1}}', "it is not JSON"),
        ("questions.py:Questions", "2\nor 3", "`or 3` is not the answer"),
    ],
)
def test_traps_of_the_examples_fail_for_their_reason(name: str, wrong: str, reason: str, workplace: Path) -> None:
    task = get_task(f"examples/{name}", **EXAMPLES[name])
    gold = {"customer": "Ada", "items": {"apples": 1, "candles": 1}}
    answer = "2" if name.startswith("questions") else gold
    example = Example.model_validate({"id": "x", "answer": answer, "info": {"words": ["apple", "bridge"], "length": 8}})
    verdict = task.verify(example, wrong)
    assert verdict.outcome == "fail"  # type: ignore[union-attr]
    assert reason in verdict.reason  # type: ignore[union-attr]


@pytest.mark.parametrize("right", ["2", "2.", "I count.\n2", " 2 \n"])
def test_the_last_line_answers_a_question(right: str, workplace: Path) -> None:
    task = get_task("examples/questions.py:Questions", file="none.jsonl")
    assert task.verify(Example(id="x", answer="2"), right).outcome == "pass"  # type: ignore[union-attr]
    with pytest.raises(TaskError, match="there is no file"):
        list(task.load("train"))


def test_the_order_of_keys_and_a_code_fence_do_not_matter(workplace: Path) -> None:
    gold = {"customer": "Ada", "items": {"apples": 1, "candles": 2}}
    response = '```json\n{"items": {"candles": 2, "apples": 1},\n "customer": "Ada"}\n```'
    verdict = get_task("examples/order.py:Order").verify(Example.model_validate({"id": "x", "answer": gold}), response)
    assert verdict.outcome == "pass"  # type: ignore[union-attr]


def test_nobody_is_sent_to_the_other_package_called_r3() -> None:
    sources = [path for folder in ("r3core", "plugins", "docs", "examples") for path in (ROOT / folder).rglob("*.py")]
    for path in [*PAGES, *sources]:
        assert not re.search(r"(pip install|uv add) r3(?![\w-])", path.read_text(encoding="utf-8")), path
