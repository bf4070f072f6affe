"""The tables of memory in docs/scale.md: what the preset `paper` needs, computed as `--dry-run` computes it."""

from __future__ import annotations

from collections.abc import Callable

from tables import table

from r3_plugin_countdown.task import Countdown
from r3core.config import resolve
from r3core.estimate.memory import PHASES, Memory, memory_of, plan_of
from r3core.estimate.shape import Shape, shape_of

QWEN = {
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2}
    | {"vocab_size": 151936, "tie_word_embeddings": True},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4}
    | {"vocab_size": 152064, "tie_word_embeddings": False},
}
"""The published shapes of Qwen2.5-Instruct."""
CARDS = (24, 40, 48, 80, 141)
"""GB of the cards in the tables."""
BFLOAT16 = "train.dtype=bfloat16 grpo.optim=adamw_torch_8bit grpo.optim_args=bf16_stochastic_round=true"
FULL, LORA, EIGHT = "batch_size=32", "batch_size=32 lora.r=16", "batch_size=32 grpo.optim=adamw_8bit"
WAYS = [
    ("1.5B", "", 1),
    ("1.5B", FULL, 1),
    ("1.5B", EIGHT, 1),
    ("1.5B", f"{EIGHT} grpo.beta=0", 1),
    ("1.5B", LORA, 1),
    ("1.5B", f"batch_size=32 {BFLOAT16}", 1),
    ("1.5B", "engine=vllm", 1),
    ("1.5B", "grpo.gradient_accumulation_steps=4", 8),
    ("7B", FULL, 1),
    ("7B", f"{EIGHT} grpo.beta=0", 1),
    ("7B", LORA, 1),
    ("7B", f"{LORA} quantization=4bit train.merge=false", 1),
    ("7B", f"batch_size=32 grpo.beta=0 {BFLOAT16}", 1),
    ("7B", "batch_size=32 grpo.gradient_accumulation_steps=8", 4),
    ("7B", "batch_size=32 grpo.gradient_accumulation_steps=4", 8),
]
"""Runs of the preset `paper`: model, settings on top, processes."""


def _need(model: str, overrides: str = "", processes: int = 1) -> tuple[Shape, Memory]:
    """Return the shape and the memory of a run of the preset `paper`."""
    from transformers import Qwen2Config

    config = resolve(Countdown(), overrides=overrides.split(), flags={"model": model, "preset": "paper"})
    read = Qwen2Config(**QWEN[model], num_hidden_layers=28, max_position_embeddings=32768, dtype="bfloat16")
    shape = shape_of(read, lora=config.lora)
    plan = plan_of(config, shape, processes=processes, sharded=processes > 1)
    return shape, memory_of(shape, plan)


def needs() -> str:
    """Return a table of the preset's memory, term by term."""
    found = [_need(model) for model in QWEN]

    def row(name: str, formula: str, value: Callable[[Memory], float]) -> tuple[str, ...]:
        return name, formula, *(f"{value(memory) / 2**30:.1f}" for _, memory in found)

    def term(phase: str, key: str, formula: str) -> tuple[str, ...]:
        return row(key, formula, lambda memory: memory.terms(phase)[key])

    model = ("weights", "reference model", "optimizer states", "gradients")
    rest = "activations and the widest moment of a pass"
    rows: list[tuple[str, ...]] = [
        ("parameters", "counted", *(f"{shape.parameters:,}" for shape, _ in found)),
        term("training", "weights", "4 bytes each"),
        term("training", "reference model", "4 bytes each (beta > 0)"),
        term("training", "optimizer states", "2 x 4 bytes each (AdamW)"),
        term("training", "gradients", "4 bytes each"),
        row(rest, "8 rows x 1,068 tokens", lambda m: m.total("training") - sum(m.training[key] for key in model)),
        row("**while training**", "", lambda memory: memory.total("training")),
        term(
            "generating", "key-value cache", "2 x layers x heads x width x 4 bytes x 128 conversations x 1,068 tokens"
        ),
        term("generating", "prompts", "128 retries' prompts of 1,068 tokens at once"),
        term("generating", "16-bit copy of the weights", "2 bytes each, by autocast"),
        row("**while generating**", "weights, reference, states and the three above", lambda m: m.total("generating")),
        row("**while mining and evaluating**", "weights, cache, prompts in 16 bits", lambda m: m.total("evaluating")),
        ("fits, with a tenth left free", "", *(_card(memory) for _, memory in found)),
    ]
    return table(("GiB on the device", "formula", *QWEN), rows)


def ways_out() -> str:
    """Return a table of the preset's memory with other settings."""
    rows = []
    for model, overrides, processes in WAYS:
        _, memory = _need(model, overrides, processes)
        phases = (_phase(memory, phase) for phase in PHASES)
        rows.append((model, _flags(overrides, processes), *phases, _card(memory)))
    return table(("", "set on top of the preset", "training", "generating", "mining, evaluating", "fits"), rows)


def _phase(memory: Memory, phase: str) -> str:
    if not memory.terms(phase):
        return "vLLM's own"
    vllm = f" + {memory.vllm[phase]:.0%} of the card" if phase in memory.vllm else ""
    return f"{memory.total(phase) / 2**30:.1f}{vllm}"


def _flags(overrides: str, processes: int) -> str:
    """Return the settings on top of the preset as command-line arguments."""
    flags = [f"--processes {processes}"] * (processes > 1) + [f"--set {one}" for one in overrides.split()]
    return f"`{' '.join(flags)}`" if flags else "nothing"


def _card(memory: Memory) -> str:
    """Return the smallest of the CARDS that fits."""
    return next((f"{size} GB" for size in CARDS if memory.fits(size * 2**30)), "no single card")


BLOCKS: dict[str, Callable[[], str]] = {"needs": needs, "ways out": ways_out}
