"""The GRPO trainer: TRL's, with the turns of an objective as completions and verdicts as rewards.

With the objective `reflection`: prompt = [task, failed attempt, request to reflect]; completion = the reflection; a
group = G reflections on one failure. The retry is generated after it, with the current policy, and its verdict is the
reward. So the reflection's tokens are the only ones in the completion, and the only ones that are
trained. Other objectives sample and train other turns (`objective.py`): TRL scores the rows of each of their segments
as a batch of its own, and the trainer joins them.

Notation for shapes: P failures with G samples each are generated at a time; B = P * G / processes rows are those of
this process. Rows of one group are adjacent, and a group may span processes.

`rollout.py` samples the turns of a generation, and `episode_rows.py` describes them. The private names of TRL that are
overridden here are listed in `private_names.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from r3core.activity import STEP, waiting_for
from r3core.distributed import rank, world_size
from r3core.episode import Episode
from r3core.failures import Failure
from r3core.generation.cache_checks import apply_time_step_limit, continues_prompts
from r3core.generation.template import original, using
from r3core.objective import Objective, Segment
from r3core.protocol import Protocol, seed_of
from r3core.reward import batch_metrics, rewards_by_turn
from r3core.runs import Run
from r3core.task import Message
from r3core.training.anchor import Anchor
from r3core.training.episode_rows import count_truncated, read_by_retry, rows_of
from r3core.training.fsdp import set_up_fsdp_on_cpus
from r3core.training.grpo_options import steps_of_generations
from r3core.training.lora import lora_config
from r3core.training.policy import Policy, attributes_set, context_in_training, vllm_started_for
from r3core.training.posterior import verdicts_of
from r3core.training.precision import has_master_weights, rounding_warning
from r3core.training.prompt_dataset import failures_that_fit, mining_charge, prompt_dataset
from r3core.training.rollout import Rollout, Row
from r3core.training.sampler import sampler_of
from r3core.training.segments import joined, metrics_under, padding_id, with_rewards_as_advantages
from r3core.training.signal_mask import with_signal, without_equal_groups
from r3core.training.trimmed import Outputs, trimmed_pass
from r3core.training.usage import Usage
from r3core.truncation import TruncationCounter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ONLY_IN_TRL = ("min_p", "generation_kwargs", "use_transformers_continuous_batching")
"""Sampling options that r3's own generators do not have; so has `repetition_penalty`, whose neutral value is 1."""


class ReflectionTrainer(GRPOTrainer):
    """TRL's trainer, whose completions are the turns of an objective and whose only rewards are verdicts.

    `saved_dtype` is the dtype that the model was published in, and that `model/` is written in; training may use a
    wider one. By default it is the dtype of `model`.
    """

    args: GRPOConfig
    processing_class: PreTrainedTokenizerBase
    num_generations: int
    objective: Objective

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
        self.objective = protocol.config.objective
        self.verdicts = verdicts_of(protocol.config, self.failures)
        """What is known of the pass rate of each failure; None for a random order."""
        self.usage = Usage(mining_charge(run, self.objective, failures))
        self.saved_dtype = saved_dtype or model.dtype
        self.generation_seconds = 0.0
        self.generation_index = 0
        """Number of generations so far in this step; part of the seed of each."""
        self.recorded: list[dict[str, Any]] = []
        """The episodes of the last generation, as `train-episodes` has them."""
        self.truncation = TruncationCounter(protocol.config)
        at_a_time = (args.generation_batch_size or 1) // (args.num_generations or 1)  # P
        anchored = protocol.config.train.anchor > 0
        with (
            vllm_started_for(args, protocol.config, model),
            attributes_set(args, {"beta": args.beta or 1.0} if anchored else {}),  # else TRL loads no reference model
        ):
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
        self.beta = args.beta
        self.alone = self.accelerator.distributed_type == DistributedType.NO
        checkpointing = args.gradient_checkpointing  # transformers may enable it later, when training begins
        self.shares_prompts = self.alone and not checkpointing and continues_prompts(model, tokenizer)
        """Whether what several prompts begin with goes through the model once."""
        self.policy = Policy(self, protocol.config.batch_size)
        self.anchor = Anchor(self) if anchored else None
        # stochastic rounding moves 16-bit weights by the right amount on average
        stochastic = "stochastic_round" in (args.optim_args or "")
        if rank() == 0 and not stochastic and not has_master_weights(protocol.config):
            print(rounding_warning(model, args.learning_rate), end="", file=sys.stderr)

    def resume_order(self, step: int) -> None:
        """Read the verdicts of the steps up to that of a checkpoint, on which later draws of failures depend."""
        if self.verdicts is not None:
            rows = [row for row in self.run.read("train-episodes") if row["step"] <= step]
            self.verdicts.load(rows, size=self.args.generation_batch_size or 1)

    def create_accelerator_and_postprocess(self) -> None:
        """Set up FSDP on CPUs too, where accelerate 1.15 ignores it and trains unsharded copies without a warning."""
        super().create_accelerator_and_postprocess()
        if set_up_fsdp_on_cpus(self.accelerator):
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

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        return sampler_of(super()._get_train_sampler(dataset), self.args, self.verdicts)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log metrics as TRL does, with the tokens that training has used so far."""
        super().log({**logs, **self.usage.metrics()}, start_time)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return TRL's loss, plus the penalty of the anchor."""
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        self.usage.count_trained(int(mask.sum()))
        loss: torch.Tensor = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss if self.anchor is None else loss + self.anchor.penalty(model, len(mask))

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: Any,
    ) -> Outputs:
        """Count the sequences, and compute without most of the padding and with what prompts begin with once.

        Several processes make as many forward passes as TRL: sharded weights are gathered in each of them.
        """
        self.usage.count_forward(len(input_ids))
        return trimmed_pass(
            super()._get_per_token_logps_and_entropies,
            model,
            input_ids,
            attention_mask,
            logits_to_keep,
            batch_size=batch_size,
            pieces=None if self.alone else 1,
            share_prompts=self.shares_prompts,
            **options,
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Sample B rows, and return them and those of the objective's other segments with their advantages.

        TRL scores a segment as a batch: it groups `num_generations` adjacent rows. With several retries, those after
        one reflection are a group.
        """
        self.rollout = Rollout(self, [row["failure"] for row in inputs])
        parts = []
        for segment in self.objective.segments:
            self.segment = segment
            repeats = self.rollout.repeats(segment)
            first = segment is self.objective.segments[0]
            group = {"num_generations": repeats} if repeats > 1 else {}
            metrics = nullcontext() if first else metrics_under(self._metrics["train"], _name_of(segment))
            with attributes_set(self, group), metrics:
                rows = [row for row in inputs for _ in range(repeats)]
                parts.append(self._adjusted(super()._generate_and_score_completions(rows), segment))
        return parts[0] if len(parts) == 1 else joined(parts, pad=padding_id(self.processing_class))

    def _adjusted(self, scored: dict[str, Any], segment: Segment) -> dict[str, Any]:
        """Return the scored rows of a segment with the advantages and the mask that the objective gives them."""
        if not segment.baseline:
            return with_rewards_as_advantages(scored, self._own_rewards(segment))
        if not self.protocol.config.train.drop_equal_groups:
            return scored
        repeats = self.rollout.repeats(segment)
        groups = range(len(self.rewards["attempt"])) if repeats > 1 else self.failure
        signal = with_signal(self.rewards[segment.turn], [group for group in groups for _ in range(repeats)])
        return without_equal_groups(scored, signal[self._own(repeats)])

    def _tokenize_prompts(self, prompts: list[list[Message]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Return the token ids of the prompts of a segment, encoded as in mining and evaluation; no images, no fields.

        They are built from the failures: `prompts` are TRL's copies of their messages, without the tools.
        """
        if self.segment is self.objective.segments[0]:
            return self.rollout.prompts(), None, {}
        self.rows = self.rollout.rows(self.segment)
        return [row.prompt for row in self.rows], None, {}

    def _generate(self, prompts: list[Any]) -> Any:
        """Sample the turns of the first segment, or take those of another; mask the tokens that are not trained.

        The mask is TRL's `tool_mask`: for each row 1 per trained token, 0 per other token, shape (rows, T).
        """
        with attributes_set(self.processing_class, {"response_template": None}):  # TRL's own parsing is not used
            prompt_ids, completion_ids, _, completions, logprobs, *rest = super()._generate(prompts)
        if self.segment is self.objective.segments[0]:
            started, verifying = perf_counter(), self.protocol.judge.seconds
            self.rollout.complete(prompt_ids, completion_ids, logprobs)
            self.generation_seconds += perf_counter() - started - (self.protocol.judge.seconds - verifying)
            self.rows = self.rollout.rows(self.segment)
            completion_ids = [row.ids for row in self.rows]
            if logprobs is not None:
                logprobs = [row.logprobs or [0.0] * len(row.ids) for row in self.rows]
        masks = [row.mask for row in self.rows] if any(row.start for row in self.rows) else None
        return prompt_ids, completion_ids, masks, completions, logprobs, *rest

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        has_tool_images: bool = False,
    ) -> Any:
        """Return token ids and log-probabilities of the rows of a segment; log-probabilities are None without vLLM.

        Those of the first segment are sampled by r3's own generator, or by TRL's for sampling options that it lacks.
        """
        if self.segment is not self.objective.segments[0]:
            logprobs = [row.logprobs or [0.0] * len(row.ids) for row in self.rows] if self.use_vllm else None
            return [row.ids for row in self.rows], logprobs
        started = perf_counter()
        try:
            ids, logprobs = self._sampled(prompt_ids, images, multimodal_fields, num_generations, has_tool_images)
        finally:
            self.generation_seconds += perf_counter() - started
        self.usage.count_generated([Row(prompt, one) for prompt, one in zip(prompt_ids, ids, strict=True)])
        return ids, logprobs

    def _sampled(self, prompt_ids: list[list[int]], *rest: Any) -> Any:
        if any(getattr(self.args, name, None) for name in _ONLY_IN_TRL) or self.args.repetition_penalty != 1.0:
            if self.use_vllm:
                self.policy.sync()
            return super()._generate_single_turn(prompt_ids, *rest)  # type: ignore[no-untyped-call]
        return self.rollout.first_turns(prompt_ids)

    def reward_retries(self, completion_ids: list[list[int]], log_metric: Any, **_: Any) -> list[float | None]:
        """Return the rewards of this process's rows of a segment: None for one that could not be judged."""
        if self.segment is self.objective.segments[0]:
            self.failure, samples = self.rollout.of_all_processes()
            self.rewards = rewards_by_turn(
                self.protocol.config, samples, self.failure, seed=self.seed_for("shuffle", 0)
            )
            self.generation_index += 1
            self._record(samples, self.rewards[self.objective.first], log_metric=log_metric)
        return self._own_rewards(self.segment)

    def _own_rewards(self, segment: Segment) -> list[float | None]:
        return self.rewards[segment.turn][self._own(self.rollout.repeats(segment))]

    def _own(self, repeats: int) -> slice:
        """Return the place of this process's rows among those of all processes."""
        count = repeats * len(self.rollout.failures)
        return slice(self.accelerator.process_index * count, (self.accelerator.process_index + 1) * count)

    def _record(self, samples: list[list[Episode]], rewards: list[float | None], *, log_metric: Any) -> None:
        """Log the metrics of a generation, and append its rows to `train-episodes`."""
        first = self.objective.first
        for name, value in batch_metrics(rewards, self.failure, samples, first=first).items():
            log_metric(name, value)
        if "reflection" in self.objective.turns:
            share = read_by_retry(self.protocol.config, self.processing_class, samples)
            log_metric("reflections/read_by_retry", share)
        ids = [self.failures[index].id for index in self.failure]
        self.usage.count_failures(ids)
        if self.accelerator.is_main_process:
            count_truncated(self.truncation, samples, first=first)
        self.recorded = rows_of(ids, samples, rewards, step=self.state.global_step + 1, first=first)
        self.run.append("train-episodes", self.recorded)
        if self.verdicts is not None:
            self.verdicts.add(self.recorded)

    @property
    def budget_is_spent(self) -> bool:
        """Whether training has used the tokens of `train.budget_tokens`, and every use of its last generation."""
        budget = self.protocol.config.train.budget_tokens
        period = steps_of_generations(vars(self.args))
        return budget is not None and self.usage.spent >= budget and self.state.global_step % period == 0

    def seed_for(self, purpose: str, process: int) -> int:
        """Return a seed that is different for each generation, purpose and process."""
        place = (self.state.global_step, self.generation_index, process)
        return seed_of(self.protocol.config.seed, "train", purpose, *place)


def _name_of(segment: Segment) -> str:
    """Return the prefix of the metrics of a segment that is not the first, as in `retry/reward`."""
    return segment.turn if segment.prompt == "own" else f"{segment.turn}-as-attempt"
