"""Function calls from the generated tokens to the verifier, and back into later prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from templates import tokenizer_with, trl_template

from r3core import Example, Prompt, Task, Verdict, Wording, prompts
from r3core.config import Config
from r3core.episode import Reflection, ToolCall
from r3core.generation.chat import completion, encode
from r3core.generation.generator import Completion, Continued, Ended, Sampling
from r3core.protocol import Protocol
from r3core.verification.judge import Judge

TOOL = {
    "type": "function",
    "function": {
        "name": "area",
        "description": "Return an area.",
        "parameters": {"type": "object", "properties": {"side": {"type": "integer"}}, "required": ["side"]},
    },
}
ASKED = Prompt(messages=[{"role": "user", "content": "Say 7."}], tools=[TOOL])
JSON_CALL = '<tool_call>\n{"name": "area", "arguments": {"side": 7}}\n</tool_call>'
WRITTEN = {  # the stored template -> a call as its models write it
    "qwen2_5": JSON_CALL,
    "qwen3_5_nothink": "<tool_call>\n<function=area>\n<parameter=side>\n7\n</parameter>\n</function>\n</tool_call>",
    "llama3_1": '{"name": "area", "parameters": {"side": 7}}',
    "gemma4": "<|tool_call>call:area{side:7}<tool_call|>",
    "lfm2_v2": "<|tool_call_start|>[area(side=7)]<|tool_call_end|>",
    "glm4moe": "<tool_call>area\n<arg_key>side</arg_key>\n<arg_value>7</arg_value>\n</tool_call>",
    "gptoss": '<|channel|>commentary to=functions.area <|constrain|>json<|message|>{"side": 7}',
}


def generated(tokenizer: Any, text: str) -> Completion:
    ids = tokenizer.encode(text, add_special_tokens=False)
    request = encode(tokenizer, ASKED)
    return completion(
        tokenizer, Continued([*ids, tokenizer.eos_token_id], ended=True), request=request, tools=ASKED.tools
    )


@pytest.mark.parametrize("name", WRITTEN)
def test_the_verifier_reads_json_whatever_form_the_model_writes(name: str) -> None:
    made = generated(tokenizer_with(trl_template(name)), WRITTEN[name])
    assert made.text == JSON_CALL
    assert made.malformed == ""
    if name != "qwen2_5":  # whose form is the verifier's own
        assert made.calls == (ToolCall(name="area", arguments={"side": 7}),)


def test_calls_are_read_only_where_tools_were_offered() -> None:
    tokenizer = tokenizer_with(trl_template("qwen3_5_nothink"))
    ids = tokenizer.encode(WRITTEN["qwen3_5_nothink"], add_special_tokens=False)
    made = completion(tokenizer, Continued(ids, ended=False))
    assert (made.calls, made.text) == ((), WRITTEN["qwen3_5_nothink"])


@pytest.mark.parametrize("name", WRITTEN)
def test_a_later_prompt_shows_the_call_as_the_template_writes_it(name: str) -> None:
    tokenizer = tokenizer_with(trl_template(name))
    made = generated(tokenizer, WRITTEN[name])
    turn = Reflection(**made.model_dump(exclude={"fault"}))
    request = prompts.reflect(ASKED, turn, "No.", Wording())
    shown = tokenizer.decode(encode(tokenizer, request))
    before, _, after = shown.rpartition("No. " + Wording().reflect)
    assert "area" in before.rpartition("Say 7.")[2]
    if name != "gptoss":  # the only one with tokens of turns inside a call: its template writes the call anew
        assert WRITTEN[name] in before
    else:
        assert "to=functions.area<|channel|>commentary json<|message|>" in before.replace("assistant", "")
    assert after


class Area(Task):
    """Call a tool."""

    name = "area"

    def load(self, split: str) -> list[Example]:
        return []

    def prompt(self, example: Example) -> Prompt:
        return ASKED

    def verify(self, example: Example, response: str) -> Verdict | bool:
        return "area" in response


class Writes:
    """A generator that always writes the same text, with a tokenizer."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.tokenizer = tokenizer
        self.text = text

    def generate(
        self, conversations: Sequence[Prompt], sampling: Sampling, *, ended: Ended | None = None
    ) -> list[Completion]:
        made = [generated(self.tokenizer, self.text) for _ in conversations]
        if ended:
            ended(list(enumerate(made)))
        return made

    def close(self) -> None:
        """Do nothing."""


def test_a_malformed_call_is_a_failed_verdict_and_never_repaired() -> None:
    tokenizer = tokenizer_with(trl_template("gemma4"))
    protocol = Protocol(Area(), Judge(Area()), Config(task="area"))
    good, broken = WRITTEN["gemma4"], "<|tool_call>call:area{side:7<tool_call|>"
    verdicts = [
        protocol.attempt([Example(id="a")], Writes(tokenizer, text), seed=0)[0].attempt.verdict
        for text in (good, broken)
    ]
    assert [verdict.outcome for verdict in verdicts] == ["pass", "fail"]
    assert verdicts[1].kind == "malformed call"


SURROGATE = {
    "llama3_1": '{"name": "area", "parameters": {"side": "\\ud800"}}',
    "gptoss": '<|channel|>commentary to=functions.area <|constrain|>json<|message|>{"side": "\\ud800"}',
    "gemma4": '<|tool_call>call:area{side:<|"|>\\ud800<|"|>}<tool_call|>',
    "lfm2_v2": "<|tool_call_start|>[area(side='\\ud800')]<|tool_call_end|>",
}


@pytest.mark.parametrize("name", SURROGATE)
def test_half_a_surrogate_pair_never_gets_into_a_record(name: str) -> None:
    made = generated(tokenizer_with(trl_template(name)), SURROGATE[name])
    assert made.malformed or "\\\\ud800" in made.text
    made.model_dump_json()  # no file can hold half a pair


@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>analysis<|message|>think<|end|><|start|>assistant<|channel|>commentary<|message|>Let me call."
        "<|end|><|start|>assistant" + WRITTEN["gptoss"],
        "<|channel|>analysis<|message|>think<|end|><|start|>assistant" + WRITTEN["gptoss"],
    ],
)
def test_a_call_beside_a_thought_or_a_text_arrives_in_later_prompts(text: str) -> None:
    tokenizer = tokenizer_with(trl_template("gptoss"))
    turn = Reflection(**generated(tokenizer, text).model_dump(exclude={"fault"}))
    assert turn.calls
    shown = tokenizer.decode(encode(tokenizer, prompts.reflect(ASKED, turn, "No.", Wording())))
    assert "area" in shown.rpartition("Say 7.")[2].rpartition("No.")[0]


def test_tags_of_calls_that_are_special_tokens_stay_in_the_answer() -> None:
    tokenizer = tokenizer_with(trl_template("qwen2_5"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>", "<|im_start|>"]})
    assert generated(tokenizer, JSON_CALL).text == JSON_CALL
