"""k-Same: every face that is released is the average of k people or more, shared by all of them.

k-Same-Pixel and k-Same-Eigen are Newton, Sweeney and Malin's, "Preserving Privacy by De-identifying
Face Images" (2005); k-Same-Select is Gross, Airoldi, Malin and Sweeney's, "Integrating Utility into
Face De-identification" (2005). Whoever sees such a face cannot tell which of the k people it stands
for, so a recogniser names the right one at most once in k.

The papers prove this for one picture per person. With several, pictures of one person would end in
different groups, and whoever is in all of these groups is found. Therefore people are grouped here,
not pictures: a person's aligned pictures are averaged first, and all of them get the face of that
person's one group. The proof is about the face only; hair, clothes and scenery stay as they are.
And it is about one release: another key, or other people, makes other groups, so whoever sees two
releases of the same people may know both groups of a person, who has fewer to hide among.
"""

from __future__ import annotations

import io
import pkgutil
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt

from anonymize.aligners import CROP_SIZE
from anonymize.errors import ConfigError, Withhold
from anonymize.generators import GREY, Inpaint, Job
from anonymize.record import Floats, Pixels

SIDE = 64
"""Side of the mean faces that are kept: averages hold no finer detail, and 10,000 people fit in
memory (0.2 MB a person while people are grouped)."""

LITTLE = 1e-3
"""Weight, in pictures, of everybody's mean where a person's pictures were replaced nowhere."""

Rows = npt.NDArray[np.intp]


class KSamePixel:
    """Baseline: averages of the k people whose mean faces are closest, pixel by pixel.

    It sees the real faces. Bystanders and pictures without a label get the face of some group.

    Args:
        k: people who share a face, at least.
    """

    name: ClassVar[str] = "k-same-pixel"
    label: ClassVar[str] = (
        "k-anonymous faces: each is the average of at least k people and could be any of them; "
        "the rest of the picture is not protected"
    )
    baseline = True
    size = CROP_SIZE

    def __init__(self, k: int = 10) -> None:
        if not isinstance(k, int) or k < 2:
            raise ConfigError(f"got k = {k!r}, expected a whole number from 2 on: 1 hides nobody")
        self.k = k
        self._group: dict[str, int] = {}
        self._faces: Floats = np.zeros((0, SIDE, SIDE, 3), np.uint8)

    def fit(self, jobs: Iterable[Job]) -> bytes:
        """Groups all people; see `generators.Learner`.

        People are taken in the order of their handles, which the key decides.

        Raises:
            ConfigError: fewer than k people.
        """
        totals: dict[str, Floats] = {}
        votes: dict[str, Counter[Hashable]] = {}
        for job in jobs:
            if job.person is not None:
                totals[job.person] = totals.get(job.person, 0) + _seen(job)
                votes.setdefault(job.person, Counter())[self._kind(job)] += 1
        if len(totals) < self.k:
            raise ConfigError(
                f"{self.name}: got {len(totals)} labelled people with a face, expected at least "
                f"k = {self.k}: add people, or set generator_options.k to fewer"
            )
        names = sorted(totals)
        kinds = [_usual(votes[name]) for name in names]
        return self._learnt(names, kinds, _mean_faces([totals.pop(name) for name in names]))

    def _learnt(self, names: list[str], kinds: list[Hashable], faces: Floats) -> bytes:
        points, pixels = self._space(faces.reshape(len(faces), -1))
        parts = [r[g] for r in classes(kinds, self.k) for g in grouped(points[r], self.k)]
        means = pixels(np.stack([points[rows].mean(0) for rows in parts]))
        made = np.clip(means.round(), 0, 255).astype(np.uint8).reshape(-1, SIDE, SIDE, 3)
        group = np.empty(len(names), np.int64)
        for number, rows in enumerate(parts):
            group[rows] = number
        file = io.BytesIO()
        np.savez(file, people=np.array(names), group=group, faces=made)
        return file.getvalue()

    def restore(self, learnt: bytes) -> None:
        """Takes back what `fit` returned."""
        with np.load(io.BytesIO(learnt)) as arrays:
            self._group = dict(
                zip(arrays["people"].tolist(), arrays["group"].tolist(), strict=True)
            )
            self._faces = arrays["faces"]

    def __call__(self, jobs: Sequence[Job]) -> list[Pixels]:
        if not len(self._faces):
            raise AssertionError(f"{self.name} has seen nobody yet: restore what fit returned")
        side = (self.size, self.size)
        faces = [self._faces[self._chosen(job)] for job in jobs]
        return [np.asarray(cv2.resize(f, side, interpolation=cv2.INTER_CUBIC)) for f in faces]

    def _chosen(self, job: Job) -> int:
        """The group of the job's person; for bystanders one by their seed, hence by the key."""
        if job.person is None:
            return job.seed % len(self._faces)
        if job.person not in self._group:
            raise Withhold("person is in no group")
        return self._group[job.person]

    def _kind(self, job: Job) -> Hashable:
        """What people must have in common to be grouped: nothing."""
        return ""

    def _space(self, faces: Floats) -> tuple[Floats, Callable[[Floats], Floats]]:
        """(N, SIDE * SIDE * 3) faces to (N, D) points, and what takes points to faces again."""
        return faces, lambda points: points


class KSameEigen(KSamePixel):
    """Baseline: as `KSamePixel`, but people are compared and averaged by their main eigenfaces.

    Args:
        k: people who share a face, at least.
        components: how many eigenfaces (1 or more), or the share of variance (below 1) that they
            are to explain. All of them give what `KSamePixel` gives.
    """

    name: ClassVar[str] = "k-same-eigen"

    def __init__(self, k: int = 10, components: float = 0.95) -> None:
        super().__init__(k)
        if not components > 0 or (components >= 1 and components != int(components)):
            raise ConfigError(
                f"got {components} components, expected a whole number or a share between 0 and 1"
            )
        self.components = components

    def _space(self, faces: Floats) -> tuple[Floats, Callable[[Floats], Floats]]:
        from sklearn.decomposition import PCA

        few = min(faces.shape)
        count = self.components if self.components < 1 else min(int(self.components), few)
        model = PCA(count, svd_solver="full")
        return np.asarray(model.fit_transform(faces)), model.inverse_transform


class KSameSelect(KSamePixel):
    """Baseline: as `KSamePixel`, but only people of one class are averaged, so that it survives.

    Classes with fewer than k people are joined with the next larger ones.

    Args:
        k: people who share a face, at least.
        by: `cell` for the coarse cell of people that the bundled prior guesses from what is visible
            around the face, or `package.module:attr` of a function of a `Job` that returns a label.
            A person is of the class that most of their pictures are of.
        device: a torch device type.
    """

    name: ClassVar[str] = "k-same-select"

    def __init__(self, k: int = 10, by: str = "cell", device: str = "cpu") -> None:
        super().__init__(k)
        if by == "cell":
            guide = Inpaint(device=device)
            self.hashes = guide.hashes
            self._by: Callable[[Job], Any] = lambda job: int(guide.cells([job])[0].argmax())
            return
        try:
            self._by = pkgutil.resolve_name(by)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"got by = {by!r}, expected cell or package.module:attr: {error}"
            ) from error

    def _kind(self, job: Job) -> Hashable:
        kind: Hashable = self._by(job)
        return kind


def _seen(job: Job) -> Floats:
    """(SIDE, SIDE, 4) float32: the colours that will be replaced, and the share of pixels that are.

    Only these count: otherwise people would be grouped by the scenery behind them.
    """
    inside = job.mask[..., None].astype(np.float32)
    layers = np.concatenate([job.crop * inside, inside], 2)
    return np.asarray(cv2.resize(layers, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.float32)


def _mean_faces(totals: Sequence[Floats]) -> Floats:
    """Mean faces of people; where nothing of theirs was replaced, everybody's mean.

    Args:
        totals: (SIDE, SIDE, 4) per person: sums of colours (0..255) by weight, and of weights.

    Returns:
        (N, SIDE, SIDE, 3) float64, 0..255.
    """
    everybody = np.asarray(np.sum(totals, axis=0, dtype=np.float64))
    common = (everybody[..., :3] + LITTLE * GREY) / (everybody[..., 3:] + LITTLE)
    return np.stack(
        [(t[..., :3] + LITTLE * common) / (t[..., 3:].astype(float) + LITTLE) for t in totals]
    )


def _usual(votes: Counter[Hashable]) -> Hashable:
    """The most frequent kind; among equals the same one always."""
    return min(votes, key=lambda kind: (-votes[kind], str(kind)))


def classes(kinds: Sequence[Hashable], k: int) -> list[Rows]:
    """Rows of each kind, those of fewer than k rows joined with the next larger kind."""
    by_kind: dict[Hashable, list[int]] = {}
    for row, kind in enumerate(kinds):
        by_kind.setdefault(kind, []).append(row)
    parts = sorted(by_kind.values(), key=len)
    while len(parts) > 1 and len(parts[0]) < k:
        parts = sorted([sorted(parts[0] + parts[1]), *parts[2:]], key=len)
    return [np.array(part) for part in parts]


def grouped(points: Floats, k: int) -> list[Rows]:
    """Greedy groups, as the paper's algorithm forms them: the next row and the k - 1 nearest.

    Args:
        points: (N, D) in the order in which they are taken.
        k: least size; where fewer than 2 k rows are left, they are the last group.

    Returns:
        Row numbers of each group; every row is in one.
    """
    free, squares, groups = np.ones(len(points), bool), (points**2).sum(1), []
    while free.sum() >= 2 * k:
        first = int(free.argmax())
        apart = np.where(free, squares - 2 * (points @ points[first]), np.inf)
        apart[first] = -np.inf
        groups.append(np.argsort(apart, kind="stable")[:k])
        free[groups[-1]] = False
    return [*groups, np.nonzero(free)[0]]
