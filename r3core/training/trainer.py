"""The GRPO trainer: TRL's, with reflections as completions and the verdict of the retry as the reward.

Prompt = [task, failed attempt, request to reflect]; completion = the reflection; a group = G reflections on one
failure. The retry is generated inside the reward, with the current policy, and its verdict is the reward. So the
reflection's tokens are the only ones in the completion, and the only ones that are trained.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather_object
from transformers import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from r3core.config import Config
from r3core.distributed import rank
from r3core.episode import Episode
from r3core.errors import RunError
from r3core.failures import Failure
from r3core.generation.cache import mend_time_steps
from r3core.generation.chat import completion, encode, fault_of_length
from r3core.generation.engine import Continued, Sampling
from r3core.protocol import Protocol, seed_of, with_leak
from r3core.reward import is_broken, measures, reward_of, without_broken_groups
from r3core.runs import Run
from r3core.task import Message
from r3core.training.checkpoints import ALONE, mark_complete
from r3core.training.lora import lora_of
from r3core.training.policy import Policy, context_in_training, engine_given
from r3core.training.precision import has_masters, lost_updates
from r3core.truncation import TruncationCounter

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_TRL_SAMPLING = ("min_p", "generation_kwargs", "use_transformers_continuous_batching")


class ReflectionTrainer(GRPOTrainer):
    """TRL's trainer, whose completions are reflections and whose one reward is the verdict of the retry."""

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
        failures = self.failures = fitting(protocol, failures, tokenizer, context=context, args=args)
        self.generation_seconds = 0.0
        self.watch = TruncationCounter(protocol.config)
        self._drawn = 0  # generations so far in this step, so that each has a seed of its own
        self.saved_dtype = saved_dtype or model.dtype
        """The dtype that the model was published in, and that `model/` is written in; training may take a wider one."""
        rows = dataset_of(protocol, failures, (args.generation_batch_size or 1) // (args.num_generations or 1))
        with _vllm_for(args, protocol.config, model):
            super().__init__(
                model=model,
                processing_class=tokenizer,
                reward_funcs=self.reward_retries,
                args=args,
                train_dataset=rows,
                peft_config=None if protocol.config.lora is None else lora_of(protocol.config.lora),
            )
        if self.ref_model is not None:
            mend_time_steps(self.ref_model)  # TRL has loaded it
        self.policy = Policy(self, protocol.config.batch_size)
        stochastic = "stochastic_round" in (args.optim_args or "")  # such an optimizer moves 16-bit weights on average
        if rank() == 0 and not stochastic and not has_masters(protocol.config):
            print(lost_updates(model, args.learning_rate), end="", file=sys.stderr)

    def create_accelerator_and_postprocess(self) -> None:
        """Begin FSDP on CPUs too: accelerate 1.15 leaves it out there, and trains whole copies without a word."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if state.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
            state.fsdp_plugin = FullyShardedDataParallelPlugin()
            if state.mixed_precision != "no":
                state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
            state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.is_fsdp_enabled = True

    def _get_train_sampler(self, dataset: Any = None) -> Order:
        told: Any = super()._get_train_sampler(dataset)
        return Order(
            told.data_source, told.mini_repeat_count, told.batch_size, told.repeat_count, told.shuffle, told.seed
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Record the failures of this batch for `_tokenize_prompts`, to which TRL passes messages alone."""
        self.batch = [row["failure"] for row in inputs]
        scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return scored

    def _tokenize_prompts(self, prompts: list[list[Message]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Return the token ids of the requests to reflect, encoded as in mining and evaluation; no images, no fields.

        They are built anew from the failures: `prompts` are TRL's copies of their messages, without the tools.
        """
        requests = [self.protocol.reflection_request(self.failures[index].episode()) for index in self.batch]
        return [encode(self.processing_class, request) for request in requests], None, {}

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        has_tool_images: bool = False,
    ) -> Any:
        """Sample reflections with the project's own generator; TRL's is for sampling options that only it has."""
        began = perf_counter()
        try:
            if any(getattr(self.args, name, None) for name in _TRL_SAMPLING) or self.args.repetition_penalty != 1.0:
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
                seed=self._seed("reflect"),
                logprobs=bool(self.use_vllm),
            )
            written = self.policy.continue_ids(prompt_ids, sampling, group=num_generations)
            logprobs = [continued.logprobs for continued in written] if self.use_vllm else None
            return [continued.ids for continued in written], logprobs
        finally:
            self.generation_seconds += perf_counter() - began

    def reward_retries(
        self, completion_ids: list[list[int]], failure: list[int], log_metric: Any, **_: Any
    ) -> list[float | None]:
        """Return the share of passed retries after each reflection; None where none could be judged."""
        config = self.protocol.config.train
        judged_before, began = self.protocol.judge.seconds, perf_counter()
        # from the ids: in the texts that TRL gives, calls and thoughts may be left out
        drawn = (Continued(ids, self._ended(ids)) for ids in completion_ids)
        written = [completion(self.processing_class, continued) for continued in drawn]
        episodes = self.protocol.with_reflections([self.failures[index].episode() for index in failure], written)
        leaks = self.protocol.judge.leaks()  # are tested while the retries are written
        reflected = enumerate(zip(episodes, written, strict=True))
        leaks.add((index, episode.example, said.text) for index, (episode, said) in reflected)
        repeated = [episode for episode in episodes for _ in range(config.retries)]
        retried = self.protocol.retry(repeated, self.policy, seed=self._seed("retry"))
        leaked = [leak for leak in leaks.result() for _ in range(config.retries)]
        retried = [with_leak(episode, leak) for episode, leak in zip(retried, leaked, strict=True)]
        groups = [retried[i : i + config.retries] for i in range(0, len(retried), config.retries)]
        rewards = [reward_of(group, reward_leaks=config.reward_leaks) for group in groups]
        broken = [reward is None and is_broken(group) for reward, group in zip(rewards, groups, strict=True)]
        rewards = self._without_broken_groups(rewards, failure, broken)
        if config.shuffle_rewards:
            rewards = self._shuffled(rewards)
        self.generation_seconds += perf_counter() - began - (self.protocol.judge.seconds - judged_before)
        self._drawn += 1
        everywhere = gather_object(list(zip(failure, groups, rewards, strict=True)))
        self._record(*map(list, zip(*everywhere, strict=True)), log_metric=log_metric)
        return rewards

    def _without_broken_groups(
        self, rewards: list[float | None], failure: list[int], broken: list[bool]
    ) -> list[float | None]:
        """Return this process's part of `without_broken_groups`; a group may span processes."""
        everywhere = gather_object(list(zip(rewards, failure, broken, strict=True)))
        max_share = self.protocol.config.judge.max_group_errors
        kept = without_broken_groups(*map(list, zip(*everywhere, strict=True)), max_share=max_share)
        start = self.accelerator.process_index * len(rewards)
        return kept[start : start + len(rewards)]

    def _shuffled(self, rewards: list[float | None]) -> list[float | None]:
        """Return this process's part of the rewards of all of them, permuted."""
        everywhere: list[float | None] = gather_object(rewards)
        random.Random(self._seed("shuffle", process=0)).shuffle(everywhere)
        start = self.accelerator.process_index * len(rewards)
        return everywhere[start : start + len(rewards)]

    def _record(
        self,
        failure: Sequence[int],
        groups: Sequence[Sequence[Episode]],
        rewards: Sequence[float | None],
        *,
        log_metric: Any,
    ) -> None:
        """Log and write what came of a generation, of all processes."""
        for name, value in measures(rewards, failure, groups).items():
            log_metric(name, value)
        if self.accelerator.is_main_process:
            self._warn_of_truncation(groups)
        rows = [
            {
                "step": self.state.global_step + 1,
                "id": self.failures[index].id,
                "reflection": group[0].reflection,
                "retries": [episode.retries["reflect"] for episode in group],
                "reward": reward,
            }
            for index, group, reward in zip(failure, groups, rewards, strict=True)
        ]
        self.run.append("train-episodes", rows)

    def _warn_of_truncation(self, groups: Sequence[Sequence[Episode]]) -> None:
        reflections = [group[0].reflection for group in groups if group[0].reflection]
        retries = [episode.retries["reflect"] for group in groups for episode in group]
        self.watch.add("reflection", sum(r.stopped == "length" for r in reflections), total=len(reflections))
        self.watch.add("retry", sum(r.stopped == "length" for r in retries), total=len(retries))

    @property
    def world(self) -> str:
        """What trains, in words: how many processes, and in which way."""
        count, kind = self.accelerator.num_processes, self.accelerator.distributed_type.value
        return ALONE if count == 1 else f"{count} processes ({kind})"

    def restore(self, checkpoint: Path | None) -> None:
        """Load the weights of a checkpoint, without training."""
        if self.accelerator.num_processes == 1:
            self._load_from_checkpoint(str(checkpoint))
        else:  # divided weights are loaded when they are divided
            self._prepare_for_training(  # type: ignore[no-untyped-call]
                self.args.max_steps,
                self.get_train_dataloader(),  # type: ignore[no-untyped-call]
                str(checkpoint),
            )

    def _ended(self, ids: list[int]) -> bool:
        return bool(ids) and ids[-1] in self.eos_token_ids

    def _seed(self, what: str, process: int | None = None) -> int:
        place = (self.state.global_step, self._drawn, self.accelerator.process_index if process is None else process)
        return seed_of(self.protocol.config.seed, "train", what, *place)


class Order(RepeatSampler):
    """TRL's order of the failures, which follows from seed and epoch alone: so a training goes on in it anywhere."""

    seed: int

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of an epoch, which counts from 0; the first is as TRL draws it."""
        self.generator.manual_seed(seed_of(self.seed, "epoch", epoch) if epoch else self.seed)


class Steps(TrainerCallback):
    """Times every step, records what TRL logs, and marks checkpoints that are complete."""

    def __init__(self, run: Run, trainer: ReflectionTrainer, *, advance: Any, tick: Any) -> None:
        self.run = run
        self.trainer = trainer
        self.advance = advance
        self.tick = tick
        self.ended = perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the step's clocks."""
        self.rest = perf_counter() - self.ended
        self.began = perf_counter()
        self.trainer._drawn = 0
        self.generated = self.trainer.generation_seconds
        self.judged = self.trainer.protocol.judge.seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the seconds of the step among TRL's metrics."""
        self.ended = perf_counter()
        generation = self.trainer.generation_seconds - self.generated
        verification = self.trainer.protocol.judge.seconds - self.judged
        seconds = {
            "generation": generation,
            "verification": verification,
            "training": self.ended - self.began - generation - verification,
            "rest": self.rest,
        }
        for name, value in seconds.items():
            self.trainer._metrics["train"][f"seconds/{name}"].append(value)
        if (engine := self.trainer.policy.vllm) is not None:
            share = engine.cached / max(1, engine.prompted)
            self.trainer._metrics["train"]["generation/prefix_cache_hit_rate"].append(share)
            engine.cached = engine.prompted = 0
        self.advance(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Append one row of metrics to the run."""
        if logs and "train_runtime" not in logs:  # the last is a summary
            self.run.append("train", [{"step": state.global_step, **logs}])
            self.tick()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint that has just been written as complete, by all processes."""
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            mark_complete(Path(str(args.output_dir), f"checkpoint-{state.global_step}"), self.trainer.world)


def fitting(
    protocol: Protocol,
    failures: Sequence[Failure],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int | None,
    args: GRPOConfig,
) -> list[Failure]:
    """Return the failures on which a reflection fits the model's context; the others are left out, and counted aloud.

    Raises RunError when a larger share than `max_overlong` is left out.
    """
    new = Sampling(max_tokens=args.max_completion_length or 256)
    prompts = [encode(tokenizer, protocol.reflection_request(failure.episode())) for failure in failures]
    faults = [fault_of_length(prompt, new, context) for prompt in prompts]
    found = [f"failure {failure.id!r}: {fault}" for failure, fault in zip(failures, faults, strict=True) if fault]
    if not found:
        return list(failures)
    limit = protocol.config.max_overlong
    said = f"{len(found)} of {len(failures)} failures leave no room for a reflection in the model's context"
    if len(found) > limit * len(failures):
        raise RunError(
            f"{said}; at most {limit:.0%} are tolerated (`max_overlong`)",
            f"the first is {found[0]}",
            "lower grpo.max_completion_length or sampling.reflection.max_tokens, or take a model with a longer context",
        )
    if rank() == 0:
        print(f"warning: {said}, and are left out; the first is {found[0]}", file=sys.stderr)
    return [failure for failure, fault in zip(failures, faults, strict=True) if not fault]


def dataset_of(protocol: Protocol, failures: Sequence[Failure], least: int) -> Dataset:
    """Return the rows that TRL samples from: the request to reflect, and which failure it is about."""
    from datasets import Dataset

    if len(failures) < least:  # TRL would train no step, and not say so
        raise RunError(
            f"{len(failures)} failures are too few to train on: reflections on {least} of them are generated at a time",
            "mine more problems (--set mine.limit=...), or lower grpo.per_device_train_batch_size",
        )
    requests = [protocol.reflection_request(failure.episode()).messages for failure in failures]
    return Dataset.from_dict({"prompt": requests, "failure": list(range(len(failures)))})


def _vllm_for(args: GRPOConfig, config: Config, model: PreTrainedModel) -> AbstractContextManager[None]:
    """Return what has TRL start a colocated vLLM with the engine's options, in the dtype the trainer computes in."""
    if not (args.use_vllm and args.vllm_mode == "colocate"):
        return nullcontext()
    dtype = "bfloat16" if args.bf16 else "float16" if args.fp16 else str(model.dtype).removeprefix("torch.")
    options = config.engine_options if config.engine == "vllm" else {}
    return engine_given(options, dtype=dtype, revision=config.revision)
