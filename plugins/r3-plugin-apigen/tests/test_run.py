"""The paper's run as far as it goes here: local files of xlam's format, and a tiny model that knows nothing."""

import json
import random

import command
import pytest
import tiny
from tokenizers import AddedToken

from r3core.failures import read_failures
from r3core.generation.chat import completion, encode
from r3core.generation.generator import Continued
from r3core.generation.models import load_model
from r3core.protocol import Protocol
from r3core.verification.judge import Judge

pytestmark = pytest.mark.slow

SMALL = [
    "mine.keep_truncated=true",  # a random model ends no turn
    *("mine.limit=6", "mine.samples=1", "mine.probe=0", "evaluate.limit=3", "evaluate.controls=false"),
    *("grpo.max_steps=1", "grpo.per_device_train_batch_size=4", "grpo.gradient_accumulation_steps=1"),
    *("grpo.num_generations=2", "sampling.attempt.max_tokens=6", "sampling.reflection.max_tokens=6"),
    *("sampling.retry.max_tokens=6", "uncertified=true"),
]
SETTINGS = [argument for setting in SMALL for argument in ("--set", setting)]


@pytest.fixture
def r3(monkeypatch, capfd, tmp_path):
    """A function that runs a command in the directory of the test."""
    monkeypatch.setenv("R3_CACHE", str(tmp_path / "cache"))
    return command.runner(monkeypatch, capfd, tmp_path)


def rows(count=60):
    rng = random.Random(0)
    for number in range(count):
        city = f"city {number}"
        tools = [{"name": "weather", "description": "Now", "parameters": {"city": {"description": "", "type": "str"}}}]
        calls = [{"name": "weather", "arguments": {"city": city}}]
        query = f"How is the weather in {city}, {rng.random()}?"
        yield {"id": number, "query": query, "tools": json.dumps(tools), "answers": json.dumps(calls)}


def written(folder, kind):
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows())), path)
    return path


def model_in(folder, template):
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in ("<tool_call>", "</tool_call>")])
    tokenizer.chat_template = template
    tiny.tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "template", "options"),
    [("parquet", tiny.CHAT_TEMPLATE, {}), ("jsonl", tiny.TOOL_TEMPLATE, {"template": "true"})],
)
def test_the_papers_run_goes_from_mining_to_the_report(r3, tmp_path, kind, template, options):
    source = {"source": str(written(tmp_path, kind))}
    model = model_in(tmp_path / "model", template)
    named = [f"--task-option={name}={value}" for name, value in (source | options).items()]
    asked = ["run", "--task", "apigen", "--model", model, "--preset", "paper", "--output-dir", "run", *named, *SETTINGS]
    said = r3(*asked, "--json")
    assert said.code == 0, said.err
    result = json.loads(said.out)
    assert result["base"]["first"]["total"] == result["trained"]["first"]["total"] == 3
    assert sum(result["base"]["first_error_categories"].values()) == 3  # every failure has a kind

    failures, _ = read_failures(tmp_path / "run")
    trained = [json.loads(line) for line in (tmp_path / "run/train-episodes.jsonl").read_text().splitlines()]
    assert {row["id"] for row in trained} <= {failure.id for failure in failures}
    assert len(trained) == 4
    assert {bool(failure.tools) for failure in failures} == {bool(options)}

    from r3_plugin_apigen.task import Apigen
    from r3core.config import Config

    task = Apigen(**source, **options)
    protocol = Protocol(task, Judge(task), Config(task="apigen"))
    _, tokenizer = load_model(str(model), revision=None, dtype="float32", trust_remote_code=False)
    request = protocol.reflection_request(failures[0].episode())
    text = tokenizer.decode(encode(tokenizer, request))
    assert text.count('"name": "weather"') == 1
    assert ("<|system|>" in text) == bool(options)


def test_a_model_whose_template_has_no_place_for_tools_is_refused_at_once(r3, tmp_path):
    model = model_in(tmp_path / "model", tiny.CHAT_TEMPLATE)
    asked = ["run", "--task", "apigen", "--model", model, "--task-option", "template=true", *SETTINGS]
    said = r3(*asked, "--set", "grpo.max_steps=1")
    assert said.code == 2
    assert "has no place for tools" in said.err
    assert "leave `template` out" in said.err
    assert "Traceback" not in said.err


def test_tags_that_are_tokens_of_their_own_stay_in_the_text(tmp_path):
    _, tokenizer = load_model(model_in(tmp_path / "model", tiny.TOOL_TEMPLATE))
    said = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
    ids = tokenizer.encode(said, add_special_tokens=False)
    assert tokenizer.convert_tokens_to_ids("<tool_call>") in ids
    assert completion(tokenizer, Continued(ids, ended=False)).text == said
