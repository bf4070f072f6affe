"""The policy on TRL's vLLM server: the requests it sends, and when the weights are copied."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import password
import pytest

from r3core.config import Config
from r3core.generation.generator import Continued, Sampling
from r3core.train import grpo_config
from r3core.training.policy import Policy

PROMPTS = [[1, 2], [1, 2], [3, 4], [3, 4]]


class Server:
    """TRL's client of a vLLM server: it returns the prompt reversed, and ended when the prompt starts odd."""

    mode = "server"
    temperature, top_p, top_k, max_completion_length = 0.1, 0.2, 3, 4

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.synced = 0

    def sync_weights(self) -> None:
        self.synced += 1

    def generate(self, prompts: list[list[int]], images: None, num_generations: int) -> tuple[Any, ...]:
        how = (self.temperature, self.top_p, self.top_k, self.max_completion_length)
        self.calls.append((prompts, num_generations, how))
        end = password.tokenizer().eos_token_id
        ids = [prompt[::-1] + [end] * (prompt[0] % 2) for prompt in prompts]
        return prompts, ids, [[[None if token == 1 else -0.5] for token in row] for row in ids], None


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def policy(server: Server) -> Policy:
    trainer = SimpleNamespace(
        use_vllm=True,
        vllm_generation=server,
        processing_class=password.tokenizer(),
        model=password.beginner(steps=0),
        state=SimpleNamespace(global_step=0),
        accelerator=SimpleNamespace(device=SimpleNamespace(type="cuda")),
        _last_loaded_step=-1,
    )
    return Policy(trainer, 8)


def test_a_server_receives_the_sampling_of_the_turn_and_its_settings_are_restored(
    policy: Policy, server: Server
) -> None:
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=5, max_tokens=6)
    taken: list[int] = []
    written = policy.continue_ids(
        PROMPTS, sampling, group=2, logprobs=True, take=lambda rows: taken.extend(i for i, _ in rows)
    )
    assert server.calls == [(PROMPTS, 2, (0.7, 0.9, 5, 6))]
    assert (server.temperature, server.top_p, server.top_k, server.max_completion_length) == (0.1, 0.2, 3, 4)
    end = password.tokenizer().eos_token_id
    assert [(one.ids, one.ended) for one in written] == [([2, 1, end], True)] * 2 + [([4, 3, end], True)] * 2
    assert taken == [0, 1, 2, 3]
    assert written[2] == Continued([4, 3, end], True, [-0.5, -0.5, -0.5])
    first, unknown, last = written[0].logprobs or []
    assert (first, last) == (-0.5, -0.5)
    assert math.isnan(unknown)  # TRL leaves such a token uncorrected


def test_a_completion_without_an_end_was_cut_off(policy: Policy) -> None:
    [one] = policy.continue_ids([[2, 9]], Sampling(max_tokens=2))
    assert (one.ids, one.ended) == ([9, 2], False)


def test_the_weights_are_copied_once_per_step(policy: Policy, server: Server) -> None:
    policy.continue_ids(PROMPTS, Sampling())
    policy.continue_ids(PROMPTS, Sampling())
    assert server.synced == 1
    policy.trainer.state.global_step = 1
    policy.continue_ids(PROMPTS, Sampling())
    assert server.synced == 2


def test_closing_leaves_a_server_alone(policy: Policy, server: Server) -> None:
    policy.close()
    assert policy.trainer.vllm_generation is server


@pytest.mark.parametrize(
    ("grpo", "limit"), [({}, 512), ({"vllm_max_model_length": 256}, 256)], ids=["the engine's", "TRL's own"]
)
def test_the_maximum_length_of_vllm_applies_in_training(grpo: dict[str, Any], limit: int, tmp_path: Path) -> None:
    values = {
        "task": "doors",
        "engine": "vllm",
        "engine_options": {"max_model_len": 512},
        "grpo": {"max_steps": 1} | grpo,
    }
    args = grpo_config(password.protocol(Config.model_validate(values)), tmp_path, on_cpu=True)
    assert (args.use_vllm, args.vllm_max_model_length) == (True, limit)
