"""Kills a run at random moments until it is done: the release must be the undisturbed one.

    python eval/bench/kills.py [SRC] [--kills 50] [--to FORMAT]... [--generator NAME]

Each kill is a SIGKILL between the first journalled picture and the end of a run over SRC (default
samples/people); the run is then resumed and killed again. A run that is done before the kills are
spent is begun anew, so that every kill hits a run in flight. Prints how many files differ.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from anonymize import seeds

PEOPLE = Path(__file__).parents[2] / "samples" / "people"


def digests(release: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    paths = [path for path in sorted(release.rglob("*")) if path.is_file()]
    return {str(p.relative_to(release)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def killed(command: list[str], delay: float) -> bool:
    """Whether the command was still at work `delay` seconds after it began."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    if process.returncode not in (0, 3):
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return False


def torment(command: list[str], release: Path, whole: float, kills: int, seed: int) -> int:
    """Kills and resumes; returns how many times a run was completed on the way."""
    rng, done, spent = random.Random(seed), 0, 0
    while spent < kills:
        begun = release.with_name(release.name + ".private").exists()
        hit = killed([*command, *(["--resume"] if begun else [])], rng.uniform(0.1, 1) * whole)
        spent += hit
        if not hit:
            done += 1
            if spent < kills:
                shutil.rmtree(release)
                shutil.rmtree(release.with_name(release.name + ".private"))
    begun = release.with_name(release.name + ".private").exists()
    killed([*command, *(["--resume"] if begun else [])], 3600)
    return done + 1


def main() -> None:
    """Reads the arguments, kills, compares, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("src", type=Path, nargs="?", default=PEOPLE)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--to", action="append", help="default: folder and recordio")
    parser.add_argument("--generator", default="inpaint")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    formats, different = args.to or ["folder", "recordio"], 0
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        seeds.write_key(base / "key", seeds.new_key())
        for name in formats:
            words = [sys.executable, "-m", "anonymize", "run", str(args.src)]
            options = ["--to", name, "--generator", args.generator, "--key-file", str(base / "key")]
            options += ["--max-withheld", "1"]
            began = time.perf_counter()
            killed([*words, str(base / f"{name}-whole"), *options], 3600)
            whole = time.perf_counter() - began
            release, share = base / f"{name}-killed", args.kills // len(formats)
            done = torment([*words, str(release), *options], release, whole, share, args.seed)
            first, second = digests(base / f"{name}-whole"), digests(release)
            wrong = sum(first.get(p) != second.get(p) for p in first.keys() | second.keys())
            different += wrong
            print(f"{name}: {share} kills over {done} runs, {wrong} of {len(first)} files differ")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
