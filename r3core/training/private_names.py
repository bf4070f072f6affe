"""Private names of other libraries that training relies on.

TRL is imported in `train.py` and in this package alone. Besides its public interface, these modules rely on the names
below; tests/test_trl_contract.py has a test for each of them.
"""

from __future__ import annotations

PRIVATE_NAMES: dict[str, tuple[str, ...]] = {
    "trl.trainer.grpo_trainer.GRPOTrainer": (
        "_generate",  # overridden: masks tokens that are not trained
        "_generate_single_turn",  # overridden: samples the first turn of the objective
        "_generate_and_score_completions",  # overridden: scores each segment of the objective, and joins them
        "_get_per_token_logps_and_entropies",  # overridden: counts sequences, and leaves out most of the padding
        "_tokenize_prompts",  # overridden: encodes the prompts of the objective's turns
        "_get_train_sampler",  # overridden: the order of failures in each epoch
        "_metrics",  # metrics of the current step, which TRL averages and logs
        "_last_loaded_step",  # the step whose weights vLLM has
    ),
    "trl.generation.vllm_generation.VLLMGeneration": ("_iter_named_params",),  # whole weights, under vLLM's names
    "transformers.Trainer": (
        "_load_from_checkpoint",  # loads weights without training, in one process
        "_prepare_for_training",  # ... in several, where weights are sharded first
    ),
    "transformers.PreTrainedModel": (
        "_keep_in_fp32_modules",  # weights that stay in 32 bits in a model of 16
        "_keep_in_fp32_modules_strict",
    ),
    "accelerate.PartialState": ("_shared_state",),  # the distributed type, shared by every instance
}
"""Private names, by the class that defines them.

Public but undocumented: `LLM` in `trl.generation.vllm_generation`, which is replaced while TRL starts vLLM, and
the path from `vllm.LLM` to its model runner; both are used in policy.py.
"""
