"""Verification sets (`lfw.bin`, `cfp_fp.bin`, ...): pickled pairs of encoded pictures.

A pickle is a program. These are never run: the stream of operations is read as data, everything
but lists, tuples, booleans and byte strings is refused, and pictures are left in the file.
"""

from __future__ import annotations

import os
import pickletools
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from anonymize.errors import ConfigError
from anonymize.images import read_part
from anonymize.readers import Source, containers
from anonymize.record import Record
from anonymize.writers import Growing, Writer, Written, place

BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING"}
TRUTH = {"NEWTRUE": True, "NEWFALSE": False}
PLAIN = {"PROTO", "FRAME", "STOP", "MARK", "EMPTY_LIST", "APPEND", "APPENDS", "TUPLE", "TUPLE2"}
MEMO = {"BINPUT", "LONG_BINPUT", "MEMOIZE", "PUT", "EMPTY_TUPLE", "LIST"}
PREFIX = {"BINBYTES": 5, "SHORT_BINBYTES": 2, "BINBYTES8": 9, "BINSTRING": 5, "SHORT_BINSTRING": 2}
"""Bytes of opcode and length before the data."""


MOST = 1_000_000
"""Pictures of a set; known ones hold 12,000 to 14,000."""


class _Bounded:
    """A file that never reads beyond its end, whatever a length in it claims."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.length = file, os.fstat(file.fileno()).st_size

    def read(self, count: int) -> bytes:
        left = self.length - self.file.tell()
        if count > left:
            raise ValueError(f"{count} bytes are claimed, {left} are left")
        return self.file.read(count)

    def readline(self) -> bytes:
        return self.file.readline(64)

    def tell(self) -> int:
        return self.file.tell()


@dataclass(slots=True)
class VerificationBin:
    """Pictures of a `.bin` file, or of all below a folder.

    The two of a mated pair share a label; others have their own.

    Attributes:
        root: SRC.
        ignored: kept for the protocol.
    """

    root: Path
    ignored: dict[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Source]:
        self.ignored = {}
        for path, name in containers(self.root, ".bin"):
            with path.open("rb") as file:
                places, same = scan(file, path)
            for index, (start, length) in enumerate(places):
                pair = index // 2
                label = f"{name} pair {pair}" if same[pair] else f"{name} picture {index}"
                yield Source(f"{name}@{start}+{length}", label.strip())

    def load(self, locator: str) -> bytes:
        """One encoded picture."""
        name, _, place = locator.rpartition("@")
        start, length = (int(number) for number in place.split("+"))
        return read_part(self.root / name if name else self.root, start, length)


def scan(file: BinaryIO, path: Path) -> tuple[list[tuple[int, int]], list[bool]]:
    """Places (offset, length) of the pictures and, for each pair, whether it is mated.

    Raises:
        ConfigError: damaged, another structure, or an operation that data do not need.
    """
    places: list[tuple[int, int]] = []
    same: list[bool] = []
    try:
        for opcode, argument, position in pickletools.genops(_Bounded(file)):  # type: ignore[arg-type]
            if len(places) > MOST or len(same) > MOST:
                raise ValueError(f"more than {MOST} pictures")
            if opcode.name in ("BINGET", "LONG_BINGET", "GET"):
                raise ValueError("one picture stands for several: that is not supported")
            if opcode.name in BYTES:
                if same:
                    raise ValueError("pictures after the list of booleans")
                assert position is not None
                assert argument is not None
                size = len(argument)  # latin-1 text or bytes: as long as its data
                places.append((position + PREFIX[opcode.name], size))
            elif opcode.name in TRUTH:
                same.append(TRUTH[opcode.name])
            elif opcode.name not in PLAIN | MEMO:
                raise ValueError(
                    f"the operation {opcode.name} at byte {position}: such a file could run code "
                    "when it is loaded, and is refused"
                )
    except (ValueError, AssertionError, EOFError, OverflowError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a verification set: {error}") from error
    if len(places) != 2 * len(same) or not same:
        raise ConfigError(
            f"{path}: got {len(places)} pictures and {len(same)} booleans, expected two pictures "
            "for each"
        )
    return places, same


class VerificationBinWriter(Writer):
    """`pairs.bin`: a pickle of encoded pictures, two for each pair, and of which pairs are mated.

    Pictures of one person are paired with each other; who is left over is paired with the next one
    left over, which makes the non-mated pairs. A mated pair of a source stays one, therefore.
    Pairs are known last, so until then pictures wait in the private folder; known sets are small.
    """

    __slots__ = ()
    NAME = "pairs.bin"

    def put(self, record: Record, person: str, data: bytes) -> str:
        place([data], self._waiting(record.key), self.scratch)
        return record.key

    def _waiting(self, handle: str) -> Path:
        return self.scratch.parent / "pairs" / handle

    def finish(self, pictures: Iterable[Written]) -> Mapping[str, str | None]:
        pairs, left = _paired(pictures)
        locators: dict[str, str | None] = dict.fromkeys(left)
        file = Growing(self.root / self.NAME, 0)
        file.append(b"\x80\x04](")  # protocol 4, an empty list, and what to append to it
        for handle in (one for pair in pairs for one in pair[:2]):
            data = self._waiting(handle).read_bytes()
            start = file.append(b"B" + struct.pack("<I", len(data))) + 5
            file.append(data)
            locators[handle] = f"{self.NAME}@{start}+{len(data)}"
        same = b"".join(b"\x88" if mated else b"\x89" for *_, mated in pairs)
        file.append(b"e](" + same + b"e\x86.")
        file.close()
        return locators

    def files(self) -> list[str]:
        return [self.NAME]


def _paired(pictures: Iterable[Written]) -> tuple[list[tuple[str, str, bool]], list[str]]:
    """Pairs of handles and whether they show one person; the handle that found no partner."""
    pairs, waiting, single = [], dict[str, str](), None
    for one in pictures:
        if (partner := waiting.pop(one.person, None)) is not None:
            pairs.append((partner, one.handle, True))
        else:
            waiting[one.person] = one.handle
    for person in sorted(waiting):
        if single is None:
            single = waiting[person]
        else:
            pairs.append((single, waiting[person], False))
            single = None
    return pairs, [] if single is None else [single]
