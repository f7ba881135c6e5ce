"""What a training asks of drawn faces beyond likeness, identity and an adversary's verdict."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anonymize.training import Batch

SQUARE, ASIDE = (1.15, 1.45), 0.08
"""Half the side of the squares in which landmarks are looked for, and how far these lie off the
middle of the face (standard deviation), in distances between the eyes or from eyes to mouth."""

OUTER = 4.0
"""By how much more excess detail costs at the region's border than in the middle of the face."""

BROW = -0.4
"""Where foreheads begin, along the line from the eyes (0) to the mouth (1)."""


def moved(finisher: nn.Module, batch: Batch, output: Tensor, blurred: bool) -> Tensor:
    """How far MTCNN finds landmarks from where it finds them in the pictures themselves, ().

    Mean over landmarks in distances between the eyes, or from eyes to mouth where those are longer,
    up to half of one.

    Args:
        finisher: a differentiable `cascade.finisher`.
        batch: the pictures.
        output: (N, 3, S, S) in -1..1, the same with new faces.
        blurred: look at blurred outputs, so that the finisher is not gamed by specks.
    """
    marks, count = batch.landmarks, len(batch.landmarks)
    eyes, mouth = marks[:, :2].mean(1), marks[:, 3:].mean(1)
    unit = torch.maximum((marks[:, 1] - marks[:, 0]).norm(dim=1), (mouth - eyes).norm(dim=1))
    low, high = SQUARE
    half = unit * (low + (high - low) * torch.rand(count, device=marks.device))
    middle = (eyes + mouth) / 2 + ASIDE * unit[:, None] * torch.randn_like(eyes)
    with torch.no_grad():
        wanted = _found(finisher, batch.crops, middle, half)
    found = _found(finisher, softer(output) if blurred else output, middle, half)
    off: Tensor = (found - wanted).norm(dim=2).mean(1) / unit
    return off.clamp(max=0.5).mean()


def _found(finisher: nn.Module, crops: Tensor, middle: Tensor, half: Tensor) -> Tensor:
    """Landmarks (N, 5, 2) that O-Net finds in squares, in crop pixels from their corner."""
    axis = (torch.arange(48, device=crops.device) + 0.5) / 24 - 1
    across = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    at = middle[:, None, None] + half[:, None, None, None] * across
    places = (at + 0.5) / crops.shape[-1] * 2 - 1
    patches = F.grid_sample(crops.float() * (127.5 / 128), places, align_corners=False)
    answers = finisher(patches)
    return torch.stack([answers[:, 4:9], answers[:, 9:14]], 2) * (2 * half)[:, None, None]


def softer(pixels: Tensor, reach: int = 1) -> Tensor:
    """(N, C, H, W), each pixel the mean of the square around it that reaches so far."""
    return F.avg_pool2d(F.pad(pixels, (reach,) * 4, mode="replicate"), 2 * reach + 1, 1)


def excess(output: Tensor, crops: Tensor, mask: Tensor, rim: Tensor) -> Tensor:
    """How much more fine detail outputs have than the pictures in the same squares, ().

    Where the adversary looks little, and where identity hides in lines, detail grows that skin has
    not: a grid on foreheads, marks beside the mouth, specks along the jaw, most of them coloured.
    They cost more towards the region's border, where nothing has to be as sharp as an eye.

    Args:
        output: (N, 3, S, S) in -1..1.
        crops: the pictures.
        mask: (N, 1, S, S), 1 in the region.
        rim: (N, 1, S, S), rising to 1 towards the region's border.
    """
    side, weight = mask.shape[-1] // 16, mask * (1 + OUTER * rim)
    drawn, real = (F.avg_pool2d(_detail(x) * weight, side) for x in (output, crops))
    least = F.avg_pool2d(0.003 * weight, side)
    within = F.avg_pool2d(mask, side)
    return F.relu(drawn - 1.1 * real - least).sum() / within.sum().clamp(min=1)


def _detail(pixels: Tensor) -> Tensor:
    """(N, 1, H, W), what a small blur takes away, and what is coloured of that twice more."""
    fine = pixels - softer(softer(pixels))
    coloured = fine - fine.mean(1, keepdim=True)
    return fine.abs().mean(1, keepdim=True) + 2 * coloured.abs().mean(1, keepdim=True)


def held(output: Tensor, landmarks: Tensor) -> Tensor:
    """Outputs (N, 3, S, S) whose foreheads learn nothing from what is computed of them.

    A recogniser would have the forehead tell people apart, by flecks of hair above all, and an
    adversary asks for hair and freckles; on a photograph they look like dirt.
    """
    return torch.where(forehead(landmarks, output.shape[-1]), output.detach(), output)


def forehead(landmarks: Tensor, size: int) -> Tensor:
    """Which pixels (N, 1, S, S) of crops with landmarks (N, 5, 2) lie above the brows."""
    eyes, mouth = landmarks[:, :2].mean(1), landmarks[:, 3:].mean(1)
    down = (mouth - eyes) / (mouth - eyes).square().sum(1, keepdim=True)
    axis = torch.arange(size, device=landmarks.device, dtype=down.dtype)
    x, y = (down[:, i, None] * (axis - eyes[:, i, None]) for i in (0, 1))
    along = y[:, :, None] + x[:, None, :]
    return (along < BROW)[:, None]


def smeared(chips: Tensor) -> Tensor:
    """Half of the chips with a random rectangle, often the forehead, blurred beyond recognition.

    Identity then has to show all over the face; else it hides in patches, as of hair on foreheads.
    """
    count, side = len(chips), chips.shape[-1]
    low, high = torch.rand(2, count, 2, device=chips.device).sort(0).values * side
    upper = torch.rand(count, device=chips.device) < 0.5
    low[upper], high[upper] = 0, torch.tensor([side, 0.3 * side], device=chips.device)
    axis = torch.arange(side, device=chips.device)
    inside = [(axis >= low[:, i, None]) & (axis < high[:, i, None]) for i in (0, 1)]
    picked = (torch.rand(count, device=chips.device) < 0.5)[:, None, None]
    where = inside[1][:, :, None] & inside[0][:, None, :] & picked
    return torch.where(where[:, None], softer(chips, side // 20), chips)
