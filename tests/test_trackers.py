"""The sample of episodes that trackers receive: bounded, seeded, and with model text that is no markup."""

from __future__ import annotations

from pathlib import Path

import pytest

from r3core import Verdict
from r3core.episode import Answer, Reflection
from r3core.training.trackers import EPISODES, TEXT, as_markdown, end_runs, sampled

HOSTILE = "<script>x</script> ![a](http://a.example/b.png) \x1b[31m\x00\u202e\n# heading\n\n    "


def rows(count: int, *, reflection: str = "Add.", retry: str = "7") -> list[dict[str, object]]:
    return [
        {
            "step": 3,
            "id": f"problem-{index}",
            "reflection": Reflection(text=reflection, tokens=1, stopped="end", leaked=False),
            "retries": [Answer(text=retry, tokens=1, stopped="end", verdict=Verdict.failed("is 8", kind="other"))],
            "reward": 0.0,
        }
        for index in range(count)
    ]


def test_a_row_has_what_people_read_of_an_episode() -> None:
    assert sampled(rows(1), seed=0) == [
        {
            "step": 3,
            "id": "problem-0",
            "reflection": "Add.",
            "retry": "7",
            "verdict": "fail: is 8",
            "reward": 0.0,
            "leaked": False,
        }
    ]


def test_the_sample_is_bounded_and_decided_by_the_seed() -> None:
    ids = [[row["id"] for row in sampled(rows(100), seed=seed)] for seed in (0, 0, 1)]
    assert len(ids[0]) == EPISODES
    assert ids[0] == ids[1] != ids[2]
    assert ids[0] == sorted(ids[0], key=lambda name: int(str(name).rpartition("-")[2])), "in the order of the rows"


def test_long_texts_are_cut_off() -> None:
    [row] = sampled(rows(1, reflection="x" * 1_000_000), seed=0)
    assert len(row["reflection"]) < TEXT + 50


def test_model_text_stays_inside_the_code_block() -> None:
    text = as_markdown(sampled(rows(2, reflection=HOSTILE, retry=HOSTILE), seed=0))
    assert all(line.startswith("    ") for line in text.split("\n"))
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("piece", ["<script>", "![a](", "\x1b", "\x00", "\u202e", "\n"])
def test_model_text_is_no_markup_in_a_table(piece: str) -> None:
    from r3core.training.trackers import _without_markup

    [row] = sampled(rows(1, reflection=HOSTILE), seed=0)
    assert piece not in _without_markup(row["reflection"])


def test_the_next_training_of_a_process_has_a_run_of_its_own_in_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.chdir(tmp_path)
    first = wandb.init(mode="disabled")
    assert wandb.run is first
    end_runs()
    assert wandb.run is None
    end_runs()  # without a run there is nothing to end
    wandb.teardown()  # its settings of this test
