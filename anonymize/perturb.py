"""Bounded perturbations ("cloaks"): offered for comparison, and not anonymisation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from anonymize.aligners import CROP_SIZE
from anonymize.devices import invariant
from anonymize.embedders import DLIB_RESNET, DlibResNet, chips
from anonymize.errors import ConfigError
from anonymize.generators import Job, bundled, check_sums
from anonymize.packages import package_file
from anonymize.record import Floats, Pixels
from anonymize.views import blurred, views

NET, PGD = "net", "pgd"

Part = TypeVar("Part", bound=nn.Module)


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


class PerturbNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A U-Net from a crop to its perturbation in one pass, after Poursaeed et al. (2018).

    It works at half of the crop's resolution, where what it adds survives resampling.

    Args:
        channels: per level, finest first.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, channels: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        self.first = _block(12, channels[0])
        self.down = nn.ModuleList([_block(a, b, 2) for a, b in pairwise(channels)])
        self.up = nn.ModuleList([_block(a + b, a) for a, b in reversed(list(pairwise(channels)))])
        self.last = nn.Conv2d(channels[0], 12, 3, padding=1)

    def forward(self, crops: Tensor) -> Tensor:
        """(N, 3, S, S) in -1..1 to (N, 3, S, S) in -1..1, where 1 stands for the whole bound."""
        x = self.first(F.pixel_unshuffle(crops, 2))
        skips = []
        for layer in self.down:
            skips.append(x)
            x = layer(x)
        for layer in self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = layer(torch.cat([skips.pop(), x], 1))
        return torch.tanh(F.pixel_shuffle(self.last(x), 2))


class Student(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A small recogniser that imitates dlib's; it is no independent witness of identity.

    Convention: as `anonymize.embedders.DlibResNet`.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, channels: Sequence[int] = (24, 48, 96, 144)) -> None:
        super().__init__()
        layers = [_block(a, b, 2) for a, b in pairwise((3, *channels))]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(3), nn.Flatten())
        self.head = nn.Linear(9 * channels[-1], 128)

    def forward(self, chips: Tensor) -> Tensor:
        """(N, 3, 150, 150) in 0..255 to (N, 128)."""
        small = F.avg_pool2d(chips / 127.5 - 1, 2)
        out: Tensor = self.head(self.layers(small))
        return out


class Ensemble(nn.Module):
    """The recognisers that perturbations are made against.

    dlib's ResNet by its embedding, the same by the features in its middle, and the `Student`. No
    second independent recogniser with weights that may be passed on was at hand.
    """

    MEMBERS: ClassVar[tuple[str, ...]] = ("dlib", "dlib's middle", "student")

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.resnet = DlibResNet(package_file("face_recognition_models", DLIB_RESNET))
        self.student = student

    def forward(self, chips: Tensor) -> list[Tensor]:
        """(N, 3, 150, 150) chips in 0..255 to what each member makes of them: (N, D) each."""
        _, middle, last = self.resnet.levels(chips)
        embedding = last.mean((2, 3)) @ self.resnet.head
        middle = F.adaptive_avg_pool2d(middle, 3).flatten(1)
        return [embedding.float(), middle.float(), self.student(chips).float()]


def gaps(seen: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
    """How far features moved, in units of their length: (members, N)."""
    return torch.stack(
        [(a - b).norm(dim=1) / b.norm(dim=1) for a, b in zip(seen, own, strict=True)]
    )


def ascend(
    ensemble: Ensemble,
    crops: Tensor,
    landmarks: Tensor,
    masks: Tensor,
    *,
    bound: float,
    steps: int,
    rng: torch.Generator,
    decay: float = 1.0,
) -> Tensor:
    """Perturbations by projected gradient ascent on what the ensemble sees.

    From a random start (Madry et al. 2018), with momentum (Dong et al. 2018), input diversity (Xie
    et al. 2019) and a smoothed gradient (Dong et al. 2019), because blending resamples.

    Args:
        ensemble: whose features are moved away.
        crops: (N, 3, S, S) in -1..1.
        landmarks: (N, 5, 2) crop pixels.
        masks: (N, 1, S, S), 1 where pixels may change.
        bound: greatest change of a value, in the crops' unit.
        steps: of the ascent.
        rng: on the CPU, the source of all randomness.
        decay: of the momentum.

    Returns:
        (N, 3, S, S) within -bound..bound.
    """
    with torch.no_grad():
        own = ensemble(chips(crops, landmarks))
    start = 2 * torch.rand(crops.shape, generator=rng) - 1
    change, momentum = bound * start.to(crops), torch.zeros_like(crops)
    for _ in range(steps):
        change.requires_grad_()
        seen = ensemble(views((crops + change * masks).clamp(-1, 1), landmarks, rng))
        (slope,) = torch.autograd.grad(gaps(seen, own).sum(), change)
        slope = blurred(slope, 1.0)
        scale = slope.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-12)
        momentum = decay * momentum + slope / scale
        change = change.detach() + 2.5 * bound / steps * momentum.sign()
        change = change.clamp(-bound, bound)
    return change * masks


class Perturb:
    """Baseline: noise within a bound that misleads the recognisers it was made against.

    Not anonymisation: the real face stays for everybody to see, and recognisers that were not in
    the ensemble, or that learnt from such pictures, find many or nearly all of the people.

    Args:
        method: `net` for our network (one pass), `pgd` for gradient ascent on every face.
        weights: folder of an exported model; default is the one that comes with the package.
        eps: greatest change of a value, in grey levels of 255.
        steps: of `pgd`.
        device: a torch device type. `pgd` stays on the CPU, because the gradient of resampling is
            not reproducible elsewhere.

    Raises:
        WeightsError: the folder is incomplete, or a file differs from its SHA256SUMS.
    """

    baseline = True
    additive = True
    size = CROP_SIZE
    label: ClassVar[str] = (
        "not anonymisation: the real face stays and is only perturbed; another recogniser, or one "
        "fine-tuned on such pictures, still names 35 to 97 % of people (card of perturb-128)"
    )

    def __init__(
        self,
        method: str = NET,
        weights: str = "",
        eps: float = 8,
        steps: int = 10,
        device: str = "cpu",
    ) -> None:
        if method not in (NET, PGD):
            raise ConfigError(f"perturb: got method {method!r}, expected {NET} or {PGD}")
        if not 1 <= eps <= 255:
            raise ConfigError(f"perturb: got eps {eps}, expected grey levels from 1 to 255")
        if not 1 <= steps <= 1000:
            raise ConfigError(f"perturb: got {steps} steps, expected 1 to 1000 (10 are useful)")
        folder = Path(weights) if weights else bundled("perturb-128")
        self.hashes = check_sums(folder)
        self.name = "perturb" if method == NET else f"perturb:{method}"
        self.bound, self.steps, self.device = int(eps), steps, device
        self._method = method
        if method == NET:
            self._net = load_part(PerturbNet, folder, "net").to(device)
        else:
            self._ensemble = Ensemble(load_part(Student, folder, "student"))

    def __call__(self, jobs: Sequence[Job]) -> list[Pixels]:
        if not jobs:
            return []
        if self._method == PGD:
            changes = [self._ascended(job) for job in jobs]
        else:
            crops = torch.cat([_pixels(job.crop) for job in jobs])
            changes = list(invariant(self._net, crops, device=self.device).numpy() * self.bound)
        return [
            added(job.crop, np.rint(change.transpose(1, 2, 0)) * job.mask[..., None])
            for job, change in zip(jobs, changes, strict=True)
        ]

    def _ascended(self, job: Job) -> Floats:
        """(3, S, S) change in grey levels; alone, because kernels round by the batch's size."""
        change = ascend(
            self._ensemble,
            _pixels(job.crop),
            torch.from_numpy(job.landmarks)[None],
            torch.from_numpy(job.mask)[None, None].float(),
            bound=self.bound / 127.5,
            steps=self.steps,
            rng=torch.Generator().manual_seed(job.seed % 2**63),
        )
        return np.asarray(change[0].numpy() * 127.5, np.float32)


def load_part(kind: type[Part], folder: Path, name: str) -> Part:
    """One network of an exported model, in single precision."""
    stored: Any = kind
    part: Part = stored.from_pretrained(folder / name, local_files_only=True, dtype=torch.float32)
    return part.eval().requires_grad_(False)


def added(crop: Pixels, change: Floats) -> Pixels:
    """A crop with whole grey levels added, cut off at black and white."""
    return np.asarray(np.clip(crop + change, 0, 255), np.uint8)


def _pixels(crop: Pixels) -> Tensor:
    return torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 127.5 - 1
