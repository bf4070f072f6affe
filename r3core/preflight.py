"""What is checked about a model's chat template before any work, and the notes about what it does in its own way."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from r3core import prompts
from r3core.config import Config, model_of
from r3core.dataset import load_examples
from r3core.errors import UsageError
from r3core.generation.chat import encode
from r3core.generation.models import base_of, ends_of, tokenizer_of
from r3core.generation.probe import TemplateFacts, checked_facts
from r3core.generation.switches import check_arguments
from r3core.plugins.engines import engine_of
from r3core.runs import Run
from r3core.task import Prompt, Task, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_THINKING_TOKENS = {"attempt": 4096, "reflection": 2048, "retry": 4096}
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


def check_template(task: Task, config: Config) -> list[str]:
    """Return notes about the chat template of a run, the most important first; empty for a model behind a server.

    Raises:
        UsageError: the template does not accept the turns of the run, or loses some of them or the task's tools.
        ConfigError: the template does not read one of the arguments under `template`.
    """
    if not engine_of(config).local:
        return []  # the server has the template
    model = model_of(config, task)
    tokenizer = tokenizer_of(config, model)
    requests = _requests(task, config)
    found = checked_facts(tokenizer, tools=any(request.tools for request in requests))
    defaults = check_arguments(tokenizer, config.template, day=config.template_date)
    for request in requests:
        encode(tokenizer, request)
    ends = _unknown_end(tokenizer, found, ends_of(base_of(model), config, tokenizer))
    return [*ends, *notes(found, config, requests), *(_default(name, config) for name in defaults)]


def notes(found: TemplateFacts, config: Config, requests: Sequence[Prompt] = ()) -> list[str]:
    """Return sentences about what a chat template does in its own way, the most important first.

    Those about system messages and tools are left out where the run's `requests` have none.
    """
    system = any(message["role"] == "system" for request in requests for message in request.messages)
    tools = any(request.tools for request in requests)
    thinks = found.thinking and not found.closes_thought
    lines = [
        (found.plain, _PLAIN),
        (thinks, _unread_thinking(found, config)),
        (thinks, _limits(found, config)),
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
    return sum(message["role"] != "system" for request in requests[:1] for message in request.messages) > 1


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


def _limits(found: TemplateFacts, config: Config) -> str:
    """Return a proposal for larger limits of a model that thinks; empty where they are large enough."""
    if not found.thinking or found.closes_thought:
        return ""
    turns = config.sampling
    small = [name for name, tokens in _THINKING_TOKENS.items() if getattr(turns, name).max_tokens < tokens // 2]
    flags = " ".join(f"--set sampling.{name}.max_tokens={_THINKING_TOKENS[name]}" for name in small)
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


def _requests(task: Task, config: Config) -> list[Prompt]:
    """Return the prompts of the first problem: to attempt, to reflect, to retry with and without a reflection."""
    example = next(iter(load_examples(task, config.mine.split)), None)
    if example is None:
        return []  # mining raises an error
    wording = config.wording_for(task)
    failed = prompts.failure(wording, Verdict.failed("it is wrong"), config.feedback)
    first = prompts.attempt(task, example)
    return [
        first,
        prompts.reflect(first, "1", failed, wording),
        prompts.retry(first, "1", failed, None, wording),
        prompts.retry(first, "1", failed, "1", wording),
    ]
