"""How often the guess of a person's coarse cell, made without the face, agrees with the face.

    python eval/bench/cells.py SRC [--people 300] [--images 5] [--weights FOLDER]

The guess sees masked pictures only, as in a run. Here, for this measurement alone, the faces are
embedded too, and the cell nearest to the person's mean code is taken as the truth. Beside the
guess: drawing the cell blindly, and always taking the most frequent cell of these very people.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from anonymize.eval.links import pictures
from anonymize.eval.stats import share

from anonymize.aligners import align
from anonymize.detectors import MTCNN, by_subject
from anonymize.embedders import DlibEmbedder, chip
from anonymize.generators import Inpaint
from anonymize.images import read
from anonymize.record import Floats
from anonymize.stages import job


def chosen(src: Path, people: int, images: int) -> dict[str, list[str]]:
    """The first so many people with two pictures or more, and their first pictures."""
    by_person: dict[str, list[str]] = {}
    for path in pictures(src):
        by_person.setdefault(str(Path(path).parent), []).append(path)
    able = [name for name, paths in by_person.items() if len(paths) > 1]
    return {name: by_person[name][:images] for name in sorted(able)[:people]}


def main() -> None:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("src", type=Path)
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--weights", default="")
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator, detector, embedder = Inpaint(args.weights), MTCNN(), DlibEmbedder()

    def look(path: str) -> tuple[Floats, Floats] | None:
        image = read(args.src / path)
        if not (found := detector([image])[0]):
            return None
        face = by_subject(found, image.shape[:2])[0]
        seen = job(align(image, face, generator.size), "face", False)
        return generator.cells([seen])[0], embedder([chip(image, face.landmarks)])[0]

    prior, truth, guesses = generator.prior, [], []
    means = torch.nn.functional.normalize(prior.mean, dim=1)
    with ThreadPoolExecutor() as pool:
        for paths in chosen(args.src, args.people, args.images).values():
            looks = [found for found in pool.map(look, paths) if found is not None]
            if looks:
                guesses.append(int(np.mean([logits for logits, _ in looks], 0).argmax()))
                codes = prior.code(torch.from_numpy(np.stack([code for _, code in looks])))
                truth.append(int((codes.mean(0) @ means.T).argmax()))
    own, guess = np.array(truth), np.array(guesses)
    rates = np.bincount(own, minlength=len(means)) / len(own)
    hit = share(own == guess, np.arange(len(own)))
    blind = float(rates @ prior.weight.numpy() / prior.weight.sum())
    print(f"{len(own)} people, {len(means)} cells")
    print(f"guess agrees: {hit.value:.1%} ({hit.low:.1%} to {hit.high:.1%})")
    print(f"blind draw: {blind:.1%}; always the most frequent: {rates.max():.1%}")
    print("people per cell, by face: ", np.bincount(own, minlength=len(means)).tolist())
    print("people per cell, by guess:", np.bincount(guess, minlength=len(means)).tolist())


if __name__ == "__main__":
    main()
