"""Draws the sample people: 12 who do not exist, 6 pictures each, and no photograph involved.

    python samples/make_people.py OUT [--weights FOLDER]

The generator fills whole crops (region: everything), so nothing is left of any picture. A person
is a code from the prior; pictures differ in pose, framing, expression, light and noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from anonymize.aligners import TEMPLATE, move
from anonymize.detectors import MTCNN
from anonymize.embedders import DlibEmbedder, chip
from anonymize.generators import Inpaint, Job
from anonymize.identities import invent
from anonymize.images import encode
from anonymize.record import Floats, Pixels

KEY = b"the sample people of anonymize!!"
PEOPLE, PICTURES = 12, 6


def pose(rng: np.random.Generator) -> Floats:
    """Landmarks (5, 2) of a head a little turned, tilted, moved and with another expression."""
    points = TEMPLATE.copy()
    points[3:, 0] = 64 + (points[3:, 0] - 64) * rng.uniform(0.9, 1.2)
    points[2, 0] += rng.normal(0, 2.0)  # the nose leads when the head turns
    points[2, 1] += rng.normal(0, 1.0)
    angle, scale = np.deg2rad(rng.normal(0, 4)), np.exp(rng.normal(0, 0.03))
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = np.array([64, 72]) - turn @ np.array([64, 72]) + rng.normal(0, 1.5, 2)
    return move(points, np.hstack([turn, shift[:, None]]).astype(np.float32))


def light(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Another exposure and colour cast."""
    changed = (image / 255) ** np.exp(rng.normal(0, 0.12)) * np.exp(rng.normal(0, 0.03, 3))
    return np.asarray(np.clip(changed * 255, 0, 255).round(), np.uint8)


def main() -> None:
    """Draws candidates and keeps, per person, the pictures that show one clear face."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", default="")
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = Inpaint(args.weights, args.steps, noise=1, emphasis=1, views=1)
    detector, embedder = MTCNN(), DlibEmbedder()
    people = invent(generator.prior, KEY, {f"sample {i}": None for i in range(PEOPLE)})
    for number, person in enumerate(people.values()):
        folder, kept, first, tries = args.out / f"person-{number:02}", 0, None, 0
        folder.mkdir(parents=True, exist_ok=True)
        while kept < PICTURES:
            tries += 1
            rng = np.random.default_rng([number, tries])
            whole = np.ones((generator.size, generator.size), bool)
            empty = np.zeros((generator.size, generator.size, 3), np.uint8)
            seed = int(rng.integers(2**63))
            image = generator([Job(empty, whole, pose(rng), person.code, seed)])[0]
            image = light(image, rng)
            found = detector([image])[0]
            if len(found) != 1 or found[0].score < 0.95:
                continue
            embedding = embedder([chip(image, found[0].landmarks)])[0]
            first = embedding if first is None else first
            if np.linalg.norm(embedding - first) > embedder.FMR[1e-3] and tries < 60:
                continue
            (folder / f"{kept}.jpg").write_bytes(encode(image, "jpg", 95))
            kept += 1
        print(f"{folder}: {kept} pictures of {tries} drawn")


if __name__ == "__main__":
    main()
