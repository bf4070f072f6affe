"""What a server returns: a completion, a malformed response that a retry may replace, or an error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from r3_plugin_openai.server import KEY, ServerOptions
from r3core.episode import THINKING, ToolCall
from r3core.errors import R3Error, RunError, UsageError
from r3core.generation.call_values import strict_json
from r3core.generation.generator import Completion
from r3core.generation.thinking import Marks, Parts
from r3core.generation.tool_calls import canonical

if TYPE_CHECKING:
    from openai import OpenAIError
    from openai.types.chat import ChatCompletion, ChatCompletionMessage

_END_REASONS = ("stop", "eos_token", "stop_sequence", "tool_calls", "function_call", "content_filter")
_FAULT = "r3_fault"  # the extension of a response that holds what is wrong with it
_MARKED = "<think>\n{}\n</think>\n\n{}"  # a server does not return the marks that the model wrote
_MARKS = Marks("<think>", "</think>")  # those of most models; the others need the server's reasoning parser
_REASONING = ("reasoning", "reasoning_content")  # vLLM's name for the thinking, and its older one, that of most servers
_RETRIED = (408, 409, 429)  # the client retries these, and 5xx
_TOO_LONG = re.compile(
    r"context[ _]?(length|size|window)|model'?s? (maximum )?length|prompt is too long|longer than the model|"
    r"`inputs` tokens \+",
    re.IGNORECASE,
)
_MAX_CHARACTERS = 400


async def faults_as_errors(response: Any) -> None:
    """Turn a malformed response of status 200 into one of status 502, which the client retries after a while.

    The response is httpx's, or httpx2's with newer clients.
    """
    if response.status_code == 200:
        await response.aread()
        try:
            fault = _fault(json.loads(response.content))
        except ValueError:
            fault = "the response is not JSON"
        if fault:
            response.extensions[_FAULT] = fault
            response.status_code = 502
        response.headers["content-type"] = "application/json"  # with any other type the client returns the text


def _fault(response: Any) -> str | None:
    match response:
        case {"choices": [{"message": {**message}, "finish_reason": reason}]} if isinstance(
            message.get("content"), str | None
        ):
            known = reason in (*_END_REASONS, "length")
            return None if known else f"the completion ended for the reason {reason!r}"
        case {"error": error}:
            return f"an error with status 200: {error}"
    return "the response is not a chat completion"


def completion_of(response: ChatCompletion) -> tuple[Completion, bool]:
    """Return the completion in a response, and whether the server's content filter cut it off.

    A filtered completion has ended: what came through is what the model wrote. Tool calls that the server took out of
    the text are appended to it, in the tags in which most models write them. Its thinking is what the server's
    reasoning parser found or, without one, what stands before `</think>`. `tokens` is the server's count, which may
    include the end-of-turn token.
    """
    choice = response.choices[0]
    message = choice.message
    ids = (choice.model_extra or {}).get("token_ids")
    parts = _parts(message)
    text = _text(parts.answer, message.tool_calls or ())
    completion = Completion(
        text=text,
        thinking=parts.thinking,
        thought_closed=parts.closed or bool(message.tool_calls),
        raw=None if parts.thinking is None else _MARKED.format(parts.thinking, text),
        token_ids=ids,
        tokens=response.usage.completion_tokens if response.usage else len(ids or ()),
        stopped="length" if choice.finish_reason == "length" else "end",
    )
    return completion, choice.finish_reason == "content_filter"


def _parts(message: ChatCompletionMessage) -> Parts:
    """Return the thinking and the answer of a message; a thought that the reasoning parser found alone is open."""
    fields, content = message.model_extra or {}, message.content or ""
    for name in _REASONING:
        if isinstance(thinking := fields.get(name), str) and thinking:
            return Parts(thinking, content, closed=bool(content.strip()))
    before, mark, _ = content.partition(_MARKS.close)
    return _MARKS.split(content, opened=bool(mark) and _MARKS.open not in before)


def _text(answer: str, calls: Iterable[Any]) -> str:
    """Return an answer with its calls; arguments that are no JSON object stay the model's own text."""
    parts = [answer] if answer else []
    for call in calls:
        name, arguments = call.function.name, call.function.arguments
        try:
            parts.append(canonical("", [ToolCall(name=name, arguments=strict_json(arguments))]))
        except ValueError:
            parts.append(f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call>')
    return "\n".join(parts)


def too_long(error: Exception, server: ServerOptions) -> str | None:
    """Return the message of an error that means a prompt exceeds the server's context; None for any other error."""
    from openai import APIStatusError

    if not isinstance(error, APIStatusError) or error.status_code not in (400, 413, 422):
        return None
    message = _message(error, server)
    return f"the server's error: {message}" if _TOO_LONG.search(f"{error.code} {error.type} {message}") else None


def failure_of(error: OpenAIError, server: ServerOptions, body: dict[str, Any], *, progress: str) -> R3Error:
    """Return the error of a request that failed for good: UsageError, or RunError after retries."""
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    where = f"the server at {server.address}"
    resume = "run the same command to resume"
    if isinstance(error, APIStatusError) and error.status_code < 500 and error.status_code not in _RETRIED:
        return _refused(error, server, body)
    if isinstance(error, APIStatusError):
        fault = error.response.extensions.get(_FAULT)
        status = "" if fault else f" with status {error.status_code}"
        what, hint = f"fails{status}: {fault or _message(error, server)}", "lower engine_options.concurrency"
    elif isinstance(error, APITimeoutError):
        what = f"did not respond for {server.timeout:g} seconds"
        hint = "raise engine_options.timeout, or lower engine_options.concurrency"
    elif isinstance(error, APIConnectionError):
        what = f"does not respond: {_printable(str(error.__cause__ or error), server)}"
        hint = "check that it is running, and engine_options.base_url"
    else:
        what, hint = f"sent a response that cannot be read ({type(error).__name__})", "see the server's log"
    tries = f"after up to {server.max_retries} retries; " if server.max_retries else ""
    return RunError(f"{where} {what}; model `{body['model']}`; {tries}{progress}", resume, hint)


def _refused(error: Any, server: ServerOptions, body: dict[str, Any]) -> UsageError:
    status = error.status_code
    hint = {
        401: f"set the environment variable {KEY} to a key of this server",
        403: f"the key in {KEY} may not use this model",
        404: f"choose a --model that {server.address}/models lists; a base_url usually ends in /v1",
    }.get(status, "correct what the server names; `engine_options.extra_body` is sent as it is")
    if status in (400, 422) and any(THINKING in turn for turn in body["messages"]):
        hint = "if it accepts no thinking in earlier turns: --set history=answer"
    message = "" if status == 401 else f": {_message(error, server)}"  # with 401 a server may repeat the key
    return UsageError(f"the server at {server.address} refuses `{body['model']}` with status {status}{message}", hint)


def _message(error: Any, server: ServerOptions) -> str:
    """Return the server's own message in an error, on one line."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    return _printable(str(body or error.message), server)


def _printable(text: str, server: ServerOptions) -> str:
    """Return text of a server on one line, cut, without the key and without control characters for the terminal."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text.replace(server.key(), "***"))
    line = " ".join(plain.split())
    return line if len(line) <= _MAX_CHARACTERS else f"{line[:_MAX_CHARACTERS]}..."
