"""Engines: whoever does the work, and whoever dies over it, the release has the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_run import KEY, digests, invoke

from anonymize.errors import AnonymizeError, ConfigError
from anonymize.recipe import Recipe
from anonymize.record import Record
from anonymize.run import Summary, run
from anonymize.seeds import write_key
from anonymize.state import State, private_folder
from anonymize.work import NOTHING, Task


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray of two cores, which the runs of these tests share."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, people: Path) -> tuple[Path, dict[str, str]]:
    """Three sample people, and what the local engine makes of them."""
    base = tmp_path_factory.mktemp("calm")
    for person in sorted(people.iterdir())[:3]:
        for picture in sorted(person.glob("*.jpg"))[:3]:
            target = base / "people" / person.name / picture.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(picture.read_bytes())
    run(base / "people", base / "release", key=KEY, workers=2)
    return base / "people", digests(base / "release")


def workers() -> set[int]:
    """Process ids of Ray's workers of which this process is an ancestor."""
    parents, titles = dict[int, int](), dict[int, str]()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid, status = int(folder.name), (folder / "stat").read_text()
            parents[pid] = int(status.rpartition(")")[2].split()[1])
            titles[pid] = (folder / "cmdline").read_text()
        except OSError:  # it has ended
            continue

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return {pid for pid, title in titles.items() if title.startswith("ray::Hand") and ours(pid)}


def test_one_worker_makes_the_same_bytes(
    cluster: Any, calm: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    source, expected = calm
    run(source, tmp_path / "release", key=KEY, engine="ray", workers=1, batch_size=5)
    assert digests(tmp_path / "release") == expected


def test_a_dying_worker_changes_nothing(
    cluster: Any,
    calm: tuple[Path, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of two workers, one is killed with pictures in its hands."""
    source, expected = calm
    killed: list[int] = []

    def kill(phase: str, done: int, total: int, withheld: int) -> None:
        if phase == "replace" and not killed:
            killed.append(max(workers()))
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr("anonymize.run.COMMIT", 1)
    options: dict[str, Any] = {"engine": "ray", "workers": 2, "batch_size": 1}
    run(source, tmp_path / "release", key=KEY, progress=kill, **options)
    assert killed
    assert "a worker died" in caplog.text
    assert digests(tmp_path / "release") == expected


DIES = """
import os, signal, sys
from anonymize import cli, run
from anonymize.state import State

run.COMMIT, commit, left = 2, State.commit, [int(sys.argv[1])]

def dies(state):
    commit(state)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

State.commit = dies
cli.main(sys.argv[2:])
"""


def test_a_killed_run_may_be_resumed_by_the_other_engine(
    cluster: Any, calm: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """Begun by threads and killed in the survey, killed again in Ray's hands while writing."""
    source, expected = calm
    write_key(tmp_path / "key", KEY)
    release = tmp_path / "release"
    options = ["--key-file", tmp_path / "key", "--batch-size", "1", "--workers", "1"]
    address = cluster.get_runtime_context().gcs_address
    for commits, engine in ((2, ["local"]), (5, ["ray", "--resume"])):
        command = [sys.executable, "-c", DIES, commits, "run", source, release, *options]
        killed = subprocess.run(
            [*map(str, command), "--engine", *engine],
            env={**os.environ, "RAY_ADDRESS": address},
            stderr=subprocess.DEVNULL,
        )
        assert killed.returncode == -signal.SIGKILL
    state = State(private_folder(release))
    assert state.count("output IS NULL AND withheld IS NULL") == 5
    state.close()
    run(source, release, resume=True)
    assert digests(release) == expected


class Deadly:
    """A detector that takes its worker with it."""

    def __init__(self) -> None:
        os._exit(1)


class Refusing:
    """A detector that cannot be made."""

    def __init__(self) -> None:
        raise ConfigError("detector: not with these options")


@pytest.mark.parametrize(
    ("detector", "message"),
    [("Deadly", "2 workers died while they started"), ("Refusing", "not with these options")],
)
def test_workers_that_cannot_start_end_the_run(
    cluster: Any,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    detector: str,
    message: str,
) -> None:
    monkeypatch.setattr("anonymize.ray_engine.DEATHS", 2)
    recipe = Recipe(detector=f"test_engines:{detector}", generator="mask")
    with pytest.raises(AnonymizeError, match=message):
        run(dataset, tmp_path / "release", recipe, engine="ray", workers=1)


def test_a_queue_keeps_order_and_asks_again() -> None:
    ray_engine = pytest.importorskip("anonymize.ray_engine", exc_type=ConfigError)
    tasks = [Task(Record(str(index), None, NOTHING), "") for index in range(5)]
    queue = ray_engine.Queue(([task] for task in tasks), most=3)
    first, second, third = queue.take(), queue.take(), queue.take()
    assert queue.take() is None  # as many as may be open
    queue.finish(second, [tasks[1].record])
    assert not list(queue.ready())
    queue.put_back(first)
    assert queue.take() is first
    queue.finish(first, [tasks[0].record])
    assert [record.key for record in queue.ready()] == ["0", "1"]
    fourth, fifth = queue.take(), queue.take()
    for group in (fifth, third, fourth):
        queue.finish(group, [task.record for task in group.tasks])
    assert [record.key for record in queue.ready()] == ["2", "3", "4"]
    assert queue.take() is None
    assert not queue


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "anonymize.ray_engine", raising=False)


@pytest.mark.usefixtures("without_ray")
def test_without_ray_the_engine_says_how_to_get_it(dataset: Path, tmp_path: Path) -> None:
    result = invoke("run", dataset, tmp_path / "release", "--engine", "ray")
    assert result.exit_code == 2
    assert ".[ray]" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"people"}


@pytest.mark.usefixtures("without_ray")
def test_the_local_engine_needs_no_ray(dataset: Path, tmp_path: Path) -> None:
    assert isinstance(run(dataset, tmp_path / "release", Recipe(generator="mask")), Summary)
