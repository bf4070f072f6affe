"""Mining and evaluation on a Ray cluster: batches go to actors that hold an engine each, and come back in order."""

from __future__ import annotations

import logging
import os
import pickle
import platform
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from socket import create_connection
from time import monotonic
from typing import Any, Literal, NamedTuple, cast

from pydantic import Field, ValidationError

from r3core.config import Config, Section, explained
from r3core.episode import Episode
from r3core.errors import ConfigError, R3Error, RunError, UsageError, did_you_mean
from r3core.executor import Make, Work
from r3core.generation.models import open_engine
from r3core.protocol import Protocol
from r3core.task import Task
from r3core.verification.judge import Judge, verifier_hash
from r3core.verification.pool import loader, portable
from r3core.verification.worker import sources

_MOST_LOSSES = 3  # pipelines that may break one after the other without a single batch
_CONNECT = 20.0  # seconds to find out whether a cluster is there
_LOOK = 1.0  # seconds between two looks at the cluster's nodes
_WHAT_ARRIVED = "what arrived is in the run directory; the same command goes on from there"


class FleetOptions(Section):
    """Where a fleet works, and what each of its actors has: the `engine_options` of the engine `ray`."""

    engine: Literal["transformers", "vllm", "openai"] = "transformers"
    """The engine of each actor."""
    engine_options: dict[str, Any] = {}
    """The options of that engine."""
    address: str | None = None
    """The cluster, as HOST:PORT; null takes the one that this machine belongs to, or begins one on this machine."""
    actors: int | None = Field(default=None, gt=0)
    """How many actors; null takes as many as the cluster has room for. Those without room wait for nodes to join."""
    cpus: float = Field(default=2, gt=0)
    """Processors of an actor. Its verifier has one worker on each, when `judge.workers` does not say otherwise."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs of an actor; null gives it one where the cluster has GPUs."""
    patience: float = Field(default=60, ge=0)
    """Seconds that a lost node may be missing, before the others share what it had to do and begin anew."""


def options_of(config: Config) -> FleetOptions:
    """Return the options of a configuration's fleet; ConfigError for one that is unknown or not allowed."""
    try:
        options = FleetOptions.model_validate(config.engine_options)
        if options.address is None or "://" not in options.address:
            return options
        raise ConfigError(
            f"`engine_options.address` cannot be {options.address!r}: it should be HOST:PORT",
            "run r3 on a machine of the cluster, or hand the command in there with `ray job submit`",
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] != "extra_forbidden":
            raise explained(error, FleetOptions, prefix="engine_options.") from None
    name = ".".join(map(str, first["loc"]))
    known = sorted(FleetOptions.model_fields)
    said = f"the engine `ray` has no option `{name}`; its options: {', '.join(known)}"
    raise ConfigError(said, *did_you_mean(name, known))


class Job(NamedTuple):
    """All that an actor needs to know."""

    load: Callable[[], Task]
    config: Config
    model: str
    work: Work
    verifier: str
    """The hash of the verifier in the main process."""


class _Refusal(NamedTuple):
    """An error of an actor, in a form that any process can read."""

    usage: bool
    message: str
    hints: tuple[str, ...] = ()

    def error(self) -> R3Error:
        return (UsageError if self.usage else RunError)(self.message, *self.hints)


class Actor:
    """Holds a task, its judge and an engine on some node, and makes the batches that it is handed."""

    def __init__(self, job: Job) -> None:
        self.work = job.work
        self.refusal: _Refusal | None = None
        try:
            task = _loaded(job)
            judge = Judge(task, job.config.judge)
            self.protocol = Protocol(task, judge, job.config)
            self.generator = open_engine(job.config, job.model)
        except Exception as error:
            self.refusal = _refusal(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the pickled episodes of one batch, or why there are none: Ray would tell it in pages."""
        made: list[Episode] | _Refusal | None = self.refusal
        if made is None:
            try:
                made = self.work(self.protocol, self.generator, int(row["number"]), pickle.loads(row["batch"]))
            except Exception as error:
                made = _refusal(error)
        return {"number": row["number"], "made": pickle.dumps(made)}


class Fleet:
    """Actors on a Ray cluster, which is joined when there is something to do and left with `close`."""

    def __init__(self, config: Config) -> None:
        self.options = options_of(config)
        options = self.options
        inner: dict[str, Any] = {"engine": options.engine, "engine_options": options.engine_options}
        workers = config.judge.workers or max(1, int(options.cpus))
        inner["judge"] = config.judge.model_copy(update={"workers": workers})
        self._config = config.model_copy(update=inner)
        self._joined = False

    def on(self, task: Task, model: str | Path) -> Make:
        """Return what has batches made by a model on the cluster; all nodes must see the folder of a local model."""
        folder = Path(model)
        name = str(folder.resolve() if folder.is_dir() else model)

        def make(work: Work, batches: Iterable[tuple[int, Sequence[Any]]]) -> Iterator[list[Episode]]:
            left = deque((number, pickle.dumps(batch)) for number, batch in batches)
            if not left:
                return
            if not portable(task):
                raise UsageError(
                    f"task `{task.name}` cannot be sent to other machines: its class is not in a module of its own",
                    "put it into a file or a package, and name it as `path/to/file.py:Class` or `module:Class`",
                )
            self._join()
            yield from self._made(Job(loader(task), self._config, name, work, verifier_hash(task)), left)

        return make

    def close(self) -> None:
        """Leave the cluster, which ends the actors; one that was begun here ends too."""
        if self._joined:
            import ray

            ray.shutdown()
            self._joined = False

    def _join(self) -> None:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # ray reads these when it is imported
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as it will be; ray warns otherwise
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody was asked
        try:
            import ray
            import ray._private.worker
            import ray.data
        except ImportError:
            raise UsageError("the engine `ray` needs the library ray", "pip install 'r3core[ray]'") from None
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is said here, and once
        ray._private.worker._worker_logs_enabled = False  # the end of a node would be told on standard output
        if ray.is_initialized():
            return
        address = self.options.address
        where = f"the Ray cluster at `{address}`" if address else "a Ray cluster"
        try:
            if address is not None and ":" in address:  # Ray would try for minutes
                host, _, port = address.rpartition(":")
                create_connection((host, int(port)), timeout=_CONNECT).close()
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (OSError, RuntimeError, ValueError) as error:
            hint = "`ray start --head` begins one, and says its address"
            raise RunError(f"{where} cannot be joined: {_line(error)}", hint, _WHAT_ARRIVED) from None
        self._joined = True

    def _made(self, job: Job, left: deque[tuple[int, bytes]]) -> Iterator[list[Episode]]:
        """Yield what came of each batch; a pipeline that breaks is followed by another one on what is left."""
        losses = 0
        while left:
            before = len(left)
            try:
                with closing(self._pipeline(job, left)) as arriving:
                    for number, pickled in arriving:
                        made = pickle.loads(pickled)
                        if isinstance(made, _Refusal):
                            raise made.error()
                        assert number == left[0][0]
                        left.popleft()
                        yield made
            except _broken() as error:
                losses = losses + 1 if len(left) == before else 1
                if losses > _MOST_LOSSES:
                    raise RunError(f"the Ray pipeline broke {losses} times: {_line(error)}", _WHAT_ARRIVED) from None
                print(f"warning: {_line(error)}; going on with the {len(left)} batches left", file=sys.stderr)

    def _pipeline(self, job: Job, left: Iterable[tuple[int, bytes]]) -> Generator[tuple[int, bytes], None, None]:
        """Yield the number and the pickled outcome of each batch, in order."""
        import ray.data

        rows = [{"number": number, "batch": batch} for number, batch in left]
        cpus, gpus = self.options.cpus, self._gpus()
        room = room_for(_nodes(), cpus=cpus, gpus=gpus)
        needs = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        if not room and self.options.actors is None:
            raise RunError(
                f"no node of the Ray cluster has room for an actor of {needs}",
                "set engine_options.cpus and engine_options.gpus to what a node has, or engine_options.actors to wait",
                _WHAT_ARRIVED,
            )
        actors = min(self.options.actors or room, len(rows))
        if room < actors:
            print(f"warning: there is room for {room} of {actors} actors of {needs}; the others wait", file=sys.stderr)
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            cast(Any, Actor),  # a class; Ray's annotation knows functions only
            fn_constructor_args=(job,),
            concurrency=actors,
            num_cpus=cpus,
            num_gpus=gpus,
        )
        context = data.context
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.max_tasks_in_flight_per_actor = 2  # one at work, one waiting
        context.execution_no_progress_timeout_s = -1  # one batch may take hours
        watch: Any = partial(_Watch, actors, cpus, gpus, self.options.patience)
        context.custom_execution_callback_classes = [watch]
        del rows  # there may be gigabytes of them
        for batch in data.iter_batches(batch_size=None, prefetch_batches=0):
            yield from zip(map(int, batch["number"]), batch["made"], strict=True)

    def _gpus(self) -> float:
        if self.options.gpus is not None:
            return self.options.gpus
        return float(any(node["Alive"] and node["Resources"].get("GPU") for node in _nodes()))


class _NodesLost(Exception):
    """The cluster has had less room than its actors need for longer than is tolerated."""


class _Watch:
    """Breaks a pipeline whose actors cannot come back: Ray would wait for a new node for ever.

    Ray Data calls it at every step of a pipeline, and has a batch that was lost made by the same actor, begun anew:
    without room for that actor, nothing more would arrive in order.
    """

    def __init__(self, actors: int, cpus: float, gpus: float, patience: float) -> None:
        self.actors = actors
        self.needs = {"cpus": cpus, "gpus": gpus}
        self.patience = patience
        self.most = 0
        """The most actors that there was room for so far."""
        self.looked = 0.0
        self.enough = monotonic()
        """When there was room for as many for the last time."""

    def before_execution_starts(self, executor: Any) -> None: ...

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...

    def on_execution_step(self, executor: Any) -> None:
        now = monotonic()
        if now - self.looked < _LOOK:
            return
        self.looked = now
        room = min(self.actors, room_for(_nodes(), **self.needs))
        self.most = max(self.most, room)
        if room >= self.most:
            self.enough = now
        elif now - self.enough >= self.patience:
            raise _NodesLost(f"nodes of the Ray cluster were lost: there is room for {room} of {self.most} actors")


def _nodes() -> list[dict[str, Any]]:
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return nodes


def room_for(nodes: Iterable[dict[str, Any]], *, cpus: float, gpus: float) -> int:
    """Return how many actors the nodes that are alive could hold if they did nothing else."""
    total = 0
    for node in nodes:
        if node["Alive"]:
            has = node["Resources"]
            fits = [int(has.get(kind, 0) / need + 1e-6) for kind, need in (("CPU", cpus), ("GPU", gpus)) if need]
            total += min(fits)
    return total


def _broken() -> tuple[type[Exception], ...]:
    """Return the errors of Ray itself, after which another pipeline may do better."""
    from ray.data.exceptions import SystemException
    from ray.exceptions import RayError

    return RayError, SystemException, _NodesLost


def _loaded(job: Job) -> Task:
    """Return the job's task; RunError when this node has another version of it, or has it not."""
    node = platform.node()
    try:
        task = job.load()
    except Exception as error:
        said = f"a task of the fleet cannot be loaded on node `{node}`: {type(error).__name__}: {_line(error)}"
        raise RunError(said, "install r3core and the task's package on every node, all of the same versions") from None
    installed = type(task).__module__ not in sources  # others came along with the job
    if installed and verifier_hash(task) != job.verifier:
        said = f"node `{node}` has another version of task `{task.name}`: the hash of its verifier differs"
        raise RunError(said, "install the same version of the task's package on every node")
    return task


def _refusal(error: Exception) -> _Refusal:
    if isinstance(error, R3Error):
        return _Refusal(isinstance(error, UsageError), error.message, error.hints)
    said = f"a batch failed on node `{platform.node()}`: {type(error).__name__}: {_line(error)}"
    return _Refusal(False, said, (_WHAT_ARRIVED,))


def _line(error: BaseException) -> str:
    """Return the line of an error that says most: Ray's have the whole traceback of another process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
