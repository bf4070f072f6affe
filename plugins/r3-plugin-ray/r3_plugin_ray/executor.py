"""Batches on a Ray cluster: they go to actors with a model each, and their episodes come back in order."""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from socket import create_connection
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from r3_plugin_ray.actor import RESUME, Actor, Failed, Job, last_line
from r3core.activity import ENGINE, waiting_for
from r3core.config import Config
from r3core.episode import Episode
from r3core.errors import RunError, UsageError
from r3core.executor import Batches, Function
from r3core.task import Task
from r3core.verification.judge import verifier_hash
from r3core.verification.pool import loader, portable

if TYPE_CHECKING:
    from r3_plugin_ray.engine import RayOptions

_MAX_LOSSES = 3  # pipelines that may break one after the other without a single batch
_CONNECT = 20.0  # seconds to find out whether there is a cluster
_INTERVAL = 1.0  # seconds between two checks of the cluster's nodes


class RayExecutor:
    """Runs batches in actors on a Ray cluster, which is joined for the first batch and left with `close`.

    `config` is that of the actors, with their engine.
    """

    def __init__(self, task: Task, options: RayOptions, config: Config) -> None:
        self.task = task
        self.options = options
        self.config = config
        self._joined = False

    def map(self, function: Function, batches: Batches, *, model: str) -> Iterator[list[Episode]]:
        """Yield the episodes of each batch, in the order of the batches.

        All nodes must see the folder of a local model.
        """
        remaining = deque((number, pickle.dumps(batch)) for number, batch in batches)
        if not remaining:
            return
        if not portable(self.task):
            raise UsageError(
                f"task `{self.task.name}` cannot be sent to other machines: its class is not in a module of its own",
                "put it into a file or a package, and name it as `path/to/file.py:Class` or `module:Class`",
            )
        name = str(Path(model).resolve()) if Path(model).is_dir() else model
        self._join()
        yield from self._results(
            Job(loader(self.task), self.config, name, function, verifier_hash(self.task)), remaining
        )

    def close(self) -> None:
        """Leave the cluster, which stops the actors; a cluster that was started here stops too."""
        if self._joined:
            import ray

            ray.shutdown()
            self._joined = False

    def _join(self) -> None:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray reads these when it is imported
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; Ray warns without it
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # r3 has no consent to share usage data
        import ray
        import ray._private.worker
        import ray.data

        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are raised here, once
        ray._private.worker._worker_logs_enabled = False  # Ray would print the loss of a node to standard output
        if ray.is_initialized():
            return
        address = self.options.address
        where = f"the Ray cluster at `{address}`" if address else "a Ray cluster"
        try:
            if address is not None and ":" in address:  # Ray would retry for minutes
                host, _, port = address.rpartition(":")
                create_connection((host, int(port)), timeout=_CONNECT).close()
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (OSError, RuntimeError, ValueError) as error:
            hint = "`ray start --head` starts one and prints its address"
            raise RunError(f"{where} cannot be joined: {last_line(error)}", hint, RESUME) from None
        self._joined = True

    def _results(self, job: Job, remaining: deque[tuple[int, bytes]]) -> Iterator[list[Episode]]:
        """Yield the episodes of each batch; after a pipeline that breaks, another one gets the remaining batches."""
        losses = 0
        while remaining:
            before = len(remaining)
            try:
                with closing(self._pipeline(job, remaining)) as arriving:
                    for number, pickled in arriving:
                        result = pickle.loads(pickled)
                        if isinstance(result, Failed):
                            raise result.error()
                        assert number == remaining[0][0]
                        remaining.popleft()
                        yield result
            except _broken() as error:
                losses = losses + 1 if len(remaining) == before else 1
                if losses > _MAX_LOSSES:
                    raise RunError(f"the Ray pipeline broke {losses} times: {last_line(error)}", RESUME) from None
                print(f"warning: {last_line(error)}; {len(remaining)} batches remain", file=sys.stderr)

    def _pipeline(self, job: Job, remaining: Iterable[tuple[int, bytes]]) -> Generator[tuple[int, bytes], None, None]:
        """Yield the number and the pickled result of each batch, in order."""
        import ray.data

        rows = [{"number": number, "batch": batch} for number, batch in remaining]
        cpus, gpus = self.options.cpus, self._gpus()
        room = room_for(_nodes(), cpus=cpus, gpus=gpus)
        needs = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        if not room and self.options.actors is None:
            raise RunError(
                f"no node of the Ray cluster has room for an actor of {needs}",
                "set engine_options.cpus and engine_options.gpus to the resources of a node, or set "
                "engine_options.actors to wait for a node",
                RESUME,
            )
        actors = min(self.options.actors or room, len(rows))
        if room < actors:
            print(f"warning: there is room for {room} of {actors} actors of {needs}; the others wait", file=sys.stderr)
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            cast(Any, Actor),  # a class; Ray's annotation allows functions only
            fn_constructor_args=(job,),
            concurrency=actors,
            num_cpus=cpus,
            num_gpus=gpus,
        )
        context = data.context
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.max_tasks_in_flight_per_actor = 2  # one running, one waiting
        context.execution_no_progress_timeout_s = -1  # one batch may take hours
        watch: Any = partial(_Watch, actors, cpus, gpus, self.options.patience)
        context.custom_execution_callback_classes = [watch]
        del rows  # there may be gigabytes of them
        arriving = iter(data.iter_batches(batch_size=None, prefetch_batches=0))
        while True:
            with waiting_for(ENGINE, f"batches by {actors} actors on the Ray cluster"):
                batch = next(arriving, None)
            if batch is None:
                return
            yield from zip(map(int, batch["number"]), batch["result"], strict=True)

    def _gpus(self) -> float:
        if self.options.gpus is not None:
            return self.options.gpus
        return float(any(node["Alive"] and node["Resources"].get("GPU") for node in _nodes()))


class _NodesLost(Exception):
    """The cluster has had less room than its actors need for longer than `patience`."""


class _Watch:
    """Stops a pipeline whose actors cannot be restarted: Ray would wait for a new node forever.

    Ray Data calls it at every step of a pipeline. It runs a lost batch in the same actor, restarted: without room for
    that actor, nothing more would arrive in order.
    """

    def __init__(self, actors: int, cpus: float, gpus: float, patience: float) -> None:
        self.actors = actors
        self.needs = {"cpus": cpus, "gpus": gpus}
        self.patience = patience
        self.maximum = 0
        """The largest number of actors that fitted so far."""
        self.checked_at = 0.0
        self.complete_at = monotonic()
        """The last time at which that many fitted."""

    def before_execution_starts(self, executor: Any) -> None: ...

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...

    def on_execution_step(self, executor: Any) -> None:
        now = monotonic()
        if now - self.checked_at < _INTERVAL:
            return
        self.checked_at = now
        room = min(self.actors, room_for(_nodes(), **self.needs))
        self.maximum = max(self.maximum, room)
        if room >= self.maximum:
            self.complete_at = now
        elif now - self.complete_at >= self.patience:
            raise _NodesLost(f"nodes of the Ray cluster were lost: there is room for {room} of {self.maximum} actors")


def _nodes() -> list[dict[str, Any]]:
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return nodes


def room_for(nodes: Iterable[dict[str, Any]], *, cpus: float, gpus: float) -> int:
    """Return how many actors fit on the nodes that are alive, if they run nothing else."""
    total = 0
    for node in nodes:
        if node["Alive"]:
            has = node["Resources"]
            fits = [int(has.get(kind, 0) / need + 1e-6) for kind, need in (("CPU", cpus), ("GPU", gpus)) if need]
            total += min(fits)
    return total


def _broken() -> tuple[type[Exception], ...]:
    """Return the errors of Ray itself, after which another pipeline may succeed."""
    from ray.data.exceptions import SystemException
    from ray.exceptions import RayError

    return RayError, SystemException, _NodesLost
