"""Forgetting and transfer: base and trained model on other tasks than that of the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from r3core import prompts
from r3core.config import Config
from r3core.console import visible
from r3core.dataset import Selection, load_examples, problems_to_evaluate
from r3core.errors import R3Error, TaskError
from r3core.evaluation.evaluate import evaluated, tally
from r3core.evaluation.outcomes import solved
from r3core.evaluation.result import Result, compare, scores, truncated, with_holm
from r3core.executor import Executor, LocalExecutor, episodes_of
from r3core.generation.chat import encode
from r3core.generation.models import tokenizer_of
from r3core.other_tasks import KEY, OtherTask, file_name
from r3core.plugins.engines import engine_of
from r3core.preflight import check_template, no_downloads
from r3core.protocol import Protocol
from r3core.sections import Phrases
from r3core.task import Example, Task
from r3core.truncation import warn_if_truncated
from r3core.verification.judge import Judge

if TYPE_CHECKING:
    from r3core.episode import Episode
    from r3core.runs import Run

_READ = 8  # problems whose tokens are looked at


def config_on(config: Config, other: OtherTask, *, model: str) -> Config:
    """Return the configuration of an evaluation on another task: its own prompts, and two tries without controls.

    Split, number of problems and sampling parameters are those of the run.
    """
    changed = {"controls": False, "resamples": 1, "cross": False, "every": None, "also": ()}
    return config.model_copy(
        update={
            **{"task": other.task, "task_options": other.task_options, "model": model, "wording": Phrases()},
            "evaluate": config.evaluate.model_copy(update=changed),
            "mine": config.mine.model_copy(update={"split": config.evaluate.split}),  # the split that is checked
        }
    )


def check_others(config: Config, *, model: str, downloads: bool = True) -> list[str]:
    """Return notes about the other tasks of a run, before any work.

    Raises:
        UsageError: a task has no problems, or the model's chat template loses its tools, or its problems do not fit the
            model's context.
    """
    lines = []
    for name, other in _named(config).items():
        one, task = config_on(config, other, model=model), other.load()
        try:
            found = [*check_template(task, one, downloads=downloads), *_unknown(task, one, downloads=downloads)]
        except R3Error as error:
            error.hints = (*error.hints, f"this is `{name}`, one of the tasks of `{KEY}` (--also)")
            raise
        lines += [f"{name}: {line}" for line in found]
    return lines


def evaluate_others(
    run: Run, config: Config, executor: Executor, *, base: str, trained: str | None
) -> dict[str, Result]:
    """Return the results on the tasks of `evaluate.also`, by their names; resumes an interrupted run.

    The rows are also-TASK-base.jsonl and also-TASK-trained.jsonl. Every model is loaded once for all tasks.
    """
    also = _named(config)
    found: dict[str, dict[str, list[Episode]]] = {name: {} for name in also}
    selections: dict[str, Selection] = {}
    with run.clock("evaluate") as tick:
        for side, model in {"base": base, **({"trained": trained} if trained else {})}.items():
            for name, other in also.items():
                one = config_on(config, other, model=base)
                with Judge(other.load(), one.judge) as judge:
                    examples, selections[name] = problems_to_evaluate(judge.task, one)
                    label = f"{visible(name, longest=40)} {side}"
                    protocol, row = Protocol(judge.task, judge, one), f"also-{file_name(name)}-{side}"
                    found[name][side] = _episodes(
                        run, protocol, examples, shared=executor, model=model, name=row, label=label, tick=tick
                    )
    results = {name: _result(found[name], selections[name]) for name in also}
    for name, result in results.items():
        _warn_if_truncated(config, name, result)
    return results


def _episodes(
    run: Run,
    protocol: Protocol,
    examples: Sequence[Example],
    *,
    shared: Executor,
    model: str,
    name: str,
    label: str,
    tick: Callable[[], None],
) -> list[Episode]:
    """Return the episodes of one model on one other task."""
    config = protocol.config
    own = executor_on(protocol, shared=shared)
    try:
        return episodes_of(
            run,
            own,
            evaluated,
            examples,
            name=name,
            label=label,
            unit="problems",
            model=model,
            size=max(1, config.batch_size // config.evaluate.samples),
            each=config.evaluate.samples,
            tally=tally({"second try": solved}),
            tick=tick,
        )
    finally:
        if not isinstance(own, LocalExecutor):  # else the model is that of `shared`
            own.close()


def _result(episodes: Mapping[str, list[Episode]], problems: Selection) -> Result:
    before, after = episodes["base"], episodes.get("trained")
    return Result(
        base=scores(before),
        trained=scores(after) if after else None,
        paired=compare(before, after) if after else None,
        problems=problems,
    )


def with_others(result: Result, others: dict[str, Result]) -> Result:
    """Return a result with those on other tasks; their p-values are adjusted together with its own."""
    return with_holm(result.model_copy(update={"also": others})) if others else result


def executor_on(protocol: Protocol, *, shared: Executor) -> Executor:
    """Return an executor for another protocol; one in this process takes the model that `shared` has in memory.

    It must not be closed then: the model is that of `shared`.
    """
    engine = engine_of(protocol.config)
    if (own := engine.executor(protocol)) is not None:
        return own
    assert isinstance(shared, LocalExecutor)  # both come from the engine of one run
    return LocalExecutor(protocol, shared.generator)


def _named(config: Config) -> dict[str, OtherTask]:
    return {other.name: other for other in config.evaluate.also}


def _warn_if_truncated(config: Config, name: str, result: Result) -> None:
    for side, of in (("base", result.base), ("trained", result.trained)):
        if of is not None:
            for turn, cut in truncated(of).items():
                warn_if_truncated(config, turn, cut.passed, total=cut.total, by=f" of the {side} model on {name}")


def _unknown(task: Task, config: Config, *, downloads: bool) -> Iterator[str]:
    """Yield a note where the model's tokenizer does not know some tokens of the task's prompts.

    Raises:
        TaskError: the task has no problems in the split.
    """
    if downloads:
        examples = list(islice(load_examples(task, config.evaluate.split), _READ))
    else:
        with no_downloads():
            examples = list(islice(load_examples(task, config.evaluate.split), _READ))
    if not examples:
        raise TaskError(f"task `{task.name}` has no examples in its split `{config.evaluate.split}`")
    if config.model is None or not engine_of(config).local:
        return
    tokenizer = tokenizer_of(config, config.model)
    if tokenizer.unk_token_id is None:
        return
    tokens = [token for example in examples for token in encode(tokenizer, prompts.attempt(task, example))]
    unknown = tokens.count(tokenizer.unk_token_id)
    if unknown:
        yield (
            f"{100 * unknown / len(tokens):.1f}% of the tokens in its prompts are unknown to the model's tokenizer, "
            f"which reads them as {tokenizer.unk_token}: the scores are of a model that cannot read the problems"
        )
