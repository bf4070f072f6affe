"""Weights that FSDP shards: on CPUs too, and gathered while the policy generates."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule


def set_up_fsdp_on_cpus(accelerator: Any) -> bool:
    """Set up FSDP where it is configured for CPUs, which accelerate 1.15 ignores, and return whether that is so."""
    state = accelerator.state
    if state.distributed_type != DistributedType.MULTI_CPU or os.environ.get("ACCELERATE_USE_FSDP") != "true":
        return False
    state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if state.mixed_precision != "no":
        state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
    # also in the state that every PartialState shares: barriers and gathers look there
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    return True


@contextmanager
def unsharded(model: Any, accelerator: Any) -> Iterator[None]:
    """Gather the weights that FSDP2 shards, for the duration of the block.

    With sharded weights every forward pass is a collective operation: each process would have to generate as many
    tokens as every other. With whole ones (each parameter a plain tensor of its full shape) a process can stop when its
    own rows have ended.
    """
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)  # else the first forward pass shards it again
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(bool(accelerator.state.fsdp_plugin.reshard_after_forward), recurse=False)
            module.reshard()
        # The root and the output layer stay whole between forward and backward pass, which needs them first: so does
        # accelerate set them up, whatever `reshard_after_forward` is.
        for module in (model, model.get_output_embeddings()) if modules else ():
            if isinstance(module, FSDPModule):
                module.set_reshard_after_forward(False, recurse=False)
