"""Training: GRPO on the reflections alone. This is the only module that touches TRL.

Prompt = [task, failed attempt, request to reflect]; completion = the reflection; a group = G reflections on one
failure. The retry is generated inside the reward, with the current policy, and its verdict is the reward. So the
reflection's tokens are the only ones in the completion, and the only ones that are trained.
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
from transformers import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig

from r3core.console import progress_bar
from r3core.distributed import lost_process_errors, main_process_first, rank
from r3core.errors import UsageError
from r3core.failures import Failure
from r3core.protocol import Protocol
from r3core.runs import Run
from r3core.training.checkpoints import last_checkpoint, save_model
from r3core.training.grpo_options import check_training, checkpoint_steps
from r3core.training.launch import current_world
from r3core.training.trainer import ReflectionTrainer, Steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def train(
    run: Run,
    protocol: Protocol,
    failures: Sequence[Failure],
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    saved_dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Train the reflections on the failures, put the model into `model/`, and return what is to be known of it.

    `saved_dtype` is the dtype that `model/` is written in, by default that of the model. Resumes from the last complete
    checkpoint after a kill.
    """
    args = arguments(protocol, run.path / "checkpoints", on_cpu=not torch.cuda.is_available())
    run.record_resolved(resolved(args))
    asked = protocol.config.grpo.get("save_steps", 1)
    if rank() == 0 and args.save_strategy != "no" and args.save_steps != asked >= 1:
        print(
            f"note: a checkpoint every {args.save_steps:g} steps: a generation is used up only there", file=sys.stderr
        )
    trainer = ReflectionTrainer(
        run, protocol, failures, model=model, tokenizer=tokenizer, args=args, saved_dtype=saved_dtype
    )
    with main_process_first():
        last = last_checkpoint(run.path / "checkpoints", world=trainer.world)
    done = int(last.name.rpartition("-")[2]) if last else 0
    for name in ("train", "train-episodes"):  # of steps after the checkpoint, which are made again
        run.drop(name, lambda row: bool(row["step"] > done))
    for callback in [callback for callback in trainer.callback_handler.callbacks if _prints(callback)]:
        trainer.remove_callback(callback)
    with (
        run.clock("train") as tick,
        progress_bar("train", args.max_steps, done=done) as advance,
        redirect_stdout(sys.stderr),  # some trackers print
        closing(trainer.policy),
        lost_process_errors(),
    ):
        trainer.add_callback(Steps(run, trainer, advance=advance, tick=tick))
        if done < args.max_steps:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        else:  # killed before the model was saved: transformers would train one more step
            trainer.restore(last)
        save_model(trainer, protocol.config, run.path / "model", dtype=trainer.saved_dtype)
        trainer.accelerator.wait_for_everyone()  # with vLLM's engine, the connection between the processes closes too
    left_out = len(failures) - len(trainer.failures)
    return {"steps": args.max_steps, "failures": len(trainer.failures), **({"left_out": left_out} if left_out else {})}


def arguments(protocol: Protocol, folder: Path, *, on_cpu: bool) -> GRPOConfig:
    """Return TRL's arguments: what the configuration sets under `grpo`, and the few that r3 owns."""
    config = protocol.config
    options = config.grpo_options()
    world = current_world().processes
    check_training(config.grpo, options, world)
    options = {"logging_steps": 1, "save_total_limit": 2, "report_to": "none"} | options
    options["save_steps"] = checkpoint_steps(options, world)
    if on_cpu:
        options = {"use_cpu": True, "bf16": False, "dataloader_pin_memory": False} | options
    options["trust_remote_code"] = config.trust_remote_code
    if config.revision is not None:  # the reference model of beta > 0 is loaded by TRL
        options["model_init_kwargs"] = {"revision": config.revision}
    logging.getLogger("trl.trainer.grpo_trainer").addFilter(_is_news)
    try:
        return GRPOConfig(output_dir=str(folder), disable_tqdm=True, remove_unused_columns=False, **options)
    except (ValueError, TypeError) as error:
        raise UsageError(f"TRL does not take these options under `grpo`: {error}") from error


def resolved(args: GRPOConfig) -> dict[str, Any]:
    """Return all that TRL will train with, its defaults included, but for places, tokens and what is not set."""
    values = args.to_dict()
    places = {"output_dir", "logging_dir", "run_name", "local_rank"} | {key for key in values if key.endswith("_token")}
    return {"trl": trl.__version__} | {
        key: value for key, value in sorted(values.items()) if value is not None and key not in places
    }


def _is_news(record: logging.LogRecord) -> bool:
    """Drop two of TRL's warnings.

    That `model_init_kwargs` are ignored is not so for the reference model. A row without a reward is counted here in
    metrics; the warning would print what the model wrote, unescaped.
    """
    said = record.getMessage()
    return "`model_init_kwargs` will be ignored" not in said and "All reward functions returned None" not in said


def _prints(callback: TrainerCallback) -> bool:
    """Tell whether a callback writes to standard output, which belongs to --json."""
    return type(callback).__name__ in ("PrinterCallback", "ProgressCallback")
