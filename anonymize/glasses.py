"""Keeps new people from wearing glasses, whose arms the picture would lack; training only."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from anonymize.faces import Faces
from anonymize.priors import CodePrior
from anonymize.record import Floats, Pixels

SURE = 0.025
"""Share of the training faces, those with the clearest line across the nose, that count as wearing
glasses: fewer would leave the direction to chance, more would mistake other lines for frames."""

LEAST = 20
"""With fewer such faces nothing is learnt from them."""


def bridge(crop: Pixels, landmarks: Floats) -> float:
    """How clear a line crosses the nose between the eyes, 0 or more: mostly a frame of glasses.

    Args:
        crop: (S, S, 3) uint8 RGB.
        landmarks: (5, 2) crop pixels.
    """
    grey = cv2.GaussianBlur(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 0.8)
    left, right = landmarks[:2]
    across = right - left
    down = np.array([-across[1], across[0]])
    aside, below = np.linspace(-0.13, 0.13, 9), np.linspace(-0.28, 0.3, 24)
    at = (left + right) / 2 + aside[:, None] * across + below[:, None, None] * down
    x, y = np.moveaxis(at, -1, 0).astype(np.float32)
    profile = np.median(cv2.remap(grey, x, y, cv2.INTER_LINEAR), 1)
    usual = np.convolve(np.pad(profile, 4, mode="edge"), np.full(9, 1 / 9), "valid")
    return float(np.abs(profile - usual).max() / (profile.mean() + 20))


def without_glasses(prior: CodePrior, faces: Faces) -> None:
    """Conditions every cell of a prior on a code that does not look like glasses.

    Frames drawn into a picture end at the region's border. The recogniser's codes tell faces with
    glasses from others along one direction, Fisher's (1936) between faces with a clear line across
    the nose and all others; along it new people are as the median of the others.

    Args:
        prior: with centre and cells; its means and factors are changed.
        faces: the training faces.
    """
    lines = np.array([bridge(*pair) for pair in zip(faces.crops, faces.landmarks, strict=True)])
    worn = lines > np.quantile(lines, 1 - SURE)
    if worn.sum() < LEAST:
        return
    codes = prior.code(torch.from_numpy(faces.embeddings)).double()
    some, others = codes[torch.from_numpy(worn)], codes[torch.from_numpy(~worn)]
    within = torch.cov(others.T)
    within += 1e-3 * within.trace() / len(within) * torch.eye(len(within))
    direction = torch.linalg.solve(within, some.mean(0) - others.mean(0))
    bare = (others @ direction).median()
    for mean, factor in zip(prior.mean.data, prior.factor.data, strict=True):
        spread = factor.double() @ (factor.double().T @ direction)  # covariance times direction
        gain = spread / (direction @ spread)
        mean -= (gain * (mean.double() @ direction - bare)).float()
        factor -= torch.outer(gain, direction @ factor.double()).float()
