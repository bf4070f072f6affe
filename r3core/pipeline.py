"""The stages of a run on one run directory: mine, train, evaluate, report, in a row or each by itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from r3core import report
from r3core.activity import ENGINE, WORKERS, waiting_for
from r3core.adopt import adopt_failures, adopt_forecast
from r3core.check import certificate_of, require_passed
from r3core.check.certificate import Certificate
from r3core.config import Config, local_model, model_of
from r3core.dataset import problems_to_evaluate
from r3core.distributed import rank, world_size
from r3core.engine import Engine
from r3core.errors import ConfigError, RunError, UsageError
from r3core.evaluation.drift import measure_drift
from r3core.evaluation.evaluate import evaluate
from r3core.evaluation.result import Result
from r3core.evaluation.transfer import check_others, evaluate_others, with_others
from r3core.evaluation.validation import describe_facts
from r3core.executor import LocalExecutor, executor_of
from r3core.failures import Failure, read_failures
from r3core.files import atomic_write
from r3core.forecast import forecast
from r3core.generation import probe
from r3core.generation.cache_checks import check_padding
from r3core.generation.models import folder_of, load, saved_dtype
from r3core.generation.transformers import TransformersGenerator
from r3core.mine import mine
from r3core.plugins.engines import checked_engine, engine_of
from r3core.preflight import check_template, print_notes, template_date
from r3core.progress import watched
from r3core.protocol import Protocol
from r3core.runs import ReadOnlyRun, Run, RunRecord, value_of
from r3core.task import Task
from r3core.training.checkpoints import changed_share
from r3core.training.launch import launch_training, needs_launcher, started_by_run
from r3core.verification.judge import Judge

ORIGIN = "r3.json"
"""The file in a trained model's folder with its base model and task."""


_ORIGIN = ("model", "revision", "task", "task_options", "template", "chat_template", "history")


class Pipeline:
    """The stages of one run. Each resumes where it was interrupted, and returns at once when it is finished."""

    def __init__(self, run: Run, judge: Judge, config: Config, engine: Engine) -> None:
        self.run = run
        self.task = judge.task
        self.config = config
        self.protocol = Protocol(judge.task, judge, config)
        self.engine = engine
        self.executor = executor_of(self.engine, self.protocol, run)
        self._template_checked = False

    @classmethod
    @contextmanager
    def open(cls, task: Task, config: Config, *, trained: Path | None = None) -> Iterator[Pipeline]:
        """Lock the run directory of a configuration for the block; `trained` names a model from elsewhere."""
        model_of(config, task)  # without a model no run directory is created
        engine = checked_engine(config)  # nor with invalid options
        if trained is not None and not engine.local:
            raise ConfigError(
                f"engine `{config.engine}`: a server cannot compare `{trained}` with its base model",
                "use a local engine, or evaluate the trained model alone, by its name on the server",
            )
        if changed := unfamiliar(task, config):
            print(f"warning: the built-in model knows only what it was made for: {', '.join(changed)}", file=sys.stderr)
            print("hint: name another model with --model", file=sys.stderr)
        record = config.record() | ({"trained": str(trained)} if trained else {})
        opened = ReadOnlyRun(config.directory) if rank() > 0 else Run.open(config.directory, record)
        with opened as run, Judge(task, config.judge) as judge:
            dated = config.model_copy(update={"template_date": template_date(run, config, local=engine.local)})
            stages = cls(run, judge, dated, engine_of(dated))
            try:
                yield stages
            finally:
                stages.close()

    def close(self) -> None:
        """Free the memory of the model, and the connection to a cluster."""
        self.executor.close()

    def certify(self) -> None:
        """Write the verifier's certificate into the run; RunError when it does not pass and has to."""
        if self.run.done("train") is not None:
            return
        self.check_template()
        with watched("check"), waiting_for(WORKERS, "probes of the verifier"):
            certificate = certificate_of(self.task, self.config.judge)
        self.run.write_json("certificate", certificate)
        if not self.config.uncertified:
            require_passed(certificate, self.config.task)
        elif certificate.broken:
            print(f"warning: trained on an untrusted verifier: {certificate.summary()}", file=sys.stderr)

    def check_model(self) -> None:
        """Raise UsageError when TRL cannot train the model, before mining; only if mining loads it in this process."""
        if self.engine.in_process and self.run.done("mine") is None:
            name = model_of(self.config, self.task)
            assert isinstance(self.executor, LocalExecutor)
            with watched("load"):
                generator = self.executor.generator(name)
            assert isinstance(generator, TransformersGenerator)
            check_padding(generator.model, generator.tokenizer, name=name)

    def mine(self) -> list[Failure]:
        """Return the run's failures: mined, or copied from the failure dataset under `mine.failures`."""
        if self.run.done("mine") is not None:
            failures = read_failures(self.run.path / "failures")[0]
        elif self.config.mine.failures is not None:
            failures = adopt_failures(self.run, self.task, self.config, self.config.mine.failures)
        else:
            self.check_template()
            failures = mine(self.run, self.protocol, self.executor, model=model_of(self.config, self.task))
        if self.config.mine.probe and self.run.read_json("forecast") is None:
            self._forecast(failures)
        return failures

    def train(self) -> Path:
        """Return the folder of the trained model, after training on the run's failures."""
        folder = self.run.path / "model"
        if self.run.done("train") is not None:
            return folder
        if self.run.done("mine") is None:
            raise UsageError(
                f"there are no failures in `{self.run.path}` yet",
                "run `r3 mine` first, name a failure dataset with --failures, or name the run with --output-dir",
            )
        name = local_model(self.config, self.task, done="trained")
        self.check_template()
        self.close()
        if needs_launcher(self.config):
            self.protocol.judge.close()
            with self.run.unlocked():
                launch_training(self.config, self.run.path)
            return folder
        from r3core.train import train
        from r3core.training.precision import training_dtype

        served = bool(self.config.grpo_options().get("use_vllm"))  # then transformers' cache is not used
        with watched("train"), waiting_for(ENGINE, f"loading {name}"):
            model, tokenizer = load(self.config, name, dtype=training_dtype(self.config), generates=not served)
        if world_size() == 1:  # several processes may hold parts of it; `r3 run` has checked it before it mined
            check_padding(model, tokenizer, name=name)
        failures = read_failures(self.run.path / "failures")[0]
        dtype = saved_dtype(self.config, name) if self.config.lora is None else None
        facts = train(self.run, self.protocol, failures, model=model, tokenizer=tokenizer, saved_dtype=dtype)
        if rank() == 0:
            if self.config.lora is None and (changed := self._changed(name, folder)) is not None:
                facts["weights_changed"] = changed
            origin = origin_with(self.config, dated=probe.facts(tokenizer).dated)
            atomic_write(folder / ORIGIN, json.dumps(origin, indent=2) + "\n")
        self.run.finish("train", facts)
        return folder

    def _changed(self, base: str, folder: Path) -> float | None:
        """Return the share of weights that training changed in the files of the model; warns when hardly any did."""
        share = changed_share(folder_of(base, self.config.revision), folder)
        if share is not None and share < 0.01:
            print(
                f"warning: {1 - share:.1%} of the weights in `{folder}` are those of `{base}`: the changes of this "
                "training are smaller than the dtype they are saved in can tell\n"
                "hint: train for more steps, raise grpo.learning_rate, or set dtype=float32 to keep them",
                file=sys.stderr,
            )
        return share

    def evaluate(self) -> Result:
        """Return the comparison of base and trained model, or the base's scores where nothing was trained."""
        return self.compare(self.run.path / "model" if self.run.done("train") is not None else None)

    def compare(self, trained: Path | None) -> Result:
        """Return the comparison of the base model with a trained one, or the base's scores alone."""
        done = self.run.done("evaluate")
        if done is not None and done.get("trained") == (trained is not None):
            return result_of(self.run)
        return self._compare(trained)

    def report(self) -> Result:
        """Write the model card and return the result; RunError when the run was not evaluated."""
        if self.run.done("evaluate") is None:
            raise RunError(
                f"`{self.run.path}` was not evaluated yet", "run `r3 eval` first, or name the run with --output-dir"
            )
        result = result_of(self.run)
        write_card(self.run, self.config, result)
        return result

    def check_template(self) -> None:
        """Check the model's chat template and print notes about it, once per session and before any work.

        A training process that a run has started does not: the run has done it.
        """
        if not self._template_checked and not started_by_run():
            lines = check_template(self.task, self.config)
            if self.config.evaluate.also:
                lines += check_others(self.config, model=model_of(self.config, self.task))
            if rank() == 0:
                print_notes(lines)
        self._template_checked = True

    def _compare(self, trained: Path | None) -> Result:
        self.check_template()
        examples, taken = problems_to_evaluate(self.task, self.config)
        result = evaluate(
            self.run,
            self.protocol,
            examples,
            executor=self.executor,
            base=model_of(self.config, self.task),
            trained=str(trained) if trained else None,
            problems=taken,
        )
        if result.greedy and trained and isinstance(self.executor, LocalExecutor) and self.engine.in_process:
            base = model_of(self.config, self.task)
            with watched("drift"), waiting_for(ENGINE, "probabilities of recorded attempts"):
                measure_drift(self.run, self.protocol, self.executor, base=base, trained=str(trained))
        if self.config.evaluate.also:
            base, also = model_of(self.config, self.task), str(trained) if trained else None
            others = evaluate_others(self.run, self.config, self.executor, base=base, trained=also)
            result = with_others(result, others)
        self.run.write_json("result", result)
        self.run.finish("evaluate", {"problems": len(examples), "trained": trained is not None})
        return result

    def _forecast(self, failures: list[Failure]) -> None:
        if adopt_forecast(self.run, self.config, failures) is not None:
            return
        model = model_of(self.config, self.task)
        result = forecast(self.run, self.protocol, failures, executor=self.executor, model=model)
        if result is not None:
            report.print_forecast(result, self.config, sys.stderr)


def unfamiliar(task: Task, config: Config) -> list[str]:
    """Return the changes to the prompts that the built-in model was trained on; empty for another model."""
    if config.model is not None or task.demo is None:
        return []
    owner = next(
        kind for kind in type(task).__mro__ if "demo" in vars(kind)
    )  # the class whose prompts the model was trained on
    changed = [f"`wording.{name}` is set" for name in config.wording.model_dump(exclude_none=True)]
    if config.feedback != "binary":
        changed.append(f"`feedback` is {config.feedback}")
    for name in ("prompt", "wording"):
        if getattr(type(task), name) is not getattr(owner, name):
            changed.append(f"`{type(task).__name__}` has a `{name}` of its own")
    for name in task.demo.made_for:
        if (value := getattr(task, name)) != type(task).model_fields[name].default:
            changed.append(f"option `{name}` is {value}")
    return changed


def origin_with(config: Config, *, dated: bool) -> dict[str, Any]:
    """Return base model and task of a configuration, and what its prompts depend on, for a trained model's folder.

    The date is part of it if the chat template shows the date.
    """
    origin = {key: getattr(config, key) for key in _ORIGIN}
    return origin | ({"template_date": str(config.template_date)} if dated and config.template_date else {})


def origin_of(folder: Path) -> dict[str, Any]:
    """Return base model and task of a trained model's folder; empty for any other folder."""
    path = folder / ORIGIN
    if not path.exists():
        return {}
    try:
        origin = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        origin = None
    if not isinstance(origin, dict) or not {"model", "revision", "task", "task_options"} <= origin.keys():
        raise UsageError(f"`{path}` does not contain the base model and the task", "restore it, or remove it")
    return origin


def result_of(run: RunRecord) -> Result:
    """Return the result of a run that was evaluated."""
    result = value_of(Result, run, "result")
    if result is None:
        raise RunError(
            f"`{run.path}` has no result.json", "restore the file, or remove stages/evaluate.json and run `r3 eval`"
        )
    return result


def write_card(run: RunRecord, config: Config, result: Result) -> None:
    """Write the model card and the certificate beside the run's own trained model, where there is one."""
    folder = run.path / "model"
    if result.trained is None or not folder.is_dir():
        return
    certificate = value_of(Certificate, run, "certificate")
    notes = describe_facts(run.done("train"))
    atomic_write(folder / "README.md", report.model_card(result, config, certificate, training=notes))
    if certificate is not None:
        atomic_write(folder / "certificate.json", certificate.text())
