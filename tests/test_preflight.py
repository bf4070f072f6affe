"""The check of the chat template at the start of a run: what is refused, what is listed, and the date that it shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import templates
import tiny
import toy
from command import R3
from toy import Even

from r3core.cli.arguments import Arguments, trained_from
from r3core.cli.plan import print_plan
from r3core.config import Config
from r3core.errors import ConfigError, TaskError, UsageError
from r3core.generation.models import tokenizer_of
from r3core.generation.probe import TemplateFacts
from r3core.generation.template import original
from r3core.pipeline import ORIGIN, Pipeline, origin_with
from r3core.preflight import check_template, notes, template_date
from r3core.runs import Run
from r3core.task import Example, Prompt, Split

TASK = f"{toy.__file__}:Even"
THINKS = TemplateFacts(thinking=True, shows_thought=True)
SYSTEM = [Prompt(messages=[{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])]
LARGE = {"attempt": {"max_tokens": 4096}, "reflection": {"max_tokens": 2048}, "retry": {"max_tokens": 4096}}


def model_with(folder: Path, template: str | None) -> Path:
    """Write a tiny model with a chat template, and return its folder."""
    tokenizer = templates.tokenizer_with(template or tiny.CHAT_TEMPLATE)
    tokenizer.chat_template = template
    tiny.tiny_model(tokenizer, spread=0.3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_of(model: Path, **settings: Any) -> Config:
    return Config(task="even", model=str(model), **settings)


@pytest.mark.parametrize(
    ("found", "settings", "expected"),
    [
        (TemplateFacts(), {}, []),
        (TemplateFacts(plain=True), {}, ["the model has no chat template: .*--chat-template FILE"]),
        (
            THINKS,
            {},
            [
                r"the retry does not read the reflection's thinking: .*set history=verbatim",
                r"the model may think before it answers, .*--set sampling.attempt.max_tokens=4096 --set "
                "sampling.reflection.max_tokens=2048 --set sampling.retry.max_tokens=4096",
            ],
        ),
        (
            THINKS.model_copy(update={"opens_thought": True, "keeps_thought": ("preserve_thinking=true",)}),
            {"sampling": LARGE},
            [r"the retry does not .*set template.preserve_thinking=true or history=verbatim"],
        ),
        (THINKS.model_copy(update={"retry_reads_thought": True}), {"sampling": LARGE}, []),
        (THINKS, {"sampling": LARGE, "history": "verbatim"}, []),
        (THINKS, {"sampling": LARGE, "history": "answer"}, ["thinking: `history` is answer"]),
        (THINKS.model_copy(update={"closes_thought": True}), {}, ["thinking is off"]),
        (TemplateFacts(system="raises"), {}, ["refuses system messages: they are put before the first text of the us"]),
        (TemplateFacts(system="dropped"), {}, ["leaves out system messages: they are put before"]),
        (TemplateFacts(dated=True), {"template_date": date(2026, 1, 2)}, ["date: it stays 2026-01-02 in this run"]),
        (TemplateFacts(preamble="You are Qwen. " * 10), {}, ["puts 140 characters of its own before the task: 'You a"]),
        (TemplateFacts(trims=True), {}, ["removes white space at the edges of turns"]),
        (TemplateFacts(prefix_turn=False), {}, ["earlier turns are written differently"]),
    ],
)
def test_what_a_template_does_in_its_own_way_is_listed(
    found: TemplateFacts, settings: dict[str, Any], expected: list[str]
) -> None:
    import re

    lines = notes(found, Config(task="even", **settings), SYSTEM)
    assert len(lines) == len(expected)
    assert all(re.search(pattern, line) for pattern, line in zip(expected, lines, strict=True))


def test_a_template_without_turns_in_a_row_is_listed_for_prompts_of_several_turns() -> None:
    found, config = TemplateFacts(alternates=True), Config(task="even")
    talk = [{"role": role, "content": "a"} for role in ("system", "user", "assistant", "user")]
    assert notes(found, config, SYSTEM) == []
    [line] = notes(found, config, [Prompt(messages=talk)])
    assert "refuses two turns of the user in a row" in line


@pytest.mark.parametrize(
    ("room", "settings", "expected"),
    [
        (None, {}, {"attempt": 4096, "reflection": 2048, "retry": 4096}),
        (5120, {}, {"attempt": 2048, "reflection": 1024, "retry": 2048}),
        (5120, {"reflection": {"max_tokens": 1024}}, {"attempt": 2048, "retry": 2048}),
        (1200, {}, {}),
        (-5, {}, {}),
    ],
)
def test_the_proposed_limits_fit_the_context_together(
    room: int | None, settings: dict[str, Any], expected: dict[str, int]
) -> None:
    config = Config(task="even", history="verbatim", sampling=settings)
    lines = notes(THINKS, config, SYSTEM, room=room)
    flags = " ".join(f"--set sampling.{turn}.max_tokens={tokens}" for turn, tokens in expected.items())
    assert [line.partition(": ")[2] for line in lines] == ([flags] if flags else [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"attempt": {"max_tokens": 2048}},
            r"the attempt has \d+, and sampling.attempt.max_tokens=2048 exceeds",
        ),
        ({"reflection": {"max_tokens": 2000}}, r"context of 2,048 .*the reflection has 133, and sampling.reflection"),
        (
            {"retry": {"max_tokens": 1990}},
            r"retry has 176, .*\n.*lower sampling.retry.max_tokens to less than 1872:",
        ),
        ({}, "and grpo.max_completion_length=2040"),
    ],
)
def test_a_token_limit_that_no_problem_has_room_for_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    grpo = {} if settings else {"max_completion_length": 2040}
    with pytest.raises(UsageError, match=message):
        check_template(Even(), config_of(model_with(tmp_path, None), sampling=settings, grpo=grpo))


def test_the_context_of_vllm_is_that_of_its_options(tmp_path: Path) -> None:
    config = config_of(model_with(tmp_path, None), engine="vllm", sampling={"attempt": {"max_tokens": 2048}})
    longer = config.model_copy(update={"engine_options": {"max_model_len": 4096}})
    assert check_template(Even(), longer)
    with pytest.raises(UsageError, match=r"context of 500 (.|\n)*or raise engine_options.max_model_len"):
        check_template(Even(), config.model_copy(update={"engine_options": {"max_model_len": 500}}))


class FirstTooLong(Even):
    """A task whose first problem alone exceeds the context."""

    def load(self, split: Split) -> Iterator[Example]:
        yield Example(id="long", prompt="1 " * 3000)
        yield from super().load(split)


def test_one_problem_that_is_too_long_is_no_error(tmp_path: Path) -> None:
    assert check_template(FirstTooLong(), config_of(model_with(tmp_path, None)))


class OnHub(Even):
    """A task whose problems are on the Hub."""

    def load(self, split: Split) -> Iterator[Example]:
        from huggingface_hub import is_offline_mode

        if is_offline_mode():
            raise OSError("offline mode is enabled")
        return super().load(split)


def test_a_plan_downloads_no_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    config = config_of(model_with(tmp_path, None))
    notes_before = check_template(OnHub(), config)
    with pytest.raises(TaskError, match="offline"):
        check_template(OnHub(), config, downloads=False)
    assert check_template(OnHub(), config) == notes_before
    print_plan(OnHub(), config)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("chat template:"))
    assert line.startswith("chat template: not checked: task `even`: `load('train')` raised OSError: offline mode")
    assert line.endswith("(--dry-run downloads no problems)")


def test_notes_on_system_messages_are_for_tasks_that_have_them() -> None:
    assert notes(TemplateFacts(system="raises"), Config(task="even")) == []


def test_an_end_of_turn_that_does_not_end_the_model_is_listed(tmp_path: Path) -> None:
    folder = model_with(tmp_path, templates.trl_template("qwen2_5"))
    assert not any("is not an end token" in line for line in check_template(Even(), config_of(folder)))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"eos_token": "<|im_start|>"}))
    (folder / "generation_config.json").unlink()
    assert "'<|im_end|>', which is not an end token" in check_template(Even(), config_of(folder))[0]


def test_a_value_that_the_template_has_anyway_is_listed(tmp_path: Path) -> None:
    folder = model_with(tmp_path, templates.trl_template("qwen3"))
    lines = check_template(Even(), config_of(folder, template={"enable_thinking": True}))
    assert "template.enable_thinking=True is what the chat template does without it" in lines
    with pytest.raises(ConfigError, match=r"`template\.thinking` changes nothing"):
        check_template(Even(), config_of(folder, template={"thinking": True}))


@pytest.mark.parametrize("stage", ["mine", "train", "evaluate"])
def test_no_work_starts_on_a_template_that_loses_a_turn(tmp_path: Path, stage: str) -> None:
    lossy = "{{ messages[-1].content }}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    config = config_of(model_with(tmp_path / "model", lossy), output_dir=tmp_path / "run")
    with Pipeline.open(Even(), config) as stages:
        if stage == "train":
            stages.run.finish("mine", {})
        with pytest.raises(UsageError, match="leaves out the task, the attempt"):
            getattr(stages, stage)()


def test_a_dry_run_lists_the_notes(r3: R3, tmp_path: Path) -> None:
    folder = model_with(tmp_path / "model", templates.trl_template("qwen3_6"))
    command = ("run", "--task", TASK, "--model", folder, "--set", "grpo.max_steps=1", "--dry-run")
    result = r3(*command)
    assert result.code == 0
    assert "chat template: the retry does not read the reflection's thinking" in result.out
    assert "chat template: the request opens a thought" in result.out
    result = r3(*command, "--set", "template.enable_thinking=false")
    assert "chat template: thinking is off" in result.out
    result = r3(*command, "--set", "template.enable_thinkin=false")
    assert result.code == 1 or result.code == 2
    assert "did you mean `template.enable_thinking`?" in result.err


def test_a_chat_template_from_a_file_is_part_of_the_run(tmp_path: Path) -> None:
    folder, file = model_with(tmp_path / "model", None), tmp_path / "chat.jinja"
    file.write_text(tiny.CHAT_TEMPLATE)
    config = config_of(folder, chat_template=str(file), output_dir=tmp_path / "run")
    assert original(tokenizer_of(config, folder)) == tiny.CHAT_TEMPLATE
    assert config.record()["chat_template"] == tiny.CHAT_TEMPLATE
    stored = Config.model_validate(config.record())
    file.write_text(tiny.CHAT_TEMPLATE + "\n")
    assert stored.chat_template == tiny.CHAT_TEMPLATE
    assert config_of(folder, chat_template=str(file)).directory != config_of(folder).directory


@pytest.mark.parametrize("content", [None, "no template", b"\xff\xfe{{"])
def test_a_file_without_a_template_is_refused(r3: R3, tmp_path: Path, content: str | bytes | None) -> None:
    file = tmp_path / "chat.jinja"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = r3("mine", "--task", TASK, "--model", tmp_path, "--chat-template", file, "--dry-run")
    assert result.code == 2
    assert "`chat_template` cannot be" in result.err


def test_a_record_without_the_new_keys_is_that_of_an_earlier_version() -> None:
    record = Config(task="even").record()
    assert not {"template", "chat_template", "template_date", "history"} & record.keys()
    assert not {"tokens", "drop_equal_groups"} & record["train"].keys()
    changed = Config.model_validate({"task": "even", "template": {"a": 1}, "train": {"tokens": "answer-of-reflection"}})
    assert changed.record()["template"] == {"a": 1}
    assert changed.record()["train"]["tokens"] == "answer-of-reflection"


def opened(folder: Path, **settings: Any) -> date:
    config = Config(task="even", **settings)
    with Run.open(folder, config.record()) as run:
        return template_date(run, config, local=True)


def test_the_date_of_a_run_is_that_of_its_first_start(tmp_path: Path) -> None:
    import time_machine

    with time_machine.travel(datetime(2031, 2, 3, 12, tzinfo=UTC), tick=False):
        assert opened(tmp_path) == date(2031, 2, 3)
    with time_machine.travel(datetime(2031, 2, 9, 12, tzinfo=UTC), tick=False):
        assert opened(tmp_path) == date(2031, 2, 3)
        (tmp_path / "template.json").unlink()  # as in a run of an earlier version
        assert opened(tmp_path) == date(2031, 2, 3)


def test_the_date_of_a_run_with_results_stays(tmp_path: Path) -> None:
    assert opened(tmp_path, template_date=date(2026, 1, 2)) == date(2026, 1, 2)
    assert opened(tmp_path, template_date=date(2026, 1, 3)) == date(2026, 1, 3)
    (tmp_path / "mine.jsonl").touch()
    assert opened(tmp_path) == date(2026, 1, 3)
    with pytest.raises(UsageError, match="shows the date 2026-01-03; `template_date` is 2026-01-02"):
        opened(tmp_path, template_date=date(2026, 1, 2))


def test_all_stages_show_the_date_of_the_run(tmp_path: Path) -> None:
    folder = model_with(tmp_path / "model", "{{ strftime_now('%Y-%m-%d') }}" + tiny.CHAT_TEMPLATE)
    config = config_of(folder, output_dir=tmp_path / "run", template_date=date(2001, 2, 3))
    with Pipeline.open(Even(), config) as stages:
        tokenizer = tokenizer_of(stages.engine.config, folder)
        text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert str(text).startswith("2001-02-03")


def test_a_run_on_a_server_that_is_resumed_on_another_day_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(task="even")
    with Run.open(tmp_path, config.record()) as run:
        run.write_json("template", {"date": "2001-02-03"})
        template_date(run, config, local=False)
        assert capsys.readouterr().err == ""
        run.append("mine", [{}])
        template_date(run, config, local=True)
        assert capsys.readouterr().err == ""
        template_date(run, config, local=False)
        assert "warning: the run was started on 2001-02-03" in capsys.readouterr().err


def test_show_takes_a_chat_template_from_a_file(r3: R3, tmp_path: Path) -> None:
    folder, file = model_with(tmp_path / "model", None), tmp_path / "chat.jinja"
    command = ("show", "--task", TASK, "--model", folder, "-n", 1)
    short = [word for turn in ("attempt", "reflection", "retry") for word in ("--set", f"sampling.{turn}.max_tokens=3")]
    assert "note: the model has no chat template" in r3(*command, *short).err
    file.write_text("# of this file\n" + tiny.CHAT_TEMPLATE)
    result = r3(*command, *short, "--chat-template", file)
    assert result.out.count("# of this file") == 3
    assert "no chat template" not in result.err


def compared(folder: Path, *overrides: str) -> Config:
    found = trained_from(Arguments.of(model=str(folder), overrides=list(overrides)), folder)
    assert found is not None
    return found[1]


def test_a_trained_model_is_compared_under_the_prompts_it_was_trained_with(tmp_path: Path) -> None:
    day = date(2026, 1, 2)
    config = Config(task=TASK, model="base", history="answer", template={"a": "1"}, template_date=day)
    file = tmp_path / ORIGIN
    file.write_text(json.dumps(origin_with(config, dated=True)))
    restored = compared(tmp_path)
    assert (restored.history, restored.template, restored.template_date) == ("answer", {"a": "1"}, day)
    assert compared(tmp_path, "history=verbatim").history == "verbatim"
    file.write_text(json.dumps(origin_with(config, dated=False)))
    assert compared(tmp_path).template_date is None
    first = {key: getattr(config, key) for key in ("model", "revision", "task", "task_options")}  # as in 0.1
    file.write_text(json.dumps(first))
    assert (compared(tmp_path).history, compared(tmp_path).template) == ("template", {})
