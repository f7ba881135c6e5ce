"""Stages and how they are joined: a pipeline is a list of functions over a stream of records."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import reduce
from itertools import islice
from typing import TypeAlias

from anonymize.errors import AnonymizeError, Withhold
from anonymize.record import Record

log = logging.getLogger(__name__)

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
    its records are tried one by one, so that one record cannot take others with it.
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
    except (AnonymizeError, AssertionError, MemoryError):
        raise  # wrong for every picture alike, or a bug: stop
    except Exception as error:  # one odd picture must not stop a run of millions
        log.warning("withheld one picture after an internal error", exc_info=True)
        return record.withhold(f"internal error ({type(error).__name__})")


def _attempt_all(
    step: Callable[[Sequence[Record]], Sequence[Record]], records: Sequence[Record]
) -> Sequence[Record]:
    if len(records) > 1:
        try:
            return _checked(step(records), len(records))
        except Exception:
            log.debug("a group failed; its pictures are tried one by one", exc_info=True)
    return [_attempt(lambda one: _checked(step([one]), 1)[0], record) for record in records]


def _checked(done: Sequence[Record], count: int) -> Sequence[Record]:
    if len(done) != count:
        raise AssertionError(f"a stage made {len(done)} records of {count}")
    return done


def compose(*stages: Stage) -> Stage:
    """Joins stages, first one first."""

    def stage(records: Iterable[Record]) -> Iterator[Record]:
        return iter(reduce(lambda stream, one: one(stream), stages, records))

    return stage


def chunks(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    """Lists of up to `size` records."""
    source = iter(records)
    while group := list(islice(source, size)):
        yield group


def parallel(stage: Stage, workers: int, size: int) -> Stage:
    """The same stage over groups of `size` records in `workers` threads, order kept.

    Torch, OpenCV and the codecs release the interpreter's lock, so threads use all cores.
    """
    if workers <= 1:
        return stage

    def spread(records: Iterable[Record]) -> Iterator[Record]:
        waiting: deque[Future[list[Record]]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            try:
                for group in chunks(records, size):
                    waiting.append(pool.submit(lambda g: list(stage(g)), group))
                    if len(waiting) > 2 * workers:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    return spread
