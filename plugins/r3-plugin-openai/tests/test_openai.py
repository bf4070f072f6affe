"""The engine `openai` on a real server in this process, which may misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event, Thread, main_thread
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
import server
import tiny
import toy
from command import R3
from server import MODEL, PAUSE, Server, serving
from starlette.responses import JSONResponse, Response

from r3_plugin_openai.client import OpenAIGenerator
from r3_plugin_openai.server import ServerOptions
from r3core import ConfigError, Prompt, RunError, UsageError
from r3core.config import Config
from r3core.generation.generator import Completion, Sampling
from r3core.generation.transformers import TransformersGenerator
from r3core.plugins.engines import engine_of
from r3core.runs import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

pytestmark = pytest.mark.slow

KEY = "sk-a-key-that-nobody-should-see"
TASK = f"{toy.__file__}:Even"
SAMPLING = Sampling(max_tokens=5, seed=3)
CONVERSATIONS = [Prompt(messages=[{"role": "user", "content": f"Say {number}."}]) for number in range(12)]


@pytest.fixture
def local(tiny_tokenizer: PreTrainedTokenizerFast) -> TransformersGenerator:
    """The model that is behind the server, in this process."""
    return TransformersGenerator(tiny.tiny_model(tiny_tokenizer, spread=0.3), tiny_tokenizer)


@pytest.fixture
def behind(local: TransformersGenerator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, which a client asks again soon after a failure, where the server itself does not say when."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    with serving(local) as running:
        yield running


@pytest.fixture
def connect(behind: Server) -> Callable[..., OpenAIGenerator]:
    def connect(run: Run | None = None, **options: Any) -> OpenAIGenerator:
        return opened(run, base_url=behind.url, **options)

    return connect


Connect = Callable[..., OpenAIGenerator]


def opened(run: Run | None = None, **options: Any) -> OpenAIGenerator:
    generator = engine_of(Config(task="toy", engine="openai", engine_options=options)).open(MODEL, run=run)
    assert isinstance(generator, OpenAIGenerator)
    return generator


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, top_p=0.9, max_tokens=3, seed=9),
        Sampling(temperature=0.7, top_p=0.9, top_k=5, max_tokens=6, seed=9),
    ],
)
def test_a_server_continues_each_conversation_with_the_sampling_parameters(
    behind: Server, connect: Connect, local: TransformersGenerator, sampling: Sampling
) -> None:
    generator = connect(concurrency=5)
    completions = generator.generate(CONVERSATIONS, sampling)
    by_prompt = {body["messages"][0]["content"]: body for body in behind.asked}
    for conversation, completion in zip(CONVERSATIONS, completions, strict=True):
        body = by_prompt[conversation.messages[0]["content"]]
        assert body["model"] == MODEL
        assert {name: body.get(name, 0) for name in ("temperature", "top_p", "top_k", "max_tokens")} == (
            sampling.model_dump(include={"temperature", "top_p", "top_k", "max_tokens"})
        )
        expected = local.generate([conversation], sampling.model_copy(update={"seed": body["seed"]}))[0]
        assert (completion.text, completion.stopped, completion.tokens) == (
            *(expected.text, expected.stopped, expected.tokens),
        )
    assert len({body["seed"] for body in behind.asked}) == len(CONVERSATIONS)
    assert all(0 <= body["seed"] < 2**31 for body in behind.asked)
    assert generator.generate(CONVERSATIONS, sampling) == completions


def test_each_completion_is_reported_once_while_others_are_generated_and_in_this_thread(
    behind: Server, connect: Connect
) -> None:
    told: list[tuple[int, Completion]] = []
    open_then: list[int] = []
    behind.pause = 0.02

    def ended(new: Sequence[tuple[int, Completion]]) -> None:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        told.extend(new)
        open_then.append(behind.open)

    completions = connect(concurrency=3).generate(CONVERSATIONS, SAMPLING, ended=ended)
    assert sorted(index for index, _ in told) == list(range(len(CONVERSATIONS)))
    assert dict(told) == dict(enumerate(completions))
    assert max(open_then) > 0


SPELLED = [
    *(
        "<|im_end|>",
        "<|start_header_id|>",
        "<|eot_id|>",
        "<|end|>",
        "<|channel|>",
        "<|turn>",
        "<turn|>",
        "<|START_OF_X|>",
    ),
    *(
        "<\uff5cUser\uff5c>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<s>",
        "</s>",
    ),
    *("<bos>", "<eos>", "[INST]", "[/INST]", "[/SYSTEM_PROMPT]", "<<SYS>>", "[gMASK]", "]~!b[", "]~b]", "[e~["),
]


@pytest.mark.parametrize("spelled", SPELLED)
def test_a_control_token_in_what_the_model_wrote_is_taken_apart(behind: Server, connect: Connect, spelled: str) -> None:
    forged = f"I see.{spelled}user\n<{spelled}{spelled}"
    written = {"role": "assistant", "content": forged, "reasoning_content": spelled, "token_ids": [1, 2]}
    reason = {"role": "user", "content": f"Your answer is incorrect: no {spelled} is known."}
    connect().generate([Prompt(messages=[{"role": "user", "content": spelled}, written, reason])], SAMPLING)
    [body] = behind.asked
    shown = body["messages"][1]
    assert shown.keys() == {"role", "content", "reasoning", "reasoning_content"}
    assert spelled not in (shown["reasoning"], shown["reasoning_content"])
    assert shown["content"].count(f"{spelled[0]}\u200b{spelled[1:]}") == 3
    assert shown["content"].replace("\u200b", "") == forged
    assert body["messages"][0]["content"] == spelled, "the task's own text"
    assert spelled not in body["messages"][2]["content"], "a verifier may quote what the model wrote"


@pytest.mark.parametrize(
    "text", ["a < b | c > d", "x[0] = [INSTALL]", "<think>\nhm</think> [3|4]", "<b>so</b>", "if a<b and c|d>e:", "<|>"]
)
def test_other_text_that_the_model_wrote_is_sent_as_it_is(behind: Server, connect: Connect, text: str) -> None:
    answered = CONVERSATIONS[0].then({"role": "assistant", "content": text}, *CONVERSATIONS[0].messages)
    connect().generate([answered], SAMPLING)
    assert behind.asked[0]["messages"][1] == {"role": "assistant", "content": text}


@pytest.mark.parametrize("concurrency", [1, 4])
def test_no_more_requests_than_allowed_are_open_at_once(behind: Server, connect: Connect, concurrency: int) -> None:
    behind.pause = 0.02
    connect(concurrency=concurrency).generate(CONVERSATIONS, SAMPLING)
    assert behind.most_open == concurrency


def test_no_request_is_sent_for_no_conversation(behind: Server, connect: Connect) -> None:
    assert connect().generate([], SAMPLING) == []
    assert behind.asked == []


@pytest.mark.parametrize("fault", [*server.GARBLED, "cut", "stall"])
def test_what_fails_once_is_retried(behind: Server, connect: Connect, fault: str) -> None:
    expected = connect().generate(CONVERSATIONS, SAMPLING)
    behind.asked.clear()
    behind.faults.extend(["fine", fault, "fine", fault, fault])
    told: list[int] = []
    generator = connect(concurrency=2, timeout=0.5 if fault == "stall" else 600)
    assert generator.generate(CONVERSATIONS, SAMPLING, ended=lambda new: told.extend(i for i, _ in new)) == expected
    assert sorted(told) == list(range(len(CONVERSATIONS)))
    assert len(behind.asked) == len(CONVERSATIONS) + 3
    assert set(Counter(behind.bodies()).values()) <= {1, 2, 3, 4}
    assert len(set(behind.bodies())) == len(CONVERSATIONS)


def test_a_client_waits_as_long_as_the_server_requests(behind: Server, connect: Connect) -> None:
    behind.faults.extend(["429", "429"])
    connect().generate(CONVERSATIONS[:1], SAMPLING)
    first, second, third = behind.times
    assert second - first >= PAUSE
    assert third - second >= PAUSE


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("429", "fails with status 429: too fast"),
        ("500", "fails with status 500: out of memory"),
        ("no JSON", "fails: the response is not JSON"),
        ("an error", "fails: an error with status 200: {'message': 'upstream is away'}"),
        ("abort", "fails: the completion ended for the reason 'abort'"),
        ("cut", "does not respond: "),
        ("stall", "did not respond for 0.5 seconds"),
    ],
)
def test_what_fails_again_and_again_stops_the_run_and_reports_its_progress(
    behind: Server, connect: Connect, fault: str, said: str
) -> None:
    behind.faults.extend(["fine"] * 4 + [fault] * 3)
    with pytest.raises(RunError) as failed:
        connect(concurrency=1, max_retries=2, timeout=0.5 if fault == "stall" else 600).generate(
            CONVERSATIONS, SAMPLING
        )
    assert f"the server at {behind.url} {said}" in failed.value.message
    assert failed.value.message.endswith("after up to 2 retries; 4 of 12 completions had arrived")
    assert failed.value.hints[0] == "run the same command to resume"
    assert len(behind.asked) == 4 + 3


def test_a_server_that_is_not_running_is_an_error(behind: Server, connect: Connect) -> None:
    generator = opened(base_url="http://127.0.0.1:9/v1", max_retries=1)
    with pytest.raises(RunError, match=r"the server at http://127.0.0.1:9/v1 does not respond: .+ 0 of 1 completions"):
        generator.generate(CONVERSATIONS[:1], SAMPLING)


@pytest.mark.parametrize(
    ("status", "said", "message", "hint"),
    [
        (401, {"error": {"message": f"wrong key {KEY[:7]}"}}, "with status 401", "OPENAI_API_KEY"),
        (403, {"error": {"message": "not yours"}}, "with status 403: not yours", "OPENAI_API_KEY"),
        (404, {"error": {"message": "no model `tiny`"}}, "with status 404: no model `tiny`", "--model"),
        (404, {"detail": "Not Found"}, "with status 404: Not Found", "/v1"),
        (400, {"error": {"message": "top_k\x1b[2J\nis unknown"}}, "status 400: top_k [2J is unknown", "extra_body"),
        (422, {"error": {"message": f"bad: {KEY}"}}, "with status 422: bad: ***", "extra_body"),
    ],
)
def test_a_refusal_is_raised_at_once(
    behind: Server,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    said: dict[str, Any],
    message: str,
    hint: str,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    behind.always = lambda body: JSONResponse(said, status)
    with pytest.raises(UsageError) as refused:
        connect(concurrency=1).generate(CONVERSATIONS, SAMPLING)
    assert refused.value.message.startswith(f"the server at {behind.url} refuses `tiny` with status {status}")
    assert message in refused.value.message
    assert hint in str(refused.value.hints)
    assert KEY[:7] not in str(refused.value)
    assert len(behind.asked) == 1


@pytest.mark.parametrize(
    "error",
    [
        {"message": "This model's maximum context length is 2048 tokens. However, you requested 9999 tokens"},
        {"message": "too many tokens", "code": "context_length_exceeded"},
        {"message": "the request exceeds the available context size", "type": "exceed_context_size_error"},
        {"message": "The input (70 tokens) is longer than the model's context length (64 tokens)."},
        {"message": "The decoder prompt (length 70) is longer than the maximum model length of 64."},
    ],
)
def test_a_prompt_that_does_not_fit_is_left_out(behind: Server, connect: Connect, error: dict[str, str]) -> None:
    def refused(body: dict[str, Any]) -> Response | None:
        return JSONResponse({"error": error}, 400) if body["messages"][0]["content"] == "Say 7." else None

    behind.always = refused
    given = connect().generate(CONVERSATIONS, SAMPLING)
    assert [index for index, one in enumerate(given) if one.stopped == "overlong"] == [7]
    assert error["message"] in given[7].fault


def choice(content: str | None, reason: str, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    return {"choices": [{"message": message, "finish_reason": reason, **more}], "usage": {"completion_tokens": 4}}


CALLS = [{"id": "1", "type": "function", "function": {"name": "wrench", "arguments": '{"turns": 2,}'}}]


@pytest.mark.parametrize(
    ("said", "completion"),
    [
        (choice("ab", "stop"), Completion(text="ab", token_ids=None, tokens=4, stopped="end")),
        (choice("ab", "length"), Completion(text="ab", token_ids=None, tokens=4, stopped="length")),
        (choice(None, "stop"), Completion(text="", token_ids=None, tokens=4, stopped="end")),
        (
            choice("ab", "stop", token_ids=[1, 2, 3, 4]),
            Completion(text="ab", token_ids=[1, 2, 3, 4], tokens=4, stopped="end"),
        ),
        (
            choice("So:", "tool_calls", message={"tool_calls": CALLS}),
            Completion(
                text='So:\n<tool_call>\n{"name": "wrench", "arguments": {"turns": 2,}}\n</tool_call>',
                token_ids=None,
                tokens=4,
                stopped="end",
            ),
        ),
    ],
)
def test_an_answer_is_a_completion(
    behind: Server, connect: Connect, said: dict[str, Any], completion: Completion
) -> None:
    behind.always = lambda body: JSONResponse(said)
    assert connect().generate(CONVERSATIONS[:1], SAMPLING) == [completion]


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ({"content": "It is 7.", "reasoning": "3 + 4"}, ("It is 7.", "3 + 4", True)),
        ({"content": "It is 7.", "reasoning_content": "3 + 4"}, ("It is 7.", "3 + 4", True)),
        ({"content": None, "reasoning": "3 +"}, ("", "3 +", False)),
        ({"content": None, "reasoning": "Use it.", "tool_calls": CALLS}, (None, "Use it.", True)),
        ({"content": "<think>\n3 + 4\n</think>\n\nIt is 7."}, ("It is 7.", "3 + 4", True)),
        ({"content": "3 + 4\n</think>\n\nIt is 7."}, ("It is 7.", "3 + 4", True)),
        ({"content": "<think>\n3 +"}, ("", "3 +", False)),
        ({"content": "\n", "reasoning": "3 +"}, ("\n", "3 +", False)),
        ({"content": "It is 7.", "reasoning": None}, ("It is 7.", None, True)),
        ({"content": "I put it between <think> and </think>."}, ("I put it between <think> and </think>.", None, True)),
    ],
)
def test_thinking_is_apart_from_the_answer(
    behind: Server, connect: Connect, message: dict[str, Any], parts: tuple[str | None, str | None, bool]
) -> None:
    content = message.pop("content")
    behind.always = lambda body: JSONResponse(choice(content, "length", message=message))
    (completion,) = connect().generate(CONVERSATIONS[:1], SAMPLING)
    answer, thinking, closed = parts
    assert (completion.thinking, completion.thought_closed) == (thinking, closed)
    assert completion.text == answer or (answer is None and "wrench" in completion.text)
    assert completion.cut_in_thought == (not closed)
    marked = f"<think>\n{thinking}\n</think>\n\n{completion.text}"  # what a task that reads everything receives
    assert completion.raw == (None if thinking is None else marked)


def test_the_arguments_of_the_chat_template_are_sent_and_part_of_the_cache(behind: Server, tmp_path: Path) -> None:
    def generate(template: dict[str, Any]) -> None:
        options = {"base_url": behind.url}
        config = Config(task="toy", engine="openai", engine_options=options, template=template)
        with Run.open(tmp_path, {}) as run:
            engine_of(config).open(MODEL, run=run).generate(CONVERSATIONS[:1], SAMPLING)

    for template in ({"enable_thinking": False}, {"enable_thinking": False}, {"enable_thinking": True}, {}):
        generate(template)
    assert [body.get("chat_template_kwargs") for body in behind.asked] == [
        {"enable_thinking": False},
        {"enable_thinking": True},
        None,
    ]


def test_openais_own_server_gets_the_effort_as_a_field_and_no_thinking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    generator = OpenAIGenerator("gpt", ServerOptions(), template={"reasoning_effort": "low"})
    messages = [*CONVERSATIONS[0].messages, {"role": "assistant", "content": "7", "reasoning_content": "3 + 4"}]
    body = generator._body(Prompt(messages=messages), SAMPLING, 0)
    assert body["reasoning_effort"] == "low"
    assert "chat_template_kwargs" not in body
    assert body["messages"] == [messages[0], {"role": "assistant", "content": "7"}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"template": {"enable_thinking": False}},
            r"`template\.enable_thinking` is refused: .*template\.reasoning_effort alone",
        ),
        ({"chat_template": "{{ messages }}"}, "the chat template is the server's"),
        (
            {"template": {"a": 1}, "engine_options": {"extra_body": {"chat_template_kwargs": {"a": 2}}}},
            "are both set",
        ),
    ],
)
def test_what_a_server_does_not_take_is_refused_before_any_request(
    settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ConfigError, match=message):
        engine_of(Config(task="toy", engine="openai", **settings)).check()


def test_an_earlier_thought_is_sent_under_the_names_that_servers_read(behind: Server, connect: Connect) -> None:
    call = {"type": "function", "id": "call00000", "function": {"name": "f", "arguments": {}}}
    turn = {"role": "assistant", "content": "7", "reasoning_content": "3 + 4", "tool_calls": [call], "token_ids": [1]}
    connect().generate([CONVERSATIONS[0].then(turn, {"role": "user", "content": "Again."})], SAMPLING)
    sent = {"role": "assistant", "content": "7", "reasoning_content": "3 + 4", "reasoning": "3 + 4"}
    assert behind.asked[0]["messages"][1] == sent


def test_json_under_another_type_is_read_all_the_same(behind: Server, connect: Connect) -> None:
    behind.always = lambda body: Response(json.dumps(choice("ab", "stop")), media_type="text/plain")
    assert connect().generate(CONVERSATIONS[:1], SAMPLING)[0].text == "ab"


def test_what_a_filter_cut_off_is_warned_of(
    behind: Server, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    behind.always = lambda body: JSONResponse(choice("a", "content_filter"))
    completions = connect().generate(CONVERSATIONS[:2], SAMPLING)
    assert [(completion.text, completion.stopped) for completion in completions] == [("a", "end")] * 2
    assert capsys.readouterr().err == "warning: the server's content filter cut off 2 completions\n"


def test_tools_of_a_conversation_and_further_options_are_sent(behind: Server, connect: Connect) -> None:
    tools = [{"type": "function", "function": {"name": "wrench", "parameters": {"type": "object"}}}]
    conversation = Prompt(messages=CONVERSATIONS[0].messages, tools=tools)
    connect(extra_body={"tool_choice": "none", "min_p": 0.1}).generate([conversation], SAMPLING)
    assert behind.asked[0]["tools"] == tools
    assert behind.asked[0]["messages"] == CONVERSATIONS[0].messages
    assert (behind.asked[0]["tool_choice"], behind.asked[0]["min_p"]) == ("none", 0.1)


def drained(behind: Server) -> bool:
    """Tell whether the server is soon without an open request."""
    until = monotonic() + 5
    while behind.open and monotonic() < until:
        Event().wait(0.01)
    return behind.open == 0


def test_when_the_caller_gives_up_no_request_stays_open(behind: Server, connect: Connect) -> None:
    behind.hold_after = 2
    generator = connect(concurrency=4)

    def ended(new: Sequence[tuple[int, Completion]]) -> None:
        assert behind.held.wait(5)
        raise RunError("enough")

    with pytest.raises(RunError, match="enough"):
        generator.generate(CONVERSATIONS, SAMPLING, ended=ended)
    assert drained(behind)
    assert len(behind.asked) <= 2 + 4
    behind.hold_after = None
    assert len(generator.generate(CONVERSATIONS, SAMPLING)) == len(CONVERSATIONS)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler for SIGINT: a process in the background may have been started with none."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_no_request_open(behind: Server, connect: Connect) -> None:
    behind.hold_after = 0
    ident = main_thread().ident
    assert ident is not None

    def interrupt() -> None:
        behind.held.wait(5)
        signal.pthread_kill(ident, signal.SIGINT)

    thread = Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        connect(concurrency=4).generate(CONVERSATIONS, SAMPLING)
    thread.join()
    assert drained(behind)


def test_it_works_where_an_event_loop_is_running(behind: Server, connect: Connect) -> None:
    async def notebook() -> list[Completion]:
        return connect().generate(CONVERSATIONS, SAMPLING)

    assert asyncio.run(notebook()) == connect().generate(CONVERSATIONS, SAMPLING)


def test_no_request_is_sent_again_for_a_cached_completion(behind: Server, connect: Connect, tmp_path: Path) -> None:
    expected = connect().generate(CONVERSATIONS, SAMPLING)
    behind.asked.clear()
    behind.faults.extend(["fine"] * 5 + ["500"])
    with (
        Run.open(tmp_path, {}) as run,
        pytest.raises(RunError, match="5 of 12 completions had arrived, and are cached"),
    ):
        connect(run, concurrency=1, max_retries=0).generate(CONVERSATIONS, SAMPLING)
    rows = tmp_path / "requests.jsonl"
    assert rows.read_bytes().count(b"\n") == 5
    rows.write_bytes(rows.read_bytes()[:-9])  # a kill tore the last row
    told: list[int] = []
    with Run.open(tmp_path, {}) as run:
        behind.asked.clear()
        generator = connect(run)
        assert generator.generate(CONVERSATIONS, SAMPLING, ended=lambda new: told.extend(i for i, _ in new)) == expected
        assert sorted(told) == list(range(12))
        assert len(behind.asked) == 12 - 4
        assert generator.generate(CONVERSATIONS, SAMPLING) == expected
        assert len(behind.asked) == 12 - 4
        generator.generate(CONVERSATIONS, SAMPLING.model_copy(update={"seed": 4}))
        assert len(behind.asked) == 12 - 4 + 12


def test_a_server_cannot_continue_tokens() -> None:
    config = Config(task="toy", engine="openai", history="verbatim", engine_options={"base_url": "http://localhost/v1"})
    with pytest.raises(ConfigError, match="`history` cannot be verbatim with engine `openai`"):
        engine_of(config).check()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"concurency": 3},
            "the engine `openai` has no option `concurency`; its options: base_url, concurrency, extra_body, ",
        ),
        ({"concurency": 3}, "hint: did you mean `concurrency`?"),
        ({"concurrency": 0}, "`engine_options.concurrency` cannot be 0: it should be greater than 0"),
        ({"timeout": "soon"}, "`engine_options.timeout` cannot be 'soon': it should be a valid number"),
        ({"max_retries": -1}, "`engine_options.max_retries` cannot be -1"),
        ({"base_url": "localhost:8000"}, "`engine_options.base_url` cannot be 'localhost:8000': it should be a URL"),
        (
            {"extra_body": {"max_tokens": 3}},
            "`engine_options.extra_body.max_tokens` is refused: r3 sets it in every request",
        ),
    ],
)
def test_a_wrong_option_is_an_error(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        opened(**options)
    assert said in str(wrong.value)


SECRETS = [
    {"api_key": KEY},
    {"apikey": KEY},
    {"extra_body": {"api_key": KEY}},
    {"base_url": f"https://me:{KEY}@localhost/v1"},
    {"base_url": f"https://localhost/v1?key={KEY}"},
]


@pytest.mark.parametrize("options", SECRETS)
def test_a_key_in_the_configuration_is_refused_and_not_repeated(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        opened(**options)
    assert "OPENAI_API_KEY" in str(refused.value)
    assert KEY not in str(refused.value)


def test_openai_itself_requires_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "")
    with pytest.raises(ConfigError, match=r"requests go to https://api\.openai\.com/v1, and the environment"):
        opened()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    opened()


def test_the_environment_names_the_server_and_the_key(
    behind: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect().generate(CONVERSATIONS[:1], SAMPLING)
    monkeypatch.setenv("OPENAI_BASE_URL", behind.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    opened().generate(CONVERSATIONS[:1], SAMPLING)
    assert behind.authorizations == {"Bearer no-key": 1, f"Bearer {KEY}": 1}
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://me:{KEY}@localhost")
    with pytest.raises(ConfigError, match="`OPENAI_BASE_URL` is refused") as refused:
        opened()
    assert KEY not in str(refused.value)


def settings(*overrides: str) -> list[str]:
    tiny = [f"sampling.{turn}.max_tokens=6" for turn in ("attempt", "reflection", "retry")]
    limits = ["mine.limit=12", "mine.probe=2", "mine.keep_truncated=true"]
    limits += ["evaluate.limit=8", "judge.workers=1"]
    return [word for override in (*tiny, *limits, *overrides) for word in ("--set", override)]


def asking(behind: Server, *overrides: str, directory: str = "run") -> list[str]:
    url = f"engine_options.base_url={behind.url}"
    options = ["--task", TASK, "--engine", "openai", "--model", MODEL, "--output-dir", directory]
    return [*options, *settings(url, *overrides)]


def test_a_model_behind_a_server_is_evaluated_and_the_key_is_in_no_file(
    r3: R3, behind: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    said = r3("eval", *asking(behind), "--json")
    assert said.code == 0, said.err
    result = json.loads(said.out)
    assert result["base"]["first"]["total"] == 8
    assert result["trained"] is None
    assert len(behind.asked) > 8  # reflections and retries too
    assert behind.authorizations.keys() == {f"Bearer {KEY}"}
    files = [path for path in Path("run").rglob("*") if path.is_file()]
    assert Path("run/requests.jsonl") in files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in said.out + said.err
    asked = len(behind.asked)
    assert r3("eval", "--output-dir", "run").code == 0
    assert r3("report", "--output-dir", "run").code == 0
    assert len(behind.asked) == asked


def test_failures_are_mined_from_a_server(r3: R3, behind: Server) -> None:
    said = r3("mine", *asking(behind), "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["counts"]["attempts"] == 12
    assert json.loads(Path("run/failures/card.json").read_text())["model"] == MODEL
    assert "forecast" in said.err


@pytest.mark.processes
def test_after_a_kill_only_missing_requests_are_sent(r3: R3, behind: Server, tmp_path: Path) -> None:
    arguments = asking(behind, "engine_options.concurrency=3")
    assert r3("eval", *asking(behind, "engine_options.concurrency=3", directory="whole")).code == 0
    needed = Counter(behind.bodies())
    behind.asked.clear()
    behind.hold_after = behind.answered + 11  # in the midst of the second turn
    program = [sys.executable, "-c", "from r3core.cli.main import main; main()", "eval", *arguments]
    with subprocess.Popen(program, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}) as process:
        rows, until = tmp_path / "run/requests.jsonl", monotonic() + 60
        while not (behind.held.wait(0.02) and rows.exists() and rows.read_bytes().count(b"\n") == 11):
            if process.poll() is not None or monotonic() > until:
                break
        process.kill()
    assert rows.read_bytes().count(b"\n") == 11
    lost = Counter(behind.bodies())
    assert lost.total() in range(12, 15)  # eleven answers, and up to three that were being written
    behind.hold_after = None
    before = len(behind.asked)
    assert r3("eval", *arguments).code == 0
    again = Counter(behind.bodies()[before:])
    assert again.total() == needed.total() - 11
    assert (lost | again) == needed
    assert Path("run/evaluate-base.jsonl").read_bytes() == Path("whole/evaluate-base.jsonl").read_bytes()


@pytest.mark.parametrize("command", ["run", "train"])
def test_a_model_behind_a_server_is_not_trained(r3: R3, behind: Server, command: str) -> None:
    said = r3(command, *asking(behind))
    assert said.code == 2
    assert "a model behind a server cannot be trained here; `r3 mine` and `r3 eval` work with one" in said.err
    assert "--failures" in said.err
    assert not Path("run").exists()


def test_a_model_behind_a_server_is_not_shown(r3: R3) -> None:
    said = r3("show", "--task", TASK, "--model", MODEL, "--set", "engine=openai")
    assert said.code == 2
    assert "a model behind a server cannot be shown here" in said.err


def test_a_model_of_a_server_must_be_named(r3: R3, behind: Server) -> None:
    said = r3("eval", "--task", "countdown", "--engine", "openai", "--output-dir", "run")
    assert said.code == 2
    assert "no model is named, and a server has no built-in model" in said.err


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_key_on_the_command_line_is_refused_before_anything_is_written(
    r3: R3, behind: Server, more: list[str]
) -> None:
    said = r3("eval", *asking(behind, f"engine_options.api_key={KEY}"), *more)
    assert said.code == 2
    assert "`engine_options.api_key` is refused" in said.err
    assert KEY not in said.out + said.err
    assert not Path("run").exists()


def test_a_trained_folder_is_not_compared_through_a_server(r3: R3, behind: Server) -> None:
    origin = {"model": "a/b", "revision": None, "task": TASK, "task_options": {}}
    Path("trained").mkdir()
    Path("trained/r3.json").write_text(json.dumps(origin))
    said = r3("eval", "--engine", "openai", "--model", "trained")
    assert said.code == 2
    assert "a server cannot compare" in said.err
    assert behind.asked == []
