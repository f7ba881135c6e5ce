"""What every training shares: augmented pictures in batches, the loop, checkpoints, sheets."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from anonymize.aligners import heat, secluded
from anonymize.augment import augment
from anonymize.errors import ConfigError
from anonymize.faces import Faces
from anonymize.images import encode
from anonymize.inpaint import InpaintPipeline, contexts
from anonymize.outlines import extent
from anonymize.recipe import TrainRecipe

REPORT, SAVE = 50, 500
"""Steps between two progress lines, seconds between two checkpoints."""


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


class Views(Dataset[tuple[Any, ...]]):
    """Augmented pictures with their regions, by a batch's number and their place in it."""

    def __init__(self, faces: Faces, recipe: TrainRecipe, seclude: bool) -> None:
        sizes = np.bincount(faces.groups)[faces.groups]
        self.chances = np.cumsum(sizes**-0.5)  # large sources are seen less per face
        self.faces, self.recipe, self.seclude = faces, recipe, seclude

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, ...]:
        """Index, crop, landmarks and the distance from the region's middle: all by `key`."""
        faces, recipe = self.faces, self.recipe
        rng = np.random.default_rng((recipe.seed, *key))
        index = int(np.searchsorted(self.chances, rng.random() * self.chances[-1], "right"))
        index = min(index, len(faces) - 1)  # rounding could reach the very end
        crop, marks = augment(
            faces.crops[index], faces.landmarks[index], recipe.size, rng, recipe.without
        )
        kind = rng.random()
        head, whole = recipe.share_head, recipe.share_head + recipe.share_all
        region = "head" if kind < head else "all" if kind < whole else "face"
        away = extent(crop, marks, region) / np.float32(rng.uniform(0.95, 1.1))
        if self.seclude:
            crop = secluded(crop, away < 1)
        return index, crop, marks, away, heat(marks, recipe.size)


def batches(
    faces: Faces, recipe: TrainRecipe, step: int, device: str, *, seclude: bool = False
) -> Iterator[Batch]:
    """Endless batches from a step on; what a step sees depends on the seed and its number only.

    A step learns from the views of as many numbers as the recipe's `echo`, of which only the last
    is new. `seclude` leaves of the surroundings what a generator sees (`aligners.secluded`).
    """
    fresh = recipe.batch // recipe.echo
    keys = ([(number, i) for i in range(fresh)] for number in count(step))
    loader = DataLoader(
        Views(faces, recipe, seclude),
        batch_sampler=keys,
        num_workers=os.cpu_count() or 1,
        worker_init_fn=_begin,
        pin_memory=device == "cuda",
    )
    recent = deque[list[Tensor]](maxlen=recipe.echo)
    for part in loader:
        recent.append([x.to(device, non_blocking=True) for x in part])
        if len(recent) < recipe.echo:
            continue
        index, crop, marks, away, maps = map(torch.cat, zip(*recent, strict=True))
        mask = (away < 1)[:, None].float()
        rim = (2.5 * away[:, None] - 1.5).clamp(0, 1) * mask
        pixels = crop.permute(0, 3, 1, 2).float() / 127.5 - 1
        yield Batch(pixels, contexts(pixels, mask, maps), marks, rim, index)


def _begin(_: int) -> None:
    cv2.setNumThreads(0)  # its threads do not survive a fork
    os.nice(5)  # what feeds the GPU goes first


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
        checkpoint: written every `SAVE` seconds and at the end.
        minutes: stop after this wall time; 0 for none.
        report: takes a progress line every `REPORT` steps.
        saved: called after each checkpoint but the last.
    """
    began, first, sums = time.monotonic(), trainer.step, dict[str, float]()
    kept = began
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
        if time.monotonic() - kept > SAVE:
            trainer.save(checkpoint)
            saved()
            kept = time.monotonic()
    trainer.save(checkpoint)


@torch.no_grad()
def blend_in(average: dict[str, Tensor], network: nn.Module, ema: float, step: int) -> None:
    """Moves averaged weights towards those of a network, faster in the first steps."""
    decay = min(ema, (1 + step) / (10 + step))
    state = network.state_dict()
    torch._foreach_lerp_([average[name] for name in state], list(state.values()), 1 - decay)


def stored(state: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


@torch.no_grad()
def sheet(pipeline: InpaintPipeline, batch: Batch, codes: Tensor, noise: float, path: Path) -> None:
    """Draws a contact sheet: a row for each picture, its context and then each of the codes."""
    count, kinds = len(batch.crops), len(codes)
    context = batch.context.repeat_interleave(kinds, 0)
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(count * kinds, *batch.crops.shape[1:], generator=generator)
    start = (noise * normal).to(context.device)
    drawn = pipeline(context, codes.repeat(count, 1), start)
    mask = context[:, 3:4]
    seen = batch.crops.repeat_interleave(kinds, 0) * (1 - mask)
    rows = (seen + drawn * mask).reshape(count, kinds, *drawn.shape[1:])
    rows = torch.cat([batch.context[:, None, :3], rows], 1)
    sheet = rows.permute(0, 3, 1, 4, 2).reshape(count * rows.shape[3], -1, 3)
    pixels = ((sheet.clamp(-1, 1) + 1) * 127.5).round().cpu().numpy().astype(np.uint8)
    path.write_bytes(encode(pixels, "png"))
