"""Whether people who look for it can tell edited pictures from untouched ones.

    python eval/bench/looks.py ask SRC DST OUT [--pictures 60] [--seed 0] [--side 500]
    python eval/bench/looks.py tell OUT ANSWERS...

`ask` mixes outputs of an unsealed release with untouched originals of other people, one picture
per person, all encoded alike, and writes numbered sheets of nine. OUT/truth.json, which says what
is what, is not for the viewers. A viewer writes a text file: a line for each picture that looks
edited, its number first and, if they like, why. `tell` counts. Viewers also call originals edited
(false alarms); what stands out is what they find beyond that. The sheets show real people: keep OUT
private.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from anonymize.eval.stats import wilson

from anonymize.errors import ConfigError, ReleaseError
from anonymize.images import decode, encode, read
from anonymize.record import Pixels
from anonymize.state import read_links

PER_ROW = 3


def main() -> None:
    """Reads the arguments, does the one or the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    asking = commands.add_parser("ask", help="write sheets")
    asking.add_argument("src", type=Path)
    asking.add_argument("dst", type=Path)
    asking.add_argument("out", type=Path)
    asking.add_argument("--pictures", type=int, default=60, help="of each kind")
    asking.add_argument("--seed", type=int, default=0)
    asking.add_argument("--side", type=int, default=500, help="of each picture on the sheets")
    telling = commands.add_parser("tell", help="count answers")
    telling.add_argument("out", type=Path)
    telling.add_argument("answers", type=Path, nargs="+")
    args = parser.parse_args()
    if args.command == "ask":
        ask(args.src, args.dst, args.out, args.pictures, args.seed, args.side)
    else:
        tell(args.out, args.answers)


def ask(src: Path, dst: Path, out: Path, pictures: int, seed: int, side: int) -> None:
    """Writes the sheets and truth.json: number -> source's path and whether it was edited."""
    rng = np.random.default_rng(seed)
    by_person: dict[Path, list[tuple[str, str]]] = {}
    for before, after in sorted(read_links(dst)):
        by_person.setdefault(Path(before).parent, []).append((before, after))
    if len(by_person) < 2 * pictures:
        raise ReleaseError(
            f"{dst}: got {len(by_person)} people, expected twice {pictures}: ask for fewer pictures"
        )
    truth, tiles = [], []
    for place, person in enumerate(rng.permutation(len(by_person))[: 2 * pictures]):
        pairs = list(by_person.values())[person]
        truth.append((*pairs[rng.integers(len(pairs))], place < pictures))
    order = rng.permutation(len(truth))
    for number, (before, after, edited) in enumerate((truth[i] for i in order), 1):
        image = read(dst / after) if edited else decode(encode(read(src / before)))
        tiles.append(_tile(image, number, side))
    out.mkdir(parents=True, exist_ok=True)
    per_page = PER_ROW * PER_ROW
    for page, first in enumerate(range(0, len(tiles), per_page), 1):
        part = tiles[first : first + per_page]
        part += [np.full_like(tiles[0], 255)] * (-len(part) % PER_ROW)
        rows = [np.hstack(part[i : i + PER_ROW]) for i in range(0, len(part), PER_ROW)]
        (out / f"page-{page:02}.png").write_bytes(encode(np.vstack(rows), "png"))
    (out / "truth.json").write_text(
        json.dumps({n: [truth[i][0], bool(truth[i][2])] for n, i in enumerate(order, 1)}, indent=1)
    )
    print(f"{len(tiles)} pictures on {page} sheets in {out}")


def tell(out: Path, answers: list[Path]) -> None:
    """Prints a row per viewer and, of outputs, how many viewers called each edited."""
    truth = {
        int(n): edited for n, (_, edited) in json.loads((out / "truth.json").read_text()).items()
    }
    edited = [n for n in truth if truth[n]]
    untouched = [n for n in truth if not truth[n]]
    votes = dict.fromkeys(truth, 0)
    print("| viewer | outputs called edited | originals called edited |\n|---|---|---|")
    for path in answers:
        called = _called(path)
        if unknown := called - truth.keys():
            raise ConfigError(f"{path}: got {sorted(unknown)}, expected numbers on the sheets")
        for n in called:
            votes[n] += 1
        print(f"| {path.stem} | {_of(called, edited)} | {_of(called, untouched)} |")
    most = {n for n in votes if 2 * votes[n] > len(answers)}
    print(f"| most of them | {_of(most, edited)} | {_of(most, untouched)} |")


def _called(path: Path) -> set[int]:
    """The numbers that lines begin with."""
    try:
        return {
            int(line.split()[0].strip(":,."))
            for line in path.read_text().splitlines()
            if line.strip()
        }
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; expected a number first on each line") from None


def _of(called: set[int], numbers: list[int]) -> str:
    """Count and share with Wilson's interval."""
    found = wilson(len(called & set(numbers)), len(numbers))
    return (
        f"{len(called & set(numbers))} of {len(numbers)}, "
        f"{found.value:.0%} ({found.low:.0%} to {found.high:.0%})"
    )


def _tile(image: Pixels, number: int, side: int) -> Pixels:
    """The picture in a white square with its number in the rim above."""
    rim = 28
    scale = (side - rim) / max(image.shape[:2])
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    tile = np.full((side, side, 3), 255, np.uint8)
    cv2.putText(tile, str(number), (4, rim - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 2)
    left = (side - image.shape[1]) // 2
    tile[rim : rim + image.shape[0], left : left + image.shape[1]] = image
    return tile


if __name__ == "__main__":
    main()
