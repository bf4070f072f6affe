"""What a server answers: a completion, a fault that asking again may mend, or a refusal told in words."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from r3core.errors import R3Error, RunError, UsageError
from r3core.generation.engine import Completion
from r3core.generation.server import KEY, Server

if TYPE_CHECKING:
    from openai import OpenAIError
    from openai.types.chat import ChatCompletion

_ENDED = ("stop", "eos_token", "stop_sequence", "tool_calls", "function_call", "content_filter")
_FAULT = "r3_fault"  # under this name a response says what is wrong with it
_RETRIED = (408, 409, 429)  # and 5xx: the client asks again
_TOO_LONG = re.compile(
    r"context[ _]?(length|size|window)|model'?s? (maximum )?length|prompt is too long|longer than the model|"
    r"`inputs` tokens \+",
    re.IGNORECASE,
)
_MANY_WORDS = 400


async def faults_as_errors(response: Any) -> None:
    """Make a garbled answer, of status 200, one of status 502: then the client asks again, in its own time.

    The response is httpx's, or httpx2's with newer clients.
    """
    if response.status_code == 200:
        await response.aread()
        try:
            fault = _fault(json.loads(response.content))
        except ValueError:
            fault = "the answer is not JSON"
        if fault:
            response.extensions[_FAULT] = fault
            response.status_code = 502
        response.headers["content-type"] = "application/json"  # the client would return a text of any other type


def _fault(answer: Any) -> str | None:
    match answer:
        case {"choices": [{"message": {**message}, "finish_reason": reason}]} if isinstance(
            message.get("content"), str | None
        ):
            known = reason in (*_ENDED, "length")
            return None if known else f"the completion ended for the reason {reason!r}"
        case {"error": error}:
            return f"an error with status 200: {error}"
    return "the answer is no chat completion"


def completion_of(answer: ChatCompletion, *, logprobs: bool) -> tuple[Completion, bool]:
    """Return what a server wrote, and whether its filter cut that off; UsageError when it tells no log-probabilities.

    A filtered completion has ended: what came through is what the model says. Calls that the server took out of the
    text are put back behind it, in the tags in which most models write them. `tokens` is what the server counts, which
    may include the end-of-turn token; that of log-probabilities is left out where it can be told from the text.
    """
    choice = answer.choices[0]
    message = choice.message
    calls = [_tagged(call) for call in message.tool_calls or ()]
    text = "\n".join([*([message.content] if message.content else []), *calls])
    listed = choice.logprobs.content if logprobs and choice.logprobs else None
    if logprobs and text and listed is None:
        raise UsageError(
            "the server does not tell the log-probabilities of its completions", "take another server, or engine"
        )
    ended = choice.finish_reason != "length"
    ids = (choice.model_extra or {}).get("token_ids")
    probabilities = None
    if listed is not None:
        written = [bytes(token.bytes) if token.bytes is not None else token.token.encode() for token in listed]
        extra = int(ended and len(written) > 0 and _ends_turn(written, text.encode()))
        if ids is not None and len(ids) == len(listed):
            ids = ids[: len(ids) - extra]
        probabilities = [float(token.logprob) for token in listed[: len(listed) - extra]]
    counted = answer.usage.completion_tokens if answer.usage else len(ids or ())
    completion = Completion(
        text=text,
        token_ids=ids,
        tokens=counted if probabilities is None else len(probabilities),
        stopped="end" if ended else "length",
        logprobs=probabilities,
    )
    return completion, choice.finish_reason == "content_filter"


def _tagged(call: Any) -> str:
    """Return a call as most models write one; its arguments are the model's own text, JSON or not."""
    name, arguments = json.dumps(call.function.name), call.function.arguments
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'


def _ends_turn(written: list[bytes], text: bytes) -> bool:
    """Tell whether the last token is no part of the text: then it ended the turn."""
    return b"".join(written) != text and b"".join(written[:-1]) == text


def too_long(error: Exception, server: Server) -> str | None:
    """Return what a server says when a prompt exceeds its context; None for any other error."""
    from openai import APIStatusError

    if not isinstance(error, APIStatusError) or error.status_code not in (400, 413, 422):
        return None
    words = _words(error, server)
    return f"the server says: {words}" if _TOO_LONG.search(f"{error.code} {error.type} {words}") else None


def told(error: OpenAIError, server: Server, body: dict[str, Any], *, came: str) -> R3Error:
    """Return what is to be said of a request that failed for good: UsageError, or RunError after retries."""
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    where = f"the server at {server.address}"
    again = "the same command goes on from here"
    if isinstance(error, APIStatusError) and error.status_code < 500 and error.status_code not in _RETRIED:
        return _refused(error, server, body)
    if isinstance(error, APIStatusError):
        fault = error.response.extensions.get(_FAULT)
        status = "" if fault else f" with status {error.status_code}"
        what, hint = f"fails{status}: {fault or _words(error, server)}", "lower engine_options.concurrency"
    elif isinstance(error, APITimeoutError):
        what = f"did not answer for {server.timeout:g} seconds"
        hint = "raise engine_options.timeout, or lower engine_options.concurrency"
    elif isinstance(error, APIConnectionError):
        what = f"does not answer: {_printable(str(error.__cause__ or error), server)}"
        hint = "is it running, and is engine_options.base_url right?"
    else:
        what, hint = f"gave an answer that cannot be read ({type(error).__name__})", "look into the server's log"
    tries = f"after up to {server.max_retries} retries; " if server.max_retries else ""
    return RunError(f"{where} {what}; model `{body['model']}`; {tries}{came}", again, hint)


def _refused(error: Any, server: Server, body: dict[str, Any]) -> UsageError:
    status, words = error.status_code, _words(error, server)
    hint = {
        401: f"set the environment variable {KEY} to a key of this server",
        403: f"the key in {KEY} may not use this model",
        404: f"name a model that {server.address}/models lists with --model; a base_url mostly ends in /v1",
    }.get(status, "mend what the server names; `engine_options.extra_body` is sent as it is")
    said = "" if status == 401 else f": {words}"  # a server may repeat the key
    return UsageError(f"the server at {server.address} refuses `{body['model']}` with status {status}{said}", hint)


def _words(error: Any, server: Server) -> str:
    """Return what a server says of an error."""
    said = error.body
    if isinstance(said, dict):
        said = said.get("message") or said.get("detail") or said
    return _printable(str(said or error.message), server)


def _printable(words: str, server: Server) -> str:
    """Return words in one line, without the key, without what a terminal would obey, and not too many."""
    plain = "".join(letter if letter.isprintable() else " " for letter in words.replace(server.key(), "***"))
    line = " ".join(plain.split())
    return line if len(line) <= _MANY_WORDS else f"{line[:_MANY_WORDS]}..."
