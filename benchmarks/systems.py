"""What is compared: each system reads picture files of a folder and writes what it makes of them.

A system is a function of the folder, the pictures below it, an empty folder for outputs, the number
of threads and a clock to start when it is ready. It returns how many pictures it did.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch

from anonymize.devices import single_threaded
from anonymize.images import encode, read
from anonymize.recipe import Recipe
from anonymize.run import run


@dataclass
class Clock:
    """Seconds and CPU seconds (of all threads) since it was started."""

    began: float = 0.0
    cpu: float = 0.0

    def start(self) -> None:
        """Starts, or starts anew."""
        self.began, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Seconds and CPU seconds so far."""
        return time.perf_counter() - self.began, time.process_time() - self.cpu


System: TypeAlias = Callable[[Path, Sequence[Path], Path, int, Clock], float]


CROPS = 112
"""Side of aligned crops; pictures of this size are taken for such."""


def ours(generator: str, **options: Any) -> System:
    """The whole of `anonymize run`: survey, casting, replacing, audit, verification, writing."""

    def system(source: Path, paths: Sequence[Path], out: Path, workers: int, clock: Clock) -> float:
        single_threaded()
        started: list[bool] = []

        def progress(*_: object) -> None:
            if not started:  # the first picture is surveyed: everything is loaded
                started.append(True)
                clock.start()

        crops = read(paths[0]).shape[:2] == (CROPS, CROPS)
        recipe = Recipe(generator=generator, generator_options=options)
        made = run(
            source,
            out / "release",
            replace(recipe, detector="aligned") if crops else recipe,
            workers=workers,
            progress=progress,
        )
        return made.read

    return system


def deface_blur(
    source: Path, paths: Sequence[Path], out: Path, workers: int, clock: Clock
) -> float:
    """The `deface` package as its command does it: one picture after the other, default options."""
    from deface.centerface import CenterFace
    from deface.deface import image_detect

    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it runs on
        centerface = CenterFace()
    options: dict[str, Any] = {
        "centerface": centerface,
        "threshold": 0.2,
        "replacewith": "blur",
        "mask_scale": 1.3,
        "ellipse": True,
        "draw_scores": False,
        "enable_preview": False,
        "keep_metadata": False,
    }
    image_detect(str(paths[0]), str(out / "first.jpg"), **options)
    clock.start()
    for index, path in enumerate(paths):
        image_detect(str(path), str(out / f"{index}.jpg"), **options)
    return len(paths)


def floor(source: Path, paths: Sequence[Path], out: Path, workers: int, clock: Clock) -> float:
    """Decoding and encoding alone: nothing that reads and writes pictures is faster."""
    cv2.setNumThreads(1)
    clock.start()

    def copy(numbered: tuple[int, Path]) -> None:
        index, path = numbered
        (out / f"{index}.jpg").write_bytes(encode(read(path)))

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(copy, enumerate(paths)))
    return len(paths)


STEPS = 25
"""Denoising steps that the cost of diffusion is extrapolated to."""


def diffusion(source: Path, paths: Sequence[Path], out: Path, workers: int, clock: Clock) -> float:
    """Inpainting at Stable Diffusion 1.5's size and 512 px: what users of hub models pay.

    The weights are random, which costs the same. One picture is encoded, denoised for one step
    (with guidance, so twice) and decoded; the fraction of a picture that this is is returned, from
    the time that 25 steps would take. Text encoder, detection and checks are left out.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.set_num_threads(workers)
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=9,
        cross_attention_dim=768,
        attention_head_dim=8,
    ).eval()
    blocks = 4
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    ).eval()
    pixels = np.asarray(cv2.resize(read(paths[0]), (512, 512)), np.float32) / 127.5 - 1
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    text = torch.randn(2, 77, 768)
    with torch.inference_mode():
        clock.start()
        latent = vae.encode(image).latent_dist.mode()
        mask = torch.ones(1, 1, 64, 64)
        before = clock.read()[0]
        noisy = torch.cat([latent, mask, latent], 1).expand(2, -1, -1, -1)
        unet(noisy, torch.tensor(999), text)
        step = clock.read()[0] - before
        vae.decode(latent)
    spent = clock.read()[0]
    return spent / (spent + (STEPS - 1) * step)


SYSTEMS: dict[str, System] = {
    "anonymize inpaint": ours("inpaint"),
    "inpaint in 2 steps": ours("inpaint", steps=2),
    "anonymize blur": ours("blur"),
    "deface blur": deface_blur,
    "decode and encode": floor,
    "diffusion": diffusion,
}
