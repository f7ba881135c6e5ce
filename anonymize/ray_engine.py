"""The work of a run on a Ray cluster: a process with its own networks per core or GPU.

Workers compute and nothing else, so one that dies is replaced and its pictures are asked for
again: nothing that it did can have reached the journal or the release without the run.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch

from anonymize.devices import choose, single_threaded
from anonymize.errors import AnonymizeError, ConfigError
from anonymize.generators import Learner
from anonymize.pipeline import chunks
from anonymize.record import Record
from anonymize.work import Phase, Setting, Task, Worker, load_generator, versions, weights

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as missing:
    raise ConfigError(
        f"--engine ray needs Ray: pip install -c constraints.txt '.[ray]' ({missing})"
    ) from None

log = logging.getLogger(__name__)

DEATHS = 3
"""Workers that may die over the same pictures, or in a row while they start."""

AT_ONCE = 2
"""Groups that a worker has at a time, so that it need not wait for the next."""

AHEAD = 4
"""Groups per worker that may be begun before the oldest is done, because results keep order."""

PATIENCE = 60.0
"""Seconds without any worker after which that is said."""


@dataclass(slots=True, eq=False)
class Group:
    """Some tasks of a pass: which ones in its order, and how many workers died over them."""

    place: int
    tasks: list[Task]
    deaths: int = 0


class Queue:
    """Groups handed out in order, some of them twice, whose records come out in order.

    Args:
        groups: the tasks of a pass.
        most: how many may be open: handed out, or done before one that is not.
    """

    def __init__(self, groups: Iterable[list[Task]], most: int) -> None:
        self._fresh, self._again = enumerate(groups), list[Group]()
        self._open: dict[int, list[Record] | None] = {}  # by place, hence in order
        self._most = most

    def __bool__(self) -> bool:
        return bool(self._open)

    def take(self) -> Group | None:
        """A group to work on, if there is one and it may be opened."""
        if self._again:
            return self._again.pop()
        following = next(self._fresh, None) if len(self._open) < self._most else None
        if following is None:
            return None
        self._open[following[0]] = None
        return Group(*following)

    def put_back(self, group: Group) -> None:
        """Takes back a group whose worker died."""
        self._again.append(group)

    def finish(self, group: Group, records: list[Record]) -> None:
        """Takes the records of a group."""
        self._open[group.place] = records

    def ready(self) -> Iterator[Record]:
        """The records whose turn it is."""
        while self._open and (records := self._open[first := next(iter(self._open))]) is not None:
            yield from records
            del self._open[first]


class Hand:
    """A worker in a process of its own, somewhere on the cluster."""

    def begin(self, setting: Setting, device: str, paths: list[str]) -> tuple[dict[str, str], str]:
        """Loads the networks; what decides the bytes of pictures here, and the processor.

        Args:
            setting: of the run.
            device: a torch device type.
            paths: where the run finds modules, for components that are not installed.
        """
        sys.path += [path for path in paths if path not in sys.path]
        single_threaded()
        self.worker, self.learnt = Worker(setting, choose(device)), None
        return software(self.worker.generator), processor(device)

    def work(self, phase: Phase, tasks: Sequence[Task], learnt: list[Any]) -> list[Record]:
        """See `Worker.work`; `learnt` is empty, or names what a `Learner` must be told once."""
        if learnt and learnt[0] != self.learnt:
            self.worker.generator.restore(ray.get(learnt[0]))
            self.learnt = learnt[0]
        return self.worker.work(phase, tasks)


def software(generator: Any) -> dict[str, str]:
    """What must be the same for all workers."""
    return versions() | {"the generator's weights": weights(generator)}


def processor(device: str) -> str:
    """What computes, as far as kernels are chosen by it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU with {torch.backends.cpu.get_cpu_capability()}"


class RayEngine:
    """See `engines.Engine`.

    Args:
        setting: of the run. It holds the key, so it goes to workers in a call: what makes an actor
            is kept by the cluster, calls are not.
        device: `auto`, `cpu` or `cuda`.
        workers: how many; None for one per GPU or core of the cluster.
        batch: pictures per group.
    """

    def __init__(self, setting: Setting, device: str, workers: int | None, batch: int) -> None:
        room = ray.cluster_resources()
        self.device = _device(device, room)
        unit = "GPU" if self.device == "cuda" else "CPU"
        self._count = workers or max(1, int(room.get(unit, 0)))
        self._batch, self._setting = batch, setting
        self._actor = ray.remote(num_cpus=1, num_gpus=int(unit == "GPU"))(Hand)
        self._actors = set[Any]()
        self._free = deque[Any]()  # a worker stands here once for each group that it may get
        self._sent: dict[Any, tuple[Any, Group]] = {}
        self._processors = set[str]()
        self._starting = Group(-1, [])
        for _ in range(self._count):
            self._hire()
        self.generator = load_generator(setting.recipe, "cpu")
        if isinstance(self.generator, Learner) and self.device != "cpu":
            self.generator = load_generator(setting.recipe, self.device)  # it computes here, too

    def spread(self, phase: Phase, tasks: Iterable[Task], learnt: bytes = b"") -> Iterator[Record]:
        """See `engines.Engine`."""
        queue = Queue(chunks(tasks, self._batch), AHEAD * self._count)
        told = [ray.put(learnt)] if learnt else []
        while True:
            if (group := queue.take()) is not None:
                while not self._free:
                    self._await(queue)
                actor = self._free.popleft()
                self._sent[actor.work.remote(phase, group.tasks, told)] = actor, group
            elif queue:
                self._await(queue)
            else:
                return
            yield from queue.ready()

    def close(self) -> None:
        """Ends the workers."""
        for actor in self._actors:
            ray.kill(actor)

    def _hire(self) -> None:
        actor = self._actor.remote()
        self._actors.add(actor)
        self._sent[actor.begin.remote(self._setting, self.device, sys.path)] = actor, self._starting

    def _await(self, queue: Queue) -> None:
        """Waits until a worker is ready, has done a group, or died."""
        answer = self._first()
        actor, group = self._sent.pop(answer)
        try:
            result = ray.get(answer)
        except RayTaskError as error:
            raise error.cause from error  # wrong for every picture alike, or a bug
        except RayError as error:
            self._bury(actor, group, error)
            if group is not self._starting:
                queue.put_back(group)
            return
        if group is self._starting:
            self._welcome(actor, *result)
        else:
            queue.finish(group, result)
            if actor in self._actors:
                self._free.append(actor)

    def _first(self) -> Any:
        """The first answer to come in."""
        while True:
            done, _ = ray.wait(list(self._sent), timeout=PATIENCE)
            if done:
                return done[0]
            if all(group is self._starting for _, group in self._sent.values()):
                log.warning("no worker yet: Ray has no room for one (see `ray status`)")

    def _welcome(self, actor: Any, found: dict[str, str], processor: str) -> None:
        """Lets a worker begin that will make the same bytes as everybody else."""
        for name, here in software(self.generator).items():
            if found[name] != here:
                raise ConfigError(
                    f"a worker has {name} {found[name]}, this process {here}: install the same "
                    "(constraints.txt) on all nodes"
                )
        self._starting.deaths = 0
        self._free.extend([actor] * AT_ONCE)
        if self._processors and processor not in self._processors:
            log.warning("workers differ (%s): so may the last bits of pictures", processor)
        self._processors.add(processor)

    def _bury(self, actor: Any, group: Group, error: RayError) -> None:
        """Replaces a worker that died, and gives up where others did so before."""
        cause = str(error).splitlines()[0]
        group.deaths += 1
        if group.deaths == DEATHS:
            when = "while they started" if group is self._starting else "over the same pictures"
            raise AnonymizeError(
                f"{DEATHS} workers died {when} ({cause}): see Ray's logs for why; --resume goes on"
            )
        if actor in self._actors:
            log.warning("a worker died; another one takes its place and its pictures (%s)", cause)
            self._actors.remove(actor)
            self._free = deque(other for other in self._free if other != actor)
            ray.kill(actor)  # it may only be out of reach
            self._hire()


def _device(name: str, room: dict[str, float]) -> str:
    if name == "auto":
        return "cuda" if room.get("GPU") else "cpu"
    if name == "cuda" and not room.get("GPU"):
        raise ConfigError("device cuda was asked for, but Ray knows no GPU: use --device cpu")
    return name


@contextmanager
def start(device: str, workers: int | None, batch: int, setting: Setting) -> Iterator[RayEngine]:
    """A Ray engine, on the cluster of RAY_ADDRESS or on one that ends with it.

    Raises:
        ConfigError: no such cluster, or none with what is asked for.
    """
    with ExitStack() as ends:
        ends.enter_context(redirect_stdout(sys.stderr))  # Ray prints where only results may go
        if not ray.is_initialized():
            ends.callback(ray.shutdown)
            _connect(workers)
        engine = RayEngine(setting, device, workers, batch)
        ends.callback(engine.close)
        yield engine


def _connect(workers: int | None) -> None:
    """Joins the cluster of RAY_ADDRESS, or else starts one of this machine for this run alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    before = signal.getsignal(signal.SIGTERM)  # which Ray takes over
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address, **quiet)
        else:
            ray.init("local", num_cpus=workers, include_dashboard=False, **quiet)
    except (ConnectionError, RayError, ValueError) as error:
        raise ConfigError(f"cannot join the Ray cluster {address or 'local'}: {error}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
