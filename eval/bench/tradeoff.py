"""The trade-off table: several generators over one dataset, each attacked and measured alike.

    python eval/bench/tradeoff.py SRC OUT --people 300 --images 5

OUT keeps the chosen originals, a release and a report for each generator; what is there already is
not made again, so an interrupted table goes on. The key is fixed, for the table to be reproducible.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from anonymize.eval.command import Request, carry_out
from anonymize.eval.links import pictures
from anonymize.eval.page import worst
from anonymize.eval.report import read_report, spread, table

from anonymize.recipe import Recipe, load
from anonymize.run import run
from anonymize.state import read_links

METHODS = {
    "mask": ["generator=mask"],
    "blur": ["generator=blur"],
    "pixelate": ["generator=pixelate"],
    "k-same-pixel": ["generator=k-same-pixel"],
    "k-same-eigen": ["generator=k-same-eigen"],
    "k-same-select": ["generator=k-same-select"],
    "perturb": ["generator=perturb"],
    "perturb-pgd": ["generator=perturb:pgd"],
    "inpaint-head": ["generator=inpaint", "region=head"],
    "inpaint-4-steps": ["generator=inpaint", "generator_options.steps=4"],
    "inpaint": ["generator=inpaint"],
}


def choose(src: Path, folder: Path, people: int, images: int) -> None:
    """Links so many people with two pictures or more, chosen by a hash of their names."""
    if folder.is_dir():
        return
    by_person: dict[str, list[str]] = {}
    for path in pictures(src):
        by_person.setdefault(str(Path(path).parent), []).append(path)
    able = [name for name, paths in by_person.items() if len(paths) > 1]
    able.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    for name in able[:people]:
        for path in by_person[name][:images]:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to((src / path).resolve())


def measure(out: Path, name: str, embedders: list[str], beside: list[Path], budget: str) -> Path:
    """Makes the release and the report of one method, unless they are there."""
    release, report = out / name, out / f"report-{name}"
    if not (release / "run.json").is_file():
        recipe = load(Recipe, None, METHODS[name])
        key = hashlib.sha256(b"trade-off table").digest()
        resume = release.with_name(f"{name}.private").is_dir()
        workers = os.cpu_count() or 1
        run(out / "originals", release, recipe, key=key, workers=workers, resume=resume)
    if not (report / "report.json").is_file():
        request = Request(
            out / "originals",
            release,
            report,
            dict(read_links(release)),
            embedders,
            budget=budget,
            beside=beside,
            cache=out / "cache.private" / "embeddings.sqlite",
        )
        carry_out(request, tell=lambda part: print(f"{name}: {part}", flush=True))
    return report


def row(name: str, report: dict[str, Any]) -> str:
    """One line of the Markdown table."""

    def risk(attack: str) -> str:
        rows = [r["risk"] for r in report["attacks"] if r["attack"] == attack]
        return spread(max(rows, key=lambda r: float(r["value"]))) if rows else ""

    def use(start: str) -> str:
        rows = [u["value"] for u in report["utilities"] if u["name"].startswith(start)]
        return spread(rows[-1]) if rows and rows[-1] else ""

    top = worst(report)
    cells = [name, spread(top) if top else "", risk("oa"), risk("semi-informed"), risk("context")]
    cells += [use("detection"), use("same-key"), use("training-retention")]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Reads the arguments, makes what is missing, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("src", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--embedder", action="append", help="default: dlib")
    parser.add_argument("--method", action="append", choices=METHODS, help="default: all")
    parser.add_argument("--budget", default="smoke")
    parser.add_argument("--whole", action="store_true", help="print every figure of each report")
    args = parser.parse_args()
    torch.set_num_threads(1)
    choose(args.src, args.out / "originals", args.people, args.images)
    reports: dict[str, Path] = {}
    for name in args.method or METHODS:
        embedders, others = args.embedder or ["dlib"], list(reports.values())
        reports[name] = measure(args.out, name, embedders, others, args.budget)
    for name, path in reports.items() if args.whole else ():
        print(f"{name}\n{table(read_report(path))}\n")
    print("| method | worst risk to faces | oa | semi-informed | context | ", end="")
    print("detection | same-key rank-1 | training retention |")
    print("|" + "---|" * 8)
    for name, path in reports.items():
        print(row(name, read_report(path)))


if __name__ == "__main__":
    main()
