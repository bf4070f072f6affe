"""The client of an OpenAI-compatible server: conversations out, completions in, many requests at once."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from r3_plugin_openai.completion_cache import CompletionCache
from r3_plugin_openai.responses import completion_of, failure_of, faults_as_errors, too_long
from r3_plugin_openai.server import ServerOptions
from r3core.episode import CALLS, THINKING
from r3core.errors import R3Error
from r3core.files import digest
from r3core.generation.generator import Completion, Ended, Sampling, overlong, without_token_ids
from r3core.task import Message, Prompt

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

Body = dict[str, Any]
"""What is posted to /chat/completions."""
_BAR = "[|\uff5c]"  # DeepSeek's is the fullwidth one
_NAMES = "s|bos|eos|pad|unk|start_of_turn|end_of_turn|start_of_image|sop|eop"
_BRACKETED = "INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|gMASK"
_CONTROL = re.compile(
    rf"<(?={_BAR}[^<>\s]{{1,64}}>|[^<>\s]{{1,64}}{_BAR}>|/?(?:{_NAMES})>|</?SYS>>)"
    rf"|\[(?=/?(?:{_BRACKETED})\]|e~\[)|\](?=~!?b[\[\]])"  # the last two: MiniMax
)
"""Matches the first character of what looks like a control token."""
_CONNECT = 30.0  # seconds to connect, however long a response may take


class Arrived(NamedTuple):
    """The completion of one request."""

    place: int
    """Its index among the conversations."""
    completion: Completion
    filtered: bool
    """Whether the server's own filter cut it off."""


class OpenAIGenerator:
    """Continues conversations through a server: each is one request, and many of them are open at once.

    The seed of a request is derived from the sampling parameters' seed and its place in the batch; whether the same
    seed gives the same text is up to the server. No request is sent for a completion in the `cache`. `template` has the
    arguments of the chat template.
    """

    def __init__(
        self,
        model: str,
        server: ServerOptions,
        *,
        template: Mapping[str, Any] | None = None,
        cache: CompletionCache | None = None,
    ) -> None:
        self.model = model
        self.server = server
        self.template = template or {}
        self.cache = cache

    def generate(
        self, conversations: Sequence[Prompt], sampling: Sampling, *, ended: Ended | None = None
    ) -> list[Completion]:
        """Return one completion per conversation, in the same order; `ended` is called in this thread as they arrive.

        Raises:
            UsageError: the server refuses a request.
            RunError: a request fails for good, after retries.
        """
        bodies = [self._body(conversation, sampling, index) for index, conversation in enumerate(conversations)]
        keys = [_key(body) for body in bodies]
        completions: dict[int, Completion] = {}
        filtered = 0

        def take(new: Sequence[tuple[int, Completion]]) -> None:
            completions.update(new)
            if ended and new:
                ended(new)

        def arrived(new: Sequence[Arrived]) -> None:
            nonlocal filtered
            if self.cache:  # overlong ones are not cached: the server may be restarted with a longer context
                fitting = [(keys[row.place], row.completion) for row in new if row.completion.stopped != "overlong"]
                self.cache.put(fitting)
            filtered += sum(row.filtered for row in new)
            take([(index, completion) for index, completion, _ in new])

        if self.cache:
            cached = [(index, self.cache.get(key)) for index, key in enumerate(keys)]
            take([(index, completion) for index, completion in cached if completion is not None])
        missing = {index: body for index, body in enumerate(bodies) if index not in completions}
        if missing:
            self._send(missing, arrived)
        if filtered:
            print(f"warning: the server's content filter cut off {filtered} completions", file=sys.stderr)
        return [completions[index] for index in range(len(conversations))]

    def close(self) -> None:
        """Do nothing: connections are open only while `generate` runs."""

    def _body(self, conversation: Prompt, sampling: Sampling, index: int) -> Body:
        turns = [self._turn(message) for message in without_token_ids(conversation.messages)]
        messages = _as_data(turns)
        limit = "max_completion_tokens" if self.server.is_openai else "max_tokens"  # OpenAI has renamed it
        body: Body = {
            "model": self.model,
            "messages": messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            limit: sampling.max_tokens,
            "seed": _seed(sampling.seed, index),
        }
        if conversation.tools:
            body["tools"] = conversation.tools
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if self.template:  # OpenAI's own server takes one of them, as a field of its own: see `check_template`
            body |= self.template if self.server.is_openai else {"chat_template_kwargs": dict(self.template)}
        return body | self.server.extra_body

    def _turn(self, message: Message) -> Message:
        """Return a message as servers take it; calls stay in its content, as templates may refuse one without a result.

        A thought has one name in vLLM's protocol and another in chat templates; OpenAI accepts neither.
        """
        turn = {key: value for key, value in message.items() if key not in (CALLS, THINKING)}
        if THINKING not in message or self.server.is_openai:
            return turn
        return {**turn, "reasoning": message[THINKING], THINKING: message[THINKING]}

    def _send(self, bodies: Mapping[int, Body], take: Callable[[Sequence[Arrived]], None]) -> None:
        """Call `take`, in this thread, with completions as they arrive; an error in it cancels all requests.

        The event loop has a thread of its own, because the caller's may have a running one (a notebook's).
        """
        from anyio.from_thread import start_blocking_portal

        arrived: SimpleQueue[Arrived | None] = SimpleQueue()
        with start_blocking_portal() as portal:
            sending = portal.start_task_soon(self._send_all, bodies, arrived.put)
            sending.add_done_callback(lambda _: arrived.put(None))
            while new := _next_of(arrived):
                take(new)
            sending.result()

    async def _send_all(self, bodies: Mapping[int, Body], put: Callable[[Arrived], None]) -> None:
        """Send all requests, `concurrency` of them at once; the first that fails for good cancels the others."""
        from anyio import create_task_group
        from openai import OpenAIError

        left = iter(bodies.items())
        failures: list[tuple[int, OpenAIError | R3Error]] = []
        count = 0

        async def work() -> None:
            nonlocal count
            for index, body in left:
                try:
                    put(Arrived(index, *completion_of(await _post(client, body))))
                except (OpenAIError, R3Error) as error:
                    if fault := too_long(error, self.server):
                        put(Arrived(index, overlong(fault), filtered=False))
                        count += 1
                        continue
                    failures.append((index, error))
                    return group.cancel_scope.cancel()
                count += 1

        async with self._client() as client, create_task_group() as group:
            for _ in range(min(self.server.concurrency, len(bodies))):
                group.start_soon(work)
        if failures:
            index, error = failures[0]
            if isinstance(error, R3Error):
                raise error
            progress = f"{count} of {len(bodies)} completions had arrived" + (", and are cached" if self.cache else "")
            raise failure_of(error, self.server, bodies[index], progress=progress) from None

    def _client(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        seconds = self.server.timeout
        return AsyncOpenAI(
            api_key=self.server.key(),
            base_url=self.server.address,
            timeout=Timeout(seconds, connect=min(seconds, _CONNECT)),
            max_retries=self.server.max_retries,
            http_client=DefaultAsyncHttpxClient(event_hooks={"response": [faults_as_errors]}),
        )


async def _post(client: AsyncOpenAI, body: Body) -> ChatCompletion:
    rest = {key: value for key, value in body.items() if key not in ("model", "messages")}
    return await client.chat.completions.create(model=body["model"], messages=body["messages"], extra_body=rest)


def _next_of(arrived: SimpleQueue[Arrived | None]) -> list[Arrived]:
    """Wait for a completion, and return it with those that came meanwhile; empty when there are no more."""
    rows: list[Arrived] = []
    while not rows or not arrived.empty():
        row = arrived.get()
        if row is None:
            if rows:
                arrived.put(None)  # for the next call
            break
        rows.append(row)
    return rows


def _as_data(messages: Sequence[Message]) -> list[Message]:
    """Return messages in which the model's text has no control tokens: a zero-width space splits each of them.

    The server would tokenize them like those of its chat template, and which ones its tokenizer has is not known here.
    From the first turn of the model on, all turns may contain its text: a verifier's reason may quote it.
    """
    roles = [message["role"] for message in messages]
    first = roles.index("assistant") if "assistant" in roles else len(messages)
    apart = [
        {**one, **{key: _CONTROL.sub("\\g<0>\u200b", one[key]) for key in ("content", THINKING) if key in one}}
        for one in messages[first:]
    ]
    return [*messages[:first], *apart]


def _key(body: Body) -> str:
    return digest(json.dumps(body, sort_keys=True))


def _seed(seed: int, index: int) -> int:
    """Return the seed of one request: 31 bits, the maximum of some servers."""
    return int.from_bytes(hashlib.sha256(repr((seed, index)).encode()).digest()[:4], "big") >> 1
