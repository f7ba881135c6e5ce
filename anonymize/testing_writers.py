"""The contract of writers, as a check to call from the tests of whoever writes one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from anonymize.readers import Reader
from anonymize.record import Record
from anonymize.testing import expect
from anonymize.writers import Marks, Writer, Written


def check_writer(make: Callable[..., Writer], read: Callable[[Path], Reader]) -> None:
    """Checks what `writers.Writer` promises, on six pictures of three people.

    Args:
        make: the writer's class, called with `root`, `scratch` and `number`.
        read: opens a release as the format's own reader.

    Raises:
        AssertionError: a promise is broken.
    """
    records = _finished()
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        writer = _writer(make, whole, {})
        blank = records[0].withhold("not published")
        try:
            writer.write(blank, "p0")
        except AssertionError:
            pass
        else:
            raise AssertionError("a record without output must be refused")
        written = _written(writer, records)
        _release(writer, written, read, whole)
        first = _writer(make, broken, {})
        done = _written(first, records[:3])
        marks = first.flush()
        _written(first, records[3:4])
        first.flush()  # never journalled: the run is killed here
        again = _writer(make, broken, marks)
        again.finish([*done, *_written(again, records[3:])])
        expect(_bytes(broken) == _bytes(whole), "a run that was killed gives other bytes")


def _finished() -> list[Record]:
    """Records with outputs, sorted by person and by handle at once."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 32, 32, 3), np.uint8)
    return [
        Record(f"{n:016x}", f"p{n // 2}", picture, output=picture)
        for n, picture in enumerate(pictures)
    ]


def _writer(make: Callable[..., Writer], root: Path, marks: Marks) -> Writer:
    private = root.with_name(f"{root.name}.private")
    for path in (root, private / "scratch"):
        path.mkdir(parents=True, exist_ok=True)
    writer = make(root=root, scratch=private / "scratch", number=lambda person: int(person[1:]))
    writer.begin(marks)
    return writer


def _written(writer: Writer, records: Sequence[Record]) -> list[Written]:
    return [
        Written(r.key, r.identity or "", True, *writer.write(r, r.identity or "")) for r in records
    ]


def _release(
    writer: Writer, written: list[Written], read: Callable[[Path], Reader], root: Path
) -> None:
    """Finishes a release and reads it again."""
    moved = writer.finish(written)
    places = {one.handle: moved.get(one.handle, one.output) for one in written}
    for name in writer.files():
        expect((root / name).is_file(), f"files() names {name}, which is not there")
    reader, people = read(root), dict[str | None, set[str]]()
    for item in reader:
        people.setdefault(item.label, set()).add(item.path)
    listed = set().union(*people.values())
    expect(listed == set(places.values()), "write's locators are not those that the reader yields")
    for one in written:
        data = reader.load(str(places[one.handle]))
        expect(sha256(data).hexdigest() == one.digest, "the digest is not that of the file")
    groups = [{places[o.handle] for o in written if o.person == f"p{n}"} for n in range(3)]
    expect(all(group in people.values() for group in groups), "labels do not group the pictures")


def _bytes(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
