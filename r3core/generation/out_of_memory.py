"""Errors of an exhausted GPU or main memory, turned into what was computed and which settings to lower."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from r3core.errors import RunError, one_line

_SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""Parts of the messages of RuntimeErrors about memory: of CUDA, of torch's allocator on the CPU, and of libraries."""
NOTHING_LOST = (
    "nothing that was written is lost: the same command resumes the run, for example when other programs have freed "
    "the memory"
)
OTHER_SETTINGS = (
    "other settings are another run, with an --output-dir of its own: --failures DIRECTORY trains on failures that "
    "this one has mined, and `r3 eval --model DIRECTORY/model` evaluates the model that it has trained"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory was exhausted: torch.OutOfMemoryError, or another RuntimeError with that message."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@contextmanager
def memory_errors(doing: str, hints: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Raise RunError in place of torch's errors about memory; `hints` are computed only then.

    `doing` follows "out of memory while".
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"out of memory while {doing}: {one_line(error, first=True)[:300]}", *hints(), NOTHING_LOST, OTHER_SETTINGS
        ) from error


def generating(prompts: Sequence[Sequence[int]], *, max_tokens: int, batch_size: int) -> str:
    """Return what a batch that exhausted the memory was: the `doing` of `memory_errors`."""
    longest = max(map(len, prompts), default=0)
    return (
        f"generating {len(prompts)} completions at once (batch_size={batch_size}), for prompts of up to {longest:,} "
        f"tokens and with max_tokens={max_tokens:,}"
    )


def generating_hints(batch_size: int) -> list[str]:
    """Return the settings with which generation needs less memory."""
    lower = f"--set batch_size={batch_size // 2}" if batch_size > 1 else "batch_size is 1 already"
    return [
        f"lower batch_size ({lower}), or the longest turn: sampling.attempt.max_tokens, sampling.reflection.max_tokens "
        "or sampling.retry.max_tokens",
    ]


def loading_hints() -> list[str]:
    """Return the settings with which a model itself needs less memory."""
    return [
        "the model alone is too large for this device: --lora r=16 trains it in the dtype it was saved in instead of "
        "float32, --set dtype=bfloat16 halves one that was saved in float32, and --processes N divides it among GPUs; "
        "`--dry-run` estimates the need",
    ]
