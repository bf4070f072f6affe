"""Training in several processes: how they are started, and what each of them is among the others.

`accelerate launch` starts them, and each runs `r3 train` on the same run directory: the first one writes it.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from r3core.distributed import world_size
from r3core.errors import ConfigError, RunError, UsageError

if TYPE_CHECKING:
    from r3core.config import Config

_LAUNCHER = "R3_LAUNCHER"
"""The environment variable with the process that started this one."""
_KINDS = ("NO", "MULTI_GPU", "FSDP", "DEEPSPEED")
"""What accelerate calls the ways to train that r3 can begin."""
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
"""Accelerate's configuration where the user has none; examples/accelerate/8-gpus-fsdp2.yaml in values."""


class World(NamedTuple):
    """The processes that train together."""

    processes: int = 1
    machines: int = 1
    sharded: bool = False
    """Weights, gradients and states are divided among them."""


def by_a_run() -> bool:
    """Tell whether a run of r3 started this process; it has done what comes before the training, and tells the rest."""
    return _LAUNCHER in os.environ


def started() -> World:
    """Return the processes that this one was started with; UsageError when they would train in a way r3 cannot."""
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if sharded:
        _check_version(int(os.environ.get("FSDP_VERSION", "1")))
    deep = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    return World(processes=world_size(), sharded=world_size() > 1 and (sharded or deep))


def world_of(config: Config) -> World:
    """Return the processes that will train: those that were started already, or those that a run will start.

    Raises ConfigError for a configuration of accelerate's that cannot be read, or that r3 cannot train with here.
    """
    if world_size() > 1:
        return started()
    if config.accelerate_config is None:
        processes = config.processes or 1
        return World(processes=processes, sharded=processes > 1)
    read = _read(config.accelerate_config)
    kind, processes = str(read.distributed_type.value), config.processes or read.num_processes
    if kind not in _KINDS:
        raise ConfigError(
            f"`{config.accelerate_config}`: `distributed_type` cannot be {kind}; allowed: {', '.join(_KINDS)}",
            "several processes on a CPU: distributed_type: FSDP with use_cpu: true"
            if kind == "MULTI_CPU"
            else "examples/accelerate has configurations that work",
        )
    if kind == "FSDP":
        _check_version(read.fsdp_config.get("fsdp_version", 1))
    if kind == "NO" and processes > 1:
        raise ConfigError(f"`{config.accelerate_config}` is for one process, and {processes} are asked for")
    sharded = processes > 1 and kind in ("FSDP", "DEEPSPEED")
    return World(processes=processes, machines=read.num_machines, sharded=sharded)


def launches(config: Config) -> bool:
    """Tell whether a run hands its training to processes that it starts."""
    return world_size() == 1 and (config.accelerate_config is not None or (config.processes or 1) > 1)


def check_alone() -> None:
    """Raise UsageError when this process was started together with others, for work that they cannot share."""
    if world_size() > 1:
        raise UsageError(
            f"this is one of {world_size()} processes, and only `r3 train` works in several at once",
            "`r3 run --processes N` and `r3 run --accelerate-config FILE` start them by themselves",
        )


def check_here(config: Config, *, gpus: int | None = None) -> None:
    """Raise UsageError when this machine's GPUs do not fit the processes that train, or those are on other machines.

    `gpus` is the number of visible GPUs; None counts them.
    """
    gpus = _gpus() if gpus is None else gpus
    if world_size() > 1:
        return
    world = world_of(config)
    if world.processes == 1 and gpus > 1 and not _on_cpu(config) and not _names_gpus(config):
        all_of_them = f"--processes {gpus} trains on all of them{_same_batch(config, gpus)}"
        raise UsageError(
            f"{gpus} GPUs are visible, and one process is to train: TRL does not train on several GPUs in one process",
            *([] if config.accelerate_config else [all_of_them]),
            "CUDA_VISIBLE_DEVICES=0 in front of the command takes one",
        )
    if not launches(config):
        return
    if world.machines > 1:
        raise UsageError(
            f"`{config.accelerate_config}` is for {world.machines} machines, and a run starts processes on one",
            "r3 mine --output-dir DIRECTORY first, in a directory that all machines see",
            "then on each machine: accelerate launch --config_file FILE --machine_rank NUMBER "
            "-m r3core train --output-dir DIRECTORY",
            "then r3 eval --output-dir DIRECTORY",
        )
    on_cpu = gpus == 0 if config.accelerate_config is None else _on_cpu(config)
    if world.processes > max(1, gpus) and not on_cpu:
        has = f"{gpus} GPU{'s' if gpus != 1 else ''}"
        hints = ["a configuration with use_cpu: true takes none"] if config.accelerate_config else []
        raise UsageError(f"{world.processes} processes are to train, and this machine has {has}", *hints)


def _on_cpu(config: Config) -> bool:
    """Tell whether accelerate's configuration, or TRL's own option, keeps the training off the GPUs."""
    file = config.accelerate_config
    return bool(config.grpo.get("use_cpu")) or (file is not None and bool(_read(file).use_cpu))


def _names_gpus(config: Config) -> bool:
    """Tell whether accelerate's configuration chooses GPUs: then its launcher shows the process no others."""
    file = config.accelerate_config
    return file is not None and str(_read(file).gpu_ids or "all") != "all"


def _same_batch(config: Config, processes: int) -> str:
    """Return how the batch stays the same among more processes, where that can be."""
    passes = config.grpo.get("gradient_accumulation_steps", 1)
    if passes % processes:
        return f", with a batch {processes} times as large"
    return f", and the batch stays the same with --set grpo.gradient_accumulation_steps={passes // processes}"


def launch_training(config: Config, folder: Path) -> None:
    """Have a run directory's training done by processes of its own, and wait for them.

    Raises RunError when one of them ends before its time.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    count = world_of(config).processes
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they would tell it too, and at length
    with _configuration(config) as file, _apart():
        given = ["--config_file", str(file), "--num_processes", str(count), "--main_process_port", "0"]
        asked = launch_command_parser().parse_args([*given, "-m", "r3core", "train", "--output-dir", str(folder)])
        try:
            launch_command(asked)
        except ChildFailedError as failed:
            codes = {number: failure.exitcode for number, failure in failed.failures.items()}
            raise _ended(codes, count) from None
        except subprocess.CalledProcessError as failed:
            raise _ended({0: failed.returncode}, count) from None
        except SignalException as stopped:
            if stopped.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise RunError(f"the training was stopped by {stopped.sigval.name}", _GOES_ON) from None


def join() -> None:
    """Begin to train with the processes that this one was started with; it ends when their launcher does."""
    started()
    if by_a_run():
        threading.Thread(target=_end_with, args=[int(os.environ[_LAUNCHER])], daemon=True).start()
    if world_size() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


_GOES_ON = "the same command goes on from the last checkpoint"


def _ended(codes: Mapping[int, int], count: int) -> RunError:
    """Return what is to be said when processes ended with exit codes; SIGTERM is how the launcher ends the others."""
    ended = {number: code for number, code in codes.items() if code != -signal.SIGTERM} or codes
    number, code = min(ended.items(), key=lambda item: (item[1] > 0, item[0]))  # one that was killed explains the rest
    which = f"process {number + 1} of {count}" if count > 1 else "the process"
    if code > 0:
        return RunError(f"{which} of the training ended with exit code {code}; what it said is above", _GOES_ON)
    name = signal.Signals(-code).name
    hints = ["the machine may have run out of memory: `--dry-run` estimates it"] if code == -signal.SIGKILL else []
    return RunError(f"{which} of the training was ended by {name}, and the others with it", *hints, _GOES_ON)


@contextmanager
def _configuration(config: Config) -> Iterator[Path]:
    """Yield accelerate's configuration file: the user's, or one for as many processes on this machine."""
    if config.accelerate_config is not None:
        yield config.accelerate_config
        return
    import yaml

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(_SHARDED | {"num_processes": config.processes, "use_cpu": not _gpus()}, file)
        file.flush()
        yield Path(file.name)


@contextmanager
def _apart() -> Iterator[None]:
    """Keep this process's standard output and signals to itself, and let what is started know whose child it is."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signals[signal.SIGQUIT] = signal.getsignal(signal.SIGQUIT)
    sys.stdout.flush()
    out = os.dup(1)
    os.dup2(2, 1)
    os.environ[_LAUNCHER] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[_LAUNCHER]
        os.dup2(out, 1)
        os.close(out)
        for number, handler in signals.items():
            signal.signal(number, handler)


def _end_with(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _read(file: Path) -> Any:
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
    from yaml import YAMLError

    try:
        read = load_config_from_file(str(file))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {file}") from None
    except (OSError, YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(f"`{file}` is no configuration of accelerate's: {' '.join(str(error).split())}") from None
    if not isinstance(read, ClusterConfig):
        raise ConfigError(f"`{file}`: `compute_environment` should be LOCAL_MACHINE")
    return read


def _check_version(version: int) -> None:
    if version != 2:
        raise ConfigError(f"r3 trains under FSDP2, and the configuration asks for FSDP {version}", "fsdp_version: 2")


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
