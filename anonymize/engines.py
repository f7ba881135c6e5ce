"""Where the work on pictures is done: in threads of this process, or by workers on a Ray cluster.

Whichever does it, the journal, the plan and the writer stay with the run, and bytes are the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol, TypeAlias

from anonymize.devices import choose
from anonymize.errors import ConfigError
from anonymize.pipeline import parallel
from anonymize.record import Record
from anonymize.work import Phase, Setting, Task, Worker

NAMES = ("local", "ray")


class Engine(Protocol):
    """Spreads the work of a run.

    Attributes:
        device: torch device type of the workers.
        generator: one for what is not spread: its prior, its hashes, what it learns.
    """

    device: str
    generator: Any

    def spread(self, phase: Phase, tasks: Iterable[Task], learnt: bytes = b"") -> Iterator[Record]:
        """What `Worker.work` makes of the tasks of a pass, in their order, reading little ahead.

        Args:
            phase: the pass.
            tasks: of all pictures that take part in it.
            learnt: what a generator's `fit` returned, if it is a `Learner`.
        """
        ...


Start: TypeAlias = Callable[[Setting], AbstractContextManager[Engine]]
"""Makes the workers of a run, which are gone when the context ends."""


def prepare(name: str, device: str, workers: int | None, batch: int) -> Start:
    """What will start an engine; touches nothing yet.

    Args:
        name: `local` or `ray`.
        device: `auto`, `cpu` or `cuda`.
        workers: threads, or processes of a cluster; None for as many as there is room for.
        batch: pictures per group.

    Raises:
        ConfigError: unknown, or it cannot be started here.
    """
    if name == "local":
        return partial(_local, choose(device), workers or os.cpu_count() or 1, batch)
    if name == "ray":
        from anonymize.ray_engine import start

        return partial(start, device, workers, batch)
    raise ConfigError(f"unknown engine {name!r}: expected {' or '.join(NAMES)}")


def _local(
    device: str, workers: int, batch: int, setting: Setting
) -> AbstractContextManager[Engine]:
    return nullcontext(LocalEngine(Worker(setting, device), device, workers, batch))


class LocalEngine:
    """Threads of this process, which share one worker."""

    def __init__(self, worker: Worker, device: str, workers: int, batch: int) -> None:
        self.device, self.generator = device, worker.generator
        self._worker, self._workers, self._batch = worker, workers, batch

    def spread(self, phase: Phase, tasks: Iterable[Task], learnt: bytes = b"") -> Iterator[Record]:
        """See `Engine`."""
        if learnt:
            self.generator.restore(learnt)
        return parallel(partial(self._worker.work, phase), self._workers, self._batch)(tasks)
