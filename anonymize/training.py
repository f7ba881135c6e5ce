"""What every training shares: augmented pictures in batches, the loop, its checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from anonymize.aligners import heat, secluded
from anonymize.augment import augment
from anonymize.errors import ConfigError
from anonymize.faces import Faces
from anonymize.inpaint import contexts
from anonymize.outlines import extent
from anonymize.recipe import TrainRecipe
from anonymize.record import Floats

REPORT, SAVE = 50, 500
"""Steps between two progress lines, and between two checkpoints."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Training pictures.

    Attributes:
        crops: (N, 3, S, S) in -1..1.
        context: (N, 7, S, S).
        landmarks: (N, 5, 2) crop pixels.
        rim: (N, 1, S, S) in 0..1, rising towards the region's border from inside, 0 beyond it.
        index: (N,) which faces they show.
    """

    crops: Tensor
    context: Tensor
    landmarks: Tensor
    rim: Tensor
    index: Tensor


def _sample(
    faces: Faces, chances: Floats, recipe: TrainRecipe, seed: tuple[int, int, int], seclude: bool
) -> tuple[Any, ...]:
    """One augmented picture with its region: everything is drawn from `seed`."""
    rng = np.random.default_rng(seed)
    index = int(np.searchsorted(chances, rng.random() * chances[-1], "right"))
    index = min(index, len(faces) - 1)  # rounding could reach the very end
    crop, marks = augment(
        faces.crops[index], faces.landmarks[index], recipe.size, rng, recipe.without
    )
    kind = rng.random()
    head, whole = recipe.share_head, recipe.share_head + recipe.share_all
    region = "head" if kind < head else "all" if kind < whole else "face"
    away = extent(crop, marks, region) / np.float32(rng.uniform(0.95, 1.1))
    rim = np.where(away < 1, np.clip(2.5 * away - 1.5, 0, 1), np.float32(0))
    if seclude:
        crop = secluded(crop, away < 1)
    return index, crop, marks, away < 1, rim, heat(marks, recipe.size)


def batches(
    faces: Faces, recipe: TrainRecipe, step: int, device: str, *, seclude: bool = False
) -> Iterator[Batch]:
    """Endless batches from a step on; what a step sees depends on the seed and its number only.

    `seclude` leaves of the surroundings what a generator sees (`aligners.secluded`).
    """
    sizes = np.bincount(faces.groups)[faces.groups]
    chances = np.cumsum(sizes**-0.5)  # large sources are seen less per face
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting: list[list[Future[tuple[Any, ...]]]] = []
        while True:
            while len(waiting) < 3:
                seeds = [(recipe.seed, step, i) for i in range(recipe.batch)]
                waiting.append(
                    [pool.submit(_sample, faces, chances, recipe, seed, seclude) for seed in seeds]
                )
                step += 1
            parts = zip(*(job.result() for job in waiting.pop(0)), strict=True)
            index, crop, marks, mask, rim, maps = (
                torch.from_numpy(np.stack(part)).to(device) for part in parts
            )
            pixels = crop.permute(0, 3, 1, 2).float() / 127.5 - 1
            context = contexts(pixels, mask[:, None].float(), maps)
            yield Batch(pixels, context, marks, rim[:, None], index)


class Trainer(Protocol):
    """One training run, as the loop sees it."""

    step: int

    def update(self, batch: Batch) -> dict[str, float]:
        """Learns from one batch, counts a step, and says how it went."""
        ...

    def save(self, path: Path) -> None:
        """Writes a checkpoint."""
        ...


def opened(out: Path, name: str, resume: bool) -> Path:
    """Makes the folder of a training run; returns where its checkpoint is or will be.

    Raises:
        ConfigError: there is a checkpoint, and `resume` is False.
    """
    checkpoint = out / name
    if checkpoint.exists() and not resume:
        raise ConfigError(f"{out} holds a training run: add --resume, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    return checkpoint


def drive(
    trainer: Trainer,
    stream: Iterable[Batch],
    steps: int,
    checkpoint: Path,
    *,
    minutes: float,
    report: Callable[[str], None],
    saved: Callable[[], None] = lambda: None,
) -> None:
    """Lets a trainer learn from a stream of batches.

    Args:
        trainer: where it stands is its own affair.
        stream: endless batches.
        steps: stop when the trainer has made so many in all.
        checkpoint: written every `SAVE` steps and at the end.
        minutes: stop after this wall time; 0 for none.
        report: takes a progress line every `REPORT` steps.
        saved: called after each checkpoint but the last.
    """
    began, first, sums = time.monotonic(), trainer.step, dict[str, float]()
    for batch in stream:
        elapsed = time.monotonic() - began
        if trainer.step >= steps or (minutes and elapsed > 60 * minutes):
            break
        for name, value in trainer.update(batch).items():
            sums[name] = sums.get(name, 0.0) + value
        if trainer.step % REPORT == 0:
            pace = (trainer.step - first) * len(batch.crops) / (time.monotonic() - began)
            means = " ".join(f"{name} {value / REPORT:.3f}" for name, value in sums.items())
            report(f"step {trainer.step} of {steps}: {means} ({pace:.1f} crops/s)")
            sums.clear()
        if trainer.step % SAVE == 0:
            trainer.save(checkpoint)
            saved()
    trainer.save(checkpoint)


@torch.no_grad()
def blend_in(average: dict[str, Tensor], network: nn.Module, ema: float, step: int) -> None:
    """Moves averaged weights towards those of a network, faster in the first steps."""
    decay = min(ema, (1 + step) / (10 + step))
    for name, value in network.state_dict().items():
        average[name].lerp_(value, 1 - decay)


def stored(state: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
