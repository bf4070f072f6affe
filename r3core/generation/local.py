"""The `transformers` engine: batched generation with a key-value cache, on a model in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from r3core.errors import UsageError
from r3core.generation import Completion, Conversation, Ended, Sampling, with_tools

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Continued = tuple[list[int], bool]
"""The generated ids of one prompt, and whether the last of them is an end token."""
Take = Callable[[Sequence[tuple[int, Continued]]], None]
_SHRINK_AT = 0.7  # the batch is rebuilt without its ended rows when only this share of it is still alive


class TransformersGenerator:
    """Continues conversations with a transformers model.

    Prompts are sorted by length, so that padding is small. Rows that ended leave the batch, and their part of the cache
    is dropped, once enough of them have: rebuilding the cache for each would cost more than it saves.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 128) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *, ended: Ended | None = None
    ) -> list[Completion]:
        """Return one completion a conversation, in the same order.

        `ended` is called whenever rows leave the batch. Raises UsageError when a prompt and `max_tokens` together
        exceed the model's context.
        """
        completions: dict[int, Completion] = {}

        def take(rows: Sequence[tuple[int, Continued]]) -> None:
            new = [(index, completion(self.tokenizer, ids, ended=done)) for index, (ids, done) in rows]
            completions.update(new)
            if ended:
                ended(new)

        self.continue_ids([self.encode(conversation) for conversation in conversations], sampling, take=take)
        return [completions[index] for index in range(len(conversations))]

    def encode(self, conversation: Conversation) -> list[int]:
        """Return the token ids of a conversation, up to where the assistant's turn begins; see `encode`."""
        return encode(self.tokenizer, conversation)

    def continue_ids(
        self, prompts: Sequence[list[int]], sampling: Sampling, *, take: Take | None = None
    ) -> list[Continued]:
        """Return, for each prompt of token ids, the generated ids and whether the last of them is an end token.

        `take` is called with the rows that have just ended, each with its prompt's index.
        """
        import torch

        self._check_lengths(prompts, sampling)
        random = torch.Generator(self.model.device).manual_seed(sampling.seed)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
        results: list[Continued] = [([], False)] * len(prompts)
        was_training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                with torch.no_grad():
                    for rows in self._continue([prompts[index] for index in batch], sampling, random):
                        new = [(batch[row], continued) for row, continued in rows]
                        for index, continued in new:
                            results[index] = continued
                        if take:
                            take(new)
        finally:
            self.model.train(was_training)
        return results

    def _continue(
        self, prompts: Sequence[list[int]], sampling: Sampling, random: torch.Generator
    ) -> Iterator[list[tuple[int, Continued]]]:
        """Yield rows that have ended, with their places among the prompts: when the batch shrinks, and at the end."""
        import torch
        from transformers import DynamicCache

        device = self.model.device
        pad = self.tokenizer.pad_token_id or 0
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        ends = torch.tensor(sorted(self._end_ids()), device=device)
        cache = DynamicCache(config=self.model.config)
        rows = torch.arange(len(prompts), device=device)  # which prompt each row of the batch continues
        alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
        written = _Written(len(prompts), self._end_ids())
        for _ in range(sampling.max_tokens):
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]  # (rows, vocabulary)
            tokens = _draw(logits, sampling, random)  # (rows,)
            written.add(rows[alive], tokens[alive])
            alive = alive & ~torch.isin(tokens, ends)
            living = int(alive.sum())
            if living == 0:
                break
            if living <= _SHRINK_AT * len(rows):
                yield written.take(rows[~alive])
                kept = alive.nonzero().squeeze(1)
                cache.batch_select_indices(kept)
                rows, tokens, mask, positions, alive = (t[kept] for t in (rows, tokens, mask, positions, alive))
            ids = tokens.unsqueeze(1)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            positions = positions[:, -1:] + 1
        yield written.take(rows)

    def _end_ids(self) -> set[int]:
        """Return the tokens that end a turn: the model's own list, and the tokenizer's."""
        configured: Any = self.model.generation_config.eos_token_id if self.model.generation_config else None
        listed = configured if isinstance(configured, list) else [configured]
        return {token for token in (*listed, self.tokenizer.eos_token_id) if token is not None}

    def _check_lengths(self, prompts: Sequence[list[int]], sampling: Sampling) -> None:
        context = getattr(self.model.config, "max_position_embeddings", None)
        longest = max(prompts, key=len, default=[])
        if context is not None and len(longest) + sampling.max_tokens > context:
            opening = self.tokenizer.decode(longest, skip_special_tokens=True)[:80]
            raise UsageError(
                f"a prompt of {len(longest)} tokens and {sampling.max_tokens} new ones exceed the model's context of "
                f"{context}: {opening!r}...",
                "lower the max_tokens of this turn under `sampling`, or leave out such examples",
            )


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


class _Written:
    """The tokens drawn so far, kept on the device until a row is taken."""

    def __init__(self, count: int, ends: set[int]) -> None:
        self.ends = ends
        self.ids: list[list[int]] = [[] for _ in range(count)]
        self.drawn: list[tuple[torch.Tensor, torch.Tensor]] = []  # each step's rows and their tokens

    def add(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        self.drawn.append((rows, tokens))

    def take(self, rows: torch.Tensor) -> list[tuple[int, Continued]]:
        """Return what was written in some rows, and whether the last token of each ends it."""
        for places, tokens in self.drawn:
            for place, token in zip(places.tolist(), tokens.tolist(), strict=True):
                self.ids[place].append(token)
        self.drawn.clear()
        taken = [(row, self.ids[row]) for row in rows.tolist()]
        return [(row, (ids, bool(ids) and ids[-1] in self.ends)) for row, ids in taken]


def encode(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """Return the token ids of a conversation, up to where the assistant's turn begins.

    Raises UsageError when the conversation brings tools, and the chat template has no place for them.
    """
    return list(templated(tokenizer, conversation, add_generation_prompt=True, return_dict=False))


def completion(tokenizer: PreTrainedTokenizerBase, ids: list[int], *, ended: bool) -> Completion:
    """Return what generated ids say; `ended` tells that the last of them ends the turn."""
    said = ids[:-1] if ended else ids
    text = str(tokenizer.decode(said, skip_special_tokens=True))
    return Completion(text=text, token_ids=said, stopped="end" if ended else "length")


def templated(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, **options: Any) -> Any:
    """Return a conversation in the model's chat template, as `apply_chat_template` does with these options.

    Raises UsageError when the conversation brings tools, and the chat template has no place for them.
    """
    messages, offered = with_tools(conversation)
    tools = cast("list[dict[Any, Any] | Callable[..., Any]] | None", offered)
    without = tokenizer.apply_chat_template(messages, tokenize=False) if tools else None
    if tools and tokenizer.apply_chat_template(messages, tools=tools, tokenize=False) == without:
        raise UsageError(
            "the task gives its tools to the chat template, and this model's has no place for tools",
            "put them into the prompt (apigen: leave `template` out), or name a model that was trained to call tools",
        )
    return tokenizer.apply_chat_template(messages, tools=tools, **options)


def load_model(
    name: str | Path, *, revision: str | None = None, dtype: str = "auto", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and the tokenizer of a local folder or of the hub; UsageError when they cannot be had."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if Path(name).is_absolute() and not Path(name, "config.json").exists():
        raise UsageError(
            f"`{name}` holds no model: there is no config.json in it", "name a folder or a model of the hub"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"the model `{name}` cannot be loaded: {first}",
            "check the name, the connection to the hub, and HF_TOKEN for a gated model; a local folder works too",
        ) from error
    if tokenizer.chat_template is None:
        raise UsageError(
            f"the tokenizer of `{name}` has no chat template, so a conversation cannot be put to it",
            "take an instruction-tuned model, or add a chat_template.jinja to the folder",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if torch.cuda.is_available():
        torch.nn.Module.cuda(model)  # transformers' own signature of it is wrong
    return model, tokenizer
