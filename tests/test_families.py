"""Every family of chat templates that TRL stores: its conversations, and one training step on a tiny model with it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import templates
import tiny
import torch
import toy
from command import R3
from toy import Even

from r3core.config import Config
from r3core.episode import Answer, Episode, Reflection
from r3core.failures import Failure
from r3core.generation.chat import encode
from r3core.generation.probe import facts
from r3core.generation.template import apply, original
from r3core.generation.thinking import marks_of
from r3core.protocol import Protocol
from r3core.runs import Run
from r3core.task import Example, Prompt, Verdict
from r3core.train import grpo_config
from r3core.training.checkpoints import save_model
from r3core.training.trainer import ReflectionTrainer
from r3core.verification.judge import Judge

pytestmark = pytest.mark.slow

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say 7."}
EXAMPLE = Example(id="n7", prompt=[SYSTEM, USER], answer="7")


@pytest.fixture(params=templates.trl_names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def protocol() -> Iterator[Protocol]:
    grpo = {"max_steps": 1, "per_device_train_batch_size": 4, "num_generations": 4, "save_strategy": "no"}
    turns = {turn: {"max_tokens": 8} for turn in ("attempt", "reflection", "retry")}
    config = Config.model_validate({"task": "even", "sampling": turns, "grpo": grpo})
    with Judge(Even()) as judge:
        yield Protocol(Even(), judge, config)


def requests(protocol: Protocol, *, thinking: str | None) -> list[Prompt]:
    attempt = Answer(text="Eight.", tokens=3, thinking=thinking, verdict=Verdict.failed())
    episode = Episode(example=EXAMPLE, attempt=attempt)
    reflection = Reflection(text="I must say 7.", tokens=3, thinking=thinking)
    return [
        protocol.attempt_request(EXAMPLE),
        protocol.reflection_request(episode),
        protocol.retry_request(episode, reflection),
        protocol.retry_request(episode, None),
    ]


@pytest.mark.parametrize("thinking", [None, "Seven or eight?"])
def test_every_turn_arrives_once(name: str, protocol: Protocol, thinking: str | None) -> None:
    tokenizer = templates.tokenizer_with(templates.trl_template(name))
    for request in requests(protocol, thinking=thinking):
        text = str(tokenizer.decode(encode(tokenizer, request), skip_special_tokens=False))
        places = [text.find(message["content"]) for message in request.messages]
        assert -1 not in places
        assert places == sorted(places)
        assert text.count(tokenizer.bos_token) <= 1
        assert all(text.count(message["content"]) == 1 for message in request.messages)
        if facts(tokenizer).system == "accepted":
            messages = [
                {**one, "reasoning_content": thinking} if one["role"] == "assistant" else one
                for one in request.messages
            ]
            assert text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


SETTINGS = [
    *(f"sampling.{turn}.max_tokens=6" for turn in ("attempt", "reflection", "retry")),
    *("mine.limit=16", "mine.probe=0", "evaluate.limit=4", "judge.workers=1", "grpo.max_steps=1"),
    *("grpo.per_device_train_batch_size=4", "grpo.num_generations=4", "mine.keep_truncated=true"),
]


def test_every_stage_runs(name: str, tmp_path: Path, r3: R3) -> None:
    """Shows, mines, trains one step and evaluates, with what the template does in its own way on standard error."""
    tokenizer = templates.tokenizer_with(templates.trl_template(name))
    model = tiny.tiny_model(tokenizer, context=8192, spread=0.3, tie_word_embeddings=False)
    if (marks := marks_of(tokenizer)) is not None and facts(tokenizer).opens_thought:
        with torch.no_grad():  # close the thought at once: a model that never does so has no answer
            state = model.model(torch.tensor([encode(tokenizer, Prompt(messages=[USER]))])).last_hidden_state[0, -1]
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(marks.close)] = 20 * state / state.dot(state)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    task = ("--task", f"{toy.__file__}:Even", "--model", tmp_path / "model")
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    shown = r3("show", *task, *settings, "-n", 1)
    assert shown.code == 0, shown.err
    assert "the trained tokens" in shown.out
    run = r3("run", *task, *settings, "--uncertified", "--output-dir", tmp_path / "run")
    assert run.code == 0, run.err
    assert (tmp_path / "run" / "model" / "chat_template.jinja").read_text() == templates.trl_template(name)
    notes = [line for line in shown.err.splitlines() if line.startswith("note:") and "shows the date" not in line]
    assert set(notes) <= set(run.err.splitlines())


class Scripted(ReflectionTrainer):
    """A trainer with fixed rewards, that records the tokens of prompts and reflections."""

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **named: Any) -> Any:
        sampled = super()._generate_single_turn(prompt_ids, *args, **named)
        self.sampled = {(*prompt, *ids): len(ids) for prompt, ids in zip(prompt_ids, sampled[0], strict=True)}
        return sampled

    def reward_retries(self, completion_ids: Any, *args: Any, **named: Any) -> list[float | None]:
        super().reward_retries(completion_ids, *args, **named)
        return [1.0, 0.0, 0.0, 0.0]


def bare_model(tokenizer: Any) -> Any:
    """Return a model whose head is the identity: what its body returns are the logits."""
    size = len(tokenizer)
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}
    model = tiny.tiny_model(tokenizer, context=8192, hidden_size=size, tie_word_embeddings=False, **heads)
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.eye(size)).requires_grad_(False)
    return model


def test_one_step_trains_the_reflection_alone(name: str, protocol: Protocol, tmp_path: Path) -> None:
    tokenizer = templates.tokenizer_with(templates.trl_template(name))
    tokenizer.pad_token = tokenizer.eos_token
    model = bare_model(tokenizer)
    outputs: list[tuple[Any, Any, Any]] = []

    def record(module: Any, args: Any, named: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            output.last_hidden_state.retain_grad()
            outputs.append((named["input_ids"], named["attention_mask"], output.last_hidden_state))

    model.model.register_forward_hook(record, with_kwargs=True)
    attempt = Answer(text="Eight.", tokens=3, verdict=Verdict.failed())
    failures = [Failure(id="n0", prompt=[USER], sample=0, attempt=attempt, passed=0, samples=1)]
    with Run.open(tmp_path / "run", {}) as run:
        args = grpo_config(protocol, run.path / "checkpoints", on_cpu=True)
        trainer = Scripted(run, protocol, failures, model=model, tokenizer=tokenizer, args=args)
        trainer.train()
    rows = []
    for ids, masks, logits in outputs:  # one per piece of the batch
        for row, mask, gradient in zip(ids, masks.bool(), logits.grad, strict=True):
            rows.append(tuple(row[mask].tolist()))
            trained = torch.zeros_like(mask)  # the logits at one position are those of the token after it
            trained[mask.nonzero().flatten()[-trainer.sampled[rows[-1]] - 1 : -1]] = True
            assert torch.equal(gradient.abs().sum(-1) > 0, trained)
    assert len(rows) == len(trainer.sampled)
    assert set(rows) == set(trainer.sampled)


def test_a_trained_model_has_the_models_own_template(protocol: Protocol, tmp_path: Path) -> None:
    tokenizer = templates.tokenizer_with(templates.trl_template("gptoss"))
    tokenizer.pad_token = tokenizer.eos_token
    apply(tokenizer, {"reasoning_effort": "low"}, day=date(2026, 1, 2))
    attempt = Answer(text="Eight.", tokens=3, verdict=Verdict.failed())
    failures = [Failure(id="n0", prompt=[USER], sample=0, attempt=attempt, passed=0, samples=1)]
    config = protocol.config
    grpo = config.grpo | {"save_strategy": "steps", "save_steps": 1}
    protocol = Protocol(protocol.task, protocol.judge, config.model_copy(update={"grpo": grpo}))
    with Run.open(tmp_path / "run", {}) as run:
        args = grpo_config(protocol, run.path / "checkpoints", on_cpu=True)
        trainer = Scripted(run, protocol, failures, model=bare_model(tokenizer), tokenizer=tokenizer, args=args)
        trainer.train()
        save_model(trainer, protocol.config, run.path / "model", dtype=torch.float32)
        assert tokenizer.chat_template != original(tokenizer)
        saved = [run.path / "model", *run.path.glob("checkpoints/checkpoint-*")]
        assert len(saved) == 2
        for folder in saved:
            assert (folder / "chat_template.jinja").read_text() == original(tokenizer)
            assert original(tokenizer) == templates.trl_template("gptoss")
