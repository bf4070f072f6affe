"""What is checked about a model's chat template before any work, and the notes about what it does in its own way."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, date, datetime
from itertools import islice
from typing import TYPE_CHECKING

from r3core import prompts
from r3core.config import Config, model_of
from r3core.dataset import load_examples
from r3core.errors import UsageError
from r3core.generation.chat import encode
from r3core.generation.models import base_of, context_of, ends_of, tokenizer_of
from r3core.generation.probe import TemplateFacts, checked_facts
from r3core.generation.switches import check_arguments
from r3core.objective import PLURAL, Turn
from r3core.plugins.engines import engine_of
from r3core.runs import Run
from r3core.task import Example, Prompt, Task, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_THINKING_TOKENS: dict[Turn, int] = {"attempt": 4096, "reflection": 2048, "retry": 4096}
"""Values of `sampling.*.max_tokens` that are proposed for a model that thinks."""
_PLAIN = (
    "the model has no chat template: each text follows a line with its role, and an answer ends with the end token "
    "(--chat-template FILE gives another)"
)
_MERGED = "they are put before the first text of the user"
_BROKEN_CALL = (
    "a failed call is shown to the model as the text that it wrote: where no result follows a call, the template "
    "leaves the turn open"
)
_REWRITTEN = (
    "earlier turns are written differently than when they were generated: the prompts of a conversation share fewer "
    "tokens in a prefix cache"
)
_TRIMS = "the template removes white space at the edges of turns"
_ALTERNATES = "the template refuses two turns of the user in a row: a problem whose prompt has them is an error"
_NAME = "template"  # the file with the date
_LONG_PREAMBLE = 60  # characters; shorter ones are headers
_TRIED = 8  # problems, of which one at least has to fit the context
_OFFLINE = "HF_HUB_OFFLINE"  # of huggingface_hub and datasets

Requests = list[tuple[Turn, Prompt]]
"""Prompts of one problem, each with the turn that it asks for."""


def print_notes(lines: Sequence[str]) -> None:
    """Print notes to standard error."""
    for line in lines:
        print(f"note: {line}", file=sys.stderr)


def template_date(run: Run, config: Config, *, local: bool) -> date:
    """Return the date that a run's chat template shows: the configured one, or the day on which it was started.

    The run directory stores it. With a server, whose templates show its own date, a warning follows on another day.
    """
    sessions = run.read("sessions")  # the directory may be that of an earlier version, which stored no date
    started = sessions[0]["time"][:10] if sessions else datetime.now(UTC).date().isoformat()
    stored = (run.read_json(_NAME) or {}).get("date", started)
    day = config.template_date or date.fromisoformat(stored)
    if stored != day.isoformat() and run.has_results():
        raise UsageError(
            f"`{run.path}` holds a run whose chat template shows the date {stored}; `template_date` is {day}",
            "leave template_date out, or use another --output-dir",
        )
    run.write_json(_NAME, {"date": day.isoformat()})
    today = datetime.now(UTC).date()  # as in the rows of sessions
    if not local and day != today and run.has_results() and run.done("evaluate") is None:
        print(
            f"warning: the run was started on {day}: if the server's chat template shows the date, the prompts differ "
            "from that day on",
            file=sys.stderr,
        )
    return day


def check_template(task: Task, config: Config, *, downloads: bool = True) -> list[str]:
    """Return notes about the chat template of a run, the most important first; empty for a model behind a server.

    `downloads` is whether the task may download its problems from the Hub.

    Raises:
        UsageError: the template does not accept the turns of the run, or loses some of them or the task's tools; or
            the problems with the token limits exceed the model's context.
        ConfigError: the template does not read one of the arguments under `template`.
    """
    if not engine_of(config).local:
        return []  # the server has the template
    model = model_of(config, task)
    tokenizer = tokenizer_of(config, model)
    problems = [_requests(task, config, example) for example in _first_examples(task, config, downloads=downloads)]
    requests = [prompt for _, prompt in problems[0]] if problems else []  # without one, mining raises an error
    found = checked_facts(tokenizer, tools=any(request.tools for request in requests))
    defaults = check_arguments(tokenizer, config.template, day=config.template_date)
    room = _room(tokenizer, problems, config, context=_context(config, model))
    ends = _unknown_end(tokenizer, found, ends_of(base_of(model), config, tokenizer))
    return [*ends, *notes(found, config, requests, room=room), *(_default(name, config) for name in defaults)]


def notes(
    found: TemplateFacts, config: Config, requests: Sequence[Prompt] = (), *, room: int | None = None
) -> list[str]:
    """Return sentences about what a chat template does in its own way, the most important first.

    Those about system messages and tools are left out where the run's `requests` have none. `room` is the number of
    tokens that the model's context has for the turns of a problem; None where it is unknown.
    """
    system = any(message["role"] == "system" for request in requests for message in request.messages)
    tools = any(request.tools for request in requests)
    thinks = found.thinking and not found.closes_thought
    lines = [
        (found.plain, _PLAIN),
        (thinks, _unread_thinking(found, config)),
        (thinks, _limits(found, config, room)),
        (found.closes_thought, "thinking is off: the request contains an empty thought"),
        (system and found.system == "raises", f"the template refuses system messages: {_MERGED}"),
        (system and found.system == "dropped", f"the template leaves out system messages: {_MERGED}"),
        (
            found.dated,
            f"the template shows the date: it stays {config.template_date or 'that of the start'} in this run",
        ),
        (len(found.preamble) > _LONG_PREAMBLE, _preamble(found)),
        (found.alternates and _has_several_turns(requests), _ALTERNATES),
        (found.trims, _TRIMS),
        (tools and found.breaks_calls, _BROKEN_CALL),
        (not (found.prefix_request and found.prefix_turn), _REWRITTEN),
    ]
    return [line for applies, line in lines if applies and line]


def _has_several_turns(requests: Sequence[Prompt]) -> bool:
    """Return whether the prompt of the attempt has more turns than one, apart from a system message."""
    return len([one for request in requests[:1] for one in request.messages if one["role"] != "system"]) > 1


def _preamble(found: TemplateFacts) -> str:
    start = " ".join(found.preamble.split())[:60]
    return f"the template puts {len(found.preamble):,} characters of its own before the task: {start!r}..."


def _unread_thinking(found: TemplateFacts, config: Config) -> str:
    """Return that the retry does not read the reflection's thinking, and what changes it; empty where it does."""
    unread = "the retry does not read the reflection's thinking"
    if config.history == "answer":
        return f"{unread}: `history` is answer"
    if config.history == "verbatim" or found.retry_reads_thought:
        return ""
    ways = [*(f"template.{one}" for one in found.keeps_thought), "history=verbatim"]
    return f"{unread}: the template removes it from earlier turns (to show it, set {' or '.join(ways)})"


def _limits(found: TemplateFacts, config: Config, room: int | None) -> str:
    """Return a proposal for larger limits of a model that thinks; empty where they are large enough.

    With the proposed limits, all turns of a problem have room in the context together.
    """
    if not found.thinking or found.closes_thought:
        return ""
    now = {turn: getattr(config.sampling, turn).max_tokens for turn in _THINKING_TOKENS}
    total = sum(max(now[turn], tokens) for turn, tokens in _THINKING_TOKENS.items())
    share = 1.0 if room is None else min(1.0, max(0, room) / total)
    proposed = {turn: int(tokens * share) // 64 * 64 for turn, tokens in _THINKING_TOKENS.items()}
    small = [turn for turn, tokens in _THINKING_TOKENS.items() if now[turn] < min(tokens // 2, proposed[turn])]
    flags = " ".join(f"--set sampling.{turn}.max_tokens={proposed[turn]}" for turn in small)
    thinks = "the request opens a thought" if found.opens_thought else "the model may think before it answers"
    return f"{thinks}, and a turn that is cut off in it has no answer: {flags}" if small else ""


def _default(name: str, config: Config) -> str:
    return f"template.{name}={config.template[name]!r} is what the chat template does without it"


def _unknown_end(tokenizer: PreTrainedTokenizerBase, found: TemplateFacts, ends: set[int]) -> list[str]:
    """Return a note when the token that the template writes behind answers does not end the model's turns."""
    if found.end_token is None or found.end_token in ends:
        return []
    token = str(tokenizer.decode([found.end_token]))
    return [
        f"the template ends answers with {token!r}, which is not an end token of the model: if turns are cut off at "
        "the token limit, add it to eos_token_id in generation_config.json"
    ]


def _first_examples(task: Task, config: Config, *, downloads: bool) -> list[Example]:
    with nullcontext() if downloads else no_downloads():
        return list(islice(load_examples(task, config.mine.split), _TRIED))


@contextmanager
def no_downloads() -> Iterator[None]:
    """Keep the block from downloading from the Hub; what is in the local cache can be read."""
    from huggingface_hub import constants

    names = (constants.__name__, "datasets.config")
    before = {name: vars(sys.modules[name])[_OFFLINE] for name in names if name in sys.modules}
    for name in before:
        vars(sys.modules[name])[_OFFLINE] = True
    try:
        yield
    finally:  # the block may have imported `datasets`, which copies the value
        for name in names:
            if name in sys.modules:
                vars(sys.modules[name])[_OFFLINE] = before.get(name, before[constants.__name__])


def _requests(task: Task, config: Config, example: Example) -> Requests:
    """Return the prompts of a problem: to attempt, to reflect, to retry with and without a reflection."""
    wording = config.wording_for(task)
    failed = prompts.failure(wording, Verdict.failed("it is wrong"), config.feedback)
    first = prompts.attempt(task, example)
    return [
        ("attempt", first),
        ("reflection", prompts.reflect(first, "1", failed, wording)),
        ("retry", prompts.retry(first, "1", failed, None, wording)),
        ("retry", prompts.retry(first, "1", failed, "1", wording)),
    ]


def _context(config: Config, model: str) -> int | None:
    """Return the maximum number of tokens of prompt and turn together; None where it is unknown."""
    from transformers import AutoConfig

    limit = config.engine_options.get("max_model_len") if config.engine == "vllm" else None
    if limit is not None:
        return limit if isinstance(limit, int) and limit > 0 else None
    try:
        read = AutoConfig.from_pretrained(
            base_of(model), revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError):  # loading the model explains it
        return None
    return context_of(read)


def _room(
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Requests], config: Config, *, context: int | None
) -> int | None:
    """Return how many tokens the context has for the turns of the first problem; None where that is unknown.

    Raises:
        UsageError: the template does not accept its prompts, or no problem fits the context with the token limits.
    """
    first: UsageError | None = None
    room = None
    for requests in problems:
        lengths: dict[Turn, int] = {}
        for turn, prompt in requests:
            lengths[turn] = max(lengths.get(turn, 0), len(encode(tokenizer, prompt)))
        room = room if room is not None or context is None else context - max(lengths.values())
        fault = _misfit(lengths, config, context)
        if fault is None:
            return room
        first = first or fault
    if first is not None:
        raise first
    return room


def _misfit(lengths: Mapping[Turn, int], config: Config, context: int | None) -> UsageError | None:
    """Return the error of a problem whose prompts exceed the context together with a token limit; None if they fit."""
    limits = [(turn, f"sampling.{turn}.max_tokens", getattr(config.sampling, turn).max_tokens) for turn in PLURAL]
    in_training = config.grpo.get("max_completion_length")
    if isinstance(in_training, int):
        limits.append((config.objective.first, "grpo.max_completion_length", in_training))
    for turn, key, tokens in limits:
        if context is None or lengths[turn] + tokens <= context:
            continue
        room = context - lengths[turn]
        return UsageError(
            f"the problems do not fit the model's context of {context:,} tokens: the first one's prompt of the {turn} "
            f"has {lengths[turn]:,}, and {key}={tokens} exceeds the rest",
            *([f"lower {key} to less than {room}: the turns before it take room too"] if room > 1 else []),
            "choose a model with a longer context"
            + (", or raise engine_options.max_model_len" if "max_model_len" in config.engine_options else ""),
        )
    return None
