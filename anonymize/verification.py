"""Verification sets (`lfw.bin`, `cfp_fp.bin`, ...): pickled pairs of encoded pictures.

A pickle is a program. These are never run: the stream of operations is read as data, everything
but lists, tuples, booleans and byte strings is refused, and pictures are left in the file.
"""

from __future__ import annotations

import os
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from anonymize.errors import ConfigError
from anonymize.images import read_part
from anonymize.readers import Source

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
    """Pictures of a `.bin` file. The two of a mated pair share a label; others have their own.

    Attributes:
        root: SRC.
        ignored: kept for the protocol.
    """

    root: Path
    ignored: dict[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Source]:
        self.ignored = {}
        with self.root.open("rb") as file:
            places, same = scan(file, self.root)
        for index, (start, length) in enumerate(places):
            pair = index // 2
            label = f"pair {pair}" if same[pair] else f"pair {pair} picture {index % 2}"
            yield Source(f"@{start}+{length}", label)

    def load(self, locator: str) -> bytes:
        """One encoded picture."""
        start, length = (int(number) for number in locator[1:].split("+"))
        return read_part(self.root, start, length)


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
