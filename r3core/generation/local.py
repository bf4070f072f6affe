"""The `transformers` engine: batched generation with a key-value cache, on a model in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r3core.errors import UsageError
from r3core.generation import Completion, Continued, Conversation, Ended, Sampling, Samplings, each
from r3core.generation.cached import CachedRows, check_cache, mend_time_steps
from r3core.generation.chat import Take, check_lengths, converse, encode, end_ids
from r3core.launch import world_size

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_SHRINK_AT = 0.7  # the batch is rebuilt without its ended rows when only this share of it is still alive
ADAPTER = "adapter_config"
"""The file, without its ending, that makes a folder one of an adapter."""


class TransformersGenerator:
    """Continues conversations with a transformers model.

    Prompts are sorted by length, so that padding is small; a prompt that is there several times is computed once a
    batch. Rows that ended leave the batch, and their part of the cache is dropped, once enough of them have: rebuilding
    the cache for each would cost more than it saves.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 128) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    @property
    def context(self) -> int | None:
        """The longest sequence in tokens, prompt and completion together; None where the configuration names none."""
        return context_of(self.model.config)

    def generate(
        self, conversations: Sequence[Conversation], sampling: Samplings, *, ended: Ended | None = None
    ) -> list[Completion]:
        """Return one completion a conversation, in the same order; `ended` is called whenever rows leave the batch."""
        return converse(self, self.tokenizer, conversations, sampling, ended=ended)

    def encode(self, conversation: Conversation) -> list[int]:
        """Return the token ids of a conversation, up to where the assistant's turn begins; see `encode`."""
        return encode(self.tokenizer, conversation)

    def continue_ids(
        self, prompts: Sequence[list[int]], sampling: Samplings, *, take: Take | None = None
    ) -> list[Continued]:
        """Return what is generated after each prompt of token ids.

        `take` is called with the rows that have just ended, each with its prompt's index. Raises TooLong when a prompt
        and `max_tokens` together exceed the model's context.
        """
        import torch

        samplings = each(sampling, len(prompts))
        check_lengths(self.tokenizer, prompts, samplings, context=self.context)
        results = [Continued([], False)] * len(prompts)
        was_training = self.model.training
        self.model.eval()
        try:
            for kind, batch, random in self._batches(prompts, samplings):
                with torch.no_grad():
                    for rows in self._continue([prompts[index] for index in batch], kind, random):
                        new = [(batch[row], continued) for row, continued in rows]
                        for index, continued in new:
                            results[index] = continued
                        if take:
                            take(new)
        finally:
            self.model.train(was_training)
        return results

    def close(self) -> None:
        """Let go of the model's memory."""
        import torch

        del self.model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _batches(
        self, prompts: Sequence[list[int]], samplings: Sequence[Sampling]
    ) -> Iterator[tuple[Sampling, list[int], torch.Generator]]:
        """Yield indices of prompts that go through the model together: of one sampling, long ones first."""
        import torch

        kinds: dict[Sampling, list[int]] = {}
        first: dict[tuple[int, ...], int] = {}  # where each prompt stands first: equal ones are put side by side
        for index, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            kinds.setdefault(sampling, []).append(index)
            first.setdefault(tuple(prompt), index)
        for sampling, members in kinds.items():
            random = torch.Generator(self.model.device).manual_seed(sampling.seed)
            order = sorted(members, key=lambda index: (-len(prompts[index]), first[tuple(prompts[index])]))
            for start in range(0, len(order), self.batch_size):
                yield sampling, order[start : start + self.batch_size], random

    def _continue(
        self, prompts: Sequence[list[int]], sampling: Sampling, random: torch.Generator
    ) -> Iterator[list[tuple[int, Continued]]]:
        """Yield rows that have ended, with their places among the prompts: when the batch shrinks, and at the end."""
        import torch

        device = self.model.device
        distinct = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        end = end_ids(self.tokenizer, self.model.generation_config)
        ends = torch.tensor(sorted(end), device=device)
        cached = CachedRows(self.model, list(distinct), pad=self.tokenizer.pad_token_id or 0)
        rows = torch.arange(len(prompts), device=device)  # which prompt each row of the batch continues
        alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
        written = _Written(len(prompts), end)
        for step in range(sampling.max_tokens):
            logits = cached.next_logits()
            if step == 0 and len(distinct) < len(prompts):  # from here on each row goes its own way
                copies = torch.tensor([distinct[tuple(prompt)] for prompt in prompts], device=device)
                cached.select(copies)
                logits = logits[copies]
            tokens = _draw(logits, sampling, random)  # (rows,)
            logprobs = _logprobs(logits, tokens)[alive] if sampling.logprobs else None
            written.add(rows[alive], tokens[alive], logprobs)
            alive = alive & ~torch.isin(tokens, ends)
            living = int(alive.sum())
            if living == 0:
                break
            if living <= _SHRINK_AT * len(rows):
                yield written.take(rows[~alive])
                kept = alive.nonzero().squeeze(1)
                cached.select(kept)
                rows, tokens, alive = (t[kept] for t in (rows, tokens, alive))
            cached.append(tokens)
        yield written.take(rows)


def _draw(logits: torch.Tensor, sampling: Sampling, random: torch.Generator) -> torch.Tensor:
    """Draw one token a row; logits are (rows, vocabulary)."""
    import torch
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    if sampling.temperature == 0:
        return logits.argmax(-1)
    scores = logits.float() / sampling.temperature
    unused = torch.empty(0, dtype=torch.long)  # the warpers look at scores alone
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(unused, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(unused, scores)
    return torch.multinomial(scores.softmax(-1), 1, generator=random).squeeze(1)


def _logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of one token a row, before temperature and truncation.

    Logits are (rows, vocabulary).
    """
    return logits.float().log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)


class _Written:
    """The tokens drawn so far, kept on the device until a row is taken."""

    def __init__(self, count: int, ends: set[int]) -> None:
        self.ends = ends
        self.ids: list[list[int]] = [[] for _ in range(count)]
        self.logprobs: list[list[float]] = [[] for _ in range(count)]
        self.drawn: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []  # each step's rows and tokens

    def add(self, rows: torch.Tensor, tokens: torch.Tensor, logprobs: torch.Tensor | None) -> None:
        self.drawn.append((rows, tokens, logprobs))

    def take(self, rows: torch.Tensor) -> list[tuple[int, Continued]]:
        """Return what was written in some rows."""
        for places, tokens, logprobs in self.drawn:
            drawn = places.tolist()
            for place, token in zip(drawn, tokens.tolist(), strict=True):
                self.ids[place].append(token)
            if logprobs is not None:
                for place, logprob in zip(drawn, logprobs.tolist(), strict=True):
                    self.logprobs[place].append(logprob)
        self.drawn.clear()
        return [(row, self._continued(row)) for row in rows.tolist()]

    def _continued(self, row: int) -> Continued:
        ids, logprobs = self.ids[row], self.logprobs[row]
        return Continued(ids, bool(ids) and ids[-1] in self.ends, logprobs if len(logprobs) == len(ids) else None)


def adapter_in(folder: str | Path) -> dict[str, Any] | None:
    """Return the configuration of the adapter in a folder, None when there is none."""
    path = Path(folder, f"{ADAPTER}.json")
    read: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return read


def base_of(model: str | Path) -> str:
    """Return the model that an adapter in a folder belongs to; the model itself where there is no adapter."""
    adapter = adapter_in(model)
    return str(adapter["base_model_name_or_path"]) if adapter else str(model)


def context_of(config: PretrainedConfig) -> int | None:
    """Return the longest sequence of a model in tokens; None where its configuration names none."""
    # a composite configuration (Gemma 3 with images, say) has it in the part for text
    limit: int | None = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return limit


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    quantization: str | None = None,
    generates: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and the tokenizer of a local folder or of the hub; UsageError when they cannot be had.

    A folder with an adapter is loaded with the model that it belongs to. A model whose probabilities depend on the
    cache or on padding is refused here, before hours of work: see `check_cache`.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            **({"quantization_config": _four_bits()} if quantization else {}),
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _unloadable(name, error) from error
    module: Any
    for module in model.modules() if quantization else ():
        if hasattr(
            module, "support_avx512bf16_for_cpu"
        ):  # weights that bitsandbytes has packed for it pass no gradient
            module.support_avx512bf16_for_cpu = False
    if torch.cuda.is_available() and not quantization and world_size() == 1:
        # in 4 bits it is on the GPU already; among several processes it is divided first
        torch.nn.Module.cuda(model)  # transformers' own signature of it is wrong
    mend_time_steps(model)
    if generates and world_size() == 1:  # the processes of a training load what one process has mined with before
        check_cache(model, tokenizer, name=str(name))
    return model, tokenizer


def _four_bits() -> Any:
    """Return how QLoRA keeps weights (Dettmers et al. 2023, arXiv 2305.14314): NF4, its constants quantized too."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def load_tokenizer(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a local folder or of the hub; UsageError when it cannot be had, or has no template."""
    from transformers import AutoTokenizer

    if Path(name).is_absolute() and not any(Path(name, f"{kind}.json").exists() for kind in ("config", ADAPTER)):
        raise UsageError(
            f"`{name}` holds no model: there is no config.json in it", "name a folder or a model of the hub"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _unloadable(name, error) from error
    if tokenizer.chat_template is None:
        raise UsageError(
            f"the tokenizer of `{name}` has no chat template, so a conversation cannot be put to it",
            "take an instruction-tuned model, or add a chat_template.jinja to the folder",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _unloadable(name: str | Path, error: Exception) -> UsageError:
    first = str(error).strip().partition("\n")[0]
    return UsageError(
        f"the model `{name}` cannot be loaded: {first}",
        "check the name, the connection to the hub, and HF_TOKEN for a gated model; a local folder works too",
    )
