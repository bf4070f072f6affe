"""Training on a tiny model: which tokens are trained, with which gradient, advantages and rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import password
import pytest
import tiny
import torch
from even import TEMPERATURE, Even, RecordingTrainer, as_passed, bare_model, even_protocol, trainer_in
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from r3core import Example, Prompt, Verdict
from r3core.episode import Answer, Episode, Reflection
from r3core.generation.chat import encode
from r3core.generation.control_tokens import control_tokens
from r3core.generation.generator import Continued, Sampling
from r3core.generation.transformers import TransformersGenerator
from r3core.reward import batch_metrics, is_broken, reward_of, without_broken_groups
from r3core.runs import Run
from r3core.task import Outcome
from r3core.training.policy import Policy
from r3core.training.trainer import ReflectionTrainer

pytestmark = pytest.mark.slow

OUTCOMES: dict[str, Outcome] = {"+": "pass", "-": "fail", "?": "error"}


class ScriptedRewards(RecordingTrainer):
    """A trainer whose rewards follow a script."""

    script: Sequence[float | None] = ()

    def reward_retries(self, *args: Any, **named: Any) -> list[float | None]:
        return list(self.script)


class ForwardPasses:
    """Records every forward pass through a model's body that has a gradient."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.inputs: list[torch.Tensor] = []  # (rows, tokens)
        self.masks: list[torch.Tensor] = []  # (rows, tokens)
        self.outputs: list[torch.Tensor] = []  # (rows, tokens, hidden)
        model.model.register_forward_hook(self._record, with_kwargs=True)

    def _record(self, module: Any, args: Any, named: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            output.last_hidden_state.retain_grad()
            self.inputs.append(named["input_ids"])
            self.masks.append(named["attention_mask"])
            self.outputs.append(output.last_hidden_state)


def reflected(outcomes: str, *, leaked: bool | None = False, stopped: str = "end") -> list[Episode]:
    """Return one reflection's episodes, one for each outcome of its retries."""
    failed = Answer(text="", tokens=0, verdict=Verdict.failed())
    reflection = Reflection.model_validate({"text": "", "tokens": 0, "leaked": leaked, "stopped": stopped})
    return [
        Episode(
            example=Example(id="one"),
            attempt=failed,
            reflection=reflection,
            retries={"reflect": Answer(text="", tokens=0, verdict=Verdict(outcome=OUTCOMES[outcome]))},
        )
        for outcome in outcomes
    ]


def cut_off(group: list[Episode]) -> list[Episode]:
    """Return a reflection's episodes with retries that the token limit cut off."""
    return [
        episode.model_copy(
            update={"retries": {"reflect": episode.retries["reflect"].model_copy(update={"stopped": "length"})}}
        )
        for episode in group
    ]


def test_only_the_reflections_tokens_have_a_gradient(tmp_path: Path, tiny_tokenizer: Any) -> None:
    protocol, failures = even_protocol()
    model = bare_model(tiny_tokenizer)
    forward = ForwardPasses(model)
    with Run.open(tmp_path / "run", {}) as run:
        trainer = trainer_in(run, protocol, failures, model=model, tokenizer=tiny_tokenizer)
        trainer.train()

    expected = [prompt + reflection for prompt, reflection in zip(trainer.prompts, trainer.reflections, strict=True)]
    forwarded = [
        row[mask.bool()].tolist()
        for ids, masks in zip(forward.inputs, forward.masks, strict=True)
        for row, mask in zip(ids, masks, strict=True)
    ]
    assert sorted(forwarded) == sorted(expected), "something other than request and reflection went into the loss"
    assert len({len(prompt) for prompt in trainer.prompts}) > 1, "no prompt is padded: the test shows too little"
    assert len({len(ids) for ids in trainer.reflections}) > 1, "no reflection is padded: the test shows too little"

    trained = 0
    total = sum(map(len, trainer.reflections))
    for inputs, ids, logits in zip(trainer.losses, forward.inputs, forward.outputs, strict=True):
        mask, advantages, width = as_passed(inputs, ids)
        # (rows, tokens): the logits at one position are those of the token after it
        reflection = torch.zeros_like(ids, dtype=torch.bool)
        reflection[:, width - 1 : -1] = mask
        advantages = advantages[:, None]
        assert logits.grad[~reflection].count_nonzero() == 0
        moved = logits.grad.abs().sum(-1) > 0
        assert torch.equal(moved, reflection & (advantages != 0))
        trained += int(moved.sum())

        chosen = torch.nn.functional.one_hot(ids[:, 1:], logits.shape[-1])
        probabilities = (logits[:, :-1] / TEMPERATURE).softmax(-1)
        by_hand = -advantages[..., None] * (chosen - probabilities) / TEMPERATURE / total
        torch.testing.assert_close(logits.grad[:, :-1], by_hand * reflection[:, :-1, None], rtol=1e-4, atol=1e-8)
    rewards = [row["reward"] for row in run.read("train-episodes")]
    known = torch.tensor([reward is not None for reward in rewards]).view(2, 8)
    mixed = torch.tensor([{0.0, 1.0} <= set(group) for group in (rewards[:8], rewards[8:])])
    assert mixed.any(), "no group is mixed: the test shows nothing"
    lengths = torch.tensor([len(ids) for ids in trainer.reflections]).view(2, 8)
    assert trained == lengths[mixed[:, None] & known].sum()


THINKING_TEMPLATE = tiny.CHAT_TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")
WRITTEN = ["hm</think>aa<|end|>", "well</think>b<|end|>", "aa bb</think><|end|>", "still thinking"]
"""Four reflections of a model whose chat template opens the thought; the last one is cut off in it."""


class ThinkingTrainer(RecordingTrainer):
    """A trainer whose reflections follow a script; those about one failure get the rewards 1, 0, 0 and none."""

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        tokenizer = self.processing_class
        self.prompts = prompt_ids
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in WRITTEN]
        self.reflections = [ids[row % len(ids)] for row in range(len(prompt_ids))]
        return self.reflections, None

    def reward_retries(self, completion_ids: Any, *args: Any, **named: Any) -> list[float | None]:
        self.rewards = super().reward_retries(completion_ids, *args, **named)
        return [(1.0, 0.0, 0.0, None)[row % 4] for row in range(len(completion_ids))]


@pytest.mark.parametrize(
    ("tokens", "history", "read"),
    [
        ("reflection", "template", (2 + 1) / (12 + 13 + 13 + 14)),
        ("answer-of-reflection", "template", 1.0),
        ("reflection", "verbatim", (12 + 13 + 13) / (12 + 13 + 13 + 14)),  # no retry has read the one that was cut off
    ],
)
def test_thinking_is_trained_or_not_and_what_the_retry_reads_is_reported(
    tmp_path: Path, tokens: str, history: str, read: float
) -> None:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = THINKING_TEMPLATE
    model = bare_model(tokenizer)
    forward = ForwardPasses(model)
    protocol, failures = even_protocol(num_generations=4)
    config = protocol.config.model_copy(
        update={"history": history, "train": protocol.config.train.model_copy(update={"tokens": tokens})}
    )
    with Run.open(tmp_path / "run", {}) as run:
        protocol = replace(protocol, config=config)
        trainer = trainer_in(run, protocol, failures, model=model, tokenizer=tokenizer, kind=ThinkingTrainer)
        trainer.train()
    for inputs, ids, logits in zip(trainer.losses, forward.inputs, forward.outputs, strict=True):
        _, advantages, width = as_passed(inputs, ids)
        trained = torch.zeros_like(ids, dtype=torch.bool)
        for row, text in enumerate(map(tokenizer.decode, ids[:, width:])):
            written = next(one for one in WRITTEN if text.startswith(one))
            thought = written.partition("</think>")[0] + "</think>"
            start = len(thought) if tokens == "answer-of-reflection" else 0
            trained[row, width - 1 + start : width - 1 + len(tokenizer.encode(written, add_special_tokens=False))] = 1
        moved = logits.grad.abs().sum(-1) > 0
        assert torch.equal(moved, trained & (advantages[:, None] != 0))
        assert moved.any()
    rows = run.read("train-episodes")
    assert [row["reflection"]["text"] for row in rows[:4]] == ["aa", "b", "", ""]
    assert {row["retries"][0]["stopped"] == "skipped" for row in rows[3::4]} == {True}
    assert set(trainer.rewards[3::4]) == {None}
    logged = trainer.state.log_history[0]
    assert logged["reflections/read_by_retry"] == pytest.approx(read)
    assert logged["reflections/cut_in_thought"] == 0.25


def test_tools_are_part_of_the_training_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: LlamaForCausalLM
) -> None:
    def prompt(_: Even, example: Example) -> Prompt:
        tools = [{"type": "function", "function": {"name": name}} for name in ("wrench", example.id)]
        return Prompt(messages=[{"role": "user", "content": example.id}], tools=tools)

    monkeypatch.setattr(Even, "prompt", prompt)
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = tiny.TOOL_TEMPLATE
    protocol, failures = even_protocol()
    with Run.open(tmp_path / "run", {}) as run:
        trainer = trainer_in(run, protocol, failures, model=tiny_model, tokenizer=tokenizer)
        trainer.train()
    requests = [protocol.reflection_request(failure.episode()) for failure in failures]
    encoded = [encode(tokenizer, request) for request in requests]
    assert all(prompt in encoded for prompt in trainer.prompts)
    assert all("wrench" in tokenizer.decode(prompt) for prompt in trainer.prompts)


class RecordingPolicy(Policy):
    """A policy that records the prompts it has continued, one list per call."""

    def continue_ids(self, prompts: Sequence[list[int]], sampling: Sampling, **named: Any) -> list[Continued]:
        self.trainer.calls.append(list(prompts))
        return super().continue_ids(prompts, sampling, **named)


class PromptRecordingTrainer(RecordingTrainer):
    """A trainer that records the prompts of reflections and retries."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.calls: list[list[list[int]]] = []
        self.policy = RecordingPolicy(self, 64)


def test_prompts_in_training_begin_with_the_tokens_that_were_sampled(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    protocol, plain = even_protocol()
    model = tiny.tiny_model(tiny_tokenizer, spread=0.3)
    requests = [Prompt(messages=failure.prompt) for failure in plain]
    completions = TransformersGenerator(model, tiny_tokenizer).generate(
        requests, Sampling(temperature=0.7, max_tokens=9)
    )
    attempts = [Answer(**one.model_dump(exclude={"fault"}), verdict=Verdict.failed()) for one in completions]
    failures = [one.model_copy(update={"attempt": attempt}) for one, attempt in zip(plain, attempts, strict=True)]
    failures[0] = plain[0]  # as an older run has recorded it, without tokens
    with Run.open(tmp_path / "run", {}) as run:
        trainer = trainer_in(
            run, protocol, failures, model=model, tokenizer=tiny_tokenizer, kind=PromptRecordingTrainer
        )
        trainer.train()
    control = control_tokens(tiny_tokenizer).ids
    reflect, retry = trainer.calls
    attempted = [
        encode(tiny_tokenizer, Prompt(messages=failure.prompt)) + failure.attempt.token_ids
        for failure in failures[1:]
        if control.isdisjoint(failure.attempt.token_ids or [])
    ]
    assert len(attempted) > 1
    assert any(prompt[: len(begins)] == begins for prompt in reflect for begins in attempted)
    unchanged = respelled = 0
    for prompt, ids, again in zip(reflect, trainer.reflections, retry, strict=True):
        sampled = ids[:-1] if ids[-1] == tiny_tokenizer.eos_token_id else ids
        if control.isdisjoint(sampled):
            assert again[: len(prompt) + len(sampled)] == prompt + sampled
            unchanged += 1
            text = tiny_tokenizer.decode(sampled)
            respelled += tiny_tokenizer(text, add_special_tokens=False)["input_ids"] != sampled
    assert unchanged > 8
    assert respelled > 0, "encoding the text gives the same ids: the test shows nothing"
    assert {row["reflection"]["token_ids"] is None for row in run.read("train-episodes")} == {False}


def test_a_call_in_a_reflection_stays_in_its_text(tmp_path: Path, tiny_model: LlamaForCausalLM) -> None:
    text = 'I said <tool_call>{"name": "wrench"}</tool_call> and should not have.'
    tokenizer = tiny.tiny_tokenizer()
    call = {"open": "<tool_call>", "close": "</tool_call>", "repeats": True, "content": "json"}
    call["transform"] = {"type": "function", "function": "{content}"}
    ends = {"close_pattern": r"<\|end\|>", "content": "text"}
    # some models bring one along, and TRL would take calls out of the text by it
    tokenizer.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|assistant|>",
        "fields": {"tool_calls": call, "content": ends},
    }

    class Calling(ReflectionTrainer):
        def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
            return [tokenizer.encode(f"{text}<|end|>", add_special_tokens=False) for _ in prompt_ids], None

    protocol, failures = even_protocol()
    with Run.open(tmp_path / "run", {}) as run:
        trainer_in(run, protocol, failures, model=tiny_model, tokenizer=tokenizer, kind=Calling).train()
    assert {row["reflection"]["text"] for row in run.read("train-episodes")} == {text}


@pytest.mark.parametrize(
    ("rewards", "advantages"),
    [
        # mean 1/2, standard deviation of a sample (0.25 x 4 / 3) ** 0.5 = 0.57735; TRL adds 0.0001 to it
        ([1.0, 0.0, 0.0, 1.0], [0.8659, -0.8659, -0.8659, 0.8659]),
        # an unjudged row: mean 1/3 of three, standard deviation (2 / 3 / 2) ** 0.5 = 0.57735
        ([1.0, 0.0, None, 0.0], [1.1545, -0.5773, 0.0, -0.5773]),
        # the mean over retries: mean 1/2, standard deviation (0.5 / 3) ** 0.5 = 0.40825
        ([0.5, 1.0, 0.5, 0.0], [0.0, 1.2244, 0.0, -1.2244]),
        ([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]),
        ([1.0, None, None, None], [0.0, 0.0, 0.0, 0.0]),
        ([None, None, None, None], [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_advantages_are_those_computed_by_hand(
    tmp_path: Path, rewards: list[float | None], advantages: list[float]
) -> None:
    protocol = password.protocol(password.config(steps=1, per_device_train_batch_size=8, num_generations=4))
    with Run.open(tmp_path / "run", {}) as run:
        trainer = trainer_in(
            run,
            protocol,
            password.failures(),
            model=password.beginner(steps=0),
            tokenizer=password.tokenizer(),
            kind=ScriptedRewards,
        )
        trainer.script = [*rewards, 0.0, 0.0, 0.0, 1.0]  # the other group's rewards, which must not matter
        trainer.train()
    assert list(trainer._logs["advantages"])[:4] == pytest.approx(advantages, abs=1e-4)
    assert list(trainer._logs["advantages"])[4:] == pytest.approx([-0.4999, -0.4999, -0.4999, 1.4997], abs=1e-4)
    [inputs] = trainer.losses
    assert sorted(inputs["advantages"].tolist()) == pytest.approx(sorted(trainer._logs["advantages"]))


@pytest.mark.parametrize(
    ("written", "max_share", "expected"),
    [
        # one group each: + passed, - failed, ? no reward
        ("++------", 0.25, "++------"),
        ("+------?", 0.25, "+------?"),  # one of eight
        ("+-----??", 0.25, "+-----??"),  # a quarter is allowed
        ("+----???", 0.25, "????????"),
        ("?????-+?", 0.25, "????????"),
        ("????????", 0.25, "????????"),
        ("+------?", 0.0, "????????"),
        ("++------", 0.0, "++------"),
        ("+???????", 1.0, "+???????"),
        ("+-?", 0.25, "???"),
        # several groups, each for itself
        ("+-?? +--- ---? ????", 0.25, "???? +--- ---? ????"),
    ],
)
def test_a_group_with_too_many_unjudged_reflections_teaches_nothing(
    written: str, max_share: float, expected: str
) -> None:
    reward = {"+": 1.0, "-": 0.0, "?": None}
    failure = [index for index, group in enumerate(written.split()) for _ in group]
    rewards = [reward[mark] for mark in written.replace(" ", "")]
    broken = [reward is None for reward in rewards]
    result = without_broken_groups(rewards, failure, broken, max_share=max_share)
    assert result == [reward[mark] for mark in expected.replace(" ", "")]


def test_retries_that_were_cut_off_break_no_group() -> None:
    rewards = [1.0, 0.0, None, None]
    assert without_broken_groups(rewards, [0] * 4, [False] * 4, max_share=0.25) == rewards
    [episode] = reflected("-", stopped="length")
    assert not is_broken(cut_off([episode]))
    assert is_broken(reflected("?"))
    overlong = episode.retries["reflect"].model_copy(update={"stopped": "overlong", "verdict": Verdict.error("long")})
    assert not is_broken([episode.model_copy(update={"retries": {"reflect": overlong}})])


def test_the_metrics_of_a_batch() -> None:
    groups = [
        *(reflected(outcome) for outcome in "+-"),  # mixed
        *(reflected(outcome, leaked=True) for outcome in "++"),  # all right
        *(reflected(outcome, stopped="length") for outcome in "--"),  # all wrong
        *(reflected(outcome, leaked=None) for outcome in "??"),  # unknown leaks, verifier errors
        *(reflected(outcome) for outcome in "-?"),  # all wrong, as far as it was judged
        *(cut_off(reflected(outcome)) for outcome in "+-"),  # all right: what was cut off and fails is not judged
    ]
    rewards = [reward_of(group) for group in groups]
    metrics = batch_metrics(rewards, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5], groups)
    assert metrics == {
        "groups/mixed": 1 / 5,
        "groups/all_right": 2 / 5,
        "groups/all_wrong": 2 / 5,
        "groups/unjudged": 1 / 6,
        "reflections/leak_rate": 2 / 10,
        "reflections/truncated": 2 / 12,
        "reflections/cut_in_thought": 0,
        "retries/truncated": 2 / 12,
        "retries/cut_in_thought": 0,
        "retries/unjudged": 4 / 12,
    }


def test_a_retry_that_was_cut_off_earns_no_reward_and_a_warning(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol, failures = even_protocol(steps=5)
    turns = protocol.config.sampling
    turns = turns.model_copy(update={"retry": turns.retry.model_copy(update={"max_tokens": 1})})
    protocol = replace(protocol, config=protocol.config.model_copy(update={"sampling": turns}))
    with Run.open(tmp_path / "run", {}) as run:
        trainer_in(run, protocol, failures, model=tiny_model, tokenizer=tiny_tokenizer).train()
        rows = run.read("train-episodes")
        assert len(rows) == 5 * 16
    cut = [row for row in rows if row["retries"][0]["stopped"] == "length"]
    failed = [row for row in cut if row["retries"][0]["verdict"]["outcome"] == "fail"]
    assert len(failed) > 32  # one character
    assert {row["reward"] for row in failed} == {None}
    assert {row["reward"] for row in cut if row not in failed} <= {1.0, None}  # None: most of the group is unjudged
    err = capsys.readouterr().err
    assert err.count("retries were cut off at sampling.retry.max_tokens=1: raise it") == 1
    assert err.count("reflections were cut off at sampling.reflection.max_tokens=12: raise it") == 1
