"""An OpenAI-compatible server in a thread of this process, which misbehaves on request."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from r3core.generation.generator import Completion, Sampling
from r3core.task import Prompt

if TYPE_CHECKING:
    from r3core.generation.generator import Generator

MODEL = "tiny"
PAUSE = 0.2  # seconds, where the server says how long to wait
SOON = {"retry-after-ms": "1"}
GARBLED: dict[str, Response] = {
    "429": JSONResponse({"error": {"message": "too fast"}}, 429, headers={"retry-after": str(PAUSE)}),
    "500": JSONResponse({"error": {"message": "out of memory"}}, 500, headers=SOON),
    "503": Response("<html>overloaded</html>", 503, headers=SOON),
    "no JSON": Response('{"choices": [', media_type="application/json"),
    "a page": Response("<html>log in</html>", media_type="text/html"),
    "an error": JSONResponse({"error": {"message": "upstream is away"}}),
    "no choices": JSONResponse({"choices": []}),
    "abort": JSONResponse({"choices": [{"message": {"content": "half a sen"}, "finish_reason": "abort"}]}),
}


class Cut(Response):
    """A response whose connection is cut in the middle of its body."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send less than was promised; the server then closes the connection."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.body", "body": b'{"choices": [{"message": {"con'})


class Server:
    """The requests of a server, and how it responds."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.url = ""
        self.faults: deque[str] = deque()
        """What goes wrong with the next requests: one of GARBLED, `cut`, `stall`, or `fine`."""
        self.always: Callable[[dict[str, Any]], Response | None] = lambda body: None
        """Answers a request in another way, where it is not None."""
        self.asked: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.authorizations: Counter[str | None] = Counter()
        self.answered = 0
        self.open = self.most_open = 0
        self.context: int | None = None
        """A request that exceeds it is refused."""
        self.pause = 0.0
        """Seconds that each answer takes at least."""
        self.hold_after: int | None = None
        """No more answers than these are given: further requests stay open."""
        self.held = Event()
        """Set as soon as a request is held."""
        self._lock = Lock()

    def bodies(self) -> list[str]:
        """Return what was asked, as text that can be compared."""
        return [json.dumps(body, sort_keys=True) for body in self.asked]

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.times.append(monotonic())
        self.authorizations[request.headers.get("authorization")] += 1
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        try:
            return await self._complete(request, body)
        finally:
            self.open -= 1

    async def _complete(self, request: Request, body: dict[str, Any]) -> Response:
        fault = self.faults.popleft() if self.faults else "fine"
        if fault in GARBLED:
            return GARBLED[fault]
        if fault == "cut":
            return Cut()
        while fault == "stall" or (self.hold_after is not None and self.answered >= self.hold_after):
            self.held.set()
            if await request.is_disconnected():
                return Response()
            await asyncio.sleep(0.01)
        if (other := self.always(body)) is not None:
            return other
        if self.context is not None and len(str(body["messages"])) + body["max_tokens"] > self.context:
            message = f"This model's maximum context length is {self.context} tokens."
            return JSONResponse({"error": {"message": message, "code": "context_length_exceeded"}}, 400)
        self.answered += 1
        await asyncio.sleep(self.pause)
        return JSONResponse(answer(await asyncio.to_thread(self._written, body)))

    def _written(self, body: dict[str, Any]) -> Completion:
        names = ("temperature", "top_p", "top_k", "max_tokens", "seed")
        sampling = Sampling(**{name: body[name] for name in names if name in body})
        with self._lock:
            return self.generator.generate([Prompt(messages=body["messages"])], sampling)[0]


def answer(completion: Completion) -> dict[str, Any]:
    """Return a completion in OpenAI's format, without its token ids."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": completion.text},
        "finish_reason": "stop" if completion.stopped == "end" else "length",
    }
    usage = {"prompt_tokens": 1, "completion_tokens": completion.tokens, "total_tokens": completion.tokens + 1}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice], "usage": usage}


@contextmanager
def serving(generator: Generator) -> Iterator[Server]:
    """Run a server for the block."""
    server = Server(generator)
    app = Starlette(routes=[Route("/v1/chat/completions", server.complete, methods=["POST"])])
    config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    process = uvicorn.Server(config)
    thread = Thread(target=process.run)
    thread.start()
    try:
        while not process.started:
            thread.join(0.005)
            assert thread.is_alive()
        port = process.servers[0].sockets[0].getsockname()[1]
        server.url = f"http://127.0.0.1:{port}/v1"
        yield server
    finally:
        process.should_exit = True
        thread.join()
