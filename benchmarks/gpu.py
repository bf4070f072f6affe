"""Run the whole pipeline on one machine, and compare its speed and memory with what a dry run computes.

    python benchmarks/gpu.py --model FOLDER

Mining, training of all weights and of a LoRA adapter, evaluation, the same with vLLM where it is installed, training in
several processes where there are several GPUs, and an exhausted memory. Each part is a process of its own with a time
limit: one that fails, hangs or lacks a package stops no other. All together take less than ten minutes (`--minutes`).

It needs what is installed and nothing else: no connection, no installation of r3core (the source tree is enough), and
it runs without a GPU too, on a tiny model. The task (`coin.py`) is passed by every model half of the time.

The exit code is 1 when a part failed. `--json FILE` writes what the table shows.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TASK = f"{Path(__file__).resolve().with_name('coin.py')}:Coin"
GIB = 2**30
FIRST_GPU = 0  # of those that are visible: the only one that most parts see


class Part(NamedTuple):
    """One part of the benchmark."""

    name: str
    seconds: float
    """Time limit."""
    packages: tuple[str, ...] = ()
    """What has to be installed besides r3core's own requirements."""
    after: str | None = None
    """The part whose run directory it continues or reads."""
    all_gpus: bool = False


PARTS = (
    Part("machine", 60),
    Part("mine", 120, ("transformers",)),
    Part("train", 150, ("transformers", "trl"), after="mine"),
    Part("evaluate", 120, ("transformers",), after="train"),
    Part("lora", 120, ("transformers", "trl", "peft"), after="mine"),
    Part("memory", 90, ("transformers",)),
    Part("vllm mine", 150, ("vllm",)),
    Part("vllm train", 200, ("vllm", "trl"), after="vllm mine"),
    Part("processes", 150, ("transformers", "trl"), after="mine", all_gpus=True),
)
Found = dict[str, Any]


class Skipped(Exception):
    """A part that cannot run here, and why."""


def settings(options: argparse.Namespace, **changes: Any) -> Any:
    """Return the configuration of a run."""
    from r3core.config import Config

    tokens = options.tokens
    turns = {
        turn: {"max_tokens": size, "temperature": 1.0}
        for turn, size in {"attempt": tokens, "reflection": max(1, tokens // 2), "retry": tokens}.items()
    }
    grpo = {
        "max_steps": options.steps,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "num_generations": 8,
        "save_steps": options.steps,
    }
    values = {
        "task": TASK,
        "model": str(options.model),
        "uncertified": True,
        "batch_size": options.batch_size,
        "sampling": turns,
        "mine": {"limit": options.problems, "probe": 0, "keep_truncated": True},
        "evaluate": {"limit": options.problems},
        "grpo": grpo | changes.pop("grpo", {}),
    }
    return Config.model_validate(values | changes)


@contextmanager
def pipeline(options: argparse.Namespace, name: str, **changes: Any) -> Iterator[Any]:
    """Open a run directory of the benchmark."""
    from r3core.pipeline import Pipeline
    from r3core.plugins.discovery import get_task

    config = settings(options, output_dir=options.folder / name, **changes)
    with Pipeline.open(get_task(TASK), config) as opened:
        yield opened


class Memory:
    """The peak of memory in a block, in bytes: of torch on the first GPU; without one, what this process grew by."""

    def __enter__(self) -> Memory:
        import torch

        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            self.before = resident * os.sysconf("SC_PAGE_SIZE")
        return self

    def __exit__(self, *error: object) -> None:
        import resource

        import torch

        if self.cuda:
            self.peak = float(torch.cuda.max_memory_allocated())
        else:
            self.peak = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before


def estimate(options: argparse.Namespace, *phases: str, **changes: Any) -> float:
    """Return the bytes that a dry run computes for the largest of these phases, with the prompts of this task."""
    import torch

    from r3core.estimate.memory import memory_of, plan_of
    from r3core.estimate.shape import read_config, shape_of

    config = settings(options, **changes)
    shape = shape_of(read_config(str(options.model)), lora=config.lora)
    plan = plan_of(config, shape, cuda=torch.cuda.is_available()).model_copy(update={"prompt": prompt_tokens(options)})
    memory = memory_of(shape, plan)
    return float(max(memory.total(phase) for phase in phases))


def prompt_tokens(options: argparse.Namespace) -> int:
    """Return the tokens of a problem with r3's sentences of all turns: what the estimate calls a prompt."""
    from r3core.config import Config
    from r3core.generation.models import load_tokenizer
    from r3core.plugins.discovery import get_task

    config: Config = settings(options)
    task = get_task(TASK)
    tokenizer = load_tokenizer(options.model)
    texts = [str(next(iter(task.load("train"))).prompt), *config.wording_for(task).model_dump().values()]
    return sum(len(tokenizer.encode(text)) for text in texts if isinstance(text, str)) + 20  # of the chat template


def machine(options: argparse.Namespace) -> Found:
    """Return what is installed, and on which device it runs."""
    import torch

    found: Found = {"python": sys.version.split()[0], "torch": torch.__version__, "cpus": os.cpu_count()}
    for name in ("transformers", "trl", "accelerate", "peft", "vllm"):
        if find_spec(name):
            found[name] = version_of(name)
    found["gpus"] = [
        {"name": gpu.name, "gib": round(gpu.total_memory / GIB, 1)}
        for gpu in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]
    return found


def version_of(name: str) -> str:
    """Return the version of an installed package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "installed under another name"


def mine(options: argparse.Namespace, name: str = "run", **changes: Any) -> Found:
    """Mine with the model already loaded: tokens/s, verdicts included."""
    with pipeline(options, name, **changes) as stages, Memory() as memory:
        generator = stages.executor.generator(str(options.model))
        if stages.engine.in_process:
            stages.check_model()
        started = time.perf_counter()
        failures = stages.mine()
        seconds = time.perf_counter() - started
        tokens = sum(row["attempt"]["tokens"] for row in stages.run.read("mine"))
        del generator
    found = {"tokens/s": tokens / seconds, "failures": len(failures), "problems": options.problems}
    if changes.get("engine") != "vllm":  # vLLM's memory is in a process of its own, and as much as it is given
        found |= {"peak": memory.peak, "estimate": estimate(options, "evaluating", **changes)}
    return found


def train(options: argparse.Namespace, name: str = "run", **changes: Any) -> Found:
    """Train some steps: seconds per step, and the share of weights that changed in the saved model."""
    with pipeline(options, name, **changes) as stages:
        stages.mine()
        with Memory() as memory:
            stages.train()
        facts, rows = stages.run.done("train") or {}, stages.run.read("train")
    found = {"steps": len(rows), "loss": [row.get("loss") for row in rows], **step_seconds(rows)}
    for key in ("weights_changed", "failures"):
        if key in facts:
            found[key] = facts[key]
    for key in ("reward", "grad_norm", "sampling/sampling_logp_difference/mean"):
        if rows and rows[-1].get(key) is not None:
            found[key] = rows[-1][key]
    if "processes" not in changes:  # else it happened in other processes
        found |= {"peak": memory.peak, "estimate": estimate(options, "training", "generating", **changes)}
    return found


def step_seconds(rows: Sequence[Found]) -> Found:
    """Return the seconds of a step and of its parts; the first step, which warms up, counts only when it is alone."""
    steady = rows[1:] or rows
    parts = ("generation", "verification", "training")
    means = {part: sum(row.get(f"seconds/{part}") or 0 for row in steady) / max(1, len(steady)) for part in parts}
    return {"seconds/step": sum(means.values()), **{f"seconds/{part}": value for part, value in means.items()}}


def evaluate(options: argparse.Namespace) -> Found:
    """Compare base and trained model on test problems."""
    with pipeline(options, "run") as stages, Memory() as memory:
        started = time.perf_counter()
        result = stages.evaluate()
        seconds = time.perf_counter() - started
        problems = result.problems.taken if result.problems else options.problems
    if result.trained is None or result.trained.first.total != problems:
        raise ValueError(f"{problems} problems, but the result is {result}")
    passed = {"base": result.base.second.passed, "trained": result.trained.second.passed}
    return {"seconds": seconds, "problems": problems, "second": passed, "peak": memory.peak}


def lora(options: argparse.Namespace) -> Found:
    """Train a LoRA adapter on the failures of the first run."""
    failures = {"probe": 0, "keep_truncated": True, "failures": options.folder / "run"}
    return train(options, "lora", lora={"r": 16}, mine=failures, grpo={"learning_rate": 1e-4})


def memory(options: argparse.Namespace) -> Found:
    """Mine while nearly all memory of the GPU is in use: the error must name the settings to lower."""
    import torch

    from r3core.errors import RunError

    if not torch.cuda.is_available():
        raise Skipped("there is no GPU whose memory could be exhausted")
    with pipeline(options, "full") as stages:
        stages.executor.generator(str(options.model))
        free, _ = torch.cuda.mem_get_info()
        ballast = torch.empty(max(0, free - 32 * 2**20), dtype=torch.uint8, device="cuda")
        try:
            stages.mine()
        except RunError as error:
            return {"error": str(error)}
        raise Skipped(f"mining worked beside {ballast.numel():,} bytes, with 32 MiB left: the model is too small")


def vllm_mine(options: argparse.Namespace) -> Found:
    """Mine with vLLM's offline engine."""
    return mine(options, "vllm", engine="vllm", engine_options=options.vllm)


def vllm_train(options: argparse.Namespace) -> Found:
    """Train with a colocated vLLM that gets the weights of every step."""
    return train(options, "vllm", engine="vllm", engine_options=options.vllm)


def processes(options: argparse.Namespace) -> Found:
    """Train in several processes under FSDP2: one for each GPU."""
    import torch

    count = options.processes or torch.cuda.device_count()
    if count < 2:
        raise Skipped(f"{torch.cuda.device_count()} GPUs are visible: --processes 2 tries it on the CPU")
    failures = {"probe": 0, "keep_truncated": True, "failures": options.folder / "run"}
    return train(options, "processes", mine=failures, processes=count, grpo={"gradient_accumulation_steps": 2})


WORK: dict[str, Callable[[argparse.Namespace], Found]] = {
    "machine": machine,
    "mine": mine,
    "train": train,
    "evaluate": evaluate,
    "lora": lora,
    "memory": memory,
    "vllm mine": vllm_mine,
    "vllm train": vllm_train,
    "processes": processes,
}


def run_part(options: argparse.Namespace) -> None:
    """Run one part in this process, and write its outcome to a file."""
    sys.path.insert(0, str(ROOT))
    try:
        outcome: Found = {"outcome": "ok", **WORK[options.part](options)}
    except Skipped as error:
        outcome = {"outcome": "skipped", "reason": str(error)}
    except ModuleNotFoundError as error:
        outcome = {"outcome": "skipped", "reason": f"`{error.name}` is not installed"}
    except BaseException as error:
        traceback.print_exc()
        outcome = {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
    Path(options.outcome).write_text(json.dumps(outcome, default=str), encoding="utf-8")


def outcome_of(part: Part, arguments: Sequence[str], folder: Path, *, seconds: float) -> Found:
    """Run a part in a process of its own, and return its outcome."""
    written, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not part.all_gpus and environment.get("CUDA_VISIBLE_DEVICES") != "":
        environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[FIRST_GPU]
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        *arguments,
        "--part",
        part.name,
        "--outcome",
        str(written),
    ]
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with its vLLM, its verifier workers, its training processes
                process.wait()
    took = time.perf_counter() - started
    if code is None:
        return {"outcome": "failed", "reason": f"not finished after {seconds:.0f} s", "took": took, "log": tail(log)}
    if not written.exists():
        return {"outcome": "failed", "reason": f"ended with exit code {code}", "took": took, "log": tail(log)}
    outcome: Found = json.loads(written.read_text(encoding="utf-8"))
    return outcome | {"took": took} | ({"log": tail(log)} if outcome["outcome"] == "failed" else {})


def tail(log: Path) -> str:
    """Return the last lines of a part's output."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])


def missing_for(part: Part, before: dict[str, Found]) -> str | None:
    """Return why a part need not be started, None when it can be tried."""
    if absent := [name for name in part.packages if find_spec(name) is None]:
        return f"not installed: {', '.join(absent)}"
    earlier = before.get(part.after or "", {"outcome": "not run"})["outcome"]
    if part.after and earlier != "ok":
        return f"`{part.after}` {'failed' if earlier == 'failed' else f'was {earlier}'}"
    return None


def lines_of(found: dict[str, Found]) -> Iterator[str]:
    """Yield the lines of the table."""
    for name, outcome in found.items():
        rest = {key: value for key, value in outcome.items() if key not in ("outcome", "took", "log")}
        if "peak" in rest and "estimate" in rest:
            rest["peak of the estimate"] = f"{rest['peak'] / rest['estimate']:.0%}"
        shown = ", ".join(f"{key} {text_of(key, value)}" for key, value in rest.items())
        yield f"{name:11} {outcome['outcome']:8} {outcome.get('took', 0.0):5.0f} s  {shown}"
        if "log" in outcome:
            yield "\n".join(f"    | {line}" for line in outcome["log"].splitlines())


def text_of(key: str, value: Any) -> str:
    """Return a value as the table shows it."""
    if key in ("peak", "estimate"):
        return f"{value / GIB:.2f} GiB"
    if key == "weights_changed":
        return f"{value:.1%}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str]) -> int:
    """Run all parts and print what they found; return the exit code."""
    parser = argparse.ArgumentParser(description="Run the pipeline on this machine, and measure it.")
    parser.add_argument("--model", type=lambda text: Path(text).resolve(), required=True, help="folder of the model")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all parts together")
    parser.add_argument("--patience", type=float, default=1.0, help="factor for the time limit of each part")
    parser.add_argument("--problems", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128, help="maximum length of an attempt and of a retry")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--processes", type=int, help="for training in several; default: one per GPU")
    parser.add_argument("--vllm", type=json.loads, default={"max_model_len": 2048, "gpu_memory_utilization": 0.4})
    parser.add_argument("--parts", type=lambda text: text.split(","), default=[part.name for part in PARTS])
    parser.add_argument("--json", type=Path, help="file for the results")
    for internal in ("--folder", "--outcome"):
        parser.add_argument(internal, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        run_part(options)
        return 0
    ends, found = time.monotonic() + 60 * options.minutes, dict[str, Found]()
    with tempfile.TemporaryDirectory() as name:
        for part in (part for part in PARTS if part.name in options.parts):
            reason, left = missing_for(part, found), ends - time.monotonic()
            if reason or left < 5:
                found[part.name] = {"outcome": "skipped", "reason": reason or "no time is left (--minutes)"}
            else:
                passed = [*arguments, "--folder", name]
                found[part.name] = outcome_of(
                    part, passed, Path(name), seconds=min(part.seconds * options.patience, left)
                )
            print("\n".join(lines_of({part.name: found[part.name]})), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(any(one["outcome"] == "failed" for one in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
