"""How fast a run is, and what the time goes into.

    python eval/bench/speed.py SRC [--limit N] [--generator NAME] [--json]

Two measurements on the same pictures. First the whole of `anonymize run` with a thread per core:
images per second, beside the floor of decoding and encoding the same pictures and nothing else.
Then the components one by one on one thread: milliseconds per image and their shares.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anonymize import registry, stages
from anonymize.detectors import MTCNN, CenterFace
from anonymize.embedders import DlibEmbedder
from anonymize.errors import Withhold
from anonymize.identities import invent
from anonymize.images import decode, encode, read
from anonymize.readers import Folder
from anonymize.recipe import Recipe
from anonymize.record import Record
from anonymize.run import run
from anonymize.seeds import new_key


class Clock:
    """Adds up the seconds spent in named calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time counted."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - began

        return wrapper


class Timed:
    """A component whose calls are timed; everything else is passed on."""

    def __init__(self, clock: Clock, name: str, inner: Any) -> None:
        self._call, self._inner = clock.timed(name, inner), inner

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def floor(paths: list[Path], workers: int) -> float:
    """Images per second of decoding and encoding alone."""
    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda path: len(encode(read(path))), paths))
    return len(paths) / (time.perf_counter() - began)


def whole(source: Path, recipe: Recipe, limit: int, workers: int) -> float:
    """Images per second of `anonymize run`, start-up left out."""
    began: list[float] = []

    def progress(*_: object) -> None:
        began.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        summary = run(
            source,
            Path(folder) / "release",
            recipe,
            workers=workers,
            limit=limit,
            progress=progress,
        )
    return summary.read / (began[-1] - began[0])


def shares(paths: list[Path], name: str) -> dict[str, float]:
    """Milliseconds per image of each component, on one thread."""
    clock, key = Clock(), new_key()
    generator = registry.load("generator", name)
    detector = Timed(clock, "detect", MTCNN())
    cells = clock.timed("cell", generator.cells) if name == "inpaint" else None
    embedder: Any = Timed(clock, "embed", DlibEmbedder())
    survey = stages.Survey(detector, embedder, cells, generator.size, "face")
    replace = stages.Replace(
        generator=Timed(clock, "generate", generator),
        region="face",
        key=key,
        codes=lambda label: invent(generator.prior, key, {label: None})[label].code,
        templates=lambda label: np.zeros(128, np.float32),
        detector=Timed(clock, "audit: mtcnn", MTCNN()),
        auditor=Timed(clock, "audit: centerface", CenterFace()),
        embedder=Timed(clock, "verify: embed", DlibEmbedder()),  # type: ignore[arg-type]
        published=clock.timed("verify: codec", lambda image: decode(encode(image))),
    )
    load, compress = clock.timed("decode", read), clock.timed("encode", encode)
    everything = clock.timed("whole", replace)
    found = 0
    for path in paths:
        try:
            record = survey(Record(path.name, "person", load(path)))
        except Withhold:
            continue
        (record,) = everything([record])
        if record.output is not None:
            compress(record.output)
        found += 1
    inner = ("generate", "audit: mtcnn", "audit: centerface", "verify: embed", "verify: codec")
    spent = dict(clock.seconds)
    spent["align, blend"] = spent.pop("whole") - sum(spent[name] for name in inner if name in spent)
    return {name: 1000 * seconds / found for name, seconds in spent.items()}


def main() -> None:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("src", type=Path)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--generator", default="inpaint")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    workers = os.cpu_count() or 1
    every = [args.src / item.path for item in Folder(args.src)]
    chosen = np.random.default_rng(0).permutation(len(every))[: args.limit]
    paths = [every[i] for i in chosen]
    recipe = Recipe(generator=args.generator)
    result = {
        "images": len(paths),
        "workers": workers,
        "images_per_second": whole(args.src, recipe, args.limit, workers),
        "floor_images_per_second": floor(paths, workers),
        "milliseconds_per_image": shares(paths, args.generator),
    }
    if args.json:
        print(json.dumps({"schema": 1, **result}))
        return
    print(f"{result['images_per_second']:.1f} images/s with {workers} threads")
    print(f"{result['floor_images_per_second']:.0f} images/s decoding and encoding alone")
    spent = result["milliseconds_per_image"]
    total = sum(spent.values())
    for name, value in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"{value:7.1f} ms {100 * value / total:5.1f} %  {name}")


if __name__ == "__main__":
    main()
