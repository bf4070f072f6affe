"""Countdown's built-in model: its size, its ability, and the warning when its prompts change."""

import pytest

from r3_plugin_countdown.task import Countdown
from r3core import Wording
from r3core.config import Config
from r3core.protocol import Protocol
from r3core.verification.judge import Judge

pytestmark = pytest.mark.slow

TASK = Countdown()
MODEL = TASK.demo.model


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL)


def test_the_model_is_small_and_vllm_supports_its_head_size(model):
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 8_000_000
    assert 1_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000
    assert model.config.head_dim == 64
    assert not list(MODEL.glob("*.bin"))


def test_the_model_solves_some_problems(model, tokenizer):
    from r3core.config import resolve
    from r3core.generation.transformers import TransformersGenerator

    config = resolve(TASK, overrides=["sampling.attempt.temperature=0"])
    problems = [problem for problem, _ in zip(TASK.load("validation"), range(32), strict=False)]
    generator = TransformersGenerator(model, tokenizer, batch_size=32)
    attempted = Protocol(TASK, Judge(TASK), config).attempt(problems, generator, seed=0)
    assert sum(episode.attempt.verdict.outcome == "pass" for episode in attempted) > 0
    assert all(episode.attempt.stopped == "end" for episode in attempted)


class Rephrased(Countdown):
    """Countdown in other words."""

    name = "rephrased"

    def prompt(self, example):
        return "Please: " + super().prompt(example)


class Reworded(Countdown):
    """Countdown with another request to reflect."""

    name = "reworded"
    wording = Wording(reflect="Why?")


@pytest.mark.parametrize(
    ("task", "values", "changed"),
    [
        (TASK, {}, []),
        (TASK, {"wording": {"retry": "Again."}}, ["`wording.retry` is set"]),
        (TASK, {"feedback": "reason"}, ["`feedback` is reason"]),
        (Rephrased(), {}, ["`Rephrased` has a `prompt` of its own"]),
        (Reworded(), {}, ["`Reworded` has a `wording` of its own"]),
        (Reworded(), {"model": "another/one", "feedback": "reason"}, []),
        (Countdown(numbers=(4,), data_seed=7), {}, ["option `numbers` is (4,)"]),
    ],
)
def test_changes_of_what_the_built_in_model_was_trained_on_are_reported(task, values, changed):
    from r3core.pipeline import unfamiliar

    assert unfamiliar(task, Config(task=task.name, **values)) == changed


def test_a_run_with_changed_prompts_is_warned(tmp_path, capsys):
    from r3core.pipeline import Pipeline

    config = Config(task="countdown", output_dir=tmp_path / "run", feedback="reason")
    with Pipeline.open(TASK, config):
        pass
    assert capsys.readouterr().err == (
        "warning: the built-in model knows only what it was made for: `feedback` is reason\n"
        "hint: name another model with --model\n"
    )
