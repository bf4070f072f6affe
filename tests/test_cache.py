"""Every kind of cache of transformers, on tiny random models: a batch must generate what each prompt does alone.

An error in a recurrent layer raises nothing: it only changes the probabilities. So ids are compared with plain
`generate`, unpadded and one prompt at a time, and log-probabilities with one pass over the sequence.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny

from r3core import UsageError
from r3core.generation.cache import CachedRows, common_prefixes
from r3core.generation.cache_checks import apply_time_step_limit, check_cache, check_padding, continues_prompts
from r3core.generation.generator import Sampling
from r3core.generation.models import load_model
from r3core.generation.transformers import TransformersGenerator
from r3core.training.trimmed import trimmed_pass

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

pytestmark = pytest.mark.slow

TOKENIZER = tiny.tiny_tokenizer()
ENDS = {"bos_token_id": None, "eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id}
VOCABULARY = {"vocab_size": len(TOKENIZER), **ENDS}
BARE: dict[str, Any] = {**VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
PLAIN = {**BARE, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
PLAIN |= {"max_position_embeddings": 128}
SHORT = {**PLAIN, "head_dim": 8, "sliding_window": 8}
MIXED_WINDOWS = {**SHORT, "layer_types": ["sliding_attention", "full_attention"]}
HEADS = {**PLAIN, "num_key_value_heads": 4}
EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
ROUTED = {"num_experts_per_tok": 2, "n_routed_experts": 4, "moe_intermediate_size": 16}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
LATENT |= {"n_group": 1, "topk_group": 1}
DELTA = {**PLAIN, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_conv_kernel_dim": 4}
DELTA |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
MAMBA_2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
CONVOLUTION = {**PLAIN, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False}
SHARED = {**SHORT, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8}
SHARED |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "vocab_size_per_layer_input": len(TOKENIZER)}
SIGHT = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32, "patch_size": 4}
NEMOTRON = {**PLAIN, "head_dim": 8, "num_hidden_layers": 4, "ssm_state_size": 8, "mamba_num_heads": 4, "chunk_size": 8}
NEMOTRON |= {"layers_block_type": ["linear_attention", "mlp", "full_attention", "moe"], "n_groups": 1, **ROUTED}
NEMOTRON |= {"mamba_head_dim": 16, "moe_shared_expert_intermediate_size": 16}
CHUNKED = {**PLAIN, "head_dim": 8, "intermediate_size_mlp": 48, "attention_chunk_size": 8, "num_hidden_layers": 4}
CHUNKED |= {"num_local_experts": 2, "num_experts_per_tok": 1, "moe_layers": [0, 2], "no_rope_layers": [1, 1, 1, 0]}

INDEXED = {**HEADS, **LATENT, **ROUTED, "index_topk": 4, "index_head_dim": 8, "index_n_heads": 16}

FAMILIES: dict[str, dict[str, Any]] = {
    # attention to everything
    "llama": PLAIN,
    "qwen2": PLAIN,
    "qwen3": {**PLAIN, "head_dim": 8},
    "bloom": {**VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gpt2": {**VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "deepseek_v3": {**HEADS, **LATENT, **ROUTED, "first_k_dense_replace": 1, "n_shared_experts": 1},
    # ... in windows or chunks, or with caches that layers share
    "mistral": {**PLAIN, "sliding_window": 8},
    "gemma2": SHORT,
    "gemma3_text": MIXED_WINDOWS,
    "gemma3n_text": {**SHARED, "laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": None},
    "gemma4_text": {**SHARED, "global_head_dim": 8},
    "gpt_oss": {**MIXED_WINDOWS, **LOCAL_EXPERTS},
    "llama4_text": CHUNKED,
    # ... chosen by an index; with few heads, scores would tie at 0, and which token is chosen is left to the sort
    "deepseek_v32": INDEXED,
    "glm_moe_dsa": INDEXED,
    # linear attention or convolutions between layers of attention
    "qwen3_next": {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 16},
    "olmo_hybrid": {**DELTA, "num_key_value_heads": 4, "linear_num_key_heads": 4},
    "kimi_linear": {
        **HEADS, **LATENT, **LOCAL_EXPERTS, "q_lora_rank": None, "moe_intermediate_size": 16, "linear_head_dim": 8,
        "linear_num_heads": 4, "layer_types": ["linear_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse"],
    },
    "lfm2": CONVOLUTION,
    "lfm3": {**SHORT, "layer_types": ["conv", "sliding_attention"]},
    "bailing_hybrid": {
        **HEADS, **LATENT, **LOCAL_EXPERTS, "moe_intermediate_size": 16, "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse"],
    },
    "lfm2_moe": {**CONVOLUTION, **EXPERTS, "num_dense_layers": 1},
    # state spaces
    "jamba": {
        **PLAIN, "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8, "mamba_dt_rank": 4,
    },
    "bamba": {**PLAIN, **MAMBA_2, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        **PLAIN, **MAMBA_2, **LOCAL_EXPERTS, "layer_types": ["linear_attention", "full_attention"],
        "shared_intermediate_size": 16,
    },
    "nemotron_h": NEMOTRON,
    "zamba2": {
        **HEADS, "num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
        "mamba_d_state": 8, "n_mamba_heads": 4, "chunk_size": 8, "adapter_rank": 4,
    },
    "zamba": {
        **HEADS, "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "mamba_d_state": 8,
        "mamba_dt_rank": 4, "attention_hidden_size": 64, "n_mamba_heads": 2,
    },
    "falcon_h1": {**PLAIN, **MAMBA_2, "mamba_d_ssm": 64},
    # a convolution and attention in the same layer, in windows too
    "zaya": {
        **SHORT, **EXPERTS, "num_experts": 2, "num_experts_per_tok": 1, "router_hidden_size": 8,
        "layer_types": ["hybrid", "hybrid_sliding"],
    },
    # state spaces alone
    "mamba": {**BARE, "state_size": 8, "time_step_rank": 4},
    "falcon_mamba": {**BARE, "state_size": 8, "time_step_rank": 4},
    "mamba2": {**BARE, "state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    # the text part of models that also see
    "gemma3": {
        "text_config": MIXED_WINDOWS, "mm_tokens_per_image": 4, **ENDS,
        "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                          "image_size": 16, "patch_size": 4},
    },
    "qwen3_5": {"text_config": DELTA, "vision_config": SIGHT, **ENDS},
    "llama4": {"text_config": CHUNKED, "vision_config": {"num_hidden_layers": 1}, **ENDS},
}  # fmt: skip

ABSOLUTE = ["gpt2"]
"""Families whose learned positions TRL's trainer gets wrong: it passes none."""

REFUSED: dict[str, dict[str, Any]] = {
    "recurrent_gemma": {  # its state is in its modules, where no row can be copied or dropped; ignores the mask
        **{key: value for key, value in PLAIN.items() if key != "max_position_embeddings"},
        "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8,
    },
    "rwkv": {**BARE, "context_length": 128},  # ignores the mask, and its state is no cache
    "xlstm": {  # ignores the mask, and has a cache class of its own
        **BARE, "embedding_dim": 32, "num_blocks": 2, "num_heads": 2, "chunk_size": 8, "qk_dim_factor": 1.0,
        "autocast_kernel_dtype": "float32",
    },
    "minimax": {  # a cache class of its own, which `reorder_cache` does not reach
        **PLAIN, **LOCAL_EXPERTS, "layer_types": ["linear_attention", "full_attention"], "block_size": 8, "head_dim": 8,
    },
    "deepseek_v4": {  # compresses blocks of tokens, padding among them
        **BARE, "num_attention_heads": 4, "head_dim": 8, "q_lora_rank": 8, "o_groups": 2, "o_lora_rank": 8,
        "index_n_heads": 2, "index_head_dim": 8, "index_topk": 4, **ROUTED, "sliding_window": 8, "hc_mult": 2,
        "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"], "mlp_layer_types": ["moe"] * 2,
        "max_position_embeddings": 128, "partial_rotary_factor": 0.5,
    },
    "minimax_m3_vl_text": {  # chooses blocks of tokens, padding among them, which are longer than the trial
        **PLAIN, **LOCAL_EXPERTS, "head_dim": 8, "rotary_dim": 4, "dense_intermediate_size": 16,
        "shared_intermediate_size": 16, "intermediate_size": 16, "index_n_heads": 2, "index_head_dim": 8,
        "index_block_size": 128, "index_topk_blocks": 2, "layer_types": ["full_attention", "minimax_m3_sparse"],
    },
}  # fmt: skip

NOT_CAUSAL = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
"""Multimodal families that `AutoModelForCausalLM` of transformers 5.23 does not load."""

LONG, GREEDY = 12, Sampling(temperature=0, max_tokens=12)


def model_of(family: str, *, spread: float = 0.25) -> PreTrainedModel:
    """Return a tiny model with random weights, biases too."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **(FAMILIES | REFUSED)[family])
    random = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() >= 2 and "A_log" not in name:
                weights.normal_(0, spread, generator=random)
            else:
                weights.add_(0.3 * torch.randn(weights.shape, generator=random))
    apply_time_step_limit(model)
    return model


def let_rows_end(model: PreTrainedModel) -> None:
    """Choose two tokens that end turns, so that rows end at as many different steps as they can."""
    generator = TransformersGenerator(model, TOKENIZER)
    endless = [one.ids for one in generator.continue_ids(prompts(), GREEDY)]

    def spread(ends: tuple[int, ...]) -> tuple[bool, int]:
        lengths = [min(ids.index(end) if end in ids else LONG for end in ends) for ids in endless]
        return sum(length < max(lengths) for length in lengths) > 3, len(set(lengths))

    written = sorted({token for ids in endless for token in ids})
    generation: Any = model.generation_config
    generation.eos_token_id = [*max(combinations(written, 2), key=spread), TOKENIZER.eos_token_id]
    generation.pad_token_id = TOKENIZER.pad_token_id


def prompts() -> list[list[int]]:
    """Return prompts of unequal lengths, some longer than windows, chunks and blocks, and three of them twice."""
    import torch

    random = torch.Generator().manual_seed(7)
    distinct: list[list[int]] = [
        torch.randint(1, 250, (n,), generator=random).tolist() for n in (3, 21, 1, 17, 9, 26, 2)
    ]
    return distinct + distinct[:3]


def passed(model: PreTrainedModel, ids: list[int]) -> Any:
    """Return the log-probabilities after each token, (tokens, vocabulary), by one pass without a cache."""
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)


def continued(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """Return what transformers generates, greedily, of one prompt alone."""
    import torch

    ids, mask = torch.tensor([prompt]), torch.ones(1, len(prompt), dtype=torch.long)
    generate: Any = model.generate
    written: list[int] = generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=LONG)[0].tolist()
    return written[len(prompt) :]


def recording(steps: list[Any]) -> Any:
    """Return a greedy sampler that records the log-probabilities it samples from."""

    def sample(logits: Any, sampling: Sampling, random: Any) -> Any:
        steps.append(logits.log_softmax(-1))
        return logits.argmax(-1)

    return sample


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_generates_what_each_prompt_does_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(family)
    let_rows_end(model)
    shapes: list[int] = []
    hook: Any = lambda module, positional, named: shapes.append(len(named["input_ids"]))  # noqa: E731
    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    steps: list[Any] = []  # the log-probabilities of each step, (rows, vocabulary); some rows have ended already
    monkeypatch.setattr("r3core.generation.transformers._sample", recording(steps))
    ours = TransformersGenerator(model, TOKENIZER).continue_ids(prompts(), GREEDY)
    handle.remove()
    assert shapes[0] == 7  # each prompt once
    assert shapes[-1] < 10  # then a row for each, until enough have ended
    assert len({len(one.ids) for one in ours}) > 1
    assert [one.ids for one in ours] == [continued(model, prompt) for prompt in prompts()]
    for prompt, one in zip(prompts(), ours, strict=True):
        whole = passed(model, prompt + one.ids)[len(prompt) - 1 : -1]
        for step, alone, token in zip(steps, whole, one.ids, strict=False):
            of_token = [float(row[token]) for row in step if int(row.argmax()) == token]
            assert min(abs(logprob - float(alone[token])) for logprob in of_token) < 1e-4


FULL_ATTENTION = ["llama", "qwen2", "qwen3", "bloom", "gpt2", "deepseek_v3"]
"""Families that only attend, to all tokens before."""


@pytest.mark.parametrize("family", FAMILIES)
def test_what_prompts_begin_with_is_read_once_where_attention_is_all(family: str) -> None:
    import torch

    model = model_of(family)
    random = torch.Generator().manual_seed(2)
    common, other = (torch.randint(1, 250, (n,), generator=random).tolist() for n in (20, 9))
    rows = [[*common, 3, 5, 7], [*other, 4], [*common, 9], common + list(range(30, 40)), [*other, 8, 8], [*other, 4, 6]]
    cached = CachedRows(model, rows, pad=0)
    assert cached.ids.shape[1] == (10 if family in FULL_ATTENTION else 30)
    for _ in range(3):
        with torch.no_grad():
            logits = cached.next_logits().log_softmax(-1)
        for row, found in zip(rows, logits, strict=True):
            torch.testing.assert_close(found, passed(model, row)[-1], rtol=1e-4, atol=1e-4)
        tokens = logits.argmax(-1)
        rows = [[*row, token] for row, token in zip(rows, tokens.tolist(), strict=True)]
        cached.append(tokens)


def test_a_common_beginning_is_at_least_half_of_a_prompt_and_never_all_of_it() -> None:
    assert common_prefixes([[1, 2], [1, 2]]) == ([[1]], [0, 0])
    assert common_prefixes([[1, 2, 3, 4, 5], [1, 2, 9, 9, 9]]) == ([[1, 2, 3, 4], [1, 2, 9, 9]], [0, 1])
    assert common_prefixes([[1, 2, 3, 4, 5], [1, 2, 3, 9, 9], [1]]) == ([[], [1, 2, 3]], [1, 1, 0])
    assert common_prefixes([]) == ([], [])


@pytest.mark.parametrize("family", FAMILIES)
def test_these_models_can_be_generated_from_and_trained(family: str) -> None:
    model = model_of(family)
    check_cache(model, TOKENIZER, name="tiny")
    if family not in ABSOLUTE:
        check_padding(model, TOKENIZER, name="tiny")


def shared_and_not(model: PreTrainedModel, *, equal: bool) -> list[tuple[Any, list[Any]]]:
    """Return log-probabilities and gradients of 8 completions, with prompts shared and not.

    There are 2 different prompts; if they are not `equal`, 8 that begin in two ways.
    """
    import torch

    random = torch.Generator().manual_seed(0)
    ids, mask = torch.randint(1, 250, (8, 38), generator=random), torch.zeros(8, 38, dtype=torch.long)
    for row, completion in enumerate((3, 11, 9, 1, 2, 12, 4, 0)):
        start, own = (18, 0)[row // 4], 0 if equal else row % 4
        ids[row, : 26 - own] = ids[row // 4, own:26]  # its last tokens are its own
        mask[row, start - min(own, start) : 26 + completion] = 1
    found = []
    for share in (True, False):
        model.zero_grad()
        logps, _, _ = trimmed_pass(of_next_tokens, model, ids, mask, 12, batch_size=None, pieces=3, share_prompts=share)
        logps = logps * mask[:, 26:]
        (logps.exp() * mask[:, 26:] * torch.linspace(-1, 1, 8).unsqueeze(1)).sum().backward()
        found.append((logps.detach(), [one.grad for one in model.parameters() if one.grad is not None]))
    return found


def of_next_tokens(model: Any, ids: Any, mask: Any, completion: int, **_: Any) -> Any:
    """Return log-probabilities of the last tokens of each row, as TRL does, with the call that it makes."""
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-completion] = -100
    output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    return output.log_probs[:, -completion:], None, None


CONTINUED = ["llama", "qwen2", "qwen3", "bloom", "deepseek_v3", "mistral", "gemma2", "gemma3_text", "gemma3n_text"]
CONTINUED += ["gemma4_text", "gpt_oss", "llama4_text", "gemma3", "llama4"]
"""Families whose prompts are computed once in training."""


@pytest.mark.slow
@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("family", [one for one in CONTINUED if "llama4" not in one])  # TRL 1.16 does not train Llama 4
def test_completions_that_continue_a_shared_prompt_have_the_same_gradients(family: str, equal: bool) -> None:
    import torch
    from trl.trainer.utils import add_fused_lm_head

    model = model_of(family)
    add_fused_lm_head(model)
    (ours, of_ours), (theirs, of_theirs) = shared_and_not(model.train(), equal=equal)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert of_theirs
    torch.testing.assert_close(of_ours, of_theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES | REFUSED)
def test_prompts_are_shared_where_a_cache_continues_them_in_training(family: str) -> None:
    model = model_of(family)
    assert continues_prompts(model, TOKENIZER) == (family in CONTINUED)
    assert not model.training


def test_dropout_and_checkpointing_of_activations_share_no_prompts() -> None:
    from torch import nn

    model = model_of("llama")
    model.gradient_checkpointing_enable()
    assert not continues_prompts(model, TOKENIZER)
    model.gradient_checkpointing_disable()
    assert continues_prompts(model, TOKENIZER)
    model.add_module("dropout", nn.Dropout(0.1))  # as an adapter has it
    assert not continues_prompts(model, TOKENIZER)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_token_changes_the_output_of_these_models(family: str) -> None:
    """Otherwise none of the tests above could fail."""
    model = model_of(family)
    assert (passed(model, [5, 9, 13])[-1] - passed(model, [200, 9, 13])[-1]).abs().max() > 0.01


def test_every_kind_of_cache_layer_is_tested() -> None:
    from transformers import AutoConfig, DynamicCache
    from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING

    def kinds(families: dict[str, Any]) -> set[type]:
        configs = [AutoConfig.for_model(family, **options) for family, options in families.items()]
        return {type(layer) for config in configs for layer in DynamicCache(config=config).layers}

    for family in FAMILIES | REFUSED:
        model_of(family)  # some modules add layers of their own
    known: set[Any] = set(DYNAMIC_LAYER_TYPE_MAPPING.values())
    assert {kind for kind in known if kind.__module__ == DynamicCache.__module__} <= kinds(FAMILIES)
    assert known <= kinds(FAMILIES | REFUSED)


@pytest.mark.parametrize("family", REFUSED)
def test_models_that_the_engine_would_get_wrong_are_not_loaded(family: str, tmp_path: Path) -> None:
    model_of(family).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=f"cannot be generated from .*model type `{family}`"):
        load_model(tmp_path)


@pytest.mark.parametrize("family", ["llama", "qwen3_next", "nemotron_h", "mamba", "gemma3"])
def test_models_of_several_families_are_loaded_from_a_folder(family: str, tmp_path: Path) -> None:
    made = model_of(family)
    made.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    loaded, tokenizer = load_model(tmp_path)
    ids = [one.ids for one in TransformersGenerator(loaded, tokenizer).continue_ids(prompts(), GREEDY)]
    assert ids == [one.ids for one in TransformersGenerator(made, TOKENIZER).continue_ids(prompts(), GREEDY)]


@pytest.mark.parametrize("family", NOT_CAUSAL)
def test_a_multimodal_model_without_a_causal_class_is_an_error(family: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model(family).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="cannot be loaded: Unrecognized configuration class"):
        load_model(tmp_path)


@pytest.mark.parametrize("family", ["nemotron_h", "zamba2"])
def test_time_steps_are_not_raised_in_one_pass_alone(family: str) -> None:
    model = model_of(family)
    mixers: list[Any] = [module for module in model.modules() if hasattr(module, "time_step_limit")]
    assert {mixer.time_step_limit for mixer in mixers} == {(0.0, float("inf"))}
    text = prompts()[5]
    ours = passed(model, text)
    for mixer in mixers:
        mixer.time_step_limit = (0.5, float("inf"))  # what transformers does, by more
    assert (passed(model, text) - ours).abs().max() > 0.01
    with pytest.raises(UsageError, match="other probabilities than in one pass"):
        check_cache(model, TOKENIZER, name="tiny")


def test_damaged_weights_are_not_reported_as_an_unsupported_architecture() -> None:
    model = model_of("llama")
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(
        UsageError, match="`tiny` returns NaN for ordinary text: its weights are damaged, or its training"
    ):
        check_cache(model, TOKENIZER, name="tiny")


@pytest.mark.parametrize("family", [*ABSOLUTE, "rwkv", "xlstm"])
def test_models_that_padding_changes_cannot_be_trained(family: str) -> None:
    model = model_of(family)
    model.train()
    with pytest.raises(UsageError, match=f"`tiny` cannot be trained: .*model type `{family}`"):
        check_padding(model, TOKENIZER, name="tiny")
    assert model.training


@pytest.mark.parametrize("family", ["llama", "qwen3_next", "lfm2", "nemotron_h", "mamba2"])
def test_the_trainers_log_probabilities_are_those_of_a_lone_sequence(family: str, tmp_path: Path) -> None:
    import torch
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    options: dict[str, Any] = {"use_cpu": True, "bf16": False, "dataloader_pin_memory": False, "report_to": "none"}
    trainer = GRPOTrainer(
        model=model_of(family),
        processing_class=TOKENIZER,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(str(tmp_path), per_device_train_batch_size=8, temperature=1.0, disable_tqdm=True, **options),
        train_dataset=Dataset.from_dict({"prompt": ["a"]}),
    )
    model, pad = trainer.model, TOKENIZER.pad_token_id
    let_rows_end(model)
    ours = TransformersGenerator(model, TOKENIZER).continue_ids(prompts(), GREEDY)
    widest, longest = 26, max(len(one.ids) for one in ours)
    rows = zip(prompts(), [one.ids for one in ours], strict=True)
    sides = [(widest - len(prompt), prompt + ids, longest - len(ids)) for prompt, ids in rows]
    batch = torch.tensor([[pad] * left + ids + [pad] * right for left, ids, right in sides])
    mask = torch.tensor([[0] * left + [1] * len(ids) + [0] * right for left, ids, right in sides])
    with torch.no_grad():
        theirs = trainer._get_per_token_logps_and_entropies(model, batch, mask, longest)[0]
    for prompt, one, row in zip(prompts(), ours, theirs.tolist(), strict=True):
        alone = passed(model, prompt + one.ids)[len(prompt) - 1 : -1]
        expected = [float(step[token]) for step, token in zip(alone, one.ids, strict=True)]
        assert row[: len(one.ids)] == pytest.approx(expected, abs=1e-4)


def test_the_context_of_a_multimodal_model_is_that_of_its_text_part(tmp_path: Path) -> None:
    from r3core.generation.generator import TooLong

    for family, context in {"gemma3": 128, "qwen3_5": 128, "llama": 128, "gpt2": 128, "mamba": None}.items():
        assert TransformersGenerator(model_of(family), TOKENIZER).context == context
    composite: PreTrainedConfig = model_of("gemma3").config
    assert getattr(composite, "max_position_embeddings", None) is None
    generator = TransformersGenerator(model_of("gemma3"), TOKENIZER)
    with pytest.raises(TooLong, match="exceed the model's context of 128"):
        generator.continue_ids([[5] * 30], Sampling(max_tokens=100))
