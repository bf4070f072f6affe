"""What a training leaves on the disk: checkpoints that are known to be whole, and in the end the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r3core.config import Config
from r3core.distributed import rank
from r3core.errors import UsageError
from r3core.files import atomic_write
from r3core.training.lora import merged

if TYPE_CHECKING:
    import torch

_COMPLETE = "complete"  # the file in a checkpoint that was written to its end, with the processes that wrote it
ALONE = "1 process"


def mark_complete(checkpoint: Path, world: str) -> None:
    """Note in a checkpoint that it was written to its end, and by whom."""
    atomic_write(checkpoint / _COMPLETE, world)


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
        weights = _in_dtype(weights, dtype, wide=_kept_in_32_bits(model))
    model.save_pretrained(partial, state_dict=weights)
    if config.lora is None:
        model.config.dtype = dtype
        model.config.save_pretrained(partial)
    trainer.processing_class.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _in_dtype(weights: dict[str, Any], dtype: Any, *, wide: tuple[str, ...]) -> dict[str, Any]:
    """Return weights in a dtype, but for those that are no floating-point numbers or stay in 32 bits (`wide`).

    Tied weights stay one tensor.
    """
    cast: dict[tuple[Any, ...], Any] = {}
    result = {}
    for name, weight in weights.items():
        if weight.is_floating_point() and not any(part in name for part in wide):
            key = (weight.data_ptr(), weight.shape) if weight.numel() else (name,)
            weight = cast.setdefault(key, weight.to(dtype))
        result[name] = weight
    return result


def _kept_in_32_bits(model: Any) -> tuple[str, ...]:
    """Return parts of the names of weights that transformers keeps in 32 bits whatever the dtype of the model."""
    kinds = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    return tuple(part for kind in kinds for part in getattr(model, kind, None) or ())


def changed_share(before: Path, after: Path) -> float | None:
    """Return the share of weights that differ between two folders of safetensors; None where they cannot be compared.

    One tensor of each is in memory at a time. A weight of `before` is compared in the dtype that it has in `after`.
    """
    from safetensors import SafetensorError

    try:
        old, new = _tensors(before), _tensors(after)
        changed = total = 0
        for name in old.keys() & new.keys():
            one, other = old[name](), new[name]()
            if one.shape == other.shape:
                changed += int((one.to(other.dtype) != other).sum())
                total += one.numel()
    except (OSError, SafetensorError):
        return None
    return changed / total if total else None


def _tensors(folder: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """Return what reads each tensor in the safetensors files of a folder."""
    from safetensors import safe_open

    readers: dict[str, Callable[[], torch.Tensor]] = {}
    for path in folder.glob("*.safetensors"):
        file: Any = safe_open(path, framework="pt")
        readers |= {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118
    return readers
