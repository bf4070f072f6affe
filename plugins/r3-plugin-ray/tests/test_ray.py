"""Mining and evaluation on a real Ray cluster of two nodes: the rows are those of a run without Ray."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from command import R3
from toy import Toy

from r3_plugin_ray.actor import Actor, Job
from r3_plugin_ray.engine import RayEngine, RayOptions
from r3_plugin_ray.executor import RayExecutor, room_for
from r3core import ConfigError, RunError, Task, UsageError, get_task
from r3core.config import Config, resolve
from r3core.evaluation.evaluate import reflected
from r3core.executor import LocalExecutor
from r3core.mine import attempted
from r3core.pipeline import Pipeline
from r3core.plugins.engines import checked_engine, engine_of
from r3core.protocol import Protocol
from r3core.verification.judge import Judge, verifier_hash
from r3core.verification.pool import loader

# Ray Data warns of options of its own whenever it makes or copies its set of options: nobody has set them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")
TASK = '''
import os, time
from pathlib import Path
from r3core import Example, Task

class Watched(Task):
    """Say something with an even number of characters. Says who judged what, and waits while it is told to."""

    name = "watched"
    folder: str
    """Where `judged` is written; a file `wait` in it makes the verifier wait."""

    def load(self, split):
        first = {"train": 0, "validation": 1000, "test": 2000}[split]
        for number in range(first, first + 32):
            yield Example(id=f"n{number}", prompt=f"Say {number}.", answer=str(number))

    def verify(self, example, response):
        with open(Path(self.folder) / "judged", "a") as file:
            file.write(f"{os.environ.get('RAY_RAYLET_PID')} {example.id}\\n")
        while (Path(self.folder) / "wait").exists():
            time.sleep(0.02)
        return len(response) % 2 == 0
'''
MINED, TESTED, BATCH = 24, 8, 4
SETTINGS = [
    *(f"sampling.{turn}.max_tokens=6" for turn in ("attempt", "reflection", "retry")),
    *("evaluate.controls=true", f"evaluate.limit={TESTED}", f"mine.limit={MINED}", "mine.probe=0"),
    *(f"batch_size={BATCH}", "judge.seconds=60", "mine.keep_truncated=true", "mine.order=head"),
]
RAY = ("engine=ray", "engine_options.cpus=1", "engine_options.patience=1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster whose head has one processor; the other node comes by `node`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("OMP_NUM_THREADS", "1")  # alike in all processes: the order of sums depends on it
        from ray.cluster_utils import Cluster

        quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 2}
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": quick})
        yield made
        made.shutdown()


@pytest.fixture
def node(cluster: Any) -> Iterator[Any]:
    """The second node of the cluster, with one processor."""
    added = cluster.add_node(num_cpus=1)
    yield added
    for left in tuple(cluster.worker_nodes):
        cluster.remove_node(left)


@pytest.fixture
def spec(tmp_path: Path) -> str:
    (tmp_path / "watched.py").write_text(TASK)
    return f"{tmp_path / 'watched.py'}:Watched"


def asked(spec: str, model: Path, folder: Path, *overrides: str) -> tuple[Task, Config]:
    """Return a task and its configuration, for a run in a folder of the same name."""
    folder.mkdir(exist_ok=True)
    task = get_task(spec, folder=str(folder))
    flags = {"task": spec, "model": str(model), "output_dir": folder / "run"}
    return task, resolve(task, overrides=[*SETTINGS, *overrides], flags=flags)


def mined(spec: str, model: Path, folder: Path, *overrides: str) -> bytes:
    """Mine, and return the rows."""
    with Pipeline.open(*asked(spec, model, folder, *overrides)) as stages:
        stages.mine()
    return (folder / "run/mine.jsonl").read_bytes()


def judged(folder: Path) -> list[tuple[str, str]]:
    """Return which node judged which example, answer by answer; new workers judge their first one twice."""
    file = folder / "judged"
    return [(line.split()[0], line.split()[1]) for line in file.read_text().splitlines()] if file.exists() else []


def raylet(node: Any) -> str:
    return str(node.all_processes["raylet"][0].process.pid)


@pytest.fixture
def whole(spec: str, tiny_folder: Path, tmp_path: Path) -> bytes:
    """The rows of mining without Ray."""
    return mined(spec, tiny_folder, tmp_path / "whole")


@pytest.mark.ray
def test_a_command_writes_the_rows_of_a_run_without_ray(
    cluster: Any, node: Any, spec: str, tiny_folder: Path, tmp_path: Path, r3: R3
) -> None:
    def said(name: str, *more: str) -> Any:
        words = [word for setting in SETTINGS for word in ("--set", setting)]
        where = ["--model", tiny_folder, "--output-dir", tmp_path / name]
        told = r3("eval", "--task", spec, "--task-option", f"folder={tmp_path}", "--json", *where, *words, *more)
        assert told.code == 0, told.err
        assert all("cut off" in line for line in told.err.splitlines() if "warning" in line)
        return json.loads(told.out)

    alone = said("alone")
    (tmp_path / "judged").unlink()
    fleet = [word for setting in RAY for word in ("--set", setting)]
    together = said("together", *fleet, "--set", f"engine_options.address={cluster.address}")
    assert {part: together[part] for part in ("base", "trained")} == {part: alone[part] for part in ("base", "trained")}
    one, other = ((tmp_path / name / "evaluate-base.jsonl").read_bytes() for name in ("alone", "together"))
    assert one == other
    assert one.count(b"\n") == TESTED
    assert {who for who, _ in judged(tmp_path)} <= {raylet(cluster.head_node), raylet(node)}


@pytest.mark.ray
def test_only_what_is_missing_is_made_and_the_file_of_the_task_is_sent_along(
    cluster: Any, whole: bytes, spec: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sent(task: Task) -> Any:
        load = loader(task)
        Path(spec.partition(":")[0]).unlink()  # the nodes have no such file
        return load

    monkeypatch.setattr("r3_plugin_ray.executor.loader", sent)
    folder = tmp_path / "resumed"
    task, config = asked(spec, tiny_folder, folder, *RAY, f"engine_options.address={cluster.address}")
    kept = whole.splitlines(keepends=True)[: 3 * BATCH + 1]
    with Pipeline.open(task, config) as stages:
        (folder / "run/mine.jsonl").write_bytes(b"".join(kept) + b'{"torn')
        stages.mine()
    assert (folder / "run/mine.jsonl").read_bytes() == whole
    assert {who for _, who in judged(folder)} == {f"n{number}" for number in range(3 * BATCH, MINED)}


@pytest.mark.ray
@pytest.mark.parametrize("comes_back", [False, True])
def test_a_node_that_dies_at_work_costs_no_row_and_doubles_none(
    cluster: Any,
    node: Any,
    whole: bytes,
    spec: str,
    tiny_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    *,
    comes_back: bool,
) -> None:
    folder = tmp_path / "lost"
    folder.mkdir()
    (folder / "wait").touch()
    patience = 60 if comes_back else 1
    options = (*RAY, f"engine_options.address={cluster.address}", f"engine_options.patience={patience}")
    rows: list[bytes] = []
    thread = Thread(target=lambda: rows.append(mined(spec, tiny_folder, folder, *options)))
    thread.start()
    doomed, head = raylet(node), raylet(cluster.head_node)
    while {who for who, _ in judged(folder)} != {doomed, head} and thread.is_alive():
        Event().wait(0.05)
    assert {who for who, _ in judged(folder)} == {doomed, head}  # both are in the middle of a batch
    cluster.remove_node(node, allow_graceful=False)
    heir = raylet(cluster.add_node(num_cpus=1)) if comes_back else head
    lost = {who for by, who in judged(folder)} - {who for by, who in judged(folder) if by == head}
    (folder / "judged").unlink()
    (folder / "wait").unlink()
    thread.join()
    assert rows == [whole]
    assert lost <= {who for by, who in judged(folder) if by == heir}  # its batch was made again
    out, err = capfd.readouterr()
    assert ("warning: nodes of the Ray cluster were lost: there is room for 1 of 2 actors" in err) is not comes_back
    assert out == ""  # Ray tells of a node's end there


@pytest.mark.ray
def test_errors_on_the_cluster_are_raised_like_those_of_this_process(
    cluster: Any, spec: str, tiny_folder: Path, tmp_path: Path
) -> None:
    address = f"engine_options.address={cluster.address}"
    with pytest.raises(UsageError) as alone:
        mined(spec, tmp_path / "nowhere", tmp_path / "one")
    with pytest.raises(UsageError) as together:
        mined(spec, tmp_path / "nowhere", tmp_path / "two", *RAY, address)
    assert str(together.value) == str(alone.value)
    with pytest.raises(RunError, match="no node of the Ray cluster has room for an actor of 100 CPUs"):
        mined(spec, tiny_folder, tmp_path / "three", *RAY, "engine_options.cpus=100", address)


@pytest.mark.ray
def test_the_stages_of_the_cross_table_can_be_sent(cluster: Any, spec: str, tiny_folder: Path, tmp_path: Path) -> None:
    task, config = asked(spec, tiny_folder, tmp_path, *RAY, f"engine_options.address={cluster.address}")
    _, alone = asked(spec, tiny_folder, tmp_path)
    with Judge(task, config.judge) as judge:
        here = LocalExecutor(Protocol(task, judge, alone), engine_of(alone).open)
        [episodes] = here.map(attempted, [(0, list(task.load("train")))], model=str(tiny_folder))
        failed = [episode for episode in episodes if episode.failed][:2]
        function = partial(reflected, name="trained")
        expected = list(here.map(function, [(7, failed), (8, failed)], model=str(tiny_folder)))
    executor = on_cluster(task, config)
    try:
        assert list(executor.map(function, iter([(7, failed), (8, failed)]), model=str(tiny_folder))) == expected
    finally:
        executor.close()
    assert [episode.reflection is not None for episode in expected[0]] == [True, True]


def on_cluster(task: Task, config: Config, kind: type[RayExecutor] = RayExecutor) -> RayExecutor:
    engine = RayEngine(config)
    return kind(task, engine.options, engine.actors_engine.config)


def failing(protocol: Protocol, generator: Any, number: int, batch: Any) -> Any:
    raise ValueError(f"batch {number}\nis odd")


@pytest.mark.parametrize(
    ("verifier", "model", "said"),
    [
        (None, None, "a batch failed on node `.*`: ValueError: is odd"),
        ("other", None, "node `.*` has another version of task `toy`: the hash of its verifier differs"),
        (None, "nowhere", "nowhere"),
    ],
)
def test_an_actor_returns_the_error_that_stopped_it(
    verifier: str | None, model: str | None, said: str, tiny_folder: Path
) -> None:
    task = Toy()
    job = Job(lambda: task, resolve(task), str(tiny_folder / (model or "")), failing, verifier or verifier_hash(task))
    row = Actor(job)({"number": 3, "batch": pickle.dumps([])})
    assert row["number"] == 3
    error = pickle.loads(row["result"]).error()
    assert re.search(said, str(error))
    assert isinstance(error, UsageError) is (model is not None)


class Breaking(RayExecutor):
    """An executor without a cluster: each of its pipelines yields some batches, and breaks."""

    yields = 1

    def _join(self) -> None: ...

    def _pipeline(self, job: Job, remaining: Iterable[tuple[int, bytes]]) -> Any:
        from ray.exceptions import RayError

        yield from list(remaining)[: self.yields]
        raise RayError("a long traceback\nthe cause")


def test_a_pipeline_that_breaks_is_restarted_while_it_makes_progress(capsys: pytest.CaptureFixture[str]) -> None:
    executor: Any = on_cluster(Toy(), resolve(Toy(), overrides=["engine=ray"]), Breaking)
    batches = [(number, [number]) for number in range(6)]
    assert list(executor.map(attempted, batches, model="m")) == [batch for _, batch in batches]
    assert "warning: the cause; 5 batches remain" in capsys.readouterr().err
    executor.yields = 0
    with pytest.raises(RunError, match="the Ray pipeline broke 4 times: the cause"):
        next(executor.map(attempted, batches, model="m"))


def test_a_task_that_no_other_machine_could_load_is_refused() -> None:
    class Local(Toy):
        name = "local"

    executor = on_cluster(Local(), resolve(Local(), overrides=["engine=ray"]))
    with pytest.raises(UsageError, match="task `local` cannot be sent to other machines"):
        next(executor.map(attempted, [(0, list(Local().load("train")))], model="m"))
    assert list(executor.map(attempted, [], model="m")) == []  # nothing to do: no cluster is joined


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:no"])
def test_a_cluster_that_is_not_there_is_a_failed_run(address: str) -> None:
    executor = on_cluster(Toy(), resolve(Toy(), overrides=["engine=ray", f"engine_options.address={address}"]))
    with pytest.raises(RunError, match=f"the Ray cluster at `{address}` cannot be joined: ") as caught:
        next(executor.map(attempted, [(0, list(Toy().load("train")))], model="m"))
    assert "run the same command to resume" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("actor=2", "the engine `ray` has no option `actor`; its options: actors, address, cpus, engine, engine_opt"),
        ("actors=0", "`engine_options.actors` cannot be 0: it should be greater than 0"),
        ("engine=ray", "`engine_options.engine` cannot be 'ray': it is the engine of each actor"),
        ("engine=vlm", "`engine_options.engine` cannot be 'vlm': installed are openai, ray, transformers, vllm"),
        ("engine_options.a=1", "the engine `transformers` has no option `a`; it has no options"),
        ("address=ray://host:10001", "`engine_options.address` cannot be 'ray://host:10001': it should be HOST:PORT"),
    ],
)
def test_wrong_options_are_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_engine(resolve(Toy(), overrides=["engine=ray", f"engine_options.{override}"]))
    assert said in str(caught.value)


def test_the_place_of_a_cluster_does_not_change_the_run_directory() -> None:
    assert {*RayEngine.places, "engine", "engine_options"} == RayOptions.model_fields.keys()

    def directory(*overrides: str) -> Path:
        return resolve(Toy(), overrides=["engine=ray", *(f"engine_options.{one}" for one in overrides)]).directory

    assert directory("actors=3", "address=a:1", "patience=9") == directory()
    assert directory("engine=vllm") != directory()


@pytest.mark.parametrize(
    ("nodes", "gpus", "room"),
    [
        ([{"CPU": 8.0}, {"CPU": 3.0}, {"CPU": 1.0}, {}], 0.0, 5),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 8.0, "GPU": 8.0}, {"CPU": 64.0}], 1.0, 12),
        ([{"CPU": 64.0, "GPU": 1.0}], 0.1, 10),
    ],
)
def test_there_is_room_for_so_many_actors(nodes: list[dict[str, float]], gpus: float, room: int) -> None:
    alive = [{"Alive": True, "Resources": resources} for resources in nodes]
    dead = {"Alive": False, "Resources": {"CPU": 100.0, "GPU": 100.0}}
    assert room_for([*alive, dead], cpus=2, gpus=gpus) == room
