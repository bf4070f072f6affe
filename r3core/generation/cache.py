"""A batch that grows token by token in a cache of any kind, and the check that a model computes the same with it.

The default engine and TRL's trainer rely on three things: a token's probabilities are the same in one pass over the
sequence and step by step with a cache; they are the same in a left-padded batch; and rows of a cache can be copied and
dropped. Attention keeps all of them. Linear attention, convolutions and state-space layers do only where transformers'
code for the model sees to it, so a model is tried, for a few tokens, before it is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from math import isnan
from typing import TYPE_CHECKING, Any

from r3core.errors import UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TEXT = (
    "The river rises in the hills north of the town, turns west at the old mill, and reaches the sea after forty "
    "miles. In spring it floods the meadows on both banks, and the farmers move their sheep to higher ground."
)
_TRIED = (24, 19, 11, 4)  # prompt lengths of the trial, in tokens
_STEPS = 8
_REARRANGED = {0: [3, 1, 0, 2, 1], 3: [4, 0, 2]}
"""After which steps of the trial which rows are copied or kept."""
_ROUNDING = 0.1
"""Total variation distance that is put down to rounding in 16 or fewer bits; a tenth of it in 32 bits.

SmolLM2-135M on the CPU has 0.02 in bfloat16 and 0.000001 in float32; with a mask that is ignored, 0.24 in both.
"""


class CachedRows:
    """Left-padded prompts in a model's cache, one token longer after each step."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, pad: int) -> None:
        from transformers import DynamicCache
        from transformers.cache_utils import CacheLayerMixin

        self.model = model
        self.cache = DynamicCache(config=model.config)
        plain: Any = getattr(model, "get_base_model", lambda: model)()  # the forward of peft's takes any argument
        self._name = "cache_params" if "cache_params" in inspect.signature(plain.forward).parameters else None
        self._attends = not self.cache.layers or any(isinstance(layer, CacheLayerMixin) for layer in self.cache.layers)
        self.ids, self.mask = _left_padded(prompts, pad, device=model.device)  # (rows, new tokens), (rows, tokens)
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self._steps = 0

    def next_logits(self) -> torch.Tensor:
        """Put the tokens that are not in the cache yet through the model, and return (rows, vocabulary)."""
        # Mamba's layers would multiply the one new token with the mask of all: transformers gives it none either
        masked = self._attends or self._steps == 0
        self._steps += 1
        output = self.model(
            input_ids=self.ids,
            attention_mask=self.mask if masked else None,
            position_ids=self.positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._name or "past_key_values": self.cache},
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows, in this order; a row may be there several times."""
        self.cache.reorder_cache(rows)  # type: ignore[arg-type]  # the one way that every kind of cache layer has
        self.ids, self.mask, self.positions = (t[rows] for t in (self.ids, self.mask, self.positions))

    def append(self, tokens: torch.Tensor) -> None:
        """Add a token to each row."""
        import torch

        self.ids = tokens.unsqueeze(1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1


def mend_time_steps(model: PreTrainedModel) -> None:
    """Let state-space layers limit their time steps as the model's configuration says, in one pass as in steps.

    transformers 5.23 raises them to `time_step_min` in one pass over Nemotron-H and Zamba2, which is meant for their
    initial values, and not step by step with a cache, so that the two differ. Mamba-2 limits nothing by default.
    """
    limit = getattr(model.config.get_text_config(decoder=True), "time_step_limit", None) or (0.0, float("inf"))
    module: Any
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = tuple(limit)


def check_cache(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
    """Raise UsageError when the default engine would generate by other probabilities than the model's own.

    Prompts of four lengths go through it side by side, are copied and dropped, and are compared with one pass. Layers
    of cache that come with one architecture (DeepSeek-V4, MiniMax-M3) are refused untried: they compress or choose
    blocks of tokens, longer than a trial, and count padding among them.
    """
    import torch
    from transformers import DynamicCache

    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if own := sorted(kind.__name__ for kind in kinds if kind.__module__ != DynamicCache.__module__):
        raise _unfit(name, model, f"keeps a cache of its own, {own[0]}, in which padding counts", "generated from")
    ids = _sample(tokenizer)
    try:
        with torch.no_grad():
            distance = _distance_with_cache(model, ids, pad=tokenizer.pad_token_id or 0)
    except torch.OutOfMemoryError:  # is no fault of the architecture
        raise
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError) as error:
        raise _unfit(name, model, f"fails there with {type(error).__name__}: {error}", "generated from") from error
    if isnan(distance):
        raise UsageError(
            f"`{name}` gives NaN for ordinary text: its weights are damaged, or the training that made it has diverged",
            "after a training: lower grpo.learning_rate, and train again",
        )
    if distance > _tolerated(model):
        raise _unfit(
            name, model, f"gives other probabilities there than in one pass {_far(distance)}", "generated from"
        )


def check_training(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
    """Raise UsageError when TRL's trainer would train other probabilities than the model's own.

    TRL pads prompts on the left and completions on the right, and gives the model a mask, but no positions. A
    recurrent model that does not heed the mask, or one with absolute positions that count padding (GPT-2), would be
    trained on something that it never does when it generates.
    """
    import torch

    ids = _sample(tokenizer)
    was_training = model.training
    model.train(not _drops_out(model))  # some layers have kernels of their own for training
    try:
        with torch.no_grad():
            distance = _distance_in_training(model, ids, pad=tokenizer.pad_token_id or 0)
    finally:
        model.train(was_training)
    if not distance <= _tolerated(model):
        why = f"gives other probabilities in the padded batches of TRL's trainer than alone {_far(distance)}"
        raise _unfit(name, model, why, "trained")


def _distance_with_cache(model: PreTrainedModel, ids: list[int], *, pad: int) -> float:
    """Return how far from one pass the probabilities are that the cache gives; every row is a part of `ids`."""
    import torch

    sequence = torch.tensor(ids, device=model.device)
    whole = model(input_ids=sequence.unsqueeze(0), use_cache=False).logits[0].float().softmax(-1)
    cached = CachedRows(model, [ids[:length] for length in _TRIED], pad=pad)
    length = torch.tensor(_TRIED, device=model.device)
    distances = []
    for step in range(_STEPS):
        given = cached.next_logits().float().softmax(-1)
        distances.append(_total_variation(given, whole[length - 1]))
        if step in _REARRANGED:
            rows = torch.tensor(_REARRANGED[step], device=model.device)
            cached.select(rows)
            length = length[rows]
        cached.append(sequence[length])
        length = length + 1
    return float(torch.cat(distances).mean())


def _distance_in_training(model: PreTrainedModel, ids: list[int], *, pad: int) -> float:
    """Return how far from those of a lone sequence the probabilities are in a batch as TRL makes it."""
    import torch

    sequence = torch.tensor(ids, device=model.device)
    whole = model(input_ids=sequence.unsqueeze(0), use_cache=False).logits[0].float().softmax(-1)
    prompts, mask = _left_padded([ids[:length] for length in _TRIED], pad, device=model.device)
    completions = [ids[length : length + _STEPS - row] for row, length in enumerate(_TRIED)]
    flipped, real = _left_padded([completion[::-1] for completion in completions], pad, device=model.device)
    batch, mask = torch.cat([prompts, flipped.flip(1)], dim=1), torch.cat([mask, real.flip(1)], dim=1)
    logits = model(input_ids=batch, attention_mask=mask, use_cache=False).logits[:, prompts.shape[1] - 1 :]
    distances = [
        _total_variation(logits[row, : len(completion)].float().softmax(-1), whole[length - 1 :][: len(completion)])
        for row, (length, completion) in enumerate(zip(_TRIED, completions, strict=True))
    ]
    return float(torch.cat(distances).mean())


def _total_variation(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the distance between distributions, 0 to 1 for each row; both are (rows, vocabulary)."""
    return (one - other).abs().sum(-1) / 2


def _left_padded(rows: Sequence[Sequence[int]], pad: int, *, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask of rows that end together, both (rows, longest)."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _sample(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return ids that the model is tried on: ordinary text, of which it has a firm opinion whatever the rounding."""
    length = max(_TRIED) + _STEPS
    ids = list(tokenizer.encode(_TEXT))
    return (ids * length)[:length]


def _tolerated(model: PreTrainedModel) -> float:
    import torch

    quantized = getattr(model, "hf_quantizer", None) is not None
    return _ROUNDING / 10 if model.dtype == torch.float32 and not quantized else _ROUNDING


def _drops_out(model: PreTrainedModel) -> bool:
    """Tell whether the configuration has any dropout or jitter, with which two passes of a training differ anyway."""
    values = vars(model.config.get_text_config(decoder=True)).items()
    return any(bool(value) for key, value in values if "drop" in key or "jitter" in key)


def _far(distance: float) -> str:
    return f"(total variation distance {distance:.2g})"


def _unfit(name: str, model: PreTrainedModel, why: str, what: str) -> UsageError:
    kind = model.config.model_type
    where = "by the transformers engine, in padded batches with a cache" if what == "generated from" else "here"
    return UsageError(
        f"`{name}` cannot be {what} {where}: its architecture (model type `{kind}`) {why}",
        "name a model of another architecture: docs/scale.md lists those that are tested",
    )
