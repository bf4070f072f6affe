"""Training in several processes: how many there are, whether this machine can hold them, and how a run starts them.

A run starts `r3core.training.launcher`, which starts one `r3 train` per process on the same run directory; the process
of rank 0 writes it. Users can start the same processes themselves with `accelerate launch -m r3core train`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from r3core.distributed import RESUME_TRAINING, world_size
from r3core.errors import ConfigError, RunError, UsageError, one_line
from r3core.progress import is_quiet

if TYPE_CHECKING:
    from r3core.config import Config

_STARTED_BY_RUN = "R3_STARTED_BY_RUN"
"""The environment variable that the launcher and the training processes of a run have."""
_DISTRIBUTED_TYPES = ("NO", "MULTI_GPU", "FSDP", "DEEPSPEED")
"""The values of accelerate's `distributed_type` that r3 can train with."""
_SHARDED: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": True,
    },
    "machine_rank": 0,
    "num_machines": 1,
}
"""Accelerate's configuration for `--processes` without a file: FSDP2, as in examples/accelerate/8-gpus-fsdp2.yaml."""


class World(NamedTuple):
    """The processes that train together."""

    processes: int = 1
    machines: int = 1
    sharded: bool = False
    """Whether weights, gradients and optimizer states are divided among the processes."""


def current_world() -> World:
    """Return the processes that this one was started with; ConfigError when they would train under FSDP 1."""
    fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if fsdp:
        _check_fsdp_version(int(os.environ.get("FSDP_VERSION", "1")))
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    return World(processes=world_size(), sharded=world_size() > 1 and (fsdp or deepspeed))


def world_of(config: Config) -> World:
    """Return the processes that will train: those already started, or else those that a run will start.

    Raises:
        ConfigError: accelerate's configuration file cannot be read, or r3 cannot train with it.
    """
    if world_size() > 1:
        return current_world()
    if config.accelerate_config is None:
        processes = config.processes or 1
        return World(processes=processes, sharded=processes > 1)
    accelerate = _read(config.accelerate_config)
    kind, processes = str(accelerate.distributed_type.value), config.processes or accelerate.num_processes
    if kind not in _DISTRIBUTED_TYPES:
        raise ConfigError(
            f"`{config.accelerate_config}`: `distributed_type` cannot be {kind}; "
            f"allowed: {', '.join(_DISTRIBUTED_TYPES)}",
            "several processes on a CPU: distributed_type: FSDP with use_cpu: true"
            if kind == "MULTI_CPU"
            else "examples/accelerate has configurations that work",
        )
    if kind == "FSDP":
        _check_fsdp_version(accelerate.fsdp_config.get("fsdp_version", 1))
    if kind == "NO" and processes > 1:
        raise ConfigError(f"`{config.accelerate_config}` is for one process, but {processes} were requested")
    sharded = processes > 1 and kind in ("FSDP", "DEEPSPEED")
    return World(processes=processes, machines=accelerate.num_machines, sharded=sharded)


def needs_launcher(config: Config) -> bool:
    """Return whether a run starts processes of their own for its training."""
    return world_size() == 1 and (config.accelerate_config is not None or (config.processes or 1) > 1)


def check_one_process() -> None:
    """Raise UsageError when this process is one of several, for commands that only one process can run."""
    if world_size() > 1:
        raise UsageError(
            f"this is one of {world_size()} processes, and only `r3 train` can run in several",
            "`r3 run --processes N` and `r3 run --accelerate-config FILE` start the training processes themselves",
        )


def check_machine(config: Config, *, gpus: int | None = None) -> None:
    """Raise UsageError when this machine's GPUs do not fit the processes that train, or some are on other machines.

    `gpus` is the number of visible GPUs; None counts them.
    """
    gpus = _gpus() if gpus is None else gpus
    if world_size() > 1:
        return
    world = world_of(config)
    if world.processes == 1 and gpus > 1 and not _on_cpu(config) and not _selects_gpus(config):
        all_gpus = f"--processes {gpus} trains on all of them{_same_batch(config, gpus)}"
        raise UsageError(
            f"{gpus} GPUs are visible, but only one process trains: TRL does not use several GPUs in one process",
            *([] if config.accelerate_config else [all_gpus]),
            "CUDA_VISIBLE_DEVICES=0 before the command selects one GPU",
        )
    if not needs_launcher(config):
        return
    if world.machines > 1:
        raise UsageError(
            f"`{config.accelerate_config}` is for {world.machines} machines, and a run starts processes on one",
            "r3 mine --output-dir DIRECTORY first, in a directory that all machines share",
            "then on each machine: accelerate launch --config_file FILE --machine_rank NUMBER "
            "-m r3core train --output-dir DIRECTORY",
            "then r3 eval --output-dir DIRECTORY",
        )
    on_cpu = gpus == 0 if config.accelerate_config is None else _on_cpu(config)
    if world.processes > max(1, gpus) and not on_cpu:
        available = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
        hints = ["a configuration with use_cpu: true needs no GPU"] if config.accelerate_config else []
        raise UsageError(f"{world.processes} processes need a GPU each, and this machine has {available}", *hints)


def _on_cpu(config: Config) -> bool:
    """Return whether accelerate's configuration, or TRL's own option, keeps the training off the GPUs."""
    file = config.accelerate_config
    return bool(config.grpo.get("use_cpu")) or (file is not None and bool(_read(file).use_cpu))


def _selects_gpus(config: Config) -> bool:
    """Return whether accelerate's configuration lists GPUs: its launcher then hides the others from the process."""
    file = config.accelerate_config
    return file is not None and str(_read(file).gpu_ids or "all") != "all"


def _same_batch(config: Config, processes: int) -> str:
    """Return the part of a hint that explains how the batch size stays the same with more processes."""
    steps = config.grpo.get("gradient_accumulation_steps", 1)
    if steps % processes:
        return f", with a batch {processes} times as large"
    return f", and the batch stays the same with --set grpo.gradient_accumulation_steps={steps // processes}"


def launch_training(config: Config, folder: Path) -> None:
    """Train in processes of their own on a run directory, and wait for them.

    The launcher and the training processes have the read end of a pipe as standard input, whose write end only this
    process holds. However it ends, even by SIGKILL, the pipe is closed, and they end themselves: see `end_with_run`.

    Raises:
        RunError: one of the processes failed; the launcher has ended the others.
    """
    count = world_of(config).processes
    with tempfile.TemporaryDirectory() as name:
        exit_codes = Path(name) / "exit_codes.json"
        file = config.accelerate_config or _write_configuration(Path(name) / "accelerate.yaml", processes=count)
        options = ["--config_file", str(file), "--num_processes", str(count), "--main_process_port", "0"]
        command = [sys.executable, "-m", "r3core.training.launcher", str(exit_codes), *options]
        with subprocess.Popen(
            [*command, "-m", "r3core", "train", "--output-dir", str(folder), *(["--quiet"] if is_quiet() else [])],
            env=os.environ | {_STARTED_BY_RUN: "1"},
            stdin=subprocess.PIPE,
            stdout=2,  # standard output is for this process's result alone
            start_new_session=True,  # Ctrl-C reaches only this process, which passes it on once
        ) as launcher:
            try:
                code = launcher.wait()
            except KeyboardInterrupt:
                # The processes may finish what they do; a second Ctrl-C closes the pipe, which kills them.
                if launcher.poll() is None:
                    os.killpg(launcher.pid, signal.SIGINT)
                launcher.wait()
                raise
        if code != 0:
            written = exit_codes.read_text(encoding="utf-8") if exit_codes.exists() else "{}"
            raise _failure({int(rank): code for rank, code in json.loads(written).items()}, count, launcher=code)


def started_by_run() -> bool:
    """Return whether a run started this process: then the run has made all checks, and prints the result."""
    return _STARTED_BY_RUN in os.environ


def join_training() -> None:
    """Connect to the processes that this one was started with."""
    current_world()
    if started_by_run():
        end_with_run()
    if world_size() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def end_with_run() -> None:
    """Kill this process as soon as the run that started it closes the pipe at standard input, or ends."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin.read(): a thread that holds its lock would crash Python's shutdown
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _failure(exit_codes: Mapping[int, int], count: int, *, launcher: int) -> RunError:
    """Return the error for training processes that failed, given exit codes by rank; negative ones are signals.

    `launcher` is the exit code of the launcher, which explains a failure when no rank's exit code is known.
    """
    # The launcher ends the other processes by SIGTERM when one has failed. A process that was killed explains errors
    # of others, such as lost connections.
    causes = {rank: code for rank, code in exit_codes.items() if code != -signal.SIGTERM} or exit_codes
    rank, code = min(causes.items(), key=lambda item: (item[1] > 0, item[0]), default=(None, launcher))
    if rank is None:
        which = "the launcher of the training"
    else:
        which = f"process {rank + 1} of {count} of the training" if count > 1 else "the process of the training"
    if code > 0:
        return RunError(f"{which} ended with exit code {code}; its error message is above", RESUME_TRAINING)
    name = signal.Signals(-code).name
    hints = ["the machine may have run out of memory: `--dry-run` estimates it"] if code == -signal.SIGKILL else []
    return RunError(f"{which} was ended by {name}, and the others with it", *hints, RESUME_TRAINING)


def _write_configuration(file: Path, *, processes: int) -> Path:
    import yaml

    file.write_text(yaml.safe_dump(_SHARDED | {"num_processes": processes, "use_cpu": not _gpus()}), encoding="utf-8")
    return file


def _read(file: Path) -> Any:
    """Return accelerate's ClusterConfig from a configuration file."""
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
    from yaml import YAMLError

    try:
        accelerate = load_config_from_file(str(file))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {file}") from None
    except (OSError, YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(f"`{file}` is not a configuration file of accelerate: {one_line(error)}") from None
    if not isinstance(accelerate, ClusterConfig):
        raise ConfigError(f"`{file}`: `compute_environment` must be LOCAL_MACHINE")
    return accelerate


def _check_fsdp_version(version: int) -> None:
    if version != 2:
        raise ConfigError(f"r3 trains under FSDP 2, but the configuration sets FSDP {version}", "fsdp_version: 2")


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
