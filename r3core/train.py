"""The training stage: GRPO on the reflections alone, from failures to a model in `model/`.

This file has the stage from top to bottom; the trainer itself, with the reward, is `training/trainer.py`. Both use TRL.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import trl
from trl.trainer.grpo_config import GRPOConfig

from r3core.activity import ENGINE, waiting_for
from r3core.config import objective_notes
from r3core.distributed import lost_process_errors, main_process_first, rank, wait_for_all
from r3core.errors import UsageError
from r3core.evaluation.validation import explain_validation, problems_to_validate
from r3core.evaluation.validator import Validator, is_valid_at
from r3core.failures import Failure
from r3core.progress import progress, watched
from r3core.protocol import Protocol
from r3core.runs import Run
from r3core.training.callback import StepCallback, ValidationCallback
from r3core.training.checkpoints import (
    best_folder,
    delete_best,
    last_checkpoint,
    restore,
    save_best,
    save_model,
    world_of,
)
from r3core.training.grpo_options import check_training, checkpoint_steps
from r3core.training.launch import current_world
from r3core.training.memory import training_memory_errors
from r3core.training.trainer import ReflectionTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MISLEADING_WARNINGS = (
    "`model_init_kwargs` will be ignored",  # they are used for the reference model
    "All reward functions returned None",  # expected, and counted in metrics; it prints unescaped model text
)
"""Parts of TRL's warnings that are not shown."""


def train(
    run: Run,
    protocol: Protocol,
    failures: Sequence[Failure],
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    saved_dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Train the reflections on the failures, save the model in `model/`, and return the counts for the run's record.

    Resumes from the last complete checkpoint. `saved_dtype` is the dtype of `model/`, by default that of the model.

    Raises:
        UsageError: TRL rejects the options, or other processes than these wrote the last checkpoint.
        RunError: too few failures, too many that exceed the context, too many verifier errors, a lost process, or too
            little memory.
    """
    args = grpo_config(protocol, run.path / "checkpoints", on_cpu=not torch.cuda.is_available())
    run.record_resolved(resolved_options(args))
    save_steps = protocol.config.grpo.get("save_steps", 1)
    notes = objective_notes(protocol.config)
    if args.save_strategy != "no" and args.save_steps != save_steps >= 1:
        notes.append(f"a checkpoint every {args.save_steps:g} steps, as a generation serves several steps")
    for note in notes if rank() == 0 else []:
        print(f"note: {note}", file=sys.stderr)
    engine = "starting vLLM" if args.use_vllm else "setting up the trainer"
    with training_memory_errors(protocol.config, args), watched("train"), waiting_for(ENGINE, engine):
        trainer = ReflectionTrainer(
            run, protocol, failures, model=model, tokenizer=tokenizer, args=args, saved_dtype=saved_dtype
        )
    with main_process_first():
        checkpoint = last_checkpoint(run.path / "checkpoints", world=world_of(trainer.accelerator))
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    if checkpoint:
        trainer.usage.load(checkpoint)
    for name in ("train", "train-episodes"):  # the steps after the checkpoint are repeated
        run.drop(name, lambda row: bool(row["step"] > done))
    trainer.resume_order(done)
    validator = _validator(trainer, done=done)
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):  # standard output belongs to --json
            trainer.remove_callback(callback)
    with (
        run.clock("train") as save_clock,
        _progress(trainer, done=done) as stage,
        redirect_stdout(sys.stderr),  # some trackers print
        closing(trainer.policy),
        lost_process_errors(),
        training_memory_errors(protocol.config, args),
    ):
        trainer.add_callback(steps := StepCallback(trainer, advance=stage.advance, save_clock=save_clock))
        if validator is not None:
            trainer.add_callback(ValidationCallback(validator, steps=steps))
        if done < args.max_steps and not (validator and validator.stopped) and not trainer.budget_is_spent:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        else:  # stopped between the last step and saving; transformers would train one more step
            restore(trainer, checkpoint)
        _save(trainer, validator)
        wait_for_all()  # closing vLLM's engine closes the connection between processes too
    skipped = len(failures) - len(trainer.failures)
    facts: dict[str, Any] = {"steps": args.max_steps, "failures": len(trainer.failures)}
    if (budget := protocol.config.train.budget_tokens) is not None:
        facts["steps"] = max(done, trainer.state.global_step)
        facts["tokens"] = trainer.usage.spent
        if rank() == 0 and not trainer.budget_is_spent:
            print(
                f"note: training ended at grpo.max_steps={args.max_steps}, after {trainer.usage.spent:,} of "
                f"{budget:,} tokens (train.budget_tokens)",
                file=sys.stderr,
            )
    if skipped:
        facts["left_out"] = skipped
    return facts | (validator.facts() if validator else {})


def _progress(trainer: ReflectionTrainer, *, done: int) -> Any:
    """Return the progress of training: in tokens where a budget ends it, else in steps."""
    if (budget := trainer.protocol.config.train.budget_tokens) is not None:
        return progress("train", budget, done=min(trainer.usage.spent, budget), unit="tokens")
    return progress("train", trainer.args.max_steps, done=done, unit="steps")


def _validator(trainer: ReflectionTrainer, *, done: int) -> Validator | None:
    """Return what evaluates the policy during training, None without; `done` is the step of the checkpoint, 0 for none.

    Rows and weights of later steps are deleted: these steps are repeated.
    """
    run, protocol = trainer.run, trainer.protocol
    config = protocol.config
    if config.evaluate.every is None:
        return None
    examples, _ = problems_to_validate(protocol.task, config)
    if rank() == 0:
        for line in explain_validation(config, current_world().processes, problems=len(examples)):
            print(f"validation: {line}", file=sys.stderr)
    with main_process_first():
        run.drop("validation", lambda row: not is_valid_at(done, step=row["step"]))
        if rank() == 0:
            delete_best(run.path / "checkpoints", keep=lambda step: is_valid_at(done, step=step))
        return Validator(trainer, examples, done=done)


def _save(trainer: ReflectionTrainer, validator: Validator | None) -> None:
    """Save the model of the last step or, with `train.keep: best`, that of the best one."""
    config, folder = trainer.protocol.config, trainer.run.path / "model"
    if validator is None or (source := validator.source) is None:
        save_model(trainer, config, folder, dtype=trainer.saved_dtype)
        return
    save_best(trainer, config, source, folder=folder, dtype=trainer.saved_dtype)
    if rank() == 0:
        delete_best(source.parent, keep=lambda step: best_folder(source.parent, step) == source)


def grpo_config(protocol: Protocol, folder: Path, *, on_cpu: bool) -> GRPOConfig:
    """Return TRL's arguments: the options under `grpo`, r3's defaults for them, and the few that r3 sets itself.

    Raises UsageError (or ConfigError) when training is impossible with these options.
    """
    config = protocol.config
    options = config.grpo_options()
    world = current_world().processes
    check_training(config.grpo, options, world)
    options = {"logging_steps": 1, "save_total_limit": 2, "report_to": "none"} | options
    options["save_steps"] = checkpoint_steps(options, world)
    if on_cpu:
        options = {"use_cpu": True, "bf16": False, "dataloader_pin_memory": False} | options
    if config.engine == "vllm" and "max_model_len" in config.engine_options:
        # TRL passes its own option to vLLM, which would replace this one
        options.setdefault("vllm_max_model_length", config.engine_options["max_model_len"])
    options["trust_remote_code"] = config.trust_remote_code
    if config.revision is not None:  # TRL loads the reference model of beta > 0
        options["model_init_kwargs"] = {"revision": config.revision}
    logging.getLogger("trl.trainer.grpo_trainer").addFilter(_is_shown)
    try:
        return GRPOConfig(output_dir=str(folder), disable_tqdm=True, remove_unused_columns=False, **options)
    except (ValueError, TypeError) as error:
        raise UsageError(f"TRL rejects the options under `grpo`: {error}") from error


def resolved_options(args: GRPOConfig) -> dict[str, Any]:
    """Return every option that TRL trains with, defaults included, except paths, access tokens and unset ones."""
    values = args.to_dict()
    hidden = {"output_dir", "logging_dir", "run_name", "local_rank"} | {key for key in values if key.endswith("_token")}
    return {"trl": trl.__version__} | {
        key: value for key, value in sorted(values.items()) if value is not None and key not in hidden
    }


def _is_shown(record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in MISLEADING_WARNINGS)
