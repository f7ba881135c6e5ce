"""How fast a run is, beside other tools on the same pictures.

    python benchmarks/throughput.py SRC [--limit N] [--rounds N] [--skip-diffusion] [--json]
    python benchmarks/throughput.py --crops [...]
    python benchmarks/throughput.py --memory [--json]

SRC is a folder of pictures, or of folders of them, one for each person; people are drawn at random.
Systems take turns for some rounds, each in a process of its own, so that whatever else the machine
does hits all alike; the best round counts, and of ratios the median of the rounds.
Start-up is left out of images per second and CPU seconds, and part of the peak memory.
`--crops` cuts generated people to aligned 112 px crops and takes those instead of SRC.
`--memory` runs 1,000 and 20,000 such crops: peak memory should not follow their number.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from systems import CROPS, STEPS, SYSTEMS, Clock

from anonymize.aligners import ARCFACE, similarity, warp
from anonymize.detectors import MTCNN
from anonymize.devices import single_threaded
from anonymize.images import SUFFIXES, encode, read
from anonymize.record import Pixels

PEOPLE = Path(__file__).parent.parent / "samples" / "people"
OURS, THEIRS = "anonymize inpaint", "deface blur"


def below(folder: Path) -> list[Path]:
    """Picture files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def chosen(source: Path, limit: int, target: Path) -> None:
    """Copies all pictures of people drawn at random, until there are enough."""
    people = defaultdict[Path, list[Path]](list)
    for path in below(source):
        people[path.parent].append(path)
    order = np.random.default_rng(0).permutation(len(people))
    paths = [path for index in order for path in list(people.values())[index]]
    for path in paths[:limit]:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())


def generated(count: int, side: int, target: Path) -> None:
    """Writes so many pictures of the sample people, each a little different, (side, side) px."""
    people = [(path.parent.name, read(path)) for path in below(PEOPLE)]
    detector, rng = MTCNN(), np.random.default_rng(0)
    template = ARCFACE * (side / 112)
    matrices = [similarity(detector([image])[0][0].landmarks, template) for _, image in people]
    for index in range(count):
        person, image = people[index % len(people)]
        matrix = matrices[index % len(people)].copy()
        matrix[:, 2] += rng.uniform(-2, 2, 2)
        crop: Pixels = warp(image, matrix, side)
        if rng.random() < 0.5:
            crop = np.asarray(cv2.flip(crop, 1), np.uint8)
        path = target / person / f"{index:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(crop))


def one(system: str, source: Path, workers: int) -> dict[str, float]:
    """Runs one system on all pictures of a folder; for a process of its own."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        done = SYSTEMS[system](source, below(source), Path(out), workers, clock)
        seconds, cpu = clock.read()
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return {
        "images_per_second": done / seconds,
        "cpu_seconds_per_image": cpu / done,
        "peak_mib": peak,
    }


def apart(system: str, source: Path, workers: int) -> dict[str, float]:
    """As `one`, in a process of its own."""
    command = [sys.executable, __file__, str(source), "--one", system, "--workers", str(workers)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def compared(
    source: Path, systems: Sequence[str], rounds: int, workers: int
) -> dict[str, list[dict[str, float]]]:
    """The systems' rounds, taken in turns."""
    found: dict[str, list[dict[str, float]]] = {system: [] for system in systems}
    for number in range(rounds):
        for system in systems:
            if system == "diffusion" and number:
                continue  # one picture of it takes as long as a round of the others
            found[system].append(apart(system, source, workers))
            rate = found[system][-1]["images_per_second"]
            print(f"round {number + 1}, {system}: {rate:.3g} images/s", file=sys.stderr)
    return found


def report(source: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured of one set of pictures."""
    import torch
    from shares import operations, peak, shares

    systems = [s for s in args.systems if not (args.skip_diffusion and s == "diffusion")]
    rounds = compared(source, systems, args.rounds, args.workers)
    best = {
        name: {s: max(r[name] for r in rounds[s]) for s in systems}
        if name != "cpu_seconds_per_image"
        else {s: min(r[name] for r in rounds[s]) for s in systems}
        for name in ("images_per_second", "cpu_seconds_per_image", "peak_mib")
    }
    single_threaded()
    some = below(source)[:24]
    work, speed = operations(some), peak("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "schema": 1,
        "images": len(below(source)),
        "workers": args.workers,
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "torch": torch.__version__},
        **best,
        "ratio_to_deface": ratios(rounds, THEIRS),
        "rounds": rounds,
        "milliseconds_per_image": shares(some, args.rounds),
        "operations_per_image": work,
        "bound": {
            "device": "GPU" if torch.cuda.is_available() else "one core",
            "operations_per_second": speed,
            "images_per_second": speed / work,
        },
    }


def ratios(rounds: dict[str, list[dict[str, float]]], peer: str) -> dict[str, float]:
    """How many times as fast as a peer systems are: the median of rounds, whose turns adjoin."""
    rates = {system: [r["images_per_second"] for r in some] for system, some in rounds.items()}
    theirs = rates.get(peer, [])
    return {  # diffusion has one round
        system: statistics.median(a / b for a, b in zip(ours, theirs, strict=False))
        for system, ours in rates.items()
        if theirs
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def table(found: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{found['images']} pictures, {found['workers']} threads, {found['machine']['cpu']}"]
    lines.append(f"{'':20}{'images/s':>10}{'to deface':>11}{'CPU s/image':>13}{'peak MiB':>10}")
    for system, rate in found["images_per_second"].items():
        cpu, peak = found["cpu_seconds_per_image"][system], found["peak_mib"][system]
        ratio = f"{found['ratio_to_deface'].get(system, math.nan):.2f}"
        lines.append(f"{system:20}{rate:10.3g}{ratio:>11}{cpu:13.3g}{peak:10.0f}")
    if "diffusion" in found["images_per_second"]:
        lines.append(f"diffusion: one step measured, {STEPS} extrapolated")
    spent = found["milliseconds_per_image"]
    lines += [
        f"{value:8.1f} ms {100 * value / sum(spent.values()):5.1f} %  {name}"
        for name, value in spent.items()
    ]
    bound = found["bound"]
    lines.append(
        f"{found['operations_per_image'] / 1e9:.1f} G operations per picture: at most "
        f"{bound['images_per_second']:.0f} images/s on {bound['device']}"
    )
    return "\n".join(lines)


def memory(workers: int, counts: Sequence[int] = (1000, 20_000)) -> dict[str, Any]:
    """Peak memory of runs over different numbers of pictures."""
    peaks = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            generated(count, CROPS, Path(folder))
            peaks[str(count)] = apart(OURS, Path(folder), workers)["peak_mib"]
    first, last = peaks[str(counts[0])], peaks[str(counts[-1])]
    return {"schema": 1, "peak_mib": peaks, "growth": last / first}


def main() -> None:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("src", type=Path, nargs="?", help="folder of pictures")
    parser.add_argument("--limit", type=int, default=200, help="pictures taken of SRC")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--crops", action="store_true", help="generated 112 px crops, not SRC")
    parser.add_argument("--skip-diffusion", action="store_true")
    parser.add_argument("--memory", action="store_true", help="peak memory by number of pictures")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", choices=SYSTEMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.src, args.workers)))
        return
    if args.memory:
        found = memory(args.workers)
        text = "\n".join(f"{n} pictures: {p:.0f} MiB" for n, p in found["peak_mib"].items())
    else:
        if not (args.crops or args.src):
            parser.error("expected SRC, --crops or --memory")
        with tempfile.TemporaryDirectory() as folder:
            if args.crops:
                generated(args.limit, CROPS, Path(folder))
            else:
                chosen(args.src, args.limit, Path(folder))
            found = report(Path(folder), args)
        text = table(found)
    print(json.dumps(found) if args.json else text)


if __name__ == "__main__":
    main()
