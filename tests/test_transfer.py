"""Other tasks in an evaluation: how they are named, what is recorded and reported, and what is refused."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import toy
from command import R3
from records import episode, write_run

from r3core.config import Config, configure
from r3core.errors import ConfigError, R3Error
from r3core.evaluation.result import Result, compare, scores, secondary
from r3core.evaluation.tables import other_tasks
from r3core.evaluation.transfer import config_on, with_others
from r3core.other_tasks import OtherTask, file_name
from r3core.page import write_csv, write_page
from r3core.pipeline import Pipeline, result_of
from r3core.plugins.discovery import get_task
from r3core.recorded import config_of
from r3core.report import model_card, print_table
from r3core.rescore import rescore
from r3core.runs import RunRecord
from r3core.settings import nested

EVEN, TOY = f"{toy.__file__}:Even", f"{toy.__file__}:Toy"
TINY: dict[str, Any] = {
    **{f"sampling.{turn}.max_tokens": 6 for turn in ("attempt", "reflection", "retry")},
    **{"evaluate.limit": 6, "evaluate.controls": True, "batch_size": 4},
}


def config(also: Any, *, task: str = EVEN, **settings: Any) -> Config:
    given = {"task": task, "model": "tiny", "evaluate.also": also}
    return configure(get_task(task), nested(given | settings))


def pair(before: int, after: int) -> Result:
    """Return the result of a base and a trained model that solve this many of 10 problems in two tries."""
    sides = [
        [episode(f"n{n}", "fail pass" if n < count else "fail fail") for n in range(10)] for count in (before, after)
    ]
    return Result(base=scores(sides[0]), trained=scores(sides[1]), paired=compare(*sides))


@pytest.mark.parametrize(
    ("given", "name", "options"),
    [
        ("countdown", "countdown", {}),
        ("countdown,numbers=[4]", "countdown,numbers=[4]", {"numbers": [4]}),
        ("countdown,numbers=[3,4],data_seed=7", "countdown,numbers=[3, 4],data_seed=7", {"data_seed": 7}),
        ("countdown,source=generated", "countdown", {"source": "generated"}),  # the default
        ({"task": "apigen", "task_options": {"template": True}}, "apigen,template=true", {"template": True}),
        (TOY, TOY, {"problems": 24}),
        (f"{TOY},problems=3", f"{TOY},problems=3", {"problems": 3}),
    ],
)
def test_a_task_is_named_with_its_options(given: Any, name: str, options: dict[str, Any]) -> None:
    [other] = config([given]).evaluate.also
    assert other.name == name
    assert options.items() <= other.task_options.items()
    assert other.load().options() == other.task_options
    assert Config.model_validate(config([given]).model_dump(mode="json")).evaluate.also == (other,)


def test_rows_of_every_task_have_a_file_of_their_own() -> None:
    names = [
        "countdown",
        "countdown,numbers=[4]",
        "countdown,numbers=[5]",
        "a.py:Countdown",
        "b.py:Countdown",
        "x" * 300,
    ]
    files = [file_name(name) for name in names]
    assert files[0] == "countdown"
    assert len(set(files)) == len(names)
    assert all(re.fullmatch(r"[\w.=-]{1,80}", name) for name in files)


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("countdown", "it should be a list of tasks"),
        ([3], "cannot have 3"),
        ([{"tsk": "countdown"}], "cannot have"),
        (["countdwon"], "did you mean `countdown`?"),
        (["countdown,numbrs=[4]"], "has no option `numbrs`"),
        (["countdown,numbers=x"], "one of the tasks of `evaluate.also`"),
        (["nowhere.py:Task"], "there is no file `nowhere.py`"),
        (["countdown", "countdown,numbers=[3]"], "`countdown` twice"),
        ([EVEN], "it is the run's own task"),
    ],
)
def test_what_is_no_other_task_is_refused(also: Any, message: str) -> None:
    with pytest.raises(R3Error) as refused:
        config(also)
    assert message in str(refused.value)


def test_the_own_task_with_other_options_is_another_task() -> None:
    assert [other.name for other in config([f"{EVEN},problems=3"]).evaluate.also] == [f"{EVEN},problems=3"]
    with pytest.raises(ConfigError, match="the run's own task"):
        config([f"{EVEN},problems=24"])


def test_runs_without_other_tasks_are_recorded_as_before() -> None:
    assert "also" not in config([]).record()["evaluate"]
    assert config(["countdown"]).record()["evaluate"]["also"][0]["task"] == "countdown"


def test_another_task_has_its_own_prompts_and_no_controls() -> None:
    one = config([TOY], **{"wording.retry": "Again.", "evaluate.controls": True, "evaluate.cross": True})
    on = config_on(one, one.evaluate.also[0], model="tiny")
    assert (on.task, on.task_options, on.model) == (TOY, {"problems": 24}, "tiny")
    assert on.wording.retry is None
    assert not on.evaluate.controls
    assert not on.evaluate.cross
    assert (on.evaluate.split, on.evaluate.limit, on.sampling) == ("test", 500, one.sampling)


def test_every_comparison_on_other_tasks_is_adjusted_and_the_primary_one_is_not() -> None:
    result = with_others(pair(2, 9), {"another": pair(6, 5), "third": pair(1, 9)})
    assert result.paired is not None
    assert result.paired.second.p_holm is None
    pairs = [one.paired for one in result.also.values() if one.paired]
    assert [one.second.p_holm for one in pairs] == [1.0, pytest.approx(5 * pairs[1].second.p)]
    assert len(secondary(result)) == 5  # two of each other task, and the first try of its own
    assert with_others(pair(2, 9), {}) == pair(2, 9)


def test_the_tables_have_both_tries_of_every_task() -> None:
    result = with_others(pair(2, 9), {"another": pair(6, 5)})
    head, *lines = other_tasks(result)
    assert [line[0] for line in lines] == [
        *("own task, first try", "own task, second try", "another, first try", "another, second try")
    ]
    assert lines[3][1].strip().startswith("60.0 [")
    assert lines[3][3].startswith("-10.0 [")
    to = io.StringIO()
    print_table(result, config(["countdown"]), to)
    assert "another, second try" in to.getvalue()
    assert "| another, second try |" in model_card(result, config(["countdown"]), None)
    assert other_tasks(pair(2, 9)) == []
    assert head == ("", "base", "trained", "trained - base")


def test_without_a_trained_model_the_table_has_the_base_alone() -> None:
    base = pair(2, 9).model_copy(update={"trained": None, "paired": None})
    lines = other_tasks(base.model_copy(update={"also": {"another": base}}))
    assert lines[-1][2:] == ("", "")


@pytest.mark.slow
def test_both_models_are_evaluated_on_other_tasks_and_resume(tmp_path: Path, tiny_folder: Path) -> None:
    settings = TINY | {"model": str(tiny_folder), "output_dir": tmp_path / "run"}
    one = config([TOY, f"{TOY},problems=3"], **settings)
    with Pipeline.open(get_task(EVEN), one, trained=tiny_folder) as pipeline:
        result = pipeline.compare(tiny_folder)
    assert list(result.also) == [TOY, f"{TOY},problems=3"]
    assert [of.base.first.total for of in result.also.values()] == [6, 3]
    assert all(of.trained is not None and of.paired is not None for of in result.also.values())
    assert result == result_of(RunRecord(tmp_path / "run"))
    files = sorted((tmp_path / "run").glob("also-*.jsonl"))
    assert [len(file.read_text().splitlines()) for file in files] in ([3, 3, 6, 6], [6, 6, 3, 3])
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert all(set(row["retries"]) <= {"reflect"} for row in rows)  # no controls
    before = {file: file.read_bytes() for file in files}
    cut = files[-1]
    lines = before[cut].splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:2]) + lines[2][:10])  # what a kill may leave
    for name in ("stages/evaluate.json", "result.json"):
        (tmp_path / "run" / name).unlink()
    with Pipeline.open(get_task(EVEN), one, trained=tiny_folder) as pipeline:
        assert pipeline.compare(tiny_folder) == result
    assert {file: file.read_bytes() for file in files} == before
    assert config_of(tmp_path / "run").evaluate.also == one.evaluate.also
    assert rescore(tmp_path / "run").judged > 0  # its own rows, by its own verifier


@pytest.mark.slow
def test_the_command_takes_other_tasks(r3: R3, tiny_folder: Path) -> None:
    given = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    command = ["eval", "--task", EVEN, "--model", tiny_folder, *given, "--output-dir", "run"]
    done = r3(*command, "--also", TOY, "--json")
    assert done.code == 0, done.err
    assert list(json.loads(done.out)["also"]) == [TOY]
    assert write_page([Path("run")], Path("page.html")).exists()
    refused = r3(*command, "--also", "nowhere")
    assert (refused.code, refused.out) == (2, "")


def test_a_task_without_problems_is_refused_before_any_work(r3: R3, tiny_folder: Path) -> None:
    Path("empty.py").write_text(
        "from r3core import Task\n\nclass Empty(Task):\n    name = 'empty'\n\n"
        "    def load(self, split):\n        return []\n\n"
        "    def verify(self, example, response):\n        return True\n"
    )
    refused = r3("eval", "--task", EVEN, "--model", tiny_folder, "--also", "empty.py:Empty", "--output-dir", "run")
    assert refused.code == 2
    assert "task `empty` has no examples in its split `test`" in refused.err
    assert "one of the tasks of `evaluate.also`" in refused.err
    assert not list(Path("run").glob("*evaluate*"))


def test_a_model_that_cannot_read_the_problems_is_noted(r3: R3, tiny_folder: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    plain = Tokenizer(WordLevel({"<unk>": 0, "Say": 1, "user": 2, "assistant": 3}, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", eos_token="<unk>", pad_token="<unk>")
    words.chat_template = AutoTokenizer.from_pretrained(tiny_folder).chat_template
    shutil.copytree(tiny_folder, tmp_path / "words")
    words.save_pretrained(tmp_path / "words")
    plan = r3("eval", "--task", EVEN, "--model", tmp_path / "words", "--also", TOY, "--dry-run")
    assert plan.code == 0, plan.err
    assert re.search(
        r"toy.*% of the tokens in its prompts are unknown to the model's tokenizer", plan.out, re.IGNORECASE
    )


def test_other_tasks_do_not_become_rows_of_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", base=[episode("n1", "pass")], trained=[episode("n1", "pass")])
    other = episode("o1", "fail pass", attempt="only on the other task")
    (folder / "also-another-base.jsonl").write_text(other.model_dump_json() + "\n")
    assert "only on the other task" not in write_page([folder], tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_page_and_its_files_have_the_table_of_other_tasks(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", base=[episode("n1", "pass")], trained=[episode("n1", "pass")])
    result = with_others(result_of(RunRecord(folder)), {"<another>": pair(6, 5)})
    (folder / "result.json").write_text(result.model_dump_json())
    page = write_page([folder], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Both tries on other tasks" in page
    assert "&lt;another&gt;, second try" in page
    written = write_csv([folder], tmp_path / "tables")
    [table] = [file for file in written if file.name == "other-tasks.csv"]
    assert "<another>, second try" in table.read_text(encoding="utf-8")


def test_an_entry_can_be_given_as_a_value() -> None:
    assert config([OtherTask(task="countdown")]).evaluate.also[0].task == "countdown"
