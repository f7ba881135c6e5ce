"""Stages and how they are joined: a pipeline is a list of functions over a stream of records."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import reduce
from itertools import islice
from typing import TypeAlias, TypeVar

from anonymize.errors import AnonymizeError, Withhold
from anonymize.record import Record

log = logging.getLogger(__name__)

A = TypeVar("A")
B = TypeVar("B")

INTERNAL, NO_MEMORY = "internal error", "out of memory"
"""Reasons that are not the picture's own: the same picture may do another time."""

Stage: TypeAlias = Callable[[Iterable[Record]], Iterator[Record]]
"""Lazy and order-preserving: one record out for each record in."""


def each(step: Callable[[Record], Record]) -> Stage:
    """A stage from a function of one record; `Withhold` becomes that record's result."""

    def stage(records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            yield record if record.withheld is not None else _attempt(step, record)

    return stage


def batched(step: Callable[[Sequence[Record]], Sequence[Record]], size: int) -> Stage:
    """A stage from a function of several records at once.

    Withheld records are not shown to `step` but keep their place. Where `step` fails for a group,
    its records are tried one by one, so that one record cannot take others with it; where memory
    was too small for a group, its halves are tried.
    """

    def stage(records: Iterable[Record]) -> Iterator[Record]:
        for group in chunks(records, size):
            live = [record for record in group if record.withheld is None]
            done = iter(_attempt_all(step, live))
            yield from (next(done) if r.withheld is None else r for r in group)

    return stage


def _attempt(step: Callable[[Record], Record], record: Record) -> Record:
    try:
        return step(record)
    except Withhold as result:
        return record.withhold(result.reason)
    except (AnonymizeError, AssertionError):
        raise  # wrong for every picture alike, or a bug: stop
    except Exception as error:  # one odd picture must not stop a run of millions
        log.warning("withheld one picture after an internal error", exc_info=True)
        internal = f"{INTERNAL} ({type(error).__name__})"
        return record.withhold(NO_MEMORY if _exhausted(error) else internal)


def _attempt_all(
    step: Callable[[Sequence[Record]], Sequence[Record]], records: Sequence[Record]
) -> Sequence[Record]:
    if len(records) < 2:
        return [_attempt(lambda one: _checked(step([one]), 1)[0], record) for record in records]
    try:
        return _checked(step(records), len(records))
    except Exception as error:
        log.debug("a group failed; smaller ones are tried", exc_info=True)
        size = (len(records) + 1) // 2 if _exhausted(error) else 1
    # here and not in the handler, where the error would keep alive what the group had allocated
    return [done for group in chunks(records, size) for done in _attempt_all(step, group)]


def _exhausted(error: Exception) -> bool:
    """Whether memory ran out, as Python, torch (on a GPU, on a CPU) and OpenCV put it."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or any(s in str(error) for s in ("can't allocate memory", "Insufficient memory"))


def _checked(done: Sequence[Record], count: int) -> Sequence[Record]:
    if len(done) != count:
        raise AssertionError(f"a stage made {len(done)} records of {count}")
    return done


def compose(*stages: Stage) -> Stage:
    """Joins stages, first one first."""

    def stage(records: Iterable[Record]) -> Iterator[Record]:
        return iter(reduce(lambda stream, one: one(stream), stages, records))

    return stage


def chunks(items: Iterable[A], size: int) -> Iterator[list[A]]:
    """Lists of up to `size` items."""
    source = iter(items)
    while group := list(islice(source, size)):
        yield group


def parallel(
    step: Callable[[list[A]], Iterable[B]], workers: int, size: int
) -> Callable[[Iterable[A]], Iterator[B]]:
    """What `step` makes of groups of `size` items in `workers` threads, order kept.

    Torch, OpenCV and the codecs release the interpreter's lock, so threads use all cores.
    """
    if workers <= 1:
        return lambda items: (done for group in chunks(items, size) for done in step(group))

    def spread(items: Iterable[A]) -> Iterator[B]:
        waiting: deque[Future[list[B]]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            try:
                for group in chunks(items, size):
                    waiting.append(pool.submit(lambda g: list(step(g)), group))
                    if len(waiting) > 2 * workers:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    return spread
