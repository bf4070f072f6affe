"""An exhausted memory: one error that names what was computed and the settings to lower, and a run that resumes.

Models raise torch's own errors in their forward pass; what a GPU does was not tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import password
import pytest
import tiny
import torch
from command import R3, runner
from programs import finished, program, settings
from transformers import LlamaForCausalLM

from r3core import RunError
from r3core.config import Config
from r3core.generation.cache_checks import check_cache, check_padding
from r3core.generation.generator import Sampling
from r3core.generation.out_of_memory import is_out_of_memory, memory_errors
from r3core.generation.transformers import TransformersGenerator
from r3core.runs import RunRecord
from r3core.train import grpo_config
from r3core.training.memory import training_hints

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.6 GiB"


class Full(LlamaForCausalLM):
    """A Llama on a device without memory for more than some tokens at a time."""

    room: int = 10**9

    def forward(self, input_ids: Any = None, **named: Any) -> Any:
        if input_ids is not None and input_ids.numel() > self.room:
            raise torch.OutOfMemoryError(MESSAGE)
        return super().forward(input_ids=input_ids, **named)


def full(model: LlamaForCausalLM, *, room: int) -> Full:
    copy = Full(model.config)
    copy.load_state_dict(model.state_dict())
    copy.room = room
    return copy.eval()


def of_the_cpu() -> RuntimeError:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    return raised.value


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError(MESSAGE), True),
        (of_the_cpu(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_about_memory_are_recognized(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
    with pytest.raises(RunError if expected else type(error)) as raised, memory_errors("testing", list):
        raise error
    assert ("out of memory while testing: " in str(raised.value)) is expected


def test_generation_names_the_batch_and_what_to_lower() -> None:
    tokenizer = tiny.tiny_tokenizer()
    generator = TransformersGenerator(full(tiny.tiny_model(tokenizer), room=100), tokenizer, batch_size=8)
    prompts = [[5 + row] * 20 for row in range(8)]
    with pytest.raises(RunError) as raised:
        generator.continue_ids(prompts, Sampling(max_tokens=7))
    message, hints = raised.value.message, raised.value.hints
    assert "generating 8 completions at once (batch_size=8), for prompts of up to 20 tokens and with max_tokens=7" in (
        message
    )
    assert MESSAGE in message
    assert "--set batch_size=4" in hints[0]
    assert any("the same command resumes" in hint for hint in hints)
    smaller = TransformersGenerator(generator.model, tokenizer, batch_size=4)
    assert len(smaller.continue_ids(prompts, Sampling(max_tokens=7))) == 8, "the advice does not help"


@pytest.mark.parametrize("check", [check_cache, check_padding])
def test_a_model_that_does_not_fit_is_not_blamed_on_its_architecture(check: Callable[..., None]) -> None:
    tokenizer = tiny.tiny_tokenizer()
    model = full(tiny.tiny_model(tokenizer), room=0)
    with pytest.raises((RunError, torch.OutOfMemoryError), match="out of memory"):
        check(model, tokenizer, name="large")


@pytest.mark.parametrize(
    ("changes", "expected", "absent"),
    [
        ({}, ["grpo.per_device_train_batch_size=4 --set grpo.gradient_accumulation_steps=8", "--lora r=16"], ["vllm"]),
        ({"gradient_checkpointing": False}, ["--set grpo.gradient_checkpointing=true"], []),
        ({"per_device_train_batch_size": 1, "num_generations": 4}, [], ["per_device_train_batch_size"]),
    ],
)
def test_the_hints_of_training_fit_its_settings(
    changes: dict[str, Any], expected: list[str], absent: list[str], tmp_path: Path
) -> None:
    options = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "max_steps": 1} | changes
    config = Config.model_validate({"task": "toy", "grpo": options})
    args = grpo_config(password.protocol(config), tmp_path, on_cpu=True)
    hints = "\n".join(training_hints(config, args))
    for text in expected:
        assert text in hints
    for text in absent:
        assert text not in hints


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return password.saved(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def r3(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> R3:
    return runner(monkeypatch, capfd, tmp_path)


@contextmanager
def full_after(calls: int, applies: Callable[[], bool]) -> Iterator[None]:
    """Make the forward pass of every Llama raise in the block, after some calls of those that count."""
    seen = 0

    def before(module: Any, *_: Any) -> None:
        nonlocal seen
        if isinstance(module, LlamaForCausalLM) and applies():
            seen += 1
            if seen > calls:
                raise torch.OutOfMemoryError(MESSAGE)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.slow
def test_mining_ends_with_an_error_and_resumes(base: Path, tmp_path: Path, r3: R3) -> None:
    file = settings(tmp_path, base, max_steps=2)
    whole = ["mine", "--config", file, "--set", "batch_size=8"]
    with full_after(14, lambda: True):
        code, _, err = r3(*whole, "--output-dir", "run")
    assert code == 1
    assert err.count("error: out of memory while generating 8 completions at once (batch_size=8)") == 1
    assert "Traceback" not in err
    before = RunRecord(tmp_path / "run").read("mine")
    assert len(before) in (8, 16, 24), "no batch was finished before the error: the test shows too little"
    assert r3(*whole, "--output-dir", "run")[0] == 0
    assert r3(*whole, "--output-dir", "other")[0] == 0
    assert RunRecord(tmp_path / "run").read("mine")[: len(before)] == before
    assert RunRecord(tmp_path / "run").read("mine") == RunRecord(tmp_path / "other").read("mine")


@pytest.mark.slow
def test_training_ends_with_an_error_and_resumes_from_the_checkpoint(base: Path, tmp_path: Path, r3: R3) -> None:
    file = settings(tmp_path, base, max_steps=3, save_steps=1)
    assert r3("mine", "--config", file, "--output-dir", "run")[0] == 0
    with full_after(2, torch.is_grad_enabled):
        code, _, err = r3("train", "--output-dir", "run")
    assert code == 1
    assert err.count("error: out of memory while training on 32 reflections at once") == 1
    assert "--set grpo.per_device_train_batch_size=16 --set grpo.gradient_accumulation_steps=2" in err
    assert "Traceback" not in err
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-2").is_dir()
    assert r3("train", "--output-dir", "run")[0] == 0
    assert [row["step"] for row in RunRecord(tmp_path / "run").read("train")] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("ranks", ["1", "0,1"])
def test_several_processes_report_one_error(base: Path, tmp_path: Path, ranks: str) -> None:
    file = settings(tmp_path, base, max_steps=3, task=f"{password.__file__}:FullHalls")
    command = ["run", "--config", file, "--processes", 2, "--output-dir", tmp_path / "run"]
    code, _, err = finished(program(*command, FULL=ranks))
    assert code == 1
    assert err.count("out of memory while training on 32 reflections at once") == 1, err
    assert "of the training ended with exit code 1; its error message is above" in err
    assert "Traceback" not in err
