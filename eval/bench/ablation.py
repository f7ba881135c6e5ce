"""What each kind of augmentation buys on photographs, of which training has none.

    python eval/bench/ablation.py FACES PHOTOS [--steps 1500] [--runs 2] [--people 200]

FACES is what `anonymize train` takes, PHOTOS a folder of real photographs per person. Each row
trains small generators (a quarter of the convolutions' work) from nothing without one kind of
augmentation, by L1 on the pictures' own codes alone: an adversary or a recogniser would blur the
comparison. They then fill the region of every photograph, under the code of the face that was
there, and are compared with that face: a measurement, which no release could make. In grey levels:

* pixels: mean absolute error in the region
* tone: of averages over an eighth of the crop, in the region: light and skin
* rim: mean absolute error where the region ends: seams, hair, beards
* turned: pixels, over the quarter of photographs whose heads are turned furthest

Rows are differences from the first one, photograph by photograph, averaged over runs with other
seeds; intervals are 95 % bootstraps over people. "again" is the first row with yet another seed:
differences of its size mean nothing.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from anonymize.eval.links import pictures
from anonymize.eval.stats import share
from torch import Tensor, nn

from anonymize.aligners import CROP_SIZE, heat, move
from anonymize.augment import KINDS
from anonymize.detectors import MTCNN, by_subject
from anonymize.embedders import DlibEmbedder, chip
from anonymize.faces import Faces, prepare
from anonymize.images import read
from anonymize.inpaint import InpaintPipeline, contexts, new_pipeline, predict
from anonymize.outlines import outline
from anonymize.priors import CodePrior
from anonymize.recipe import TrainRecipe
from anonymize.record import Floats
from anonymize.training import Batch, batches

CHANNELS = (32, 64, 96)
"""Half of the default's."""

TURNED = 0.75
"""Quantile of the nose tip's distance from the face's middle, beyond which a head is turned."""


def photographs(src: Path, people: int, images: int) -> tuple[Batch, Floats, Floats]:
    """A batch of all photographs, their embeddings (N, 128) and how far heads are turned (N,).

    The batch's `index` numbers people.
    """
    by_person: dict[str, list[str]] = {}
    for path in pictures(src):
        by_person.setdefault(str(Path(path).parent), []).append(path)
    wanted = [
        (n, p)
        for n, name in enumerate(sorted(by_person)[:people])
        for p in by_person[name][:images]
    ]
    detector, embedder = MTCNN(), DlibEmbedder()

    def look(number: int, path: str) -> tuple[int, Floats, Floats, Floats, Floats] | None:
        image = read(src / path)
        if not (found := detector([image])[0]):
            return None
        face = outline(image, by_subject(found, image.shape[:2])[0], CROP_SIZE, "face")
        assert face.crop is not None
        assert face.crop_from_image is not None
        marks = move(face.landmarks, face.crop_from_image)
        return number, face.crop, marks, face.away, embedder([chip(image, face.landmarks)])[0]

    with ThreadPoolExecutor() as pool:
        seen = [found for found in pool.map(lambda one: look(*one), wanted) if found is not None]
    numbers, crops, marks, away, embeddings = (np.stack(part) for part in zip(*seen, strict=True))
    rim = np.where(away < 1, np.clip(2.5 * away - 1.5, 0, 1), 0).astype(np.float32)
    maps = np.stack([heat(m, CROP_SIZE) for m in marks])
    pixels = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1
    context = contexts(pixels, torch.from_numpy(away < 1)[:, None].float(), torch.from_numpy(maps))
    eyes, mouth = marks[:, :2].mean(1), marks[:, 3:].mean(1)
    down = (mouth - eyes) / np.linalg.norm(mouth - eyes, axis=1, keepdims=True)
    nose = marks[:, 2] - (eyes + mouth) / 2
    turn = np.abs(nose[:, 0] * down[:, 1] - nose[:, 1] * down[:, 0])
    batch = Batch(
        pixels,
        context,
        torch.from_numpy(marks),
        torch.from_numpy(rim)[:, None],
        torch.from_numpy(numbers),
    )
    return batch, embeddings, turn


def trained(faces: Faces, prior: CodePrior, recipe: TrainRecipe) -> InpaintPipeline:
    """A small generator after `recipe.steps` steps of L1 on own codes."""
    torch.manual_seed(recipe.seed)
    pipeline = new_pipeline(recipe.channels, recipe.cells, depth=1)
    unet, adapter = pipeline.unet.train(), pipeline.adapter.train()
    weights = [*unet.parameters(), *adapter.parameters()]
    optimiser = torch.optim.AdamW(weights, 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, recipe.steps + 1)
    codes = prior.code(torch.from_numpy(faces.embeddings))
    for batch in islice(batches(faces, recipe, 0, "cpu"), recipe.steps):
        with torch.autocast("cpu", torch.bfloat16):
            drawn = draw(pipeline, batch.context, codes[batch.index])
        loss = F.l1_loss(drawn, batch.crops)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
    return pipeline


def draw(pipeline: InpaintPipeline, context: Tensor, code: Tensor) -> Tensor:
    """One step from nothing instead of noise: L1 has one answer."""
    last = torch.tensor(len(pipeline.scheduler.alphas_cumprod) - 1)
    return predict(
        pipeline.unet, pipeline.adapter, torch.zeros_like(context[:, :3]), last, context, code
    )


@torch.no_grad()
def misses(pipeline: InpaintPipeline, batch: Batch, codes: Tensor) -> Floats:
    """(N, 3) pixels, tone and rim: how far drawn faces are from the removed ones, grey levels."""
    pipeline.unet.eval()
    parts = [
        draw(pipeline, c, k) for c, k in zip(batch.context.split(32), codes.split(32), strict=True)
    ]
    mask, size = batch.context[:, 3:4], batch.crops.shape[-1] // 8
    gap = (torch.cat(parts).clamp(-1, 1) - batch.crops) * mask * 127.5

    def mean(values: Tensor, where: Tensor) -> Tensor:
        return (values.abs() * where).sum((1, 2, 3)) / where.sum((1, 2, 3)) / 3

    inside = (F.avg_pool2d(mask, size) == 1).float()
    tone = mean(F.avg_pool2d(gap, size), inside)
    return torch.stack([mean(gap, mask), tone, mean(gap, batch.rim)], 1).numpy()


def main() -> None:
    """Reads the arguments, trains, measures, prints a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("faces", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--images", type=int, default=3)
    args = parser.parse_args()
    faces = prepare(args.faces, args.cache)
    photos, embeddings, turn = photographs(args.photos, args.people, args.images)
    prior = CodePrior()
    prior.centre.data = torch.from_numpy(faces.embeddings).mean(0)
    codes = prior.code(torch.from_numpy(embeddings))
    people = photos.index.numpy()
    turned = turn >= np.quantile(turn, TURNED)
    print(f"{len(people)} photographs of {len(set(people))} people, {args.steps} steps a run\n")
    print("| without | pixels | tone | rim | turned |\n|---|---|---|---|---|")

    def row(name: str, without: tuple[str, ...], seeds: range, base: Floats | None) -> Floats:
        runs = []
        for seed in seeds:
            recipe = TrainRecipe(channels=CHANNELS, steps=args.steps, seed=seed, without=without)
            runs.append(misses(trained(faces, prior, recipe), photos, codes))
        found = np.mean(runs, 0)
        found = np.column_stack([found, np.where(turned, found[:, 0], np.nan)])
        cells = []
        for column in (found if base is None else found - base).T:
            known = ~np.isnan(column)
            mean = share(column[known], people[known])
            sign = "" if base is None else "+"
            cells.append(f"{mean.value:{sign}.2f} ({mean.low:{sign}.2f} to {mean.high:{sign}.2f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        return found

    seeds = range(args.runs)
    base = row("nothing", (), seeds, None)
    row("again", (), range(args.runs, 2 * args.runs), base)
    for kind, what in KINDS.items():
        row(f"{kind}: {what}", (kind,), seeds, base)
    row("all", tuple(KINDS), seeds, base)


if __name__ == "__main__":
    main()
