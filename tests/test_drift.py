"""The shift of token probabilities between two models, on recorded attempts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from toy import Toy

from r3core.config import resolve
from r3core.evaluation.drift import Drift, drift_of, measure_drift
from r3core.evaluation.evaluate import evaluate
from r3core.executor import LocalExecutor
from r3core.generation.logprobs import logprobs_of
from r3core.generation.transformers import TransformersGenerator
from r3core.protocol import Protocol
from r3core.runs import Run, value_of
from r3core.verification.judge import Judge


def test_shifts_are_means_over_the_occurrences_of_a_token() -> None:
    tokens = [[1, 2, 1], [3]]
    found = drift_of(tokens, [[-1, -2, -1], [-4]], [[-2, -1.5, -3], [-4]], name_of="t{}".format)
    assert (found.attempts, found.tokens, found.mean) == (2, 4, pytest.approx((-1 + 0.5 - 2 + 0) / 4))
    assert [(one.token, one.count, one.shift) for one in found.shifts] == [
        *(("t1", 2, pytest.approx(-1.5)), ("t2", 1, pytest.approx(0.5)), ("t3", 1, pytest.approx(0))),
    ]


def test_rare_tokens_are_not_listed() -> None:
    found = drift_of([[1] * 200 + [2]], [[0.0] * 201], [[0.1] * 200 + [5.0]], name_of=str)
    assert [one.token for one in found.shifts] == ["1"]


def test_log_probabilities_are_those_of_each_row_alone() -> None:
    model = tiny_model(tiny_tokenizer(), spread=0.5)
    prompts, continuations = [[5, 6, 7], [8], [9, 10]], [[11, 12], [13, 14, 15, 16], [17]]
    found = logprobs_of(model, prompts, continuations)
    for prompt, tokens, values in zip(prompts, continuations, found, strict=True):
        ids = torch.tensor([[*prompt, *tokens]])
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0].log_softmax(-1)
        alone = [float(logp[place, ids[0, place + 1]]) for place in range(len(prompt) - 1, ids.shape[1] - 1)]
        assert values == pytest.approx(alone, abs=1e-4)
        assert len(values) == len(tokens)
    assert logprobs_of(model, [], []) == []


def test_the_drift_of_recorded_attempts_is_written_to_the_run(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    base = tiny_model(tokenizer, spread=0.2)
    raised = tokenizer.convert_tokens_to_ids("a")
    trained = tiny_model(tokenizer, spread=0.2)
    with torch.no_grad():
        trained.model.embed_tokens.weight[raised] *= 1.5
    models = {"base": base, "trained": trained}
    task = Toy(problems=24)
    config = resolve(task, overrides=["evaluate.controls=false", "sampling.attempt.max_tokens=24"])
    with Run.open(tmp_path / "run", config.record()) as run, Judge(task) as judge:
        protocol = Protocol(task, judge, config)
        executor = LocalExecutor(protocol, lambda name: TransformersGenerator(models[name], tokenizer))
        evaluate(run, protocol, list(task.load("test")), executor=executor, base="base")
        same = measure_drift(run, protocol, executor, base="base", trained="base")
        found = measure_drift(run, protocol, executor, base="base", trained="trained")
        assert same is not None
        assert same.mean == 0
        assert found is not None
        with_tokens = [row for row in run.rows("evaluate-base") if row["attempt"]["token_ids"]]
        assert found.attempts == len(with_tokens) > 20
        assert found.tokens == sum(len(row["attempt"]["token_ids"]) for row in with_tokens)
        assert found.mean != 0
        assert value_of(Drift, run, "drift") == found
