"""The GRPO trainer: TRL's, with reflections as completions and the verdict of the retry as the reward.

Prompt = [task, failed attempt, request to reflect]; completion = the reflection; a group = G reflections on one
failure. The retry is generated inside the reward function, with the current policy, and its verdict is the reward. So
the reflection's tokens are the only ones in the completion, and the only ones that are trained.

Notation for shapes: P failures with G reflections each are generated at a time; B = P * G / processes rows are those of
this process. Rows of one group are adjacent, and a group may span processes.

TRL is imported in `train.py` and in this package alone. Besides its public interface, these modules rely on the private
names in PRIVATE_NAMES; tests/test_trl_contract.py has a test for each of them.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather_object
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from r3core.activity import ENGINE, PROCESS, STEP, waiting_for
from r3core.distributed import rank, world_size
from r3core.episode import Episode, Reflection
from r3core.failures import Failure
from r3core.generation.cache import apply_time_step_limit
from r3core.generation.chat import completion, encode
from r3core.generation.generator import Continued, Sampling
from r3core.generation.probe import facts
from r3core.generation.template import original, using
from r3core.protocol import Protocol, no_leak, seed_of, with_leak
from r3core.reward import batch_metrics, is_broken, reward_of, without_broken_groups
from r3core.runs import Run
from r3core.task import Message
from r3core.training.checkpoints import ONE_PROCESS
from r3core.training.lora import lora_config
from r3core.training.policy import Policy, attributes_set, context_in_training, vllm_started_for
from r3core.training.precision import has_master_weights, rounding_warning
from r3core.training.prompt_dataset import failures_that_fit, prompt_dataset
from r3core.training.signal_mask import with_signal, without_equal_groups
from r3core.training.trimmed import Outputs, trimmed_pass
from r3core.truncation import TruncationCounter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PRIVATE_NAMES: dict[str, tuple[str, ...]] = {
    "trl.trainer.grpo_trainer.GRPOTrainer": (
        "_generate",  # overridden: splits the reflections, and masks tokens that are not trained
        "_generate_single_turn",  # overridden: samples the reflections
        "_generate_and_score_completions",  # overridden: records the failures of the batch
        "_tokenize_prompts",  # overridden: encodes the requests to reflect
        "_get_train_sampler",  # overridden: the order of failures in each epoch
        "_get_per_token_logps_and_entropies",  # overridden: passes the rows without most of their padding
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
"""Private names of other libraries that training relies on, by the class that defines them.

Public but undocumented: `LLM` in `trl.generation.vllm_generation`, which is replaced while TRL starts vLLM, and
the path from `vllm.LLM` to its model runner; both are used in policy.py.
"""
_ONLY_IN_TRL = ("min_p", "generation_kwargs", "use_transformers_continuous_batching")
"""Sampling options that r3's own generators do not have; so has `repetition_penalty`, whose neutral value is 1."""


class ReflectionTrainer(GRPOTrainer):
    """TRL's trainer, whose completions are reflections and whose only reward is the verdict of the retry.

    `saved_dtype` is the dtype that the model was published in, and that `model/` is written in; training may use a
    wider one. By default it is the dtype of `model`.
    """

    args: GRPOConfig
    processing_class: PreTrainedTokenizerBase

    def __init__(
        self,
        run: Run,
        protocol: Protocol,
        failures: Sequence[Failure],
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        args: GRPOConfig,
        saved_dtype: torch.dtype | None = None,
    ) -> None:
        self.run = run
        self.protocol = protocol
        context = context_in_training(model, args)
        self.failures = failures_that_fit(protocol, failures, tokenizer, context=context, args=args)
        self.saved_dtype = saved_dtype or model.dtype
        self.generation_seconds = 0.0
        self.generation_index = 0
        """Number of generations so far in this step; part of the seed of each."""
        self.recorded: list[dict[str, Any]] = []
        """The episodes of the last generation, as `train-episodes` has them."""
        self.truncation = TruncationCounter(protocol.config)
        at_a_time = (args.generation_batch_size or 1) // (args.num_generations or 1)  # P
        with vllm_started_for(args, protocol.config, model):
            super().__init__(
                model=model,
                processing_class=tokenizer,
                reward_funcs=self.reward_retries,
                args=args,
                train_dataset=prompt_dataset(protocol, self.failures, at_a_time),
                peft_config=None if protocol.config.lora is None else lora_config(protocol.config.lora),
            )
        if self.ref_model is not None:  # loaded by TRL
            apply_time_step_limit(self.ref_model)
        self.policy = Policy(self, protocol.config.batch_size)
        stochastic = "stochastic_round" in (
            args.optim_args or ""
        )  # moves 16-bit weights by the right amount on average
        if rank() == 0 and not stochastic and not has_master_weights(protocol.config):
            print(rounding_warning(model, args.learning_rate), end="", file=sys.stderr)

    def create_accelerator_and_postprocess(self) -> None:
        """Set up FSDP on CPUs too, where accelerate 1.15 ignores it and trains unsharded copies without a warning."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if state.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
            state.fsdp_plugin = FullyShardedDataParallelPlugin()
            if state.mixed_precision != "no":
                state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
            # also in the state that every PartialState shares: barriers and gathers look there
            state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.is_fsdp_enabled = True

    def save_model(self, *arguments: Any, **options: Any) -> None:
        """Save as transformers does, in checkpoints too, but with the model's own chat template."""
        with using(self.processing_class, original(self.processing_class)):
            super().save_model(*arguments, **options)

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """Train as TRL does; a stall inside is reported as the step's, unless a part of it is known to wait."""
        others = f"in {world_size()} processes" if world_size() > 1 else ""
        with waiting_for(STEP, others):
            loss: torch.Tensor = super().training_step(*arguments, **options)  # type: ignore[no-untyped-call]
        return loss

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        trl: Any = super()._get_train_sampler(dataset)
        return EpochSampler(
            trl.data_source, trl.mini_repeat_count, trl.batch_size, trl.repeat_count, trl.shuffle, trl.seed
        )

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: Any,
    ) -> Outputs:
        """Compute them without most of the padding.

        Several processes make as many forward passes as TRL: sharded weights are gathered in each of them.
        """
        alone = self.accelerator.distributed_type == DistributedType.NO
        return trimmed_pass(
            super()._get_per_token_logps_and_entropies,
            model,
            input_ids,
            attention_mask,
            logits_to_keep,
            batch_size=batch_size,
            pieces=None if alone else 1,
            **options,
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Record the failures of this batch for `_tokenize_prompts`, to which TRL passes messages alone."""
        self.batch = [row["failure"] for row in inputs]
        scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return without_equal_groups(scored, self.signal) if self.protocol.config.train.drop_equal_groups else scored

    def _tokenize_prompts(self, prompts: list[list[Message]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Return the token ids of B requests to reflect, encoded as in mining and evaluation; no images, no fields.

        The requests are built from the failures: `prompts` are TRL's copies of their messages, without the tools.
        """
        requests = [self.protocol.reflection_request(self.failures[index].episode()) for index in self.batch]
        return [encode(self.processing_class, request) for request in requests], None, {}

    def _generate(self, prompts: list[Any]) -> Any:
        """Sample B reflections, split them into thinking and answer, and mask the tokens that are not trained.

        The mask is TRL's `tool_mask`: for each reflection 1 per trained token, 0 per other token, shape (B, T).
        """
        with attributes_set(self.processing_class, {"response_template": None}):  # TRL's own parsing is not used
            prompt_ids, completion_ids, _, *rest = super()._generate(prompts)
        self.completions = [
            completion(
                self.processing_class,
                Continued(ids, bool(ids) and ids[-1] in self.eos_token_ids),
                request=request,
                tools=self.failures[index].tools,
            )
            for ids, request, index in zip(completion_ids, prompt_ids, self.batch, strict=True)
        ]
        masks = None
        if self.protocol.config.train.tokens == "answer-of-reflection":
            starts = [reflection.answer_start for reflection in self.completions]
            masks = [[0] * start + [1] * (len(ids) - start) for start, ids in zip(starts, completion_ids, strict=True)]
        return prompt_ids, completion_ids, masks, *rest

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        has_tool_images: bool = False,
    ) -> Any:
        """Return token ids and log-probabilities of B reflections, sampled by r3's own generator.

        TRL's is used only for the sampling options that r3's lacks. Log-probabilities are None without vLLM.
        """
        started = perf_counter()
        try:
            if any(getattr(self.args, name, None) for name in _ONLY_IN_TRL) or self.args.repetition_penalty != 1.0:
                if self.use_vllm:
                    self.policy.sync()
                return super()._generate_single_turn(  # type: ignore[no-untyped-call]
                    prompt_ids, images, multimodal_fields, num_generations, has_tool_images
                )
            sampling = Sampling(
                temperature=self.args.temperature,
                top_p=self.args.top_p,
                top_k=self.args.top_k or 0,
                max_tokens=self.args.max_completion_length or 256,
                seed=self._seed("reflect", self.accelerator.process_index),
            )
            served = bool(self.use_vllm)
            with waiting_for(ENGINE, f"{len(prompt_ids):,} reflections"):
                results = self.policy.continue_ids(prompt_ids, sampling, group=num_generations, logprobs=served)
            logprobs = [result.logprobs for result in results] if served else None
            return [result.ids for result in results], logprobs
        finally:
            self.generation_seconds += perf_counter() - started

    def reward_retries(
        self, completion_ids: list[list[int]], failure: list[int], log_metric: Any, **_: Any
    ) -> list[float | None]:
        """Return the rewards of this process's B reflections: the share of retries that passed.

        `failure` has the index of each row's failure. A reward is None when none of its retries could be judged.
        """
        started, verifying = perf_counter(), self.protocol.judge.seconds
        retried = self._retry(failure)
        # Groups may span processes, so each process computes the rewards of all P * G rows, in order of rank, and
        # returns its own B of them.
        with waiting_for(PROCESS, "the retries of the other ranks"):
            rows: list[tuple[int, list[Episode]]] = gather_object(list(zip(failure, retried, strict=True)))
        rewards = self._rewards(rows)
        self.generation_seconds += perf_counter() - started - (self.protocol.judge.seconds - verifying)
        self.generation_index += 1
        self._record(rows, rewards, log_metric=log_metric)
        first = self.accelerator.process_index * len(completion_ids)
        own = slice(first, first + len(completion_ids))
        self.signal = with_signal(rewards, [index for index, _ in rows])[own]
        return rewards[own]

    def _retry(self, failure: list[int]) -> list[list[Episode]]:
        """Return, for each of B reflections, one episode per retry."""
        per_reflection = self.protocol.config.train.retries
        reflections = self.completions
        episodes = self.protocol.with_reflections([self.failures[index].episode() for index in failure], reflections)
        leaks = self.protocol.judge.leaks()  # tested by worker processes while the retries are generated
        examples = [episode.example for episode in episodes]
        self.protocol.submit(examples, list(enumerate(reflections)), into=leaks, unjudged=no_leak)
        repeated = [episode for episode in episodes for _ in range(per_reflection)]
        seed = self._seed("retry", self.accelerator.process_index)
        retried = self.protocol.retry(repeated, self.policy, seed=seed)
        leaked = [leak for leak in leaks.result() for _ in range(per_reflection)]
        retried = [with_leak(episode, leak) for episode, leak in zip(retried, leaked, strict=True)]
        return [retried[start : start + per_reflection] for start in range(0, len(retried), per_reflection)]

    def _rewards(self, rows: Sequence[tuple[int, list[Episode]]]) -> list[float | None]:
        """Return the rewards of the reflections of all processes."""
        config = self.protocol.config
        rewards = [reward_of(retries, reward_leaks=config.train.reward_leaks) for _, retries in rows]
        broken = [reward is None and is_broken(row[1]) for reward, row in zip(rewards, rows, strict=True)]
        failure = [index for index, _ in rows]
        rewards = without_broken_groups(rewards, failure, broken, max_share=config.judge.max_group_errors)
        if config.train.shuffle_rewards:
            random.Random(self._seed("shuffle", 0)).shuffle(rewards)
        return rewards

    def _record(
        self, rows: Sequence[tuple[int, list[Episode]]], rewards: Sequence[float | None], *, log_metric: Any
    ) -> None:
        """Log the metrics of a generation, and append its rows to `train-episodes`."""
        retried = [retries for _, retries in rows]
        for name, value in batch_metrics(rewards, [index for index, _ in rows], retried).items():
            log_metric(name, value)
        reflections = [retries[0].reflection for retries in retried if retries[0].reflection]
        log_metric("reflections/read_by_retry", self._read_by_retry(reflections))
        if self.accelerator.is_main_process:
            cut_off = sum(reflection.stopped == "length" for reflection in reflections)
            self.truncation.add("reflection", cut_off, total=len(reflections))
            answers = [episode.retries["reflect"] for retries in retried for episode in retries]
            self.truncation.add("retry", sum(a.stopped == "length" for a in answers), total=len(answers))
        self.recorded = [
            {
                "step": self.state.global_step + 1,
                "id": self.failures[index].id,
                "reflection": retries[0].reflection,
                "retries": [episode.retries["reflect"] for episode in retries],
                "reward": reward,
            }
            for (index, retries), reward in zip(rows, rewards, strict=True)
        ]
        self.run.append("train-episodes", self.recorded)

    def _read_by_retry(self, reflections: Sequence[Reflection]) -> float:
        """Return the share of the trained tokens that the retries have read; 1 for a model without thinking."""
        config = self.protocol.config
        only_answer = config.train.tokens == "answer-of-reflection"
        shown = config.history == "template" and facts(self.processing_class).retry_reads_thought
        all_read = shown or config.history == "verbatim"
        read = trained = 0
        for reflection in reflections:
            answer = reflection.tokens - reflection.answer_start
            trained += answer if only_answer else reflection.tokens
            if not reflection.unanswered:  # no retry has read that
                read += reflection.tokens if all_read and not only_answer else answer
        return read / max(1, trained)

    @property
    def world(self) -> str:
        """How many processes train, and by which backend, for example `2 processes (FSDP)`."""
        count, kind = self.accelerator.num_processes, self.accelerator.distributed_type.value
        return ONE_PROCESS if count == 1 else f"{count} processes ({kind})"

    def restore(self, checkpoint: Path | None) -> None:
        """Load the weights of a checkpoint, without training."""
        if self.accelerator.num_processes == 1:
            self._load_from_checkpoint(str(checkpoint))
        else:  # a process can load its shards only once the model is sharded
            self._prepare_for_training(  # type: ignore[no-untyped-call]
                self.args.max_steps,
                self.get_train_dataloader(),  # type: ignore[no-untyped-call]
                str(checkpoint),
            )

    def _seed(self, purpose: str, process: int) -> int:
        """Return a seed that is different for each generation, purpose and process."""
        place = (self.state.global_step, self.generation_index, process)
        return seed_of(self.protocol.config.seed, "train", purpose, *place)


class EpochSampler(RepeatSampler):
    """TRL's order of the failures, made a function of seed and epoch alone, so that training can resume anywhere."""

    seed: int

    def set_epoch(self, epoch: int) -> None:
        """Seed the order of an epoch, counted from 0; the order of the first is TRL's."""
        self.generator.manual_seed(seed_of(self.seed, "epoch", epoch) if epoch else self.seed)
