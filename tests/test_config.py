import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from r3core import ConfigError, Demo, Example, Split, Task, TaskError, Wording
from r3core.cli.arguments import Arguments
from r3core.config import Config, chosen_task, configure, known_keys, model_of, objective_notes, read_settings, resolve
from r3core.plugins.options import set_options
from r3core.presets import PRESETS
from r3core.recorded import config_of
from r3core.sections import Phrases
from r3core.training.grpo_options import OWNED, check_grpo, check_training, checkpoint_steps, explain_batch


class Toy(Task):
    """A task without problems."""

    name = "toy"
    wording = Wording(retry="Once more.")
    size: int = 3
    lang: str = "en"

    def load(self, split: Split) -> Iterable[Example]:
        return []

    def verify(self, example: Example, response: str) -> bool:
        return True


class ToyWithModel(Toy):
    """The same task, with a model of its own."""

    demo = Demo(model=Path("built-in"), settings={"mine.limit": 7, "mine.samples": 2, "evaluate.cross": True})


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_defaults_are_enough() -> None:
    config = resolve(Toy())
    assert (config.task, config.task_options, config.mine.limit) == ("toy", {"size": 3, "lang": "en"}, 512)


def test_each_layer_is_stronger_than_the_one_before(tmp_path: Path) -> None:
    task = ToyWithModel()
    file = written(tmp_path, "preset: paper\nmine: {samples: 5}\n")
    override, flags = ["mine.samples=6"], {"mine.samples": 8, "seed": None}
    assert resolve(task).mine.samples == 2
    assert resolve(task, overrides=["preset=paper"]).mine.samples == 64
    assert resolve(task, file).mine.samples == 5
    assert resolve(task, file, overrides=override).mine.samples == 6
    assert resolve(task, file, overrides=override, flags=flags).mine.samples == 8


def test_settings_of_the_built_in_model_are_not_used_for_another_model() -> None:
    assert resolve(ToyWithModel()).evaluate.cross is True
    other = resolve(ToyWithModel(), flags={"model": "some/model"})
    assert (other.mine.limit, other.evaluate.cross) == (512, False)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("grpo.learning_rate=5e-7", "learning_rate", 5e-7),
        ("grpo.report_to=[tensorboard,wandb]", "report_to", ["tensorboard", "wandb"]),
        ("grpo.run_name='a=b'", "run_name", "a=b"),
        ("grpo.bf16=false", "bf16", False),
        ("grpo.delta=null", "delta", None),
        ("grpo.lr_scheduler_type=cosine", "lr_scheduler_type", "cosine"),
        ("grpo.save_strategy=no", "save_strategy", "no"),
        ("grpo.run_name=Costs ${x}", "run_name", "Costs ${x}"),
    ],
)
def test_options_of_trl_are_read_as_yaml(override: str, key: str, value: object) -> None:
    [found] = resolve(Toy(), overrides=[override]).grpo.items()
    assert (found, type(found[1])) == ((key, value), type(value))


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("wording.retry=Try: again, please", lambda config: config.wording.retry == "Try: again, please"),
        ("wording.retry=Costs ${x}", lambda config: config.wording.retry == "Costs ${x}"),
        (r"wording.retry=One\nTwo", lambda config: config.wording.retry == r"One\nTwo"),
        ("wording.retry=One\nTwo", lambda config: config.wording.retry == "One\nTwo"),
        ("wording.retry= # {[ ", lambda config: config.wording.retry == " # {[ "),
        ("wording.retry=no", lambda config: config.wording.retry == "no"),
        ("wording.retry=", lambda config: config.wording.retry == ""),
        ("wording.retry=null", lambda config: config.wording.retry is None),
        ("model=007", lambda config: config.model == "007"),
        ("revision=1e5", lambda config: config.revision == "1e5"),
        ("mine.failures=2026-01-01", lambda config: config.mine.failures == Path("2026-01-01")),
        ("mine.limit=null", lambda config: config.mine.limit is None),
        ("mine={limit: 3}", lambda config: config.mine.limit == 3),
        ("train.merge=no", lambda config: config.train.merge is False),
        ("lora.r=32", lambda config: config.lora == {"r": 32}),
        (
            "lora.target_modules=[q_proj, v_proj]",
            lambda config: config.lora == {"target_modules": ["q_proj", "v_proj"]},
        ),
        ("engine_options.max_model_len=1e3", lambda config: config.engine_options == {"max_model_len": 1000.0}),
    ],
)
def test_the_type_of_a_key_decides_how_an_override_is_read(override: str, read: Callable[[Config], bool]) -> None:
    assert read(resolve(Toy(), overrides=[override]))


def test_overrides_of_a_section_and_of_its_keys_are_merged() -> None:
    config = resolve(Toy(), overrides=["grpo={beta: 0, max_steps: 3}", "grpo.max_steps=4"])
    assert config.grpo == {"beta": 0, "max_steps": 4}


@pytest.mark.parametrize("given", ["--set", "--task-option"])
@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        *(("lang", text, text) for text in ("no", "007", "1e-3", "null", "a # b", "[", "{", " x ", "${x}", r"\n")),
        ("size", "007", 7),
        ("size", " 4 ", 4),
    ],
)
def test_the_type_of_a_task_option_decides_how_it_is_read(given: str, option: str, text: str, value: object) -> None:
    if given == "--set":
        settings = read_settings(None, [f"task_options.{option}={text}"], flags={"task": "toy"})
    else:
        flags = Arguments.of(task="toy", task_option=[f"{option}={text}"]).flags
        settings = read_settings(flags=flags)
    task = set_options(Toy, chosen_task(settings)[1])
    assert configure(task, settings).task_options[option] == value


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("mine.limt=3", "no configuration key `mine.limt`\nhint: did you mean `mine.limit`?"),
        ("mien.limit=3", "no configuration key `mien`\nhint: did you mean `mine`?"),
        ("learning_rate=1", "an option of TRL's GRPOConfig is set as `grpo.NAME`"),
        ("mine.keep=some-failed", "`mine.keep` cannot be 'some-failed': it should be 'any-failed' or 'all-failed'"),
        ("mine.samples=0", "`mine.samples` cannot be 0: it should be greater than 0"),
        ("mine.limit=many", "`mine.limit` cannot be 'many': it should be a valid integer"),
        ("mine=3", "`mine` cannot be 3: it should be a section with keys of its own"),
        ("engine=vlm", "`engine` cannot be 'vlm': installed are openai, ray, transformers, vllm"),
        ("preset=papper", "no preset is called `papper`; known: paper\nhint: did you mean `paper`?"),
        ("seed", "`--set seed` is not of the form key=value"),
        ("=3", "is not of the form key=value"),
        ("seed=[1", "`seed=[1` cannot be read: "),
    ],
)
def test_an_error_names_key_value_and_what_is_allowed(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(Toy(), overrides=[override])
    assert said in str(caught.value)


def test_greedy_decoding_has_one_sample() -> None:
    with pytest.raises(ConfigError, match=r"`evaluate.decoding` cannot be 'greedy': .* set evaluate.samples=1"):
        resolve(Toy(), overrides=["evaluate.samples=2", "evaluate.decoding=greedy"])


@pytest.mark.parametrize(
    ("objective", "anchor", "noted"),
    [("attempt", 1, True), ("erl", 0.5, True), ("attempt", 0, False), ("reflection", 1, False), ("retry", 1, False)],
)
def test_an_anchor_on_attempts_that_are_trained_is_noted(objective: str, anchor: float, noted: bool) -> None:
    found = objective_notes(
        resolve(Toy(), overrides=[f"train.objective={objective}", f"train.anchor={anchor}", "train.reward_leaks=true"])
    )
    assert [f"train.anchor={anchor:g} holds them near the base" in note for note in found] == [True] * noted


def test_a_built_in_model_is_evaluated_greedily_too() -> None:
    assert resolve(ToyWithModel()).evaluate.decoding == "both"
    assert resolve(ToyWithModel(), flags={"model": "some/model"}).evaluate.decoding == "sampled"
    assert resolve(ToyWithModel(), overrides=["evaluate.decoding=sampled"]).evaluate.decoding == "sampled"
    assert "decoding" not in resolve(Toy()).record()["evaluate"]


def test_a_built_in_model_is_resampled_at_equal_tokens() -> None:
    assert resolve(ToyWithModel()).evaluate.resamples == 4
    assert resolve(ToyWithModel(), overrides=["evaluate.controls=false", "evaluate.decoding=greedy"])
    assert resolve(ToyWithModel(), flags={"model": "some/model"}).evaluate.resamples == 1
    assert "resamples" not in resolve(Toy()).record()["evaluate"]


def test_bounds_on_the_pass_rate_must_be_in_order() -> None:
    with pytest.raises(ConfigError, match=r"`mine.max_pass_rate` cannot be 0.1: .* which is 0.5"):
        resolve(Toy(), overrides=["mine.min_pass_rate=0.5", "mine.max_pass_rate=0.1"])
    assert resolve(Toy(), overrides=["mine.min_pass_rate=0.5", "mine.max_pass_rate=0.5"]).mine.max_pass_rate == 0.5


@pytest.mark.parametrize("text", ["mine: [", "- a list", "a: 1\na: 2", "preset: [paper]", "grpo: 3"])
def test_a_file_that_cannot_be_read_is_a_configuration_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        resolve(Toy(), written(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*absent.yaml"):
        resolve(Toy(), tmp_path / "absent.yaml")


def test_the_task_is_known_before_the_rest(tmp_path: Path) -> None:
    file = written(tmp_path, "task: countdown\ntask_options: {numbers: [3], largest: 20}\nunknown: 1\n")
    settings = read_settings(file, ["task_options.numbers=[3,4]"], flags={"task_options": {"data_seed": 1}})
    assert chosen_task(settings) == ("countdown", {"numbers": "[3,4]", "largest": 20, "data_seed": 1})
    assert chosen_task(read_settings(file, flags={"task": "other"}))[0] == "other"
    with pytest.raises(ConfigError, match="no task is named"):
        chosen_task(read_settings())


def test_task_options_are_those_of_the_task_itself() -> None:
    config = resolve(Toy(size=5), flags={"task": "some/file.py:Toy", "task_options": {"size": "5"}})
    assert (config.task, config.task_options) == ("some/file.py:Toy", {"size": 5, "lang": "en"})


def test_the_run_directory_follows_from_the_configuration() -> None:
    first, same, other = resolve(Toy()), resolve(Toy()), resolve(Toy(), flags={"seed": 1})
    assert first.directory == same.directory != other.directory
    assert first.directory.parent == Path("runs")
    assert first.directory.name.startswith("toy-")
    assert resolve(Toy(), flags={"task": "../a file.py:Toy"}).directory.parent == Path("runs")


def test_where_a_run_is_written_is_no_part_of_its_record(tmp_path: Path) -> None:
    there = resolve(Toy(), flags={"output_dir": tmp_path})
    assert there.directory == tmp_path
    assert there.record() == resolve(Toy()).record()


@pytest.mark.parametrize("controls", [True, False])
def test_a_run_resumes_with_the_controls_that_it_was_started_with(tmp_path: Path, controls: bool) -> None:
    record = resolve(Toy()).record()
    record["evaluate"]["controls"] = controls
    (tmp_path / "config.json").write_text(json.dumps(record))
    config = config_of(tmp_path)
    assert config.evaluate.controls is controls
    assert config.record() == record


def test_a_record_makes_the_same_configuration_again() -> None:
    config = resolve(ToyWithModel(), overrides=["preset=paper", "mine.failures=a/b"])
    assert Config.model_validate(config.record()) == config


def test_wording_replaces_only_what_is_set() -> None:
    wording = resolve(Toy(), overrides=["wording.reflect=Why?"]).wording_for(Toy())
    assert (wording.reflect, wording.retry, wording.failed) == ("Why?", "Once more.", Wording().failed)


def test_every_sentence_of_a_task_can_be_replaced() -> None:
    assert Phrases.model_fields.keys() == Wording.model_fields.keys()


def test_reflections_are_sampled_alike_in_training_unless_grpo_overrides_it() -> None:
    overrides = ["sampling.reflection.max_tokens=32", "sampling.reflection.temperature=0.7", "seed=3"]
    options = resolve(Toy(), overrides=[*overrides, "grpo.temperature=0.9"]).grpo_options()
    assert options == {"temperature": 0.9, "top_p": 1.0, "top_k": 0, "max_completion_length": 32, "seed": 3}


def test_a_model_must_come_from_somewhere() -> None:
    assert model_of(resolve(ToyWithModel()), ToyWithModel()) == "built-in"
    assert model_of(resolve(Toy(), flags={"model": "a/b"}), Toy()) == "a/b"
    with pytest.raises(ConfigError, match="ships no model of its own"):
        model_of(resolve(Toy()), Toy())


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_fit_the_configuration_and_trl(preset: str) -> None:
    grpo = resolve(Toy(), overrides=[f"preset={preset}"]).grpo
    check_grpo(grpo)
    assert explain_batch(grpo)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_p": 0.9}, "cannot be sampled with top_p=0.9 in training"),
        ({"top_k": 20}, "cannot be sampled with top_k=20 in training"),
        ({"min_p": 0.1}, "cannot be sampled with min_p=0.1 in training"),
        ({"repetition_penalty": 1.1}, "cannot be sampled with repetition_penalty=1.1 in training"),
        ({"generation_kwargs": {"top_p": 0.9}}, "cannot be sampled with top_p=0.9 in training"),
        ({"top_k": -1, "min_p": 0.0, "generation_kwargs": {"seed": 1}}, None),
        ({"top_p": 0.9, "vllm_importance_sampling_correction": False}, None),
        ({"top_p": 1.0, "top_k": 0, "min_p": None}, None),
        ({"top_p": 0.9, "use_vllm": False}, None),
    ],
)
def test_vllm_samples_whole_distributions_in_training(given: dict[str, Any], message: str | None) -> None:
    options = {"use_vllm": True, "max_steps": 1, "temperature": 1.0} | given
    if message is None:
        assert check_training({}, options)
        return
    with pytest.raises(ConfigError, match=message):
        check_training({}, options)


def test_the_turns_own_sampling_reaches_the_check_of_vllm() -> None:
    config = resolve(Toy(), overrides=["engine=vllm", "sampling.reflection.top_p=0.9", "grpo.max_steps=1"])
    with pytest.raises(ConfigError, match=r"top_p=0\.9"):
        check_training(config.grpo, config.grpo_options())


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({}, 1),
        ({"save_steps": 5}, 5),
        ({"num_iterations": 2}, 2),
        ({"num_iterations": 2, "save_steps": 3}, 4),
        ({"steps_per_generation": 4, "gradient_accumulation_steps": 2}, 2),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, 3),
        ({"steps_per_generation": 4, "num_iterations": 3}, 12),
        ({"generation_batch_size": 32, "per_device_train_batch_size": 8}, 4),
        ({"save_steps": 0.25, "max_steps": 10}, 3),
    ],
)
def test_checkpoints_are_written_where_a_generation_is_used_up(given: dict[str, Any], steps: int) -> None:
    assert checkpoint_steps(given) == steps


def test_checkpoints_of_several_processes_count_all_of_their_passes() -> None:
    assert checkpoint_steps({"generation_batch_size": 32, "per_device_train_batch_size": 8}, 4) == 1


def test_a_task_adds_its_data_to_a_preset() -> None:
    given: dict[str, Any] = {"task": "countdown", "model": "a/b", "overrides": ["preset=paper"]}
    task, config = Arguments.of(**given).resolve()
    assert task.options()["source"] == config.task_options["source"] == "hub"
    assert Arguments.of(**given, task_option=["source=generated"]).resolve()[0].options()["source"] == "generated"
    with pytest.raises(TaskError, match="numbers has no effect unless source=generated") as error:
        Arguments.of(**given, task_option=["numbers=4"]).resolve()
    assert "the preset `paper` sets source=hub for this task" in error.value.hints


def test_every_value_of_the_paper_s_preset_has_a_source() -> None:
    assert all(setting.source for setting in PRESETS["paper"].values())
    pinned = {"grpo.loss_type", "grpo.scale_rewards", "grpo.epsilon", "grpo.num_iterations", "grpo.num_generations"}
    assert pinned <= PRESETS["paper"].keys()
    assert resolve(Toy(), overrides=["preset=paper"]).evaluate.controls


def test_the_paper_s_batch_is_256() -> None:
    assert "a step trains on 256 samples" in explain_batch(resolve(Toy(), overrides=["preset=paper"]).grpo)[0]


def test_every_key_is_described() -> None:
    described = Config.model_fields["mine"].annotation
    assert described is not None
    assert Config.model_fields["seed"].description == "Random seed."
    assert {"mine", "mine.limit", "sampling.retry.top_k", "grpo"} <= set(known_keys())


@pytest.mark.parametrize(
    ("grpo", "said"),
    [
        ({"num_generation": 4}, "no option `num_generation`\nhint: did you mean `num_generations`?"),
        ({"output_dir": "x"}, "`grpo.output_dir` is set by r3\nhint: set `output_dir`"),
        ({"learning_rate": "fast"}, "`grpo.learning_rate` cannot be 'fast': it should be a valid number"),
        ({"max_steps": 1.5}, "`grpo.max_steps` cannot be 1.5: it should be a valid integer"),
        ({"bf16": "yes"}, "`grpo.bf16` cannot be 'yes': it should be a valid boolean"),
    ],
)
def test_options_of_trl_are_checked(grpo: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_grpo(grpo)
    assert said in str(caught.value)


def test_options_that_trl_takes_pass() -> None:
    check_grpo({"warmup_steps": 0.03, "learning_rate": 1, "scale_rewards": False, "report_to": "none", "bf16": None})


def test_owned_options_are_options_of_trl() -> None:
    from trl.trainer.grpo_config import GRPOConfig

    assert OWNED.keys() <= GRPOConfig.__dataclass_fields__.keys()


def test_the_batch_is_explained_in_words() -> None:
    grpo = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "num_generations": 4, "max_steps": 10}
    assert explain_batch(grpo, 2) == [
        "a step trains on 64 samples = per_device_train_batch_size 8 x gradient_accumulation_steps 4 x 2 processes",
        "64 samples are generated at a time = 16 failures x num_generations 4",
        "max_steps 10 use 160 failures, 16 per step",
    ]


def test_a_generation_may_serve_several_steps() -> None:
    lines = explain_batch({"per_device_train_batch_size": 8, "steps_per_generation": 4, "num_iterations": 2})
    assert lines[1:] == [
        "32 samples are generated at a time = 4 failures x num_generations 8",
        "each generation serves 8 steps",
        "num_train_epochs 3 over the failures, 0.5 per step",
    ]


@pytest.mark.parametrize(
    ("grpo", "said"),
    [
        (
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "num_generations": 6},
            "generation batch size (16) must be divisible by num_generations (6); "
            "num_generations can be 2, 4, 8 or 16\n"
            "hint: gradient_accumulation_steps can be 3 or 6",
        ),
        (
            {"per_device_train_batch_size": 4, "generation_batch_size": 20, "num_generations": 8},
            "; num_generations can be 2, 4, 5, 10 or 20\nhint: generation_batch_size can be 16 or 24",
        ),
        (
            {"per_device_train_batch_size": 4, "generation_batch_size": 6},
            "(6) must be divisible by per_device_train_batch_size x processes (4); generation_batch_size can be 4 or 8",
        ),
        ({"generation_batch_size": 8, "steps_per_generation": 1}, "cannot both be set"),
        ({"num_generations": 1}, "`grpo.num_generations` (1) must be at least 2"),
        ({"per_device_train_batch_size": 0}, "it should be a positive integer"),
    ],
)
def test_a_batch_that_trl_would_refuse_comes_with_values_that_fit(grpo: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        explain_batch(grpo)
    assert said in str(caught.value)


@pytest.mark.parametrize("batch", range(1, 9))
@pytest.mark.parametrize("accumulation", [1, 3, 4])
@pytest.mark.parametrize("group", [2, 3, 8])
def test_the_batch_arithmetic_agrees_with_trl(tmp_path: Path, batch: int, accumulation: int, group: int) -> None:
    from trl.trainer.grpo_config import GRPOConfig

    grpo: dict[str, Any] = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "num_generations": group,
    }
    refused = {"trl": False, "r3": False}
    try:
        # TRL's default for gradient_checkpointing is a deprecated name to transformers, which then warns.
        GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, activation_checkpointing=False, **grpo)
    except ValueError:
        refused["trl"] = True
    try:
        explain_batch(grpo)
    except ConfigError:
        refused["r3"] = True
    assert refused["trl"] == refused["r3"]


@pytest.mark.parametrize(
    ("grpo", "message"),
    [
        ({}, "`grpo.max_steps` is not set"),
        ({"max_steps": 0}, "`grpo.max_steps` is not set"),
        ({"max_steps": 5, "seed": 1}, "`grpo.seed` is set by r3"),
        ({"max_steps": 5, "num_generations": 7}, "must be divisible by num_generations (7)"),
    ],
)
def test_training_that_could_not_begin_is_refused(grpo: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_training(grpo, Config(task="toy", grpo=grpo).grpo_options())
    assert message in raised.value.message


def test_training_that_can_begin_is_explained() -> None:
    grpo = {"max_steps": 5}
    assert check_training(grpo, Config(task="toy", grpo=grpo).grpo_options()) == explain_batch(grpo)
