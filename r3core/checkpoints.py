"""What a training leaves on the disk: checkpoints that are known to be whole, and in the end the model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from r3core.adapter import merged
from r3core.config import Config
from r3core.errors import UsageError
from r3core.launch import rank

_COMPLETE = "complete"  # the file in a checkpoint that was written to its end, with the processes that wrote it
ALONE = "1 process"


def mark_complete(checkpoint: Path, world: str) -> None:
    """Note in a checkpoint that it was written to its end, and by whom."""
    partial = checkpoint / f".{_COMPLETE}.partial"
    partial.write_text(world, encoding="utf-8")
    partial.replace(checkpoint / _COMPLETE)


def last_checkpoint(folder: Path, *, world: str = ALONE) -> Path | None:
    """Return the latest checkpoint that was written to its end, and remove those that were not.

    Raises UsageError when it was written by processes other than these, `world`: its step would not be theirs.
    """
    complete = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / _COMPLETE).exists():
            complete.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    last = max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    if last is not None and (written := (last / _COMPLETE).read_text(encoding="utf-8") or ALONE) != world:
        raise UsageError(
            f"the training in `{folder.parent}` was begun by {written}, and cannot go on with {world}",
            "start as many processes in the same way (--processes, --accelerate-config), or use another --output-dir",
        )
    return last


def save_model(trainer: Any, config: Config, folder: Path, *, dtype: Any) -> None:
    """Put a trainer's model and tokenizer into a folder; the first process writes, and the others give it their part.

    `dtype` is that of the files; all weights are trained in 32 bits, whatever the dtype they were published in.
    """
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if rank() > 0:
        return
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if config.lora is not None and config.train.merge:
        model, weights = merged(model, weights), None
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if config.lora is None:
        cast: dict[int, Any] = {}  # tied weights stay one tensor
        weights = {name: cast.setdefault(weight.data_ptr(), weight.to(dtype)) for name, weight in weights.items()}
    model.save_pretrained(partial, state_dict=weights)
    if config.lora is None:
        model.config.dtype = dtype
        model.config.save_pretrained(partial)
    trainer.processing_class.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def changed_share(before: Any, after: Any) -> float:
    """Return the share of weights that differ between two models of one architecture, as their files hold them."""
    changed, total = 0, 0
    weights = dict(after.named_parameters())
    for name, old in before.named_parameters():
        changed += int((old != weights[name]).sum())
        total += old.numel()
    return changed / total
