"""Checks that a model can be generated from with a cache, and trained in padded batches.

The default engine and TRL's trainer rely on three things: a token's probabilities are the same in one pass over the
sequence and step by step with a cache; they are the same in a left-padded batch; and rows of a cache can be copied and
dropped. Attention ensures all of them. Linear attention, convolutions and state-space layers do only if transformers'
code for the model takes care of it, so a model is checked on a few tokens before it is used.

Notation for shapes: B rows, T tokens including padding, V vocabulary.
"""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Any

from r3core.errors import UsageError
from r3core.generation.cache import CachedRows, attends_to_all, left_padded
from r3core.generation.out_of_memory import is_out_of_memory, loading_hints, memory_errors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TEXT = (
    "The river rises in the hills north of the town, turns west at the old mill, and reaches the sea after forty "
    "miles. In spring it floods the meadows on both banks, and the farmers move their sheep to higher ground."
)
_PROMPT_LENGTHS = (24, 19, 11, 4)  # of the prompts in the checks, in tokens
_STEPS = 8
_SELECTED = {0: [3, 1, 0, 2, 1], 3: [4, 0, 2]}
"""Rows that remain after some steps of the check, by step, in their new order; a row may be copied."""
_TOLERANCE = 0.1
"""Total variation distance that rounding explains in 16 or fewer bits; a tenth of it in 32 bits.

SmolLM2-135M on the CPU has 0.02 in bfloat16 and 0.000001 in float32; when the mask is ignored, 0.24 in both.
"""


def apply_time_step_limit(model: PreTrainedModel) -> None:
    """Make state-space layers clamp their time steps to the configuration's `time_step_limit` alone.

    transformers 5.23 also raises them to `time_step_min`, which is meant for initialization, in one pass over
    Nemotron-H and Zamba2, but not step by step with a cache: the two would differ. The default limit is (0, infinity),
    as in Mamba-2.
    """
    limit = getattr(model.config.get_text_config(decoder=True), "time_step_limit", None) or (0.0, float("inf"))
    module: Any
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = tuple(limit)


def check_cache(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
    """Raise UsageError when the default engine would sample from other probabilities than the model's own.

    Generates from prompts of four lengths in one batch, copies and drops rows, and compares with one pass over the
    text. Cache layers that come with one architecture (DeepSeek-V4, MiniMax-M3) are rejected without a check: they
    compress or select blocks of tokens, padding included, and a block is longer than this check.
    """
    import torch
    from transformers import DynamicCache

    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if own := sorted(kind.__name__ for kind in kinds if kind.__module__ != DynamicCache.__module__):
        raise _not_generated_from(name, model, f"has a cache of its own, {own[0]}, which counts padding as tokens")
    ids = _check_text(tokenizer)
    try:
        with torch.no_grad():
            distance = _distance_with_cache(model, ids, pad=tokenizer.pad_token_id or 0)
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError) as error:
        if is_out_of_memory(error):  # a RuntimeError, but not the architecture's fault
            raise
        raise _not_generated_from(name, model, f"fails with {type(error).__name__}: {error}") from error
    if isnan(distance):
        raise UsageError(
            f"`{name}` returns NaN for ordinary text: its weights are damaged, or its training has diverged",
            "after a training: lower grpo.learning_rate, and train again",
        )
    if distance > _tolerance(model):
        why = f"computes other probabilities than in one pass (total variation distance {distance:.2g})"
        raise _not_generated_from(name, model, why)


def check_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
    """Raise UsageError when TRL's trainer would train other probabilities than the model's own.

    TRL pads prompts on the left and completions on the right, and passes a mask but no positions. A recurrent model
    that ignores the mask, or one with absolute positions that count padding (GPT-2), would be trained on probabilities
    that it never generates with. RunError when the device has too little memory for it.
    """
    import torch

    ids = _check_text(tokenizer)
    was_training = model.training
    model.train(not _has_dropout(model))  # some layers have kernels of their own for training
    try:
        with torch.no_grad(), memory_errors(f"running `{name}` on a few tokens", loading_hints):
            distance = _distance_in_training(model, ids, pad=tokenizer.pad_token_id or 0)
    finally:
        model.train(was_training)
    if not distance <= _tolerance(model):  # also when it is NaN
        raise _rejected(
            f"`{name}` cannot be trained",
            model,
            "computes other probabilities in the padded batches of TRL's trainer than for a single sequence "
            f"(total variation distance {distance:.2g})",
        )


def continues_prompts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether completions in training may continue from a cache of their prompts, through which gradients flow.

    Layers with a recurrent state change it in place, checkpointing of activations turns the cache off, and dropout
    would be the same for all completions of a prompt.
    """
    import torch
    from transformers import DynamicCache

    kinds = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers}
    attention = {"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"}  # the last reads another layer's
    dropout = _has_dropout(model) or any(isinstance(one, torch.nn.Dropout) and one.p for one in model.modules())
    if model.is_gradient_checkpointing or dropout or not kinds or kinds - attention:
        return False
    ids, pad = _check_text(tokenizer), tokenizer.pad_token_id or 0
    was_training = model.training
    model.train()
    try:
        with torch.no_grad():
            distance = _distance_in_training(model, ids, pad=pad, cached=True)
            if attends_to_all(model):
                distance = max(distance, _distance_in_training(model, ids, pad=pad, cached=True, gap=2))
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError):
        return False
    finally:
        model.train(was_training)
    return distance <= _tolerance(model)


def _distance_with_cache(model: PreTrainedModel, ids: list[int], *, pad: int) -> float:
    """Return the mean distance between the probabilities with a cache and in one pass; every row is a prefix of `ids`.

    The total variation distance, 0 to 1.
    """
    import torch

    sequence = torch.tensor(ids, device=model.device)
    expected = model(input_ids=sequence.unsqueeze(0), use_cache=False).logits[0].float().softmax(-1)  # (T, V)
    cached = CachedRows(model, [ids[:length] for length in _PROMPT_LENGTHS], pad=pad)
    lengths = torch.tensor(_PROMPT_LENGTHS, device=model.device)  # (B,): tokens of each row so far
    distances = []
    for step in range(_STEPS):
        probabilities = cached.next_logits().float().softmax(-1)
        distances.append(_total_variation(probabilities, expected[lengths - 1]))
        if step in _SELECTED:
            rows = torch.tensor(_SELECTED[step], device=model.device)
            cached.select(rows)
            lengths = lengths[rows]
        cached.append(sequence[lengths])
        lengths = lengths + 1
    return float(torch.cat(distances).mean())


def _distance_in_training(
    model: PreTrainedModel, ids: list[int], *, pad: int, cached: bool = False, gap: int = 0
) -> float:
    """Return the mean distance between the probabilities in a batch as TRL pads it and for a single sequence.

    With `cached` the prompts, all but their last tokens, go through the model first; `gap` columns of padding follow.
    """
    import torch
    from transformers import DynamicCache

    sequence = torch.tensor(ids, device=model.device)
    expected = model(input_ids=sequence.unsqueeze(0), use_cache=False).logits[0].float().softmax(-1)  # (T, V)
    prompts, mask = left_padded([ids[:length] for length in _PROMPT_LENGTHS], pad, device=model.device)
    # completions of 8, 7, 6 and 5 tokens, padded on the right: reversed, padded on the left, and reversed again
    completions = [ids[length : length + _STEPS - row] for row, length in enumerate(_PROMPT_LENGTHS)]
    flipped, real = left_padded([completion[::-1] for completion in completions], pad, device=model.device)
    batch, mask = torch.cat([prompts, flipped.flip(1)], dim=1), torch.cat([mask, real.flip(1)], dim=1)
    first = prompts.shape[1] - 1  # the logits of a completion begin at the last token of its prompt
    if cached:
        padding = mask.new_zeros(len(mask), gap)
        batch = torch.cat([batch[:, :first], padding + pad, batch[:, first:]], dim=1)
        mask = torch.cat([mask[:, :first], padding, mask[:, first:]], dim=1)
        cache = DynamicCache(config=model.config)
        for start, end in ((0, first), (first, batch.shape[1])):
            counted = {"position_ids": (mask[:, :end].cumsum(1) - 1).clamp(min=0)[:, start:]} if gap else {}
            output = model(
                input_ids=batch[:, start:end],
                attention_mask=mask[:, :end],
                past_key_values=cache,
                use_cache=True,
                **counted,
            )
        logits = output.logits[:, gap:]
    else:
        logits = model(input_ids=batch, attention_mask=mask, use_cache=False).logits[:, first:]
    distances = [
        _total_variation(logits[row, : len(completion)].float().softmax(-1), expected[length - 1 :][: len(completion)])
        for row, (length, completion) in enumerate(zip(_PROMPT_LENGTHS, completions, strict=True))
    ]
    return float(torch.cat(distances).mean())


def _total_variation(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the distance between the distributions in each row, 0 to 1; both are (B, V)."""
    return (one - other).abs().sum(-1) / 2


def _check_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of ordinary text, for which a model's probabilities are far from uniform whatever the rounding."""
    length = max(_PROMPT_LENGTHS) + _STEPS
    ids = list(tokenizer.encode(_TEXT))
    return (ids * length)[:length]


def _tolerance(model: PreTrainedModel) -> float:
    import torch

    quantized = getattr(model, "hf_quantizer", None) is not None
    return _TOLERANCE / 10 if model.dtype == torch.float32 and not quantized else _TOLERANCE


def _has_dropout(model: PreTrainedModel) -> bool:
    """Return whether the configuration names dropout or jitter, with which any two passes in training mode differ."""
    values = vars(model.config.get_text_config(decoder=True)).items()
    return any(bool(value) for key, value in values if "drop" in key or "jitter" in key)


def _not_generated_from(name: str, model: PreTrainedModel, why: str) -> UsageError:
    return _rejected(
        f"`{name}` cannot be generated from by the transformers engine",
        model,
        f"{why}, when a padded batch is generated with a cache",
    )


def _rejected(what: str, model: PreTrainedModel, why: str) -> UsageError:
    return UsageError(
        f"{what}: its architecture (model type `{model.config.model_type}`) {why}",
        "use a model of another architecture: docs/scale.md lists the tested ones",
    )
