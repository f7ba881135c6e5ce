"""How often new people fit what stays visible of the old ones, as far as guessed from it.

    python eval/bench/cells.py SRC [--people 300] [--images 5] [--weights FOLDER]

The guess sees masked pictures only, as in a run. Here, for this measurement alone, the faces are
embedded too: the cell nearest to a person's mean code is taken as the truth, and the side of it
along the axis in which cells differ most (`identities.side`) as apparent sex. Rows: the guess by
itself; what a run makes of all guesses together (`identities.ruled_out`); a blind draw, as without
context codes; and always the most frequent of these very people.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from anonymize.eval.links import pictures
from anonymize.eval.stats import share

from anonymize.detectors import MTCNN, by_subject
from anonymize.embedders import DlibEmbedder, chip
from anonymize.generators import Inpaint
from anonymize.identities import pooled, ruled_out, side
from anonymize.images import read
from anonymize.outlines import outline
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
        seen = job(outline(image, face, generator.size, "face"), False)
        return generator.cells([seen])[0], embedder([chip(image, face.landmarks)])[0]

    prior, truth, guesses, codes_of = generator.prior, [], [], []
    means = torch.nn.functional.normalize(prior.mean, dim=1)
    with ThreadPoolExecutor() as pool:
        for paths in chosen(args.src, args.people, args.images).values():
            looks = [found for found in pool.map(look, paths) if found is not None]
            if looks:
                guesses.append(pooled([logits for logits, _ in looks]))
                codes = prior.code(torch.from_numpy(np.stack([code for _, code in looks])))
                codes_of.append(codes.mean(0).numpy())
                truth.append(int((codes.mean(0) @ means.T).argmax()))
    own, sexes = np.array(truth), side(prior, np.array(codes_of)) > 0
    people = {f"{i:06}": logits for i, logits in enumerate(guesses)}
    halves = side(prior, prior.mean.double().numpy()) > 0
    rates, usual = np.bincount(own, minlength=len(means)) / len(own), prior.weight.numpy()
    usual = usual / usual.sum()
    print(f"{len(own)} people, {len(means)} cells\n")
    print("| | cell right | side right | of the larger side | of the smaller |")
    print("|---|---|---|---|---|")
    many = sexes == (sexes.mean() > 0.5)
    for name, seen in (("guess", people), ("all guesses", ruled_out(prior, people))):
        found = np.array([int(np.argmax(seen[label])) for label in people])
        right = halves[found] == sexes
        parts = (found == own, right, right[many], right[~many])
        print(f"| {name} | {' | '.join(map(interval, parts))} |")
    above = usual[halves].sum()
    blind = np.where(sexes, above, 1 - above).mean()
    print(f"| blind draw | {rates @ usual:.1%} | {blind:.1%} | | |")
    print(f"| most frequent | {rates.max():.1%} | {many.mean():.1%} | 100 % | 0 % |")


def interval(right: np.ndarray) -> str:
    """A share with its 95 % interval over people."""
    hit = share(right, np.arange(len(right)))
    return f"{hit.value:.1%} ({hit.low:.1%} to {hit.high:.1%})"


if __name__ == "__main__":
    main()
