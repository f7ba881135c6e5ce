"""Any diffusers inpainting checkpoint as a generator, for faces larger than 128 pixels.

`hub:DIR` takes a folder in diffusers' layout and `hub:REPO` one that the hub's cache already holds;
a run never fetches anything. Meant for the Stable Diffusion family:

    hf download stable-diffusion-v1-5/stable-diffusion-inpainting --local-dir sd15    # 512 px
    hf download stabilityai/stable-diffusion-2-inpainting --local-dir sd2             # 512 px
    hf download diffusers/stable-diffusion-xl-1.0-inpainting-0.1 --local-dir sdxl     # 1024 px
    anonymize run SRC DST --generator hub:sd15 --set generator_options.dtype=float16

Text-to-image checkpoints of the family work too, less well. Their licences (CreativeML Open RAIL)
bind whoever publishes what they draw, and they were trained on photographs of real people.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image

from anonymize.errors import ConfigError, WeightsError
from anonymize.generators import Job
from anonymize.record import Pixels

PROMPT = "photograph of the face of a {age} year old person, natural light, in focus"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STORED = frozenset({".json", ".safetensors", ".txt"})


class Hub:
    """Draws new faces with a diffusers inpainting pipeline and a text prompt.

    It sees the crop without its region, so what it draws cannot hold the face. All that ties the
    pictures of one person together is the seed: the same starting noise and the same age in the
    prompt. That is weak, because what is drawn follows the context as well (`eval/bench/seeds.py`
    measures it); look at `same-key` of `anonymize eval` before you publish labels. People are not
    kept apart either: nothing but chance makes two of them differ.

    Args:
        model: folder of a checkpoint, or the name of one in the hub's cache.
        prompt: template; `{age}` becomes an age between 20 and 69 that belongs to the person.
        steps: of denoising.
        strength: 1 starts from noise, less from the grey of the removed region.
        guidance: how closely the prompt is followed (Ho and Salimans 2022).
        dtype: `float32`, `float16` or `bfloat16`.
        variant: of the weights' files, such as `fp16`.
        device: a torch device type.

    Raises:
        WeightsError: no complete checkpoint is there.
        ConfigError: options out of range, or the packages it needs are not installed.
    """

    name = "hub"
    baseline = False

    def __init__(
        self,
        model: str = "",
        prompt: str = PROMPT,
        steps: int = 30,
        strength: float = 1.0,
        guidance: float = 7.5,
        dtype: str = "float32",
        variant: str = "",
        device: str = "cpu",
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"hub: got dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
        if steps < 1 or not 0 < strength <= 1 or int(steps * strength) < 1:
            raise ConfigError(
                f"hub: got {steps} steps at strength {strength}, expected a strength above 0 and "
                "up to 1 that leaves a step to do"
            )
        try:
            prompt.format(age=20)
        except (LookupError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"hub: got prompt {prompt!r}, expected text in which only {{age}} is filled in"
            ) from error
        self.prompt, self.steps, self.strength, self.guidance = prompt, steps, strength, guidance
        folder = located(model)
        self._pipeline = opened(folder, DTYPES[dtype], variant).to(device)
        self.size, self.hashes = crop_size(self._pipeline), hashes(folder)
        self._lock = Lock()  # a pipeline keeps the state of its schedule, and threads share it

    def __call__(self, jobs: Sequence[Job]) -> list[Pixels]:
        # one by one: in a batch, kernels round differently
        return [self._drawn(job) for job in jobs]

    def _drawn(self, job: Job) -> Pixels:
        seed = person_seed(job)
        age = int(np.random.default_rng(seed).integers(20, 70))
        with self._lock:
            drawn = self._pipeline(
                prompt=self.prompt.format(age=age),
                image=Image.fromarray(job.crop),
                mask_image=Image.fromarray(job.mask.astype(np.uint8) * 255),
                height=self.size,
                width=self.size,
                strength=self.strength,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type="np",
            ).images[0]
        return np.asarray(np.rint(np.clip(drawn, 0, 1) * 255), np.uint8)


def person_seed(job: Job) -> int:
    """The seed of a job's person; that of the face alone for whoever has no label."""
    if not job.person:
        return job.seed % 2**63
    return int.from_bytes(hashlib.sha256(job.person.encode()).digest()[:8], "big") % 2**63


def located(model: str) -> Path:
    """The folder of a checkpoint that is already on this machine.

    Raises:
        WeightsError: it is not, with the command that gets it.
    """
    if not model:
        raise ConfigError("hub: got no checkpoint, expected hub:DIR or hub:REPO")
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(model, local_files_only=True))
        except Exception as error:  # the hub's client raises whatever it finds wrong with a name
            raise WeightsError(
                f"hub: got {model!r}, expected a folder or a checkpoint in the hub's cache; a run "
                f"fetches nothing, so get it first: hf download {model} --local-dir DIR, then "
                "--generator hub:DIR"
            ) from error
    if not (folder / "model_index.json").is_file():
        raise WeightsError(
            f"hub: {folder} has no model_index.json: expected a whole checkpoint in diffusers' "
            "layout, such as `hf download REPO --local-dir DIR` makes"
        )
    return folder


def opened(folder: Path, dtype: torch.dtype, variant: str = "") -> Any:
    """The inpainting pipeline of a checkpoint; reads safetensors only, because pickles run code.

    Raises:
        ConfigError: transformers is not installed.
        WeightsError: files are missing or do not fit.
    """
    try:
        import transformers  # noqa: F401 - diffusers would fail later and say less
    except ImportError as error:
        raise ConfigError("hub needs transformers: pip install 'anonymize[hub]'") from error
    from diffusers import AutoPipelineForInpainting
    from diffusers.utils import logging

    logging.disable_progress_bar()
    try:
        pipeline = AutoPipelineForInpainting.from_pretrained(
            folder,
            dtype=dtype,
            variant=variant or None,
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(
            f"hub: cannot open {folder}: {error}; expected an inpainting checkpoint with all "
            "its safetensors files (generator_options.variant=fp16 takes those): download it again"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def crop_size(pipeline: Any) -> int:
    """Side in pixels of the pictures that a pipeline was trained on."""
    unet = getattr(pipeline, "unet", None)
    sample = getattr(getattr(unet, "config", None), "sample_size", None)
    if not isinstance(sample, int):
        raise WeightsError(
            f"hub: got {type(pipeline).__name__} without the size of its pictures, expected a "
            "checkpoint of the Stable Diffusion family"
        )
    return sample * int(pipeline.vae_scale_factor)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of a checkpoint's files, by their path inside it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and path.suffix in STORED and not inside.parts[0].startswith("."):
            with path.open("rb") as file:
                found[inside.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
