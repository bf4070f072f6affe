"""A sample of the episodes of a training step, in the trackers that TRL reports its metrics to.

TRL's own table (`grpo.log_completions`) has the requests and the reflections of a whole batch, unescaped, and no
retries. This one is a bounded sample with the retry and its verdict, every time that TRL logs, and its model text is
escaped: a tracker's page renders Markdown, which could load an image from elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from heapq import nsmallest
from typing import Any

from r3core.console import visible
from r3core.protocol import seed_of

EPISODES = 8
"""Maximum number of episodes that are reported each time that TRL logs."""
TEXT = 2_000
"""Maximum number of characters of a reflection or a retry."""
NAME = "episodes"
"""The name of the table."""
_MARKUP = {ord(character): f"&#{ord(character)};" for character in "&<>[]`*_\\"}


def report_episodes(trainer: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Report a sample of the rows of `train-episodes` to tensorboard, wandb and trackio, where they are in use.

    Call it in the process of rank 0, whose trackers are started.
    """
    trackers = trainer.args.report_to or []
    if not rows or not {"tensorboard", "wandb", "trackio"}.intersection(trackers):
        return
    table = sampled(rows, seed=trainer.protocol.config.seed)
    if "tensorboard" in trackers:
        for callback in trainer.callback_handler.callbacks:
            if (writer := getattr(callback, "tb_writer", None)) is not None:
                writer.add_text(NAME, as_markdown(table), trainer.state.global_step)
    if "wandb" in trackers:
        import wandb

        if wandb.run is not None:
            content = wandb.Table(columns=list(table[0]), data=[list(row.values()) for row in table])
            wandb.log({NAME: content, "train/global_step": trainer.state.global_step})
    if "trackio" in trackers:
        import trackio

        escaped = [{name: _without_markup(value) for name, value in row.items()} for row in table]
        trackio.log({NAME: trackio.Table(data=escaped)})  # type: ignore[arg-type]  # rows may be dictionaries


def end_runs() -> None:
    """End the run of wandb, which would otherwise receive the metrics of the next training in this process too."""
    wandb = sys.modules.get("wandb")  # not imported: that takes a second, and without it no run is open
    if wandb is not None and wandb.run is not None:
        wandb.finish()


def sampled(rows: Sequence[Mapping[str, Any]], *, seed: int) -> list[dict[str, Any]]:
    """Return a random sample of the rows, in their order, with what people read of each; the seed decides it."""
    by_chance = nsmallest(EPISODES, range(len(rows)), key=lambda index: seed_of(seed, NAME, rows[index]["step"], index))
    return [_shown(rows[index]) for index in sorted(by_chance)]


def as_markdown(table: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a code block, in which nothing is markup; each value is one line."""
    blocks = ["\n".join(f"    {name}: {value}" for name, value in row.items()) for row in table]
    return "\n    \n".join(blocks)


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    reflection, answer = row["reflection"], (row["retries"] or [row.get("attempt")])[0]
    verdict = answer.verdict
    reason = f": {visible(verdict.reason, longest=TEXT)}" if verdict.reason else ""
    return {
        "step": row["step"],
        "id": visible(row["id"], longest=TEXT),
        "reflection": visible(reflection.text, longest=TEXT) if reflection else "",
        "retry": visible(answer.text, longest=TEXT),
        "verdict": f"{verdict.outcome}{reason}",
        "reward": row["reward"],
        "leaked": reflection.leaked if reflection else None,
    }


def _without_markup(value: Any) -> Any:
    """Return a text in which nothing is Markdown or HTML, and any other value as it is."""
    return value.translate(_MARKUP) if isinstance(value, str) else value
