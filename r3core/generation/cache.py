"""A batch that generates token by token with a cache of any kind, and checks that a model allows it.

The default engine and TRL's trainer rely on three things: a token's probabilities are the same in one pass over the
sequence and step by step with a cache; they are the same in a left-padded batch; and rows of a cache can be copied and
dropped. Attention ensures all of them. Linear attention, convolutions and state-space layers do only if transformers'
code for the model takes care of it, so a model is checked on a few tokens before it is used.

Notation for shapes: B rows, T tokens including padding, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import takewhile
from math import isnan
from typing import TYPE_CHECKING, Any

from r3core.errors import UsageError
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


class CachedRows:
    """Left-padded prompts in a model's cache, one token longer after each step.

    With padding on the left, the last token of every row is in the last column, so one column of logits continues all
    rows. For two prompts of 3 and 1 tokens, before the first step:

        ids        [[5, 6, 7], [0, 0, 8]]   (B, T); after the first step only the new tokens, (B, 1)
        mask       [[1, 1, 1], [0, 0, 1]]   (B, T): one column more after each step, 1 for real tokens
        positions  [[0, 1, 2], [0, 0, 0]]   like ids: the first real token has position 0

    What several prompts begin with goes through the model once, if attention is all that the cache serves.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, pad: int) -> None:
        from transformers import DynamicCache
        from transformers.cache_utils import CacheLayerMixin, DynamicLayer

        from r3core.generation.growing_layer import GrowingLayer

        self.model = model
        self.cache = DynamicCache(config=model.config)
        plain: Any = getattr(model, "get_base_model", lambda: model)()  # peft's own forward takes any argument
        takes_params = "cache_params" in inspect.signature(plain.forward).parameters  # Mamba's name for a cache
        self._argument = "cache_params" if takes_params else "past_key_values"
        self._attends = not self.cache.layers or any(isinstance(layer, CacheLayerMixin) for layer in self.cache.layers)
        self.mask: torch.Tensor
        self._steps = 0
        self.cache.layers = [GrowingLayer() if type(one) is DynamicLayer else one for one in self.cache.layers]
        if attends_to_all(model):
            prompts = self._read_common(prompts, pad)
        self._add(prompts, pad)

    def _read_common(self, prompts: Sequence[Sequence[int]], pad: int) -> Sequence[Sequence[int]]:
        """Run what several prompts begin with through the model, and return what is left of each prompt."""
        import torch

        prefixes, prefix_of = common_prefixes(prompts)
        if 2 * len(prefixes) > len(prompts):
            return prompts
        self._add(prefixes, pad)
        self.next_logits()
        self.select(torch.tensor(prefix_of, device=self.model.device))
        return [prompt[len(prefixes[place]) :] for prompt, place in zip(prompts, prefix_of, strict=True)]

    def _add(self, rows: Sequence[Sequence[int]], pad: int) -> None:
        """Continue each row with these tokens, padded on the left."""
        import torch

        self.ids, mask = left_padded(rows, pad, device=self.model.device)
        self.mask = torch.cat([self.mask, mask], dim=1) if self._steps else mask
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -mask.shape[1] :]

    def next_logits(self) -> torch.Tensor:
        """Run the tokens that are not in the cache yet through the model, and return the next token's logits (B, V)."""
        # A model without attention applies the mask to its input, which has one column after the first step: the mask
        # of all T tokens would not fit, and transformers' own `generate` passes none either.
        masked = self._attends or self._steps == 0
        self._steps += 1
        output = self.model(
            input_ids=self.ids,
            attention_mask=self.mask if masked else None,
            position_ids=self.positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._argument: self.cache},
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def select(self, rows: torch.Tensor) -> None:
        """Continue with these rows, in this order; a row may occur several times. `rows` are indices, (new B,)."""
        self.cache.reorder_cache(rows)  # type: ignore[arg-type]  # the only method that every kind of cache layer has
        self.ids, self.mask, self.positions = (t[rows] for t in (self.ids, self.mask, self.positions))

    def append(self, tokens: torch.Tensor) -> None:
        """Add a token to each row; `tokens` is (B,)."""
        import torch

        self.ids = tokens.unsqueeze(1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1


def attends_to_all(model: PreTrainedModel) -> bool:
    """Return whether every layer attends to all tokens before: only then may there be padding within a row."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def common_prefixes(prompts: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[int]]:
    """Return prefixes of at least half a prompt, and for each prompt the index of its own; none is a whole prompt.

    The retries of a group begin with the same turns.

    >>> common_prefixes([[1, 2, 3, 4], [7, 8], [1, 2, 3, 5, 6]])
    ([[1, 2, 3], [7]], [0, 1, 0])
    """
    prefixes: list[Sequence[int]] = []
    prefix_of = [0] * len(prompts)
    for index in sorted(range(len(prompts)), key=lambda index: list(prompts[index])):
        prompt = prompts[index][:-1]
        same = takewhile(lambda pair: pair[0] == pair[1], zip(prefixes[-1], prompt, strict=False)) if prefixes else ()
        common = sum(1 for _ in same)
        if prefixes and 2 * common >= len(prompts[index]):
            prefixes[-1] = prompt[:common]
        else:
            prefixes.append(prompt)
        prefix_of[index] = len(prefixes) - 1
    return prefixes, prefix_of


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


def left_padded(rows: Sequence[Sequence[int]], pad: int, *, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask of rows padded on the left, both (B, longest row)."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


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
