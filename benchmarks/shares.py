"""What the time of a run goes into, and the operations behind it."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from systems import CROPS
from torch.utils.flop_counter import FlopCounterMode

from anonymize import registry, stages
from anonymize.aligned import Aligned
from anonymize.detectors import MTCNN, CenterFace
from anonymize.devices import CPU_BATCH
from anonymize.embedders import DlibEmbedder
from anonymize.identities import invent
from anonymize.images import encode, read
from anonymize.pipeline import chunks
from anonymize.record import Pixels, Record
from anonymize.seeds import new_key


class Spent:
    """Adds up the CPU seconds of this thread in named calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time counted."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.thread_time() - began

        return wrapper


class Timed:
    """A component whose calls are timed; everything else is passed on."""

    cells: Callable[..., Any]

    def __init__(self, spent: Spent, name: str, inner: Any) -> None:
        self._call, self._inner = spent.timed(name, inner), inner

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def shares(paths: Sequence[Path], rounds: int) -> dict[str, float]:
    """Milliseconds of CPU per picture of each stage, on one thread: the least of some rounds.

    The stages are timed apart, so that this works from outside the run; casting, which draws a
    draft or two of every person, is not among them.
    """
    spent = Spent()
    images = [(path.name, spent.timed("decode", read)(path)) for path in paths]
    survey, replace = _stages(spent, images)
    best: dict[str, float] = {}
    for _ in range(rounds + 1):  # the first one warms up
        decoded = spent.seconds["decode"]
        spent.seconds.clear()
        found = _once(images, survey, spent.timed("whole", replace))
        whole = spent.seconds.pop("whole")
        inner = [v for name, v in spent.seconds.items() if not name.startswith("survey")]
        spent.seconds["align, blend, compare"] = whole - sum(inner)
        spent.seconds["decode"] = decoded
        for name, seconds in spent.seconds.items():
            value = 1000 * seconds / max(found, 1)
            best[name] = min(best.get(name, value), value)
    return dict(sorted(best.items(), key=lambda item: -item[1]))


def _stages(
    spent: Spent, images: Sequence[tuple[str, Pixels]]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    crops = images[0][1].shape[:2] == (CROPS, CROPS)
    key, generator = new_key(), registry.load("generator", "inpaint")
    code = invent(generator.prior, key, {"person": None})["person"].code
    survey = stages.Survey(
        Aligned() if crops else Timed(spent, "survey: MTCNN", MTCNN()),
        Timed(spent, "survey: recogniser", DlibEmbedder(bf16=True)),  # type: ignore[arg-type]
        spent.timed("survey: cell", generator.cells),
        generator.size,
        "face",
    )
    replace = stages.Replace(
        generator=_generator(spent, generator),
        region="face",
        key=key,
        codes=lambda _: code,
        templates=lambda _: np.zeros(128, np.float32),
        detector=Timed(spent, "audit: MTCNN", MTCNN()),
        searched=not crops,
        auditor=Timed(spent, "audit: CenterFace", CenterFace()),
        embedder=Timed(spent, "verify: recogniser", DlibEmbedder(bf16=True)),  # type: ignore[arg-type]
        encode=spent.timed("encode", encode),
    )
    return survey, replace


def _generator(spent: Spent, generator: Any) -> Timed:
    """The generator with its guess of bystanders' cells timed as well."""
    timed = Timed(spent, "generate", generator)
    timed.cells = spent.timed("bystanders: cell", generator.cells)
    return timed


def _once(
    images: Sequence[tuple[str, Any]], survey: Callable[..., Any], replace: Callable[..., Any]
) -> int:
    found = 0
    for group in chunks([Record(name, "person", image) for name, image in images], CPU_BATCH):
        records = [record for record in survey(group) if record.withheld is None]
        replace(records)
        found += len(records)
    return found


def operations(paths: Sequence[Path]) -> float:
    """Floating-point operations of all networks for a picture, the mean of some."""
    images = [(path.name, read(path)) for path in paths]
    survey, replace = _stages(Spent(), images)
    packed = {torch.ops.mkldnn._convolution_pointwise: _packed}
    with FlopCounterMode(display=False, custom_mapping=packed) as counter:
        found = _once(images, survey, replace)
    return counter.get_total_flops() / max(found, 1)


def _packed(
    x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any
) -> int:
    """Operations of `devices.PackedConv2d`, which torch's counter does not know."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def peak(device: str) -> float:
    """Operations per second of a float32 matrix product, the best of ten."""
    side, best = 8192 if device == "cuda" else 1024, 0.0
    a = torch.randn(side, side, device=device)
    for _ in range(10):
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for a GPU
        best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best
