"""Feeds damaged files to the readers: no crash, no hang, no memory beyond bounds.

    python eval/bench/fuzz.py [--minutes 10] [--reader NAME]... [--seed N]

Each reader gets valid files of sample people, mutated at random: bytes flipped, cut, repeated,
zeroed, spliced from elsewhere, and numbers replaced by hostile ones. Reading must end within
seconds in pictures, in `ConfigError` or in withheld pictures, and in little memory: each reader has
a process of its own under a limit of its address space. What breaks is stored in the folder `fuzz`
and ends the run with 1.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import pickle
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from multiprocessing import Process
from pathlib import Path

import numpy as np

from anonymize.errors import ConfigError, Withhold
from anonymize.readers import open_source

SECONDS = 20
SPACE = 3 << 30
PEOPLE = Path(__file__).parents[2] / "samples" / "people"
HOSTILE = [0, 1, 2**7, 2**15, 2**16 - 1, 2**29 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1]


def pictures() -> list[bytes]:
    """Some encoded pictures, one of them not a picture."""
    return [path.read_bytes() for path in sorted(PEOPLE.glob("*/*.jpg"))[::15]] + [b"none"]


def recordio() -> tuple[str, bytes]:
    """A RecordIO file with a key 0 and several labels."""
    made = b""
    for number, picture in enumerate(pictures()):
        body = struct.pack("<IfQQ", 0, number % 3, number, 0) + picture
        body = body if number else struct.pack("<IfQQff", 2, 0, 0, 0, 5, 8)
        made += struct.pack("<II", 0xCED7230A, len(body)) + body + b"\0" * (-len(body) % 4)
    return "train.rec", made


def tsv() -> tuple[str, bytes]:
    """Rows of cropped faces."""
    rows = [
        b"\t".join((b"m.0%d" % n, b"1", b"u", b"u", b"FaceId-0", b"AAAA", base64.b64encode(data)))
        for n, data in enumerate(pictures())
    ]
    return "faces.tsv", b"\n".join(rows) + b"\n"


def webdataset() -> tuple[str, bytes]:
    """A shard with labels as text and as JSON, long names and pax headers."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, picture in enumerate(pictures()):
            for suffix, data in (("jpg", picture), ("cls", b"7"), ("json", b'{"label": "x"}')):
                info = tarfile.TarInfo(f"{'n' * (150 if number == 1 else 1)}{number}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return "00000.tar", sink.getvalue()


def verification() -> tuple[str, bytes]:
    """Pickled pairs."""
    data = pictures()[:4]
    return "lfw.bin", pickle.dumps((data, [True, False]), 4)


def table() -> tuple[str, bytes]:
    """A CSV file; the pictures lie beside it."""
    text = io.StringIO(newline="")
    rows = [[f"{number}.jpg", f"p{number % 3}"] for number in range(5)]
    csv.writer(text).writerows([["path", "identity"], *rows])
    return "list.csv", text.getvalue().encode()


def parquet() -> tuple[str, bytes]:
    """A Parquet table."""
    import pyarrow
    from pyarrow.parquet import write_table

    sink = io.BytesIO()
    columns = {"path": [f"{n}.jpg" for n in range(5)], "identity": ["a", "b", "a", None, "b"]}
    write_table(pyarrow.table(columns), sink)
    return "list.parquet", sink.getvalue()


SEEDS: dict[str, Callable[[], tuple[str, bytes]]] = {
    "recordio": recordio,
    "msceleb-tsv": tsv,
    "webdataset": webdataset,
    "verification-bin": verification,
    "csv": table,
    "parquet": parquet,
}


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """A few random changes, most of them near the small structures that readers parse."""
    made = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        if not made:
            break
        at, length = int(rng.integers(len(made))), int(rng.geometric(0.1))
        kind = rng.integers(7)
        if kind == 0:
            made[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            made[at:] = b""
        elif kind == 2:
            other = int(rng.integers(len(made)))
            made[at : at + length] = made[other : other + length]
        elif kind == 3:
            made[at : at + length] = bytes(length)
        elif kind == 4:
            word = int(rng.choice(HOSTILE))
            size = 4 if word < 2**32 else 8
            made[at : at + size] = word.to_bytes(size, "little")
        elif kind == 5:
            made[at:at] = rng.bytes(length)
        else:
            made[at : at + length] = str(int(rng.choice(HOSTILE))).encode()
    return bytes(made)


def read(path: Path) -> str:
    """Reads everything; what became of it in a word.

    Raises:
        Exception: whatever a reader must not let through.
    """
    try:
        for skip in ({}, {"skip_bad": True}):
            try:
                reader = open_source(path, **skip)
            except ConfigError as error:
                if "does not take" in str(error):
                    continue
                raise
            for item in reader:
                try:
                    reader.load(item.path)
                except Withhold:
                    continue
    except ConfigError:
        return "refused"
    return "read"


def fuzz(name: str, minutes: float, seed: int, report: Path) -> None:
    """Mutates and reads until the time is up; writes counts to `report`."""
    resource.setrlimit(resource.RLIMIT_AS, (SPACE, SPACE))
    rng = np.random.default_rng(seed)
    file, data = SEEDS[name]()
    counts, before = {"refused": 0, "read": 0}, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        for number, picture in enumerate(pictures()):
            (Path(folder) / f"{number}.jpg").write_bytes(picture)
        path = Path(folder) / file
        while time.monotonic() < end:
            made = mutate(data, rng)
            path.write_bytes(made)
            signal.alarm(SECONDS)
            try:
                counts[read(path)] += 1
            except BaseException as error:
                report.with_suffix(".broken").write_bytes(made)
                report.write_text(json.dumps({"error": f"{type(error).__name__}: {error}"}))
                raise
            signal.alarm(0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    report.write_text(json.dumps({**counts, "megabytes_grown": grown // 1024}))


def main() -> None:
    """Reads the arguments, fuzzes the readers side by side, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--reader", action="append", choices=SEEDS, help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = Path("fuzz")
    folder.mkdir(exist_ok=True)
    names = args.reader or list(SEEDS)
    reports = {name: folder / f"{name}.json" for name in names}
    running = [
        Process(target=fuzz, args=(name, args.minutes, args.seed, reports[name])) for name in names
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
    for name, path in reports.items():
        print(f"{name:<18} {path.read_text() if path.exists() else 'died without a word'}")
    sys.exit(any(process.exitcode for process in running))


if __name__ == "__main__":
    main()
