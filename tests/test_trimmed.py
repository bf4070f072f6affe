"""The pass without padding: the same log-probabilities, entropies, losses and gradients as TRL's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import password
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from trl.trainer.grpo_trainer import GRPOTrainer

from r3core.runs import Run
from r3core.train import grpo_config
from r3core.training import trimmed
from r3core.training.trainer import ReflectionTrainer
from r3core.training.trimmed import SharedPrompts, is_compiled, pieces_for, windows_of

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "granite": {"logits_scaling": 2.0},
    "olmo2": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
}


def model_of(family: str) -> PreTrainedModel:
    """Return a tiny random model of a family, for the tokens of the doors."""
    tokenizer = password.tokenizer()
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(family, bos_token_id=None, **ids, **SHAPE, **FAMILIES.get(family, {}))
        )
    return model


def trainer_of(folder: Path, model: PreTrainedModel, lora: dict[str, Any] | None = None, **options: Any) -> Any:
    """Return a trainer of the model for batches of 8 rows."""
    config = password.config(
        steps=1, lora=lora, per_device_train_batch_size=8, num_generations=4, **{"temperature": 0.8} | options
    )
    protocol = password.protocol(config)
    with Run.open(folder, {}) as run:
        return ReflectionTrainer(
            run,
            protocol,
            password.failures(),
            model=model,
            tokenizer=password.tokenizer(),
            args=grpo_config(protocol, run.path / "checkpoints", on_cpu=True),
        )


def batch_of(lengths: list[tuple[int, int]], *, vocabulary: int = 60, seed: int = 0) -> tuple[Any, Any, int]:
    """Return token ids, their mask and the width of the completions, for rows of (prompt, completion) lengths."""
    left, right = (max(column) for column in zip(*lengths, strict=True))
    mask = torch.zeros(len(lengths), left + right, dtype=torch.long)
    for row, (prompt, completion) in enumerate(lengths):
        mask[row, left - prompt : left + completion] = 1
    ids = torch.randint(vocabulary, mask.shape, generator=torch.Generator().manual_seed(seed))
    return ids * mask, mask, right


LORA = {"r": 4, "init_lora_weights": False}
LENGTHS = [(5, 3), (5, 11), (9, 1), (9, 2), (3, 7), (12, 4), (3, 12), (4, 0)]


def both(trainer: Any, batch: tuple[Any, Any, int], **options: Any) -> tuple[Any, Any]:
    """Return what TRL's own pass and the trimmed one return for a batch."""
    method: Callable[..., Any] = GRPOTrainer._get_per_token_logps_and_entropies
    return method(trainer, trainer.model, *batch, **options), trainer._get_per_token_logps_and_entropies(
        trainer.model, *batch, **options
    )


@pytest.fixture
def three_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trimmed, "pieces_for", lambda *_, **__: 3)


@pytest.mark.slow
@pytest.mark.usefixtures("three_pieces")
@pytest.mark.parametrize(
    ("family", "lora", "batch_size"),
    [
        ("llama", None, None),
        ("llama", LORA, 3),
        ("qwen3", None, 2),
        ("gemma2", None, None),
        ("gemma2", LORA, None),
        ("granite", None, 3),
        ("olmo2", None, None),
        ("qwen3_moe", None, None),
    ],
)
def test_log_probabilities_and_gradients_are_trls(
    family: str, lora: dict[str, Any] | None, batch_size: int | None, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, model_of(family), lora)
    batch = batch_of(LENGTHS)
    theirs, ours = both(trainer, batch, batch_size=batch_size, compute_entropy=True)
    mask = batch[1][:, -batch[2] :]
    advantages = torch.linspace(-1, 1, 8).unsqueeze(1)
    gradients = []
    for logps, entropies, auxiliary in (theirs, ours):
        assert auxiliary is None
        assert logps.shape == entropies.shape == mask.shape
        trainer.model.zero_grad()
        (logps.exp() * advantages * mask).sum().backward()
        gradients.append([p.grad.clone() for p in trainer.model.parameters() if p.grad is not None])
    for place in (0, 1):
        torch.testing.assert_close(ours[place] * mask, theirs[place] * mask, rtol=1e-5, atol=1e-5)
    assert gradients[0]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_prompt_of_a_group_goes_through_the_model_once(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, model_of("llama"), gradient_checkpointing=False)
    ids, mask, right = batch_of([(5, 3), (5, 11), (5, 9), (5, 1), (9, 2), (9, 7), (9, 4), (9, 12)])
    for row in range(8):
        ids[row, :-right] = ids[row - row % 4, :-right]
    positions: list[int] = []
    hook: Any = lambda module, positional, named: positions.append(named["input_ids"].numel())  # noqa: E731
    handle = trainer.model.register_forward_pre_hook(hook, with_kwargs=True)
    theirs, ours = both(trainer, (ids, mask, right), compute_entropy=True)
    handle.remove()
    assert positions[0] == 8 * (9 + 12), "TRL's own pass"
    assert positions[1:] == [2 * (9 - 1), 8 * (1 + 12)]
    kept = mask[:, -right:]
    for place in (0, 1):
        torch.testing.assert_close(ours[place] * kept, theirs[place] * kept, rtol=1e-5, atol=1e-5)


def test_what_prompts_begin_with_goes_through_the_model_once(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, model_of("llama"), gradient_checkpointing=False)
    lengths = [(12, 3), (13, 11), (14, 9), (12, 1), (9, 2), (10, 7), (11, 4), (12, 12)]
    ids, mask, right = batch_of(lengths)
    for row, (length, _) in enumerate(lengths):
        start, beginning = 14 - length, (10, 8)[row // 4]
        ids[row, start : start + beginning] = torch.arange(1, beginning + 1) + 20 * (row // 4)
    widths: list[tuple[int, ...]] = []
    hook: Any = lambda module, positional, named: widths.append(tuple(named["input_ids"].shape))  # noqa: E731
    handle = trainer.model.register_forward_pre_hook(hook, with_kwargs=True)
    theirs, ours = both(trainer, (ids, mask, right), compute_entropy=True)
    handle.remove()
    assert widths == [(8, 14 + 12), (2, 10), (8, 4 + 12)], "TRL's own pass, the beginnings, and what is left"
    kept = mask[:, -right:]
    for place in (0, 1):
        torch.testing.assert_close(ours[place] * kept, theirs[place] * kept, rtol=1e-5, atol=1e-5)


def test_checkpointing_of_activations_computes_every_prompt(tmp_path: Path) -> None:
    assert not trainer_of(tmp_path, model_of("llama"), gradient_checkpointing=True).shares_prompts


def test_few_common_prompts_are_not_shared() -> None:
    model = model_of("llama")
    ids, mask = torch.tensor([[0, 3, 4], [0, 3, 4], [2, 3, 4], [3, 3, 4]]), torch.ones(4, 3, dtype=torch.long)
    assert SharedPrompts.of(model, ids, mask) is None
    ids[3] = ids[2]
    shared = SharedPrompts.of(model, ids, mask)
    assert shared is not None
    assert torch.cat([shared.ids[shared.beginning], shared.left], dim=1).tolist() == ids.tolist()
    assert SharedPrompts.of(model, ids[:, :1], mask[:, :1]) is None, "a prompt of one token leaves nothing to share"
    mask[1, 0] = 0  # padding whose token is that of a prompt
    assert SharedPrompts.of(model, ids, mask) is None


def test_what_leaves_fewer_tokens_is_shared() -> None:
    model, mask = model_of("llama"), torch.ones(8, 10, dtype=torch.long)
    ids = torch.arange(10).repeat(8, 1)
    for row in range(8):
        ids[row, 8:] += row // 2  # four prompts of two rows each, equal but for two tokens
    shared = SharedPrompts.of(model, ids, mask)
    assert shared is not None
    assert (shared.ids.shape, shared.left.shape) == ((1, 8), (8, 2)), "one beginning, not four prompts"
    ids[4:, 5:] += 10
    shared = SharedPrompts.of(model, ids.repeat_interleave(8, dim=0), mask.repeat_interleave(8, dim=0))
    assert shared is not None
    assert (shared.ids.shape, shared.left.shape) == ((4, 9), (64, 1)), (
        "four prompts: what is left of two beginnings would be longer"
    )


def test_beginnings_are_not_shared_with_sliding_windows() -> None:
    ids, mask = torch.tensor([[7, 5, 3, token] for token in (4, 6, 8, 9)]), torch.ones(4, 4, dtype=torch.long)
    shared = SharedPrompts.of(model_of("llama"), ids, mask)
    assert shared is not None
    assert shared.ids.tolist() == [[7, 5, 3]]
    assert SharedPrompts.of(model_of("gemma2"), ids, mask) is None


class Counting(torch.nn.Module):
    """The shapes of the batches that a forward pass receives."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int]] = []

    def forward(self, model: Any, ids: Any, mask: Any, kept: int, batch_size: int | None = None, **_: Any) -> Any:
        self.shapes.append(tuple(ids.shape))
        self.batch_size = batch_size
        assert mask.shape == ids.shape
        return ids[:, -kept:].float(), None, None


@pytest.mark.parametrize(
    ("pieces", "batch_size", "shapes"),
    [
        (1, None, [(8, 24)]),
        (2, None, [(4, 16), (4, 24)]),
        (4, None, [(2, 8), (2, 16), (2, 21), (2, 23)]),
        (1, 2, [(2, 8), (2, 16), (2, 21), (2, 23)]),
        (2, 3, [(3, 12), (3, 21), (2, 23)]),
    ],
)
def test_each_piece_is_as_wide_as_its_longest_prompt_and_completion(
    pieces: int, batch_size: int | None, shapes: list[tuple[int, int]]
) -> None:
    forward = Counting()
    ids, mask, right = batch_of(LENGTHS)
    ids = torch.arange(ids.numel()).view(ids.shape)
    logps, _, _ = trimmed.trimmed_pass(
        forward, torch.nn.Linear(1, 1), ids, mask, right, batch_size=batch_size, pieces=pieces
    )
    kept = mask[:, -right:].bool()
    assert torch.equal(logps[kept], ids[:, -right:].float()[kept]), "every result is in its own place"
    assert forward.shapes == shapes


def test_a_mask_with_gaps_loses_no_token() -> None:
    mask = torch.tensor([[0, 1, 1, 1, 0, 0, 1, 0], [1, 1, 1, 0, 0, 0, 0, 0]])
    order, [(rows, first, end)] = windows_of(mask, 5, 1)
    assert sorted(order.tolist()) == sorted(rows.tolist()) == [0, 1]
    assert (first, end) == (0, 7)


def test_rows_without_a_completion_keep_one_column() -> None:
    mask = torch.tensor([[0, 1, 0, 0], [0, 1, 0, 0]])
    _, [(_, first, end)] = windows_of(mask, 2, 1)
    assert (first, end) == (1, 3)


def test_images_and_load_balancing_losses_go_through_as_they_are() -> None:
    batch = batch_of(LENGTHS)
    for options in ({"pixel_values": torch.ones(1)}, {"compute_aux_loss": True}):
        forward = Counting()
        model = torch.nn.Linear(1, 1)
        trimmed.trimmed_pass(forward, model, *batch, batch_size=4, pieces=3, image_sizes=None, **options)
        assert forward.shapes == [tuple(batch[0].shape)]
        assert forward.batch_size == 4


def test_compiled_models_are_not_trimmed() -> None:
    assert not is_compiled(password.beginner(steps=0))
    compiled = torch.compile(password.beginner(steps=0), backend="eager")
    forward = Counting()
    batch = batch_of(LENGTHS)
    trimmed.trimmed_pass(forward, compiled, *batch, batch_size=4, pieces=3)
    assert forward.shapes == [tuple(batch[0].shape)]


def test_larger_batches_have_more_pieces_and_small_ones_stay_whole() -> None:
    assert [pieces_for(rows, 80, device="cpu") for rows in (4, 16, 32, 128, 512)] == [1, 2, 4, 8, 8]
    assert pieces_for(2, 100_000, device="cpu") == 2
    assert [pieces_for(rows, 1024, device="cuda") for rows in (4, 16, 64)] == [1, 2, 8]


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["dapo", "dr_grpo", "grpo", "cispo"])
def test_the_loss_is_that_of_the_untrimmed_rows(
    loss_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_of("llama").save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    trainer = trainer_of(tmp_path / "run", model, beta=0.1, loss_type=loss_type)
    trainer.current_gradient_accumulation_steps = 1
    ids, mask, right = batch_of(LENGTHS)
    inputs = {"prompt_ids": ids[:, :-right], "prompt_mask": mask[:, :-right], "advantages": torch.linspace(-1, 2, 8)}
    inputs |= {"completion_ids": ids[:, -right:], "completion_mask": mask[:, -right:]}
    inputs |= {"num_items_in_batch": mask[:, -right:].sum(), "ref_per_token_logps": torch.full((8, right), -3.0)}
    monkeypatch.setattr(trimmed, "pieces_for", lambda *_, **__: 3)
    ours = trainer._compute_loss(trainer.model, inputs)
    monkeypatch.setattr(trimmed, "is_compiled", lambda _: True)
    theirs = trainer._compute_loss(trainer.model, inputs)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
