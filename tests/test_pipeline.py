"""Stages: order is kept, nothing is lost, and one odd record cannot hurt another."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anonymize.errors import ConfigError, Withhold
from anonymize.pipeline import batched, chunks, compose, each, parallel
from anonymize.record import Record

BLANK = np.zeros((1, 1, 3), np.uint8)


def records(count: int) -> list[Record]:
    return [Record(str(index), None, BLANK) for index in range(count)]


def odd_withheld(record: Record) -> Record:
    if int(record.key) % 2:
        raise Withhold("odd")
    return record.but(output=record.image)


def all_or_nothing(group: Sequence[Record]) -> list[Record]:
    return [odd_withheld(record) for record in group]


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 4))
def test_order_and_number_are_kept(count: int, size: int, workers: int) -> None:
    stage = parallel(compose(each(odd_withheld), batched(all_or_nothing, size)), workers, size)
    done = list(stage(records(count)))
    assert [r.key for r in done] == [r.key for r in records(count)]
    assert [r.withheld for r in done] == [["", "odd"][i % 2] or None for i in range(count)]
    assert all((r.output is None) == (r.withheld is not None) for r in done)


def test_withheld_records_are_not_shown_to_later_stages() -> None:
    seen: list[str] = []

    def spy(group: Sequence[Record]) -> Sequence[Record]:
        seen.extend(record.key for record in group)
        return group

    list(compose(each(odd_withheld), batched(spy, 3))(records(7)))
    assert seen == ["0", "2", "4", "6"]


def test_an_unforeseen_error_withholds_one_record_only() -> None:
    def fails_on_three(group: Sequence[Record]) -> Sequence[Record]:
        if any(record.key == "3" for record in group):
            raise ZeroDivisionError
        return group

    done = list(batched(fails_on_three, 4)(records(6)))
    assert [r.withheld for r in done].count("internal error (ZeroDivisionError)") == 1
    assert done[3].withheld is not None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
)
def test_where_memory_is_too_small_groups_are_halved(error: Exception) -> None:
    sizes: list[int] = []

    def greedy(group: Sequence[Record]) -> Sequence[Record]:
        sizes.append(len(group))
        if len(group) > 3 or any(record.key == "5" for record in group):
            raise error
        return group

    done = list(batched(greedy, 8)(records(8)))
    assert sizes == [8, 4, 2, 2, 4, 2, 1, 1, 2]
    assert [r.withheld for r in done] == [None] * 5 + ["out of memory"] + [None] * 2


def test_the_memory_of_a_failed_group_is_free_before_smaller_ones_are_tried() -> None:
    class Big:
        """Stands for a tensor."""

    alive: list[weakref.ref[Big]] = []

    def greedy(group: Sequence[Record]) -> Sequence[Record]:
        assert not [big for big in alive if big()]
        held = Big()
        alive.append(weakref.ref(held))
        if len(group) > 1:
            raise MemoryError
        return group

    assert len(list(batched(greedy, 4)(records(4)))) == 4
    assert len(alive) == 7


def test_opencv_says_in_its_own_words_that_memory_ran_out() -> None:
    def greedy(record: Record) -> Record:
        cv2.resize(record.image, (2**24, 2**24))
        return record

    assert [r.withheld for r in each(greedy)(records(1))] == ["out of memory"]


def test_errors_that_concern_every_record_stop_the_run() -> None:
    def misconfigured(record: Record) -> Record:
        raise ConfigError("wrong")

    with pytest.raises(ConfigError):
        list(parallel(each(misconfigured), 2, 2)(records(5)))


def test_a_stage_that_loses_a_record_is_caught() -> None:
    with pytest.raises(AssertionError):
        list(batched(lambda group: group[1:], 3)(records(4)))


def test_stages_are_lazy_and_parallel_reads_only_a_little_ahead() -> None:
    read: list[int] = []
    lock = threading.Lock()

    def source() -> object:
        for index in range(1000):
            with lock:
                read.append(index)
            yield Record(str(index), None, BLANK)

    stage = parallel(each(lambda r: r), 2, 4)(source())  # type: ignore[arg-type]
    assert not read
    next(stage)
    assert len(read) <= 40


def test_chunks() -> None:
    assert [len(group) for group in chunks(records(7), 3)] == [3, 3, 1]
