"""The steps of `anonymize run` on a picture: survey its faces, replace, audit and verify them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anonymize import seeds
from anonymize.aligners import (
    CROP_SIZE,
    TEMPLATE,
    align,
    move,
    reach,
    similarity,
)
from anonymize.blenders import blend, overlay
from anonymize.detectors import Detector, by_subject
from anonymize.devices import CPU_BATCH, grouped
from anonymize.embedders import DlibEmbedder, chip
from anonymize.generators import GREY, Job
from anonymize.identities import invent
from anonymize.images import decode
from anonymize.outlines import outline
from anonymize.record import Face, Floats, Pixels, Record

MATCH_FMR = 1e-3
"""Outputs closer to their source than the recogniser's threshold at this rate are withheld."""

LIKE_FMR = 1e-2
"""The same for outputs and the template of their source's person."""

RESEMBLES = "the new person resembles the old one"
"""Why a draft is withheld when people are cast."""

CAST_FMR = 5e-2
"""The same for drafts of a new person, before any picture is made: that person is drawn again."""


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """Finds the faces of pictures and what the context of each labelled subject suggests.

    Attributes:
        detector: finds faces.
        embedder: dlib's recogniser, for what outputs are verified against; None for baselines,
            whose outputs are not.
        cells: the generator's `cells`, or None to suggest nothing.
        size: side of the generator's crops.
        region: how much of each head is replaced.
    """

    detector: Detector
    embedder: DlibEmbedder | None
    cells: Callable[[Sequence[Job]], Floats] | None
    size: int
    region: str

    def __call__(self, records: Sequence[Record]) -> list[Record]:
        """The records with their faces, subject first, or withheld."""
        found = self.detector([record.image for record in records])
        seen = [
            record.but(faces=by_subject(faces, record.image.shape[:2]))
            for record, faces in zip(records, found, strict=True)
        ]
        if self.embedder is not None:
            faces = [(record.image, face) for record in seen for face in record.faces]
            embedded = iter(_embeddings(self.embedder, faces))
            seen = [
                record.but(faces=tuple(f.but(embedding=next(embedded)) for f in record.faces))
                for record in seen
            ]
        guesses = self._guesses([r for r in seen if r.faces and r.identity is not None])
        return [
            r.but(faces=(r.faces[0].but(logits=guesses.get(r.key)), *r.faces[1:]))
            if r.faces
            else r.withhold("no face found")
            for r in seen
        ]

    def _guesses(self, records: Sequence[Record]) -> dict[str, Floats]:
        """What the context suggests of each labelled subject, by the record's key."""
        if self.cells is None or not records:
            return {}
        aligned = [outline(r.image, r.faces[0], self.size, self.region) for r in records]
        jobs = [
            replace(job(face, False), person=record.identity)
            for face, record in zip(aligned, records, strict=True)
        ]
        return dict(zip((record.key for record in records), self.cells(jobs), strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """What a reader of the release would see of an output that is not proven yet.

    Attributes:
        record: with all its faces, those that had been missed included.
        output: the picture with its faces replaced.
        encoded: the same as a file.
        seen: what is decoded from that.
        found: the faces that the first detector finds there.
    """

    record: Record
    output: Pixels
    encoded: bytes
    seen: Pixels
    found: tuple[Face, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Replace:
    """Replaces every face of pictures by the people of a plan, and proves it on the result.

    Attributes:
        generator: makes the new faces.
        region: how much of each head is replaced.
        key: the secret that all randomness comes from.
        codes: identity handle to the new person's code (128,); not asked for baselines.
        templates: identity handle to the mean (128,) of the embeddings of a person's sources.
        detector: finds the faces of outputs for verification.
        searched: whether it has searched the sources, too.
        auditor: another detector, for faces that were missed.
        embedder: dlib's recogniser, for verification.
        encode: an output to the file that will be published; checks look at what a reader decodes
            from it, because compression changes what detectors and recognisers see.
    """

    generator: Any
    region: str
    key: bytes
    codes: Callable[[str], Floats]
    templates: Callable[[str], Floats]
    detector: Detector
    searched: bool
    auditor: Detector
    embedder: DlibEmbedder
    encode: Callable[[Pixels], bytes]

    def __call__(self, records: Sequence[Record]) -> list[Record]:
        """Records with `output` set, or withheld."""
        done = self._attempt(records, 0)
        failed = [index for index, record in enumerate(done) if record.withheld is not None]
        again = self._attempt([records[index] for index in failed], 1)
        for index, record in zip(failed, again, strict=True):
            done[index] = record
        return done

    def unlike(self, records: Sequence[Record]) -> list[Record]:
        """The records, withheld where the new face, drawn as a draft, is like the person replaced.

        Drafts are not looked at by a detector: landmarks are those that they were drawn to.
        """
        records = [record.but(faces=record.faces[:1]) for record in records]
        drafts = self.replace(records, [r.image for r in records], [0] * len(records), 0)
        drawn = [(draft, r.faces[0]) for draft, r in zip(drafts, records, strict=True)]
        return [
            r.withhold(RESEMBLES) if self._like(r.identity, fresh, CAST_FMR) else r
            for r, fresh in zip(records, _embeddings(self.embedder, drawn), strict=True)
        ]

    def _attempt(self, records: Sequence[Record], attempt: int) -> list[Record]:
        outputs = self.replace(records, [r.image for r in records], [0] * len(records), attempt)
        return self._proven(self._audit(records, outputs, attempt))

    def replace(
        self, records: Sequence[Record], images: list[Pixels], start: Sequence[int], attempt: int
    ) -> list[Pixels]:
        """Replaces the faces from index `start` on, one after the other within each picture."""
        images, most = list(images), max((len(record.faces) for record in records), default=0)
        for offset in range(most):
            turn = [
                (i, start[i] + offset)
                for i, record in enumerate(records)
                if start[i] + offset < len(record.faces)
            ]
            faces = [self._outlined(records[i], k, images[i]) for i, k in turn]
            jobs = [
                self._job(records[i], face, k, attempt)
                for (i, k), face in zip(turn, faces, strict=True)
            ]
            drawn = self.generator(jobs)
            for (i, k), face, crop in zip(turn, faces, drawn, strict=True):
                images[i] = self._put(images[i], crop, face, records[i], k)
        return images

    def _outlined(self, record: Record, index: int, image: Pixels) -> Face:
        """A face of a record, its crop from the picture with some faces replaced already."""
        face = outline(record.image, record.faces[index], self.generator.size, self.region)
        return face if image is record.image else align(image, face, self.generator.size)

    def _put(self, image: Pixels, crop: Pixels, face: Face, record: Record, index: int) -> Pixels:
        if getattr(self.generator, "additive", False):
            return overlay(image, crop, face)
        front = [
            self._outlined(record, other, record.image)
            for other in range(index)
            if in_front(record.faces[other], face, self.region)
        ]
        return blend(image, crop, face, match=not self.generator.baseline, front=front)

    def _job(self, record: Record, face: Face, index: int, attempt: int) -> Job:
        blank = job(face, self.generator.baseline)
        drawn = getattr(self.generator, "prior", None) is not None
        code = self._code(record, face, index, blank) if drawn else None
        seed = seeds.derive(self.key, "noise", record.key, index, attempt)[:8]
        who = record.identity if face.subject else None
        return replace(blank, code=code, seed=int.from_bytes(seed, "big"), person=who)

    def _code(self, record: Record, face: Face, index: int, blank: Job) -> Floats:
        """The subject's planned code; for a bystander one of its own, used in this picture only."""
        if face.subject and record.identity is not None:
            return self.codes(record.identity)
        label = f"bystander {record.key} {index}"
        logits = self.generator.cells([blank])[0]
        return invent(self.generator.prior, self.key, {label: logits})[label].code

    def _audit(self, records: Sequence[Record], outputs: list[Pixels], attempt: int) -> list[_Look]:
        """Replaces what either detector still finds; withholds where that did not help."""
        known = [len(record.faces) for record in records]
        looks = self._look(records, outputs)
        outputs = self.replace([look.record for look in looks], outputs, known, attempt)
        for index, (look, count) in enumerate(zip(looks, known, strict=True)):
            if len(look.record.faces) > count:
                (again,) = self._look([look.record], [outputs[index]])
                missed = len(again.record.faces) > len(look.record.faces)
                record = look.record.withhold("a face was missed") if missed else look.record
                looks[index] = replace(again, record=record)
        return looks

    def _look(self, records: Sequence[Record], outputs: Sequence[Pixels]) -> list[_Look]:
        """Looks for faces in outputs as they would be published."""
        files = [self.encode(output) for output in outputs]
        seen = [decode(file) for file in files]
        found, audited = self._find(seen), self.auditor(seen)
        together = zip(records, found, audited, strict=True)
        complete = [self._with_missed(record, (*a, *b)) for record, a, b in together]
        return list(map(_Look, complete, outputs, files, seen, found))

    def _with_missed(self, record: Record, found: Sequence[Face]) -> Record:
        """The record with what was found outside the regions of its faces added to them."""
        faces = list(record.faces)
        for face in found:
            if not any(self._covers(known, _middle(face)) for known in faces):
                faces.append(face.but(subject=False))
        return record.but(faces=tuple(faces))

    def _find(self, images: Sequence[Pixels]) -> list[tuple[Face, ...]]:
        """The faces of outputs by the first detector.

        Baselines have no new faces to verify; the auditor alone looks for faces that this detector
        missed in the sources, where it has seen those.
        """
        if self.searched and self.generator.baseline:
            return [()] * len(images)
        return self.detector(images)

    def _covers(self, face: Face, point: Floats) -> bool:
        """Whether a point of the picture lies in the region of a face."""
        size = self.generator.size
        matrix = similarity(face.landmarks, TEMPLATE * (size / CROP_SIZE))
        at = move(point[None], matrix)[0].round()
        if at.min() < 0 or at.max() >= size:
            return False
        marks = move(face.landmarks, matrix)
        return bool(reach(at[:1], at[1:], marks, size, self.region) < 1)

    def _proven(self, looks: Sequence[_Look]) -> list[Record]:
        """The records with their outputs, if these show new faces and none that is the source's."""
        pairs = [self._pairs(look) for look in looks]
        new = [(look.seen, new) for look, some in zip(looks, pairs, strict=True) for _, new in some]
        fresh, done = iter(_embeddings(self.embedder, new)), []
        for look, some in zip(looks, pairs, strict=True):
            record = look.record
            same = [self._same(record, old, next(fresh)) for old, _ in some]
            if record.withheld is None:
                if not self.generator.baseline and not any(old.subject for old, _ in some):
                    record = record.withhold("no usable face in the output")
                elif any(same):
                    record = record.withhold("output still matches its source")
                else:
                    record = record.but(output=look.output, encoded=look.encoded)
            done.append(record)
        return done

    def _pairs(self, look: _Look) -> list[tuple[Face, Face]]:
        """Faces that were replaced, and what is found in their place."""
        if look.record.withheld is not None or self.generator.baseline:
            return []
        pairs = []
        for old in look.record.faces:
            new = next((face for face in look.found if self._covers(old, _middle(face))), None)
            if new is not None:
                pairs.append((old, new.but(subject=old.subject)))
        return pairs

    def _same(self, record: Record, face: Face, fresh: Floats) -> bool:
        """Whether a new face (128,) matches what it replaces, or any picture of that person."""
        old = face.embedding
        if old is None:  # a face that only the audit found
            (old,) = _embeddings(self.embedder, [(record.image, face)])
        same = bool(np.linalg.norm(old - fresh) < self.embedder.FMR[MATCH_FMR])
        return same or (face.subject and self._like(record.identity, fresh, LIKE_FMR))

    def _like(self, identity: str | None, fresh: Floats, rate: float) -> bool:
        """Whether a new face (128,) matches a person's template at a false match rate."""
        if identity is None:
            return False
        away = np.linalg.norm(fresh - self.templates(identity))
        return bool(away < self.embedder.TEMPLATE_FMR[rate])


def in_front(other: Face, face: Face, region: str) -> bool:
    """Whether another head hides part of a face's region: it is larger, so nearer, and close by.

    One whose nose lies within the region is the same face, found again, and hides nothing.

    Args:
        other: with box and landmarks.
        face: aligned.
        region: a key of `aligners.REGIONS`.
    """
    assert face.crop is not None
    assert face.crop_from_image is not None
    high, here = (f.box[3] - f.box[1] for f in (other, face))
    apart = float(np.abs(other.landmarks[2] - face.landmarks[2]).max())
    if high <= here or apart > 2 * (high + here):
        return False
    marks = move(np.stack([*face.landmarks, other.landmarks[2]]), face.crop_from_image)
    x, y = marks[5:].T
    return bool(reach(x, y, marks[:5], len(face.crop), region)[0] > 1)


def _embeddings(embedder: DlibEmbedder, faces: Sequence[tuple[Pixels, Face]]) -> list[Floats]:
    """Embeddings (128,) of faces in pictures; of subjects, which every picture has, together."""

    def embed(some: list[tuple[Pixels, Face]], batch: int) -> list[Floats]:
        return list(embedder([chip(image, face.landmarks) for image, face in some], batch))

    return grouped(embed, faces, [CPU_BATCH if face.subject else 1 for _, face in faces])


def _middle(face: Face) -> Floats:
    """The point between eyes and mouth: inside the region wherever the box ends."""
    return np.asarray((face.landmarks[:2].mean(0) + face.landmarks[3:].mean(0)) / 2, np.float32)


def job(face: Face, baseline: bool) -> Job:
    """What a generator may know of an outlined face; only baselines get its pixels."""
    if face.crop is None or face.crop_from_image is None or face.away is None:
        raise AssertionError("a job needs an outlined face")
    marks = move(face.landmarks, face.crop_from_image)
    crop, mask = face.crop, face.away < 1
    if not baseline:
        crop = np.where(mask[..., None], np.uint8(GREY), crop)
    return Job(crop, mask, marks, None, 0)
