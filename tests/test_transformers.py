"""The local engine on a random Llama: what it generates must not depend on who else is in the batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny

from r3core import Prompt, UsageError
from r3core.generation.chat import encode
from r3core.generation.generator import Completion, Sampling, TooLong
from r3core.generation.models import load_model, load_tokenizer
from r3core.generation.template import PLAIN
from r3core.generation.transformers import TransformersGenerator

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

GREEDY = Sampling(temperature=0, max_tokens=12)
LENGTHS = (3, 40, 1, 17, 17, 90, 8, 2)
CONVERSATIONS = [
    Prompt(messages=[{"role": "user", "content": f"{place}" + "ab" * length}]) for place, length in enumerate(LENGTHS)
]


WRENCH = {"type": "function", "function": {"name": "wrench", "description": "", "parameters": {"type": "object"}}}
WITH_TOOLS = Prompt(messages=[{"role": "user", "content": "Turn it."}], tools=[WRENCH])


def test_tools_of_a_conversation_go_to_the_chat_template(tiny_model: LlamaForCausalLM) -> None:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = tiny.TOOL_TEMPLATE
    ids = encode(tokenizer, WITH_TOOLS)
    shown = json.dumps(WRENCH)
    assert tokenizer.decode(ids) == f"<|system|>Tools:{shown}<|end|><|user|>Turn it.<|end|><|assistant|>"


def test_a_chat_template_without_a_place_for_tools_is_refused(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(UsageError, match="this model's chat template has no place for tools"):
        TransformersGenerator(tiny_model, tiny_tokenizer).generate([WITH_TOOLS], GREEDY)


@pytest.fixture
def generator(tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> TransformersGenerator:
    """A generator whose text depends on all that came before; the small model as it is repeats its last token."""
    import torch

    random = torch.Generator().manual_seed(0)
    tiny_model.lm_head.weight = torch.nn.Parameter(tiny_model.lm_head.weight.clone())  # no longer tied
    with torch.no_grad():
        for weights in tiny_model.parameters():
            if weights.dim() == 2:
                weights.normal_(0, 0.3, generator=random)
    return TransformersGenerator(tiny_model, tiny_tokenizer)


@pytest.fixture
def ending(generator: TransformersGenerator) -> TransformersGenerator:
    """The same, with a model that ends its turns early and unevenly: every seventh token is an end."""
    generator.model.generation_config.eos_token_id = list(range(0, len(generator.tokenizer), 7))
    return generator


def rows_of(generator: TransformersGenerator) -> list[tuple[int, int]]:
    """Return a list that gets the shape of every forward call's input."""
    shapes: list[tuple[int, int]] = []

    def seen(module: Any, positional: Any, named: dict[str, Any]) -> None:
        shapes.append(tuple(named["input_ids"].shape))

    generator.model.register_forward_pre_hook(seen, with_kwargs=True)
    return shapes


def test_who_else_is_in_the_batch_changes_nothing(ending: TransformersGenerator) -> None:
    alone = [ending.generate([conversation], GREEDY)[0] for conversation in CONVERSATIONS]
    assert ending.generate(CONVERSATIONS, GREEDY) == alone
    assert {completion.stopped for completion in alone} == {"end", "length"}
    assert len({len(completion.token_ids) for completion in alone}) > 3


def test_positions_count_from_where_each_prompt_begins(generator: TransformersGenerator) -> None:
    """A Llama would not notice, as only distances count there; models with absolute positions would."""
    seen: list[list[list[int]]] = []

    def remember(module: Any, positional: Any, named: dict[str, Any]) -> None:
        places, new = named["position_ids"], named["input_ids"].shape[1]
        real = named["attention_mask"][:, -new:].bool()
        seen.append([row[kept].tolist() for row, kept in zip(places, real, strict=True)])

    generator.model.register_forward_pre_hook(remember, with_kwargs=True)
    generator.generate(CONVERSATIONS, Sampling(temperature=0, max_tokens=3))
    lengths = sorted((len(encode(generator.tokenizer, conversation)) for conversation in CONVERSATIONS), reverse=True)
    assert seen == [
        [list(range(length)) for length in lengths],
        [[length] for length in lengths],
        [[length + 1] for length in lengths],
    ]


def test_batches_of_any_size_give_the_same(
    ending: TransformersGenerator, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    small = TransformersGenerator(ending.model, tiny_tokenizer, batch_size=3)
    assert small.generate(CONVERSATIONS, GREEDY) == ending.generate(CONVERSATIONS, GREEDY)


def test_greedy_decoding_is_that_of_transformers(generator: TransformersGenerator) -> None:
    import torch

    prompts = [encode(generator.tokenizer, conversation) for conversation in CONVERSATIONS]
    ours = [continued.ids for continued in generator.continue_ids(prompts, GREEDY)]
    for prompt, ids in zip(prompts, ours, strict=True):
        theirs = generator.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=GREEDY.max_tokens,
        )
        assert theirs[0, len(prompt) :].tolist() == ids


def test_one_seed_gives_one_text(generator: TransformersGenerator) -> None:
    def said(seed: int) -> list[list[int]]:
        sampling = Sampling(max_tokens=12, seed=seed)
        return [completion.token_ids for completion in generator.generate(CONVERSATIONS, sampling)]

    assert said(1) == said(1)
    assert said(1) != said(2)
    assert len({tuple(ids) for ids in said(1)}) == len(CONVERSATIONS)


def test_the_global_random_state_is_left_alone(generator: TransformersGenerator) -> None:
    import torch

    before = torch.random.get_rng_state()
    generator.generate(CONVERSATIONS, Sampling(max_tokens=3))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_rows_that_ended_leave_the_batch(ending: TransformersGenerator) -> None:
    shapes = rows_of(ending)
    completions = ending.generate(CONVERSATIONS, Sampling(max_tokens=30, seed=3))
    rows = [count for count, _ in shapes]
    assert rows[0] == len(CONVERSATIONS)
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < len(CONVERSATIONS) / 2
    lengths = [len(completion.token_ids) + (completion.stopped == "end") for completion in completions]
    assert len(rows) == max(lengths)
    for step, count in enumerate(rows):  # never many more rows than there are turns that go on
        assert count <= sum(length > step for length in lengths) / 0.7 + 1


def test_a_prompt_that_is_there_several_times_is_computed_once(ending: TransformersGenerator) -> None:
    conversations = [*CONVERSATIONS, *CONVERSATIONS[:3], *CONVERSATIONS]
    alone = [ending.generate([conversation], GREEDY)[0] for conversation in CONVERSATIONS]
    shapes = rows_of(ending)
    assert ending.generate(conversations, GREEDY) == [*alone, *alone[:3], *alone]
    assert shapes[0][0] == len(CONVERSATIONS)
    assert shapes[1][0] > len(CONVERSATIONS)
    drawn = ending.generate(CONVERSATIONS[:1] * 20, Sampling(max_tokens=6, seed=1))
    assert len({tuple(completion.token_ids or ()) for completion in drawn}) > 10


def test_after_the_prompt_only_the_new_token_is_computed(generator: TransformersGenerator) -> None:
    shapes = rows_of(generator)
    generator.generate(CONVERSATIONS[:2], Sampling(temperature=0, max_tokens=5))
    prompt = max(len(encode(generator.tokenizer, conversation)) for conversation in CONVERSATIONS[:2])
    assert shapes == [(2, prompt)] + [(2, 1)] * 4


def test_long_prompts_are_not_padded_to_and_do_not_pad_short_ones(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    generator = TransformersGenerator(tiny_model, tiny_tokenizer, batch_size=4)
    shapes = rows_of(generator)
    generator.generate(CONVERSATIONS, Sampling(temperature=0, max_tokens=1))
    lengths = sorted((len(encode(generator.tokenizer, conversation)) for conversation in CONVERSATIONS), reverse=True)
    assert shapes == [(4, lengths[0]), (4, lengths[4])]


def test_a_turn_ends_at_the_limit(generator: TransformersGenerator) -> None:
    for limit in (1, 7):
        for completion in generator.generate(CONVERSATIONS, Sampling(max_tokens=limit)):
            assert len(completion.token_ids) <= limit
            assert (completion.stopped == "length") == (len(completion.token_ids) == limit)


def test_the_end_token_ends_a_turn_and_is_not_part_of_it(ending: TransformersGenerator) -> None:
    ends = set(ending.model.generation_config.eos_token_id)
    prompts = [encode(ending.tokenizer, conversation) for conversation in CONVERSATIONS]
    completions = ending.generate(CONVERSATIONS, GREEDY)
    for (ids, ended, _), completion in zip(ending.continue_ids(prompts, GREEDY), completions, strict=True):
        assert not ends & set(completion.token_ids)
        assert ended == (completion.stopped == "end")
        assert ids[: len(completion.token_ids)] == completion.token_ids
        assert (ids[-1] in ends) == ended


def test_the_tokenizers_end_counts_too(generator: TransformersGenerator) -> None:
    generator.model.generation_config.eos_token_id = None
    first = generator.generate(CONVERSATIONS[:1], GREEDY)[0].token_ids[0]
    generator.tokenizer.eos_token_id = first
    try:
        completion = generator.generate(CONVERSATIONS[:1], GREEDY)[0]
    finally:
        generator.tokenizer.eos_token = "<|end|>"
    assert (completion.token_ids, completion.text, completion.stopped) == ([], "", "end")


@pytest.mark.parametrize(
    "sampling", [Sampling(top_k=1, max_tokens=12), Sampling(top_p=1e-6, max_tokens=12)], ids=["top_k", "top_p"]
)
def test_the_narrowest_sampling_is_greedy(generator: TransformersGenerator, sampling: Sampling) -> None:
    assert generator.generate(CONVERSATIONS, sampling) == generator.generate(CONVERSATIONS, GREEDY)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [({}, {0, 1, 2, 3}), ({"top_k": 2}, {0, 1}), ({"top_p": 0.6}, {0, 1}), ({"top_k": 3, "top_p": 0.1}, {0})],
)
def test_only_the_allowed_tokens_are_sampled(
    generator: TransformersGenerator, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], allowed: set[int]
) -> None:
    drawn, shares = drawn_from(generator, monkeypatch, Sampling(max_tokens=1, **options))
    assert drawn == allowed
    if not options:
        assert shares == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.04)


def test_a_low_temperature_sharpens(generator: TransformersGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    _, shares = drawn_from(generator, monkeypatch, Sampling(max_tokens=1, temperature=0.5))
    assert shares == pytest.approx([16 / 30, 9 / 30, 4 / 30, 1 / 30], abs=0.04)


def drawn_from(
    generator: TransformersGenerator, monkeypatch: pytest.MonkeyPatch, sampling: Sampling
) -> tuple[set[int], list[float]]:
    """Return which of the first four tokens are drawn, and how often, when they have 40, 30, 20 and 10 percent."""
    import torch

    count = 2000
    logits = torch.full((count, 1, len(generator.tokenizer)), -torch.inf)
    logits[..., :4] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    monkeypatch.setattr(generator.model, "forward", lambda **named: type("Output", (), {"logits": logits}))
    generator.batch_size = count
    tokens = [continued.ids[0] for continued in generator.continue_ids([[5]] * count, sampling)]
    return set(tokens), [tokens.count(token) / count for token in range(4)]


def test_completions_are_handed_over_once_each_and_before_the_last_has_ended(ending: TransformersGenerator) -> None:
    ending.batch_size = 6
    told: list[dict[int, Completion]] = []
    completions = ending.generate(CONVERSATIONS, GREEDY, ended=lambda new: told.append(dict(new)))
    indices = [index for new in told for index in new]
    assert sorted(indices) == list(range(len(CONVERSATIONS)))
    assert [completions[index] for index in indices] == [one for new in told for one in new.values()]
    lengths = [max(len(one.token_ids) for one in new.values()) for new in told]
    assert len(told) > 2  # two batches, and one of them at least shrank on its way
    assert min(lengths) < max(lengths)


def test_no_conversations_give_no_completions(generator: TransformersGenerator) -> None:
    assert generator.generate([], GREEDY) == []


def test_training_mode_is_given_back(generator: TransformersGenerator) -> None:
    generator.model.train()
    modes: list[bool] = []
    generator.model.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    generator.generate(CONVERSATIONS[:1], Sampling(max_tokens=2))
    assert modes[0] is False
    assert generator.model.training
    with pytest.raises(UsageError):
        generator.continue_ids([[1] * 3000], GREEDY)
    assert generator.model.training


def test_a_prompt_that_does_not_fit_is_named(generator: TransformersGenerator) -> None:
    long = Prompt(messages=[{"role": "user", "content": "abc" * 700}])
    *_, out = generator.generate([*CONVERSATIONS, long], GREEDY)
    assert (out.stopped, out.tokens) == ("overlong", 0)
    assert out.fault == "a prompt of 2103 tokens and 12 new ones exceed the model's context of 2048"
    with pytest.raises(TooLong, match="exceed the model's context of 2048: 'abcabc") as raised:
        generator.continue_ids([encode(generator.tokenizer, long)], GREEDY)
    assert raised.value.index == 0
    assert "max_tokens" in str(raised.value)
    [full] = generator.generate([Prompt(messages=[{"role": "user", "content": "a" * (2048 - 12 - 3)}])], GREEDY)
    assert full.stopped != "overlong", "it is exactly full"


def test_a_saved_model_is_loaded(generator: TransformersGenerator, tmp_path: Path) -> None:
    generator.model.config.tie_word_embeddings = False
    generator.model.save_pretrained(tmp_path)
    generator.tokenizer.save_pretrained(tmp_path)
    loaded = TransformersGenerator(*load_model(tmp_path))
    assert loaded.generate(CONVERSATIONS, GREEDY) == generator.generate(CONVERSATIONS, GREEDY)


def without(folder: Path, copy: Path, *names: str) -> Path:
    shutil.copytree(folder, copy)
    for name in names:
        (copy / name).unlink()
    return copy


def test_a_model_that_cannot_be_had_is_a_users_mistake(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"contains no model: there is no config\.json in it"):
        load_model(tmp_path)
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_model(without(tiny_folder, tmp_path / "weightless", "model.safetensors"))
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_model(without(tiny_folder, tmp_path / "wordless", "tokenizer.json", "tokenizer_config.json"))


def test_a_model_without_a_chat_template_gets_a_plain_one(tiny_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(without(tiny_folder, tmp_path / "base", "chat_template.jinja"))
    assert tokenizer.chat_template == PLAIN


def test_a_damaged_model_is_a_users_mistake(tiny_folder: Path, tmp_path: Path) -> None:
    damaged = without(tiny_folder, tmp_path / "damaged")
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_model(damaged)
    garbled = without(tiny_folder, tmp_path / "garbled")
    (garbled / "config.json").write_text('{"model_type": ')
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_model(garbled)


def test_a_tokenizer_without_padding_pads_with_its_end(tiny_folder: Path, tmp_path: Path) -> None:
    folder = without(tiny_folder, tmp_path / "unpadded")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model, tokenizer = load_model(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    alone = TransformersGenerator(model, tokenizer).generate(CONVERSATIONS[:1], GREEDY)
    assert TransformersGenerator(model, tokenizer).generate(CONVERSATIONS, GREEDY)[:1] == alone
