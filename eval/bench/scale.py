"""How a run behaves at the size of the data sets that leaked.

    python eval/bench/scale.py OUT [--rows 1000000] [--people 100000]

Writes a table like MS-Celeb-1M's with tiny pictures, runs `anonymize run` over it, kills it in the
middle, resumes it, and prints rows per second and resident memory by tenth of the rows: time should
be linear and memory flat. Networks are left out of it, since their share is known per picture
(`benchmarks/throughput.py`): faces are where aligned crops have them, the generator is `mask`, and
nothing audits. Then it plans new people for as many labels and looks for pseudonyms that collide.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from anonymize.generators import Inpaint
from anonymize.identities import invent, pseudonym
from anonymize.images import encode
from anonymize.record import Face, Pixels

SIDE = 24

RUNS = {
    "run": ["--aligned", "arcface"],
    "faceless": ["--detector", "scale:Nobody"],
}
"""Every picture is written, or every one is withheld because no face is found in it."""


class Nobody:
    """An auditor that finds no face, as none are there in these pictures."""

    def __call__(self, images: list[Pixels]) -> list[tuple[Face, ...]]:
        return [() for _ in images]


def table(path: Path, rows: int, people: int) -> None:
    """Writes rows of cropped faces; a few hundred pictures take turns."""
    if path.exists():
        return
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (256, SIDE, SIDE, 3), np.uint8)
    texts = [base64.b64encode(encode(image, quality=40)) for image in noise]
    with path.with_suffix(".part").open("wb") as file:
        for row in range(rows):
            mid = b"m.%06x" % (row * people // rows)
            cells = (mid, b"%d" % row, b"http://u", b"http://p", b"FaceId-0", b"AAAA")
            file.write(b"\t".join((*cells, texts[row % len(texts)])) + b"\n")
    path.with_suffix(".part").rename(path)


def resident(pid: int) -> int:
    """Resident memory of a process in MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) // 1024 if found else 0


def watch(arguments: list[str], kill_at: float, phase: str) -> tuple[list[tuple[float, int]], int]:
    """Runs until a share of the pictures is through a phase, or to the end.

    Returns:
        (seconds, MiB) at each tenth of each pass that was reported, and the exit code.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    began, seen = time.perf_counter(), []
    process = subprocess.Popen(
        arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.match(r"(survey|replace): (\d+) of (\d+)", line):
            seen.append((time.perf_counter() - began, resident(process.pid)))
            print(f"  {seen[-1][0]:8.1f} s {seen[-1][1]:6d} MiB  {line.strip()}", flush=True)
            if found[1] == phase and int(found[2]) >= kill_at * int(found[3]):
                process.send_signal(signal.SIGKILL)
        elif "anonymize" in line or "Error" in line:
            print("  " + line.strip(), flush=True)
    return seen, process.wait()


def crowd(people: int) -> None:
    """Plans people and prints what it took."""
    prior, key = Inpaint().prior, hashlib.sha256(b"scale").digest()
    began = time.perf_counter()
    names = {pseudonym(key, f"label m.{number:06x}") for number in range(people)}
    invented = invent(prior, key, dict.fromkeys(names))
    spent = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    close = sum(not person.apart for person in invented.values())
    print(
        f"{people} people planned in {spent:.0f} s, {peak} MiB at most; "
        f"{people - len(names)} pseudonyms collide; {close} people are not kept apart"
    )


def main() -> None:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--people", type=int, default=100_000)
    parser.add_argument("--part", choices=[*RUNS, "crowd"], action="append", help="default: all")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    source = args.out / "faces.tsv"
    for part, options in RUNS.items():
        if part not in (args.part or RUNS):
            continue
        table(source, args.rows, args.people)
        print(f"{part}: {args.rows} rows, {source.stat().st_size >> 20} MiB", flush=True)
        words = ["run", str(source), str(args.out / part), "--to", "msceleb-tsv", "--json"]
        words += ["--generator", "mask", "--set", "auditor=scale:Nobody", *options]
        command = [sys.executable, "-m", "anonymize", *words, "--max-withheld", "1"]
        phase = "replace" if part == "run" else "survey"
        watch([*command, "--overwrite"], 0.5, phase)
        print("killed; resumed:", flush=True)
        watch([*command, "--resume"], 2, phase)
        counts = json.loads((args.out / part / "run.json").read_text())["counts"]
        print(f"read {counts['read']}, written {counts['written']}, withheld {counts['withheld']}")
    if "crowd" in (args.part or ["crowd"]):
        crowd(args.people)


if __name__ == "__main__":
    main()
