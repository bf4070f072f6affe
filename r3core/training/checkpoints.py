"""What training saves: checkpoints that can be resumed from, and at the end the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r3core.config import Config, model_of
from r3core.distributed import rank
from r3core.errors import UsageError
from r3core.files import atomic_write
from r3core.generation.template import original, using
from r3core.training.interpolation import base_weights, toward, with_scaled_adapter
from r3core.training.lora import merge_adapter

if TYPE_CHECKING:
    import torch

    from r3core.training.trainer import ReflectionTrainer

ONE_PROCESS = "1 process"
_COMPLETE = "complete"
"""The file that marks a checkpoint as complete; it holds a description of the processes that wrote it.

transformers writes a checkpoint file by file and, when weights are sharded, each process writes its own shards of
weights and optimizer states. Only after all of them is this file written.
"""


def world_of(accelerator: Any) -> str:
    """Return how many processes train, and by which backend, for example `2 processes (FSDP)`."""
    count, kind = accelerator.num_processes, accelerator.distributed_type.value
    return ONE_PROCESS if count == 1 else f"{count} processes ({kind})"


def mark_complete(checkpoint: Path, world: str) -> None:
    """Mark a checkpoint as complete; `world` describes the processes that wrote it (`world_of`)."""
    atomic_write(checkpoint / _COMPLETE, world)


def last_checkpoint(folder: Path, *, world: str = ONE_PROCESS) -> Path | None:
    """Return the latest complete checkpoint, or None, and delete the incomplete ones.

    Raises UsageError when other processes than these, `world`, wrote it: neither its shards nor its batches are theirs.
    """
    complete = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / _COMPLETE).exists():
            complete.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    last = max(complete, key=_step, default=None)
    if last is not None and (written := (last / _COMPLETE).read_text(encoding="utf-8") or ONE_PROCESS) != world:
        raise UsageError(
            f"the training in `{folder.parent}` was started with {written} and cannot be resumed with {world}",
            "start the same number of processes in the same way (--processes, --accelerate-config), or use another "
            "--output-dir",
        )
    return last


def complete_step(folder: Path) -> int:
    """Return the step of the latest complete checkpoint, 0 without one."""
    return max((_step(mark.parent) for mark in folder.glob(f"checkpoint-*/{_COMPLETE}")), default=0)


def restore(trainer: ReflectionTrainer, checkpoint: Path | None) -> None:
    """Load the weights of a checkpoint into a trainer, without training."""
    if trainer.accelerator.num_processes == 1:
        trainer._load_from_checkpoint(str(checkpoint))
    else:  # a process can load its shards only once the model is sharded
        trainer._prepare_for_training(  # type: ignore[no-untyped-call]
            trainer.args.max_steps,
            trainer.get_train_dataloader(),  # type: ignore[no-untyped-call]
            str(checkpoint),
        )


def best_folder(folder: Path, step: int) -> Path:
    """Return where the weights of a step are stored that was the best so far, in the form of `save_model`."""
    return folder / f"best-{step}"


def delete_best(folder: Path, keep: Callable[[int], bool]) -> None:
    """Delete the weights of best steps, except those to `keep`, and those of which a kill left a part."""
    for path in folder.glob(".best-*.partial"):
        shutil.rmtree(path)
    for path in folder.glob("best-*"):
        if not keep(_step(path)):
            shutil.rmtree(path)


def save_best(trainer: Any, config: Config, source: Path, *, folder: Path, dtype: Any) -> None:
    """Save the weights of the best step, which are in `source`, as `save_model` does; every process must call this."""
    if config.lora is not None and config.train.merge:
        save_model(trainer, config, folder, dtype=dtype, adapter=source)
    elif rank() == 0:
        partial = _partial(folder)
        shutil.copytree(source, partial)
        _replace(folder, partial)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def save_model(trainer: Any, config: Config, folder: Path, *, dtype: Any, adapter: Path | None = None) -> None:
    """Save a trainer's model and tokenizer in a folder, which replaces an older one only when it is complete.

    Every process must call this: the first one gathers the shards of all, and writes. `dtype` is that of the files,
    unless an adapter was trained: all weights are trained in 32 bits, whatever dtype they were published in. An adapter
    that is merged is that of the trainer, or the one in the folder `adapter`. With `train.interpolate`, it is a share
    of the update that is saved.
    """
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # whole tensors on the first process
    if rank() > 0:
        return
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if config.train.interpolate < 1:
        weights = _share_of_update(trainer, config, weights)
    if config.lora is not None and config.train.merge:
        model, weights = merge_adapter(model, weights, adapter=adapter), None
    partial = _partial(folder)
    if config.lora is None:
        weights = _cast(weights, dtype, keep=_float32_modules(model))
    model.save_pretrained(partial, state_dict=weights)
    if config.lora is None:
        saved = deepcopy(model.config)  # training may continue, in its own dtype
        saved.dtype = dtype
        saved.save_pretrained(partial)
    with using(trainer.processing_class, original(trainer.processing_class)):
        trainer.processing_class.save_pretrained(partial)
    _replace(folder, partial)


def _share_of_update(trainer: Any, config: Config, weights: dict[str, Any]) -> dict[str, Any]:
    """Return weights with a share of what training changed; an adapter in a folder was saved with this share of it."""
    share = config.train.interpolate
    if config.lora is not None:
        return with_scaled_adapter(weights, share)
    return toward(base_weights(model_of(config, trainer.protocol.task), config), weights, share)


def _partial(folder: Path) -> Path:
    """Return where a folder is written until it is complete; what a kill has left there is deleted."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    return partial


def _replace(folder: Path, partial: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _cast(weights: dict[str, Any], dtype: Any, *, keep: tuple[str, ...]) -> dict[str, Any]:
    """Return floating-point weights in a dtype, except those whose name contains a part in `keep`.

    Tied weights, two names for one tensor, stay tied: they are recognized by address and shape.
    """
    cast: dict[tuple[Any, ...], Any] = {}
    result = {}
    for name, weight in weights.items():
        if weight.is_floating_point() and not any(part in name for part in keep):
            key = (weight.data_ptr(), weight.shape) if weight.numel() else (name,)
            weight = cast.setdefault(key, weight.to(dtype))
        result[name] = weight
    return result


def _float32_modules(model: Any) -> tuple[str, ...]:
    """Return parts of the names of weights that transformers keeps in 32 bits whatever the dtype of the model."""
    return (*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ()))


def changed_share(before: Path, after: Path) -> float | None:
    """Return the share of weights, in [0, 1], that differ between two folders of safetensors files.

    Weights of the same name and shape are compared, in the dtype that they have in `after`, one at a time. None when
    no weights match, or a file cannot be read.
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
    """Return, for each name in the safetensors files of a folder, a function that reads the tensor."""
    from safetensors import safe_open

    readers: dict[str, Callable[[], torch.Tensor]] = {}
    for path in folder.glob("*.safetensors"):
        file: Any = safe_open(path, framework="pt")
        readers |= {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118
    return readers
