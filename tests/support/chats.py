"""Chat templates of well-known models, each with a small tokenizer that has control tokens of the same kind."""

# ruff: noqa: RUF001 (DeepSeek's tokens have fullwidth bars)

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MISTRAL = (  # that of Mistral-7B-Instruct-v0.3, without tools
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
NAMED = (  # turns without control tokens around them
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
MERGES = ["th", "the", "in", "er", "an", "on", "re", "ll", "Sa", "Say", "im", "en", "end", "_end", "us", "use", "user"]


class Family(NamedTuple):
    """A chat template and the tokens of its tokenizer."""

    template: str
    """The name of one of TRL's templates, or the text of a template."""
    special: Sequence[str]
    ordinary: Sequence[str] = ()
    """Added tokens that are not special, although the template writes them."""
    eos: str | None = None
    bos: str | None = None
    prefix: bool = False
    """Whether the first word of a text gets a `▁`, as in SentencePiece."""
    verbatim: bool = True
    """Whether the template leaves earlier turns of the assistant without thinking unchanged."""


FAMILIES = {
    "chatml": Family("qwen2_5", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<tool_call>", "</tool_call>"]),
    "qwen3": Family("qwen3", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<think>", "</think>"]),
    "base": Family("qwen2_5", ["<|endoftext|>"], ["<|im_start|>", "<|im_end|>"]),
    "named": Family(NAMED, ["<s>", "</s>"], bos="<s>", prefix=True),
    "hermes": Family("qwen2_5", ["<s>", "</s>", "<|im_start|>", "<|im_end|>"], bos="<s>", prefix=True),
    "llama3": Family(
        "llama3",
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        bos="<|begin_of_text|>",
    ),
    "gemma": Family("gemma", ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], ["\n", "\n\n"], bos="<bos>"),
    "phi3": Family("phi3", ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]),
    "deepseek": Family(
        "deepseekv3",
        ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"],
        ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"],
        bos="<｜begin▁of▁sentence｜>",
        verbatim=False,  # the new turn opens thinking, which earlier turns lack
    ),
    "mistral": Family(
        MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], bos="<s>", eos="</s>", prefix=True, verbatim=False
    ),
    "glm": Family(
        "glm4moe",
        ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>"],
        ["<think>", "</think>"],
        verbatim=False,  # earlier turns get empty thinking
    ),
}


def tokenizer_of(family: Family) -> PreTrainedTokenizerFast:
    """Return a byte tokenizer with a few longer tokens, and the control tokens and the template of a family."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if family.prefix:
        letters = [chr(code) for code in range(32, 127)]
        symbols = [*(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁"]
        model = models.BPE(
            vocab={symbol: index for index, symbol in enumerate(dict.fromkeys([*symbols, *MERGES]))},
            merges=[_pair(word, symbols) for word in MERGES],
            byte_fallback=True,
        )
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {symbol: index for index, symbol in enumerate([*symbols, *MERGES])}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[_pair(word, symbols) for word in MERGES]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=family.bos,
        eos_token=family.eos or family.special[-1],
        additional_special_tokens=list(family.special),
        clean_up_tokenization_spaces=False,
    )
    made.add_tokens([AddedToken(token, normalized=False) for token in family.ordinary])
    made.chat_template = family.template if "{" in family.template else _stored(family.template)
    return made


def _stored(name: str) -> str:
    return files("trl").joinpath(f"chat_templates/{name}.jinja").read_text(encoding="utf-8")


def _pair(word: str, symbols: Sequence[str]) -> tuple[str, str]:
    """Return the two tokens whose merge is a longer one."""
    known = {*symbols, *MERGES} - {word}
    return next((word[:at], word[at:]) for at in range(len(word) - 1, 0, -1) if {word[:at], word[at:]} <= known)
