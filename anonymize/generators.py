"""Makes the new contents of a head crop: a person who does not exist, or a baseline's obscuring."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import cv2
import numpy as np
import numpy.typing as npt

from anonymize.aligners import CROP_SIZE, heat, move, secluded, warp
from anonymize.errors import ConfigError, WeightsError
from anonymize.record import Floats, Pixels

GREY = 128
"""What removed pixels are set to."""

VIEWS = ((1, 0.0, 1.0), (-1, 0.0, 1.0), (1, 4.0, 0.97), (-1, -4.0, 1.03))
"""In which a face is drawn: mirrored or not, turned by degrees about the crop's middle, scaled."""

BASELINE_NOTE = "not anonymisation: the real face is obscured, not replaced"


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One face to make.

    Attributes:
        crop: (S, S, 3) uint8 RGB head crop; the region is grey already unless the generator is a
            baseline, so no generator that claims to anonymise ever sees a face.
        mask: (S, S) bool, True where the face is replaced.
        landmarks: (5, 2) crop pixels.
        code: (128,) the new identity, None where the generator has no prior over codes.
        seed: of this face's randomness.
        person: opaque handle of the labelled person, the same in all of their pictures; None for
            bystanders and where the source names nobody.
    """

    crop: Pixels
    mask: npt.NDArray[np.bool_]
    landmarks: Floats
    code: Floats | None
    seed: int
    person: str | None = None


class Generator(Protocol):
    """Makes faces.

    Optional: `prior`, a `CodePrior` to draw new people from (without it jobs have no code), with
    `cells`, its guess of each job's cell; `hashes`, of weights; `label`, one line for run.json on
    what is promised; `additive`, True where only what it changed in a crop is to be added to the
    photograph; and what `Learner` has.

    Attributes:
        name: what run.json and reports call it.
        size: side S of the crops it takes.
        baseline: True for methods that obscure the real face instead of drawing a new one; they
            are offered for comparison and are not anonymisation.
    """

    name: str
    size: int
    baseline: bool

    def __call__(self, jobs: Sequence[Job]) -> list[Pixels]:
        """Jobs to (S, S, 3) uint8 crops; each depends on its own job only."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A generator that must know everybody before it makes anybody."""

    def fit(self, jobs: Iterable[Job]) -> bytes:
        """Looks once at every labelled face, in an order that the key decides.

        Called before the first face is made, and never again for this release.

        Args:
            jobs: with `person`, without code and seed; faces are visible to baselines only. There
                may be millions, so what is kept must not grow with their number.

        Returns:
            What `restore` needs; it is kept in the private state beside the release.
        """
        ...

    def restore(self, learnt: bytes) -> None:
        """Takes what `fit` returned, in this process or in one that was killed."""
        ...


class Inpaint:
    """The default: our own diffusion-style inpainting network (`anonymize.inpaint`).

    Args:
        weights: folder of an exported pipeline; default is the one that comes with the package.
        steps: denoising steps; further ones than the first make faces softer and people less
            distinct (model card).
        noise: standard deviation of the noise that faces start from. Little of it draws what is
            most typical of a person in that place, without the specks and patches that noise
            brings (truncation, Brock et al. 2019); whole crops need 1.
        emphasis: factor by which codes are lengthened before the network sees them. One step with
            no noise draws the mean of whom a code and a place allow, which is too average a
            person; a longer code draws what sets this one apart, as caricatures do (Rhodes,
            Brennan and Carey 1987). Training draws new people by factors up to 1.7.
        views: in how many of `VIEWS` each face is drawn; what comes out is their mean. Spots,
            lines and stray colours differ from view to view, the person does not. Each takes a
            call of the network, and the mean is softer.
        device: a torch device type.

    Raises:
        WeightsError: the folder is incomplete, or a file differs from its SHA256SUMS.
    """

    name = "inpaint"
    baseline = False

    def __init__(
        self,
        weights: str = "",
        steps: int = 1,
        noise: float = 0.2,
        emphasis: float = 1.7,
        views: int = 2,
        device: str = "cpu",
    ) -> None:
        import torch
        from diffusers.utils import logging

        from anonymize.devices import tuned
        from anonymize.embedders import DLIB_RESNET, DlibResNet
        from anonymize.inpaint import InpaintPipeline
        from anonymize.packages import package_file

        if not 1 <= steps <= 50:
            raise ConfigError(f"got {steps} steps, expected 1 to 50 (1 and 2 are useful)")
        if not 0 <= noise <= 1:
            raise ConfigError(f"got noise {noise}, expected 0 to 1 (0.2 is the default)")
        if not 0 < emphasis <= 3:
            raise ConfigError(f"got emphasis {emphasis}, expected 0 to 3 (1 to 2 are useful)")
        if not 1 <= views <= len(VIEWS):
            raise ConfigError(f"got {views} views, expected 1 to {len(VIEWS)}")
        folder = Path(weights) if weights else bundled("inpaint-128")
        self.hashes = check_sums(folder)
        logging.disable_progress_bar()
        self._pipeline = InpaintPipeline.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        ).to(device)
        tuned(self._pipeline.prior, device)
        self._recogniser = DlibResNet(package_file("face_recognition_models", DLIB_RESNET))
        tuned(self._recogniser, device, bf16=True)
        for part in ("unet", "adapter"):
            tuned(getattr(self._pipeline, part), device, bf16=True)
        self.prior = self._pipeline.prior
        self.size, self.device = self._pipeline.size, device
        self.steps, self.noise, self.emphasis, self.views = steps, noise, emphasis, views

    @property
    def draft(self) -> Inpaint:
        """The same in one step and view, which show who it will be."""
        quick = copy(self)
        quick.steps = quick.views = 1
        return quick

    def context(self, jobs: Sequence[Job]) -> Any:
        """(N, 7, S, S) float32 torch tensor of what the network may see of the jobs."""
        import torch

        from anonymize.inpaint import contexts

        crops = torch.from_numpy(np.stack([job.crop for job in jobs])).permute(0, 3, 1, 2)
        masks = torch.from_numpy(np.stack([job.mask for job in jobs]))[:, None].float()
        maps = torch.from_numpy(np.stack([heat(job.landmarks, self.size) for job in jobs]))
        return contexts(crops.float() / 127.5 - 1, masks, maps)

    def cells(self, jobs: Sequence[Job]) -> Floats:
        """(N, cells) logits: which coarse cell of people the visible context suggests."""
        return np.array(self._grouped(self._guess, jobs), np.float32)

    def __call__(self, jobs: Sequence[Job]) -> list[Pixels]:
        return self._grouped(self._draw, jobs)

    def _grouped(self, step: Callable[[Sequence[Job], int], Any], jobs: Sequence[Job]) -> list[Any]:
        """What a step makes of jobs: labelled people, whom every picture has, go together."""
        from anonymize.devices import CPU_BATCH, grouped

        return grouped(step, jobs, [CPU_BATCH if job.person else 1 for job in jobs])

    def _guess(self, jobs: Sequence[Job], batch: int) -> Floats:
        from anonymize.devices import invariant
        from anonymize.priors import hints

        logits = invariant(
            lambda context: self.prior(hints(self._recogniser, context)),
            self.context(jobs),
            device=self.device,
            batch=batch,
        )
        return np.asarray(logits.numpy(), np.float32)

    def _draw(self, jobs: Sequence[Job], batch: int) -> list[Pixels]:
        import torch

        from anonymize.devices import invariant

        shape = (3, self.size, self.size)
        noise = [np.random.default_rng(j.seed).standard_normal(shape, np.float32) for j in jobs]
        codes = np.stack([job.code for job in jobs if job.code is not None])
        if len(codes) != len(jobs):
            raise ConfigError("inpaint got a job without an identity code")
        seen = [replace(job, crop=secluded(job.crop, job.mask)) for job in jobs]
        longer = torch.from_numpy(codes) * self.emphasis
        start = torch.from_numpy(np.stack(noise)) * self.noise
        views = []
        for mirrored, degrees, scale in VIEWS[: self.views]:
            matrix = _view(mirrored, degrees, scale, self.size)
            drawn = invariant(
                lambda context, code, start: self._pipeline(context, code, start, self.steps),
                self.context([_moved(job, matrix) for job in seen]),
                longer,
                start,
                device=self.device,
                batch=batch,
            )
            views.append([_moved_back(crop, matrix) for crop in drawn.permute(0, 2, 3, 1).numpy()])
        pixels = (np.mean(views, 0) + 1) * 127.5
        return list(np.asarray(np.rint(pixels).clip(0, 255), np.uint8))


def _view(mirrored: int, degrees: float, scale: float, size: int) -> Floats:
    """(2, 3) from crop pixels to those of a view; `mirrored` is -1 or 1."""
    middle = (size - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), degrees, scale)
    matrix[:, 2] += matrix[:, 0] * middle * (1 - mirrored)
    matrix[:, 0] *= mirrored
    return np.asarray(matrix, np.float32)


def _moved(job: Job, matrix: Floats) -> Job:
    """A job as it looks in a view, with nothing of the region outside its mask."""
    size, border = job.mask.shape, cv2.BORDER_REFLECT_101
    mask = cv2.warpAffine(job.mask.astype(np.float32), matrix, size, borderMode=border)
    crop = warp(job.crop, matrix, len(job.crop))
    return replace(job, crop=crop, mask=mask > 0, landmarks=move(job.landmarks, matrix))


def _moved_back(crop: Floats, matrix: Floats) -> Floats:
    """A crop (S, S, 3) that was drawn in a view, as it looks without."""
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    size, border = crop.shape[:2], cv2.BORDER_REFLECT_101
    return np.asarray(cv2.warpAffine(crop, matrix, size, flags=flags, borderMode=border))


class Blur:
    """Baseline: Gaussian blur. Not anonymisation: recognisers that learnt blur see through it.

    Args:
        strength: standard deviation as a share of the crop's side.
    """

    name: ClassVar[str] = "blur"
    baseline = True
    size = CROP_SIZE

    def __init__(self, strength: float = 0.06) -> None:
        if not strength > 0:
            raise ConfigError(f"got blur strength {strength}, expected a positive number")
        self.strength = strength

    def __call__(self, jobs: Sequence[Job]) -> list[Pixels]:
        return [self._blurred(job.crop) for job in jobs]

    def _blurred(self, crop: Pixels) -> Pixels:
        """The crop, blurred at half its size where that is the same within two grey levels."""
        shrink = 2 if self.strength * self.size > 6 else 1
        side, sigma = self.size // shrink, self.strength * self.size / shrink
        small = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma)
        return np.asarray(cv2.resize(small, crop.shape[1::-1]), np.uint8)


class Pixelate:
    """Baseline: a coarse mosaic. Not anonymisation: what the blocks keep can be matched.

    Args:
        blocks: blocks along the crop's side.
    """

    name: ClassVar[str] = "pixelate"
    baseline = True
    size = CROP_SIZE

    def __init__(self, blocks: int = 12) -> None:
        if not 1 <= blocks <= self.size:
            raise ConfigError(f"got {blocks} blocks, expected 1 to {self.size}")
        self.blocks = blocks

    def __call__(self, jobs: Sequence[Job]) -> list[Pixels]:
        return [self._mosaic(job.crop) for job in jobs]

    def _mosaic(self, crop: Pixels) -> Pixels:
        small = cv2.resize(crop, (self.blocks, self.blocks), interpolation=cv2.INTER_AREA)
        side = (self.size, self.size)
        return np.asarray(cv2.resize(small, side, interpolation=cv2.INTER_NEAREST), np.uint8)


class Mask:
    """Baseline: the region in plain grey. It leaves nothing to learn from, and only the context."""

    name: ClassVar[str] = "mask"
    baseline = True
    size = CROP_SIZE

    def __call__(self, jobs: Sequence[Job]) -> list[Pixels]:
        return [np.full_like(job.crop, GREY) for job in jobs]


def promise(generator: Any) -> str:
    """What may be said of a generator's releases in one line; its class will do."""
    usual = BASELINE_NOTE if generator.baseline else "anonymisation"
    return str(getattr(generator, "label", usual))


def bundled(name: str) -> Path:
    """The folder of a model that comes with the package."""
    return Path(str(files("anonymize.models") / name))


def check_sums(folder: Path) -> dict[str, str]:
    """Compares every file of a model with its SHA256SUMS.

    Returns:
        File name (relative to the folder) to SHA-256.

    Raises:
        WeightsError: the list or a file is absent, or a file was altered.
    """
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        raise WeightsError(
            f"{folder} has no SHA256SUMS: expected a model exported by `anonymize train`"
        )
    lines = [line.split("  ", 1) for line in sums.read_text("utf-8").splitlines() if line]
    for digest, name in lines:
        path = folder / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        if found != digest:
            raise WeightsError(
                f"{path} is not what was published: got {found}, expected {digest}; "
                "install the package or export the model again"
            )
    return {name: digest for digest, name in lines}


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS over every other file below a model's folder."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "SHA256SUMS")
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in paths
    ]
    (folder / "SHA256SUMS").write_text("".join(lines), "utf-8")
