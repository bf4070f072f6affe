"""Is the data sound: the same examples in every load, unique ids, and no problem in two splits?"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable
from itertools import islice
from time import perf_counter
from typing import cast, get_args

from pydantic import JsonValue

from r3core.check.context import Checking, plain, text_of
from r3core.dataset import load_examples
from r3core.errors import TaskError
from r3core.task import Example, Split
from r3core.verification import worker
from r3core.verification.pool import portable

LOADED = 5_000
"""Maximum number of examples per split that are checked."""
_LOAD_SECONDS = 5.0  # time after which no more examples of a split are loaded
_FRESH = 200  # maximum per split that are loaded again in a fresh process


def check_data(checking: Checking) -> dict[Split, list[Example]]:
    """Check the task's splits, and return their examples."""
    splits = {split: _loaded(checking, split) for split in get_args(Split)}
    known = [example for examples in splits.values() for example in examples]
    if not known:
        raise TaskError(f"task `{checking.task.name}` has no problem in any of its splits: `load` yielded nothing")
    if not splits["validation"]:
        checking.not_checked.append("the split `validation`, which has no problems")
    filled = [bool(splits["train"]), bool(splits["test"])]
    checking.add("data", "train and test have problems", filled, advice="a run needs both; check what `load` yields")
    unique = _is_first(example.id for example in known)
    checking.add("data", "ids are unique", unique, known, advice="these ids occur more than once")
    prompts = {split: [text_of(checking.task, example) for example in examples] for split, examples in splits.items()}
    held_out = [*splits["validation"], *splits["test"]]
    texts = [plain(text) for text in (*prompts["validation"], *prompts["test"])]
    trained, tested = {plain(text) for text in prompts["train"]}, set(map(plain, prompts["test"]))
    validation = len(splits["validation"])
    apart = [t not in trained and (n >= validation or t not in tested) for n, t in enumerate(texts)]
    advice = "these prompts occur in another split too; choose the split of a problem by its hash"
    checking.add("data", "no problem is in two splits", apart, held_out, advice=advice)
    again = [  # exactly as many: a slower second load must not look like another order
        list(islice(load_examples(checking.task, split), len(examples))) == examples
        for split, examples in splits.items()
        if examples
    ]
    checking.add("data", "the same problems when loaded again", again, advice="seed the random numbers in `load`")
    _fresh(checking, splits)
    everything = [text for texts in prompts.values() for text in texts]
    note = "some problems of one split have the same prompt"
    checking.add("data", "no two prompts are the same", _is_first(everything), known, note=note)
    for split, examples in splits.items():
        lengths = [len(text) for text in prompts[split]] or [0]
        shown = {"shortest": min(lengths), "median": int(statistics.median(lengths)), "longest": max(lengths)}
        checking.facts[split] = {"problems": len(examples), "prompt characters": cast(JsonValue, shown)}
    return splits


def _loaded(checking: Checking, split: Split) -> list[Example]:
    """Return the first examples of a split: those that load within a few seconds."""
    started_at = perf_counter()
    examples = []
    for example in islice(load_examples(checking.task, split), LOADED):
        examples.append(example)
        if perf_counter() - started_at > _LOAD_SECONDS:
            break
    else:
        if len(examples) < LOADED:
            return examples
    rest = f"problems of the split `{split}` after the first {len(examples):,}"
    if rest not in checking.not_checked:
        checking.not_checked.append(rest)
    return examples


def _fresh(checking: Checking, splits: dict[Split, list[Example]]) -> None:
    """Check that a new interpreter loads the same examples."""
    name = "the same problems in a fresh process"
    if not portable(checking.task):
        checking.not_checked.append(f"{name}: the task is defined in this process only")
        return
    if os.environ.get("PYTHONHASHSEED", "random") != "random":
        checking.not_checked.append("other orders of sets: PYTHONHASHSEED is set for every process")
    counts = {split: min(len(examples), _FRESH) for split, examples in splits.items() if examples}
    there = checking.fresh.pool.digests(counts)
    here = {split: worker.digest(splits[split][:count]) for split, count in counts.items()}
    advice = "`hash()` and the order of a set differ from process to process: use hashlib, and sort"
    checking.add("data", name, [there[split] == here[split] for split in counts], advice=advice)


def _is_first(names: Iterable[str]) -> list[bool]:
    """Return, for each name, whether it occurs for the first time."""
    seen: set[str] = set()
    held = []
    for name in names:
        held.append(name not in seen)
        seen.add(name)
    return held
