"""Training utility: is the release still worth training a recogniser on?

One compact recogniser is trained on the originals and one on the outputs, by the same recipe and
seeds; both are tested on verification pairs of real photographs of other people.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from anonymize.eval import stats
from anonymize.eval.stats import Array, Estimate
from anonymize.eval.trial import Shots, Trial
from anonymize.eval.utility import Utility
from torch import Tensor, nn

from anonymize.aligners import ARCFACE, similarity, warp
from anonymize.detectors import MTCNN, by_subject
from anonymize.errors import ConfigError, Withhold
from anonymize.images import read
from anonymize.record import Floats, Pixels


@dataclass(frozen=True, slots=True)
class Budget:
    """How much training a comparison may cost.

    Attributes:
        side: of the crops in pixels, cut by ArcFace's template.
        width: channels of the first stage; each of the four stages doubles them.
        depth: residual blocks per stage.
        steps: optimiser steps.
        batch: crops per step.
        seeds: independent runs on each side.
        margin, scale: of the CosFace loss (Wang et al. 2018).
    """

    side: int
    width: int
    depth: tuple[int, int, int, int]
    steps: int
    batch: int
    seeds: int
    margin: float = 0.35
    scale: float = 32.0
    rate: float = 0.1


BUDGETS = {
    "smoke": Budget(48, 16, (1, 1, 1, 1), 250, 64, 1, rate=0.05),
    "standard": Budget(64, 24, (1, 1, 1, 1), 900, 64, 3, rate=0.05),
    "full": Budget(112, 64, (3, 4, 14, 3), 40_000, 512, 3, 0.4, 64.0),
}
"""`full` has the shape of the published IR-SE50 recipe (ArcFace, Deng et al. 2019), for GPUs."""


class _Block(nn.Module):
    """Improved residual block with squeeze and excitation (IR-SE)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.excite = nn.Sequential(
            nn.Linear(outputs, max(4, outputs // 16)),
            nn.ReLU(),
            nn.Linear(max(4, outputs // 16), outputs),
            nn.Sigmoid(),
        )
        same = inputs == outputs and stride == 1
        self.short = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        out: Tensor = self.short(x) + y * self.excite(y.mean((2, 3)))[:, :, None, None]
        return out


class Compact(nn.Module):
    """A small IR-SE residual network: (N, 3, S, S) in -1..1 to (N, 128) embeddings."""

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        width = budget.width
        layers: list[nn.Module] = [
            nn.Conv2d(3, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.PReLU(width),
        ]
        inputs = width
        for stage, depth in enumerate(budget.depth):
            outputs = width * 2**stage
            for index in range(depth):
                layers.append(_Block(inputs, outputs, 2 if index == 0 else 1))
                inputs = outputs
        self.features = nn.Sequential(*layers)
        side = -(-budget.side // 16)
        self.head = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(inputs * side * side, 128),
            nn.BatchNorm1d(128, affine=False),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(pixels))
        return out


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Verification pairs of real photographs: crops (N, S, S, 3), index pairs, truth.

    `people` is the person on the left, for intervals; `folds` are disjoint in people.
    """

    crops: Pixels
    left: Array
    right: Array
    same: Array
    people: Array
    folds: Array


FOLDS, MOST = 10, 6
"""Folds of our own pairs, and pictures of one person that take part in them."""

Report = Callable[[str, int, int], None]


def train(
    crops: Pixels, labels: Array, budget: Budget, seed: int, report: Report, device: str = "cpu"
) -> Compact:
    """Trains a recogniser from scratch with the CosFace loss, flips and one cosine schedule.

    Args:
        crops: (N, S, S, 3) uint8.
        labels: (N,) person of each.
        budget: size and length.
        seed: of everything random.
        report: told about steps.
        device: a torch device type.
    """
    known, classes = np.unique(labels, return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = Compact(budget).to(device)
        weight = nn.Parameter(torch.randn(len(known), 128, device=device) * 0.05)
        optimiser = torch.optim.SGD(
            [*network.parameters(), weight], budget.rate, 0.9, weight_decay=5e-4, nesterov=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, budget.rate, budget.steps + 1)
        pixels, target = torch.from_numpy(crops), torch.from_numpy(classes).to(device)
        for step in range(budget.steps):
            batch = torch.randint(len(pixels), (budget.batch,), generator=generator)
            some = _augmented(_floats(pixels[batch], device), generator)
            cosine = F.normalize(network(some)) @ F.normalize(weight).T
            margin = budget.margin * min(1.0, 2 * step / budget.steps)  # eased in, or it diverges
            cosine = cosine - margin * F.one_hot(target[batch], len(known))
            loss = F.cross_entropy(budget.scale * cosine, target[batch])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            report("train recognisers", step + 1, budget.steps)
    return network.eval()


def _floats(pixels: Tensor, device: str) -> Tensor:
    return pixels.permute(0, 3, 1, 2).to(device).float() / 127.5 - 1


def _augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Random flips, shifts by up to an eighth, and brightness."""
    flipped = torch.rand(len(pixels), generator=generator) < 0.5
    pixels[flipped] = pixels[flipped].flip(3)
    pad = pixels.shape[-1] // 16
    row, column = torch.randint(2 * pad + 1, (2,), generator=generator).tolist()
    side, padded = pixels.shape[-1], F.pad(pixels, (pad,) * 4, mode="replicate")
    pixels = padded[:, :, row : row + side, column : column + side]
    gain = 1 + 0.2 * torch.randn(len(pixels), 1, 1, 1, generator=generator)
    return (pixels * gain.to(pixels.device)).clamp(-1, 1)


@torch.no_grad()
def accuracy(network: Compact, pairs: Pairs) -> tuple[float, Array]:
    """Verification accuracy in person-disjoint folds, the threshold fixed on the other folds.

    Returns:
        The accuracy, and (N,) whether each pair was decided rightly.
    """
    device = next(network.parameters()).device.type
    parts = torch.split(torch.from_numpy(pairs.crops), 128)
    seen = [_floats(part, device) for part in parts]
    vectors = torch.cat([F.normalize(network(x) + network(x.flip(3))).cpu() for x in seen])
    scores = (vectors[pairs.left] * vectors[pairs.right]).sum(1).numpy()
    right = np.zeros(len(scores))
    for fold in np.unique(pairs.folds):
        test = pairs.folds == fold
        if (~test).any():
            limit = _best(scores[~test], pairs.same[~test])
            right[test] = (scores[test] >= limit) == pairs.same[test]
    return float(right.mean()), right


def _best(scores: Array, same: Array) -> float:
    """The threshold of greatest accuracy."""
    order = np.argsort(-scores)
    gain = np.cumsum(np.where(same[order], 1, -1))
    return float(scores[order[int(np.argmax(gain))]])


def crop(shots: Shots, rows: Array, side: int) -> Pixels:
    """(N, side, side, 3) crops by ArcFace's template."""

    def one(row: int) -> Pixels:
        return _aligned(shots.image(row), shots.landmarks[row], side)

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(one, rows)))


def _aligned(image: Pixels, landmarks: Floats, side: int) -> Pixels:
    matrix = similarity(landmarks, ARCFACE)
    face = warp(image, matrix, 112)
    return np.asarray(cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def own_pairs(trial: Trial, side: int) -> Pairs:
    """Pairs of the attacker's originals: nobody of them is in the training set."""
    rows = trial.rows("o", attacker=True)
    rows = rows[trial.o.found[rows]]
    people = trial.o.people[rows]
    rng = np.random.default_rng(trial.seed)
    known = np.unique(people)
    folds = np.searchsorted(known, people) % max(2, min(FOLDS, len(known) // 3))
    mated, other = list[tuple[int, int]](), list[tuple[int, int]]()
    for person in known:
        mine = np.nonzero(people == person)[0][:MOST]
        strangers = np.nonzero((folds == folds[mine[0]]) & (people != person))[0]
        pairs = [(int(i), int(j)) for n, i in enumerate(mine) for j in mine[:n]]
        if pairs and len(strangers):
            mated += pairs
            other += [(i, int(rng.choice(strangers))) for i, _ in pairs]
    if len({int(folds[i]) for i, _ in mated}) < 2:
        raise ConfigError("too few people with two originals are left for verification pairs")
    index = np.array(mated + other)
    same, left = np.arange(len(index)) < len(mated), index[:, 0]
    return Pairs(crop(trial.o, rows, side), left, index[:, 1], same, people[left], folds[left])


def read_pairs(path: Path, root: Path, side: int, absent: set[str]) -> Pairs:
    """Pairs from a CSV `fold,a,b,same` with paths below `root`, less people in `absent`.

    Raises:
        ConfigError: unreadable, or nothing is left.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        kept = [
            r for r in rows if not {str(Path(r["a"]).parent), str(Path(r["b"]).parent)} & absent
        ]
        names = sorted({name for r in kept for name in (r["a"], r["b"])})
    except (OSError, KeyError, csv.Error) as error:
        raise ConfigError(f"pairs {path}: expected the columns fold,a,b,same ({error})") from error
    if not kept:
        raise ConfigError(f"pairs {path}: every pair shows someone from the training set")

    detector = MTCNN()

    def one(name: str) -> Pixels | None:
        try:
            image = read(root / name)
        except Withhold:
            return None
        found = detector([image])[0]
        if not found:
            return None
        return _aligned(image, by_subject(found, image.shape[:2])[0].landmarks, side)

    with ThreadPoolExecutor() as pool:
        crops = dict(zip(names, pool.map(one, names), strict=True))
    kept = [r for r in kept if crops[r["a"]] is not None and crops[r["b"]] is not None]
    owners = sorted({str(Path(r["a"]).parent) for r in kept})
    folds = np.array([int(r["fold"]) for r in kept])
    if len(np.unique(folds)) < 2:
        raise ConfigError(f"pairs {path}: expected at least two folds to be left")
    place = {name: i for i, name in enumerate(n for n in names if crops[n] is not None)}
    return Pairs(
        np.stack([c for c in crops.values() if c is not None]),
        np.array([place[r["a"]] for r in kept]),
        np.array([place[r["b"]] for r in kept]),
        np.array([r["same"] in ("1", "true", "True") for r in kept]),
        np.array([owners.index(str(Path(r["a"]).parent)) for r in kept]),
        folds,
    )


def training_utility(
    trial: Trial,
    budget: Budget,
    pairs: Pairs | None = None,
    report: Report | None = None,
    *,
    device: str = "cpu",
) -> list[Utility]:
    """Retention = (accuracy of A - 0.5) / (accuracy of O - 0.5), over people and seeds.

    Both recognisers see the same pictures of the same people, once as originals and once as
    outputs; a picture that was withheld is missing from both.

    Args:
        trial: what is evaluated.
        budget: a value of `BUDGETS`.
        pairs: real pairs of other people; the attacker's originals unless given, and then only
            the evaluation's people are trained on.
        report: told about steps.
        device: where to train.
    """
    report = report or trial.progress
    mine = pairs is None
    pairs = own_pairs(trial, budget.side) if pairs is None else pairs
    rows = trial.rows("a", attacker=False) if mine else np.arange(len(trial.a.paths))
    labels, decided = trial.a.people[rows], {}
    for name, shots, which in (("o", trial.o, trial.a.links[rows]), ("a", trial.a, rows)):
        crops = crop(shots, which, budget.side)
        seeds = range(trial.seed, trial.seed + budget.seeds)
        nets = [train(crops, labels, budget, seed, report, device) for seed in seeds]
        decided[name] = np.stack([accuracy(net, pairs)[1] for net in nets])
    o, a = (stats.share(decided[n].mean(0), pairs.people, trial.seed) for n in ("o", "a"))
    note = f"verification accuracy on {len(pairs.same)} real pairs of other people"
    if o.low <= 0.5:
        why = f"training on originals teaches nothing here ({o.value:.2f}): proves nothing"
        return [
            Utility("training-accuracy", a, "higher", o.value, note),
            Utility("training-retention", None, "higher", 1.0, why),
        ]
    return [
        Utility("training-accuracy", a, "higher", o.value, note),
        Utility("training-retention", _retention(decided, pairs, trial.seed), "higher", 1.0, note),
    ]


def _retention(decided: dict[str, Array], pairs: Pairs, seed: int) -> Estimate:
    """Resamples people and training seeds together."""
    rng = np.random.default_rng(seed)
    _, index = np.unique(pairs.people, return_inverse=True)

    def ratio(weights: Array, runs: Array) -> float:
        o, a = (np.average(decided[n][runs].mean(0), weights=weights) for n in ("o", "a"))
        return float((a - 0.5) / max(o - 0.5, 1e-3))

    runs = len(decided["o"])
    draws = [
        ratio(weights[index], rng.integers(runs, size=runs))
        for weights in stats.multiplicities(int(index.max()) + 1, seed, 500)
    ]
    value = ratio(np.ones(len(index)), np.arange(runs))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(low), float(high), len(index))
