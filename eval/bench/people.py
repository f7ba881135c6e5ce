"""Who the generator's people are: how many different ones, and whether any was copied.

    python eval/bench/people.py TRAINING [--people 2000] [--densenet FILE] [--sheet OUT.png]

Draws one face each for N new people, on contexts of the sample people, and embeds them with one or
two recognisers beside the training faces, who are all different people. For each recogniser:

- the share of pairs of new people that match at the threshold where 0.1 % of pairs of training
  faces match (0.1 % would be as distinct as the training faces are), and one over it, the effective
  number of people at that threshold;
- memory: how often a new person's nearest training face is nearer than the 1 % nearest neighbours
  among training faces themselves (1 % would be no memory at all).

The sheet shows the 16 nearest pairs, new face and training face. It holds training pictures.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from anonymize.aligners import CROP_SIZE, move
from anonymize.detectors import MTCNN, by_subject
from anonymize.embedders import DenseNetEmbedder, DlibEmbedder, Embedder, chip
from anonymize.faces import Faces, prepare
from anonymize.generators import Inpaint, Job
from anonymize.identities import invent
from anonymize.images import encode, read
from anonymize.outlines import outline
from anonymize.record import Face, Floats, Pixels
from anonymize.stages import job

SAMPLES = Path(__file__).parents[2] / "samples" / "people"


def contexts(folder: Path, size: int) -> list[tuple[Face, Job]]:
    """Aligned faces below a folder and what a generator may know of them."""
    detector, found = MTCNN(), []
    for path in sorted(folder.rglob("*.jpg")):
        image = read(path)
        if faces := detector([image])[0]:
            face = outline(image, by_subject(faces, image.shape[:2])[0], size, "face")
            found.append((face, job(face, False)))
    return found


def draw(generator: Inpaint, count: int) -> tuple[list[Pixels], list[Floats]]:
    """Crops of new people, one each, on the contexts in turn, with their landmarks."""
    places = contexts(SAMPLES, generator.size)
    people = invent(generator.prior, bytes(32), {str(i): None for i in range(count)})

    def one(index: int) -> tuple[Pixels, Floats]:
        face, blank = places[index % len(places)]
        code = people[str(index)].code
        asked = Job(blank.crop, blank.mask, blank.landmarks, code, index)
        assert face.crop_from_image is not None
        drawn = generator([asked])[0]
        whole = np.where(blank.mask[..., None], drawn, face.crop)
        return np.asarray(whole, np.uint8), move(face.landmarks, face.crop_from_image)

    with ThreadPoolExecutor() as pool:
        made = list(pool.map(one, range(count)))
    return [crop for crop, _ in made], [marks for _, marks in made]


def embedded(embedder: Embedder, crops: list[Pixels], marks: list[Floats]) -> Floats:
    """(N, 128) of crops with known landmarks."""

    def one(pair: tuple[Pixels, Floats]) -> Floats:
        return embedder([chip(*pair)])[0]

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(one, zip(crops, marks, strict=True))))


def among(vectors: Floats) -> Floats:
    """(N, N) Euclidean distances, infinite on the diagonal."""
    apart = between(vectors, vectors)
    np.fill_diagonal(apart, np.inf)
    return apart


def between(a: Floats, b: Floats) -> Floats:
    """(N, M) Euclidean distances."""
    square = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(square, 0)), np.float32)


def report(name: str, new: Floats, training: Floats) -> Floats:
    """Prints one recogniser's figures; returns distances (N, T) to the training faces."""
    known, fresh, apart = among(training), among(new), between(new, training)
    pairs = known[np.triu_indices(len(known), 1)]
    limit = float(np.quantile(pairs, 1e-3))
    matched = float((fresh[np.triu_indices(len(fresh), 1)] < limit).mean())
    near = float(np.quantile(known.min(1), 0.01))
    copied = float((apart.min(1) < near).mean())
    effective = 1 / matched if matched else float("inf")
    print(f"{name}: {len(new)} new people, {len(training)} training faces")
    print(f"  pairs of new people that match: {matched:.3%} (training faces 0.100 %)")
    print(f"  effective number of people at that threshold: {effective:,.0f} (training 1,000)")
    print(f"  nearer to a training face than 1 % of those are to each other: {copied:.2%}")
    quantiles = [0.01, 0.1, 0.5]
    shown = [np.quantile(x.min(1), quantiles).round(3).tolist() for x in (apart, known)]
    print(f"  nearest training face, 1/10/50 %: new {shown[0]}, training {shown[1]}")
    return apart


def sheet(crops: list[Pixels], faces: Faces, apart: Floats) -> bytes:
    """The 16 nearest pairs as PNG."""
    edge = (faces.crops.shape[1] - CROP_SIZE) // 2
    tiles = []
    for index in np.argsort(apart.min(1))[:16]:
        other = faces.crops[int(apart[index].argmin())]
        tiles.append(np.hstack([crops[index], other[edge:-edge, edge:-edge]]))
    return encode(np.vstack([np.hstack(tiles[i : i + 4]) for i in range(0, 16, 4)]), "png")


def main() -> None:
    """Reads the arguments, draws, embeds, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("training", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("build/faces"))
    parser.add_argument("--people", type=int, default=2000)
    parser.add_argument("--densenet", help="dlib's face_recognition_densenet_model_v1.dat[.bz2]")
    parser.add_argument("--weights", default="")
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    faces = prepare(args.training, args.cache)
    crops, marks = draw(Inpaint(args.weights), args.people)
    apart = report("dlib", embedded(DlibEmbedder(), crops, marks), faces.embeddings)
    if args.densenet:
        embedder = DenseNetEmbedder(args.densenet)
        theirs = embedded(embedder, list(faces.crops), list(faces.landmarks))
        report("dlib-densenet", embedded(embedder, crops, marks), theirs)
    if args.sheet:
        args.sheet.write_bytes(sheet(crops, faces, apart))


if __name__ == "__main__":
    main()
