"""Trains the perturbing network against its ensemble, and the ensemble's student beside it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anonymize.embedders import chips
from anonymize.faces import Faces, prepare
from anonymize.generators import write_sums
from anonymize.perturb import Ensemble, PerturbNet, Student, gaps
from anonymize.recipe import TrainRecipe
from anonymize.training import Batch, batches, blend_in, drive, opened, stored
from anonymize.views import views


@dataclass(frozen=True, slots=True)
class PerturbRecipe:
    """Everything that decides what a training of the perturbing network learns.

    Attributes:
        size: side of the crops in pixels.
        channels: of the network per level, finest first.
        student: of the student recogniser per level, finest first.
        eps: bound of the perturbation in grey levels; the network scales to others.
        batch: crops per step.
        steps: optimiser steps of the whole run.
        rate: learning rate of both networks.
        ema: decay of the averaged weights that are exported.
        margin: features that moved so far, in units of their length, are far enough.
        weights: of the ensemble's members, in the order of `Ensemble.MEMBERS`.
        warmup: steps over which the student's weight rises, as it knows nothing at first.
        bf16: compute in bfloat16 where torch's autocast thinks fit.
        seed: of everything random.
    """

    size: int = 128
    channels: tuple[int, ...] = (32, 64, 128)
    student: tuple[int, ...] = (24, 48, 96, 144)
    eps: int = 8
    batch: int = 16
    steps: int = 4000
    rate: float = 1e-3
    ema: float = 0.995
    margin: float = 0.8
    weights: tuple[float, ...] = (1.0, 0.5, 0.5)
    warmup: int = 300
    bf16: bool = True
    seed: int = 0


class PerturbTrainer:
    """One training run: the network, the student, their optimisers and a step."""

    def __init__(self, faces: Faces, recipe: PerturbRecipe, device: str) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device, self.step = recipe, device, 0
        self.embeddings = torch.from_numpy(faces.embeddings).to(device)
        self.net = PerturbNet(recipe.channels).to(device)
        self.ensemble = Ensemble(Student(recipe.student)).to(device)
        self.average = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        self.optimiser = torch.optim.AdamW(self.net.parameters(), recipe.rate)
        learning = self.ensemble.student.parameters()
        self.optimiser_student = torch.optim.AdamW(learning, recipe.rate)

    def update(self, batch: Batch) -> dict[str, float]:
        """One optimiser step for the network, then one for the student."""
        recipe = self.recipe
        rng = torch.Generator().manual_seed(recipe.seed + self.step)
        clean = chips(batch.crops, batch.landmarks)
        with torch.autocast(self.device, torch.bfloat16, enabled=recipe.bf16):
            with torch.no_grad():
                own = self.ensemble(clean)
            change = self.net(batch.crops).float() * recipe.eps / 127.5
            output = (batch.crops + change * batch.context[:, 3:4]).clamp(-1, 1)
            moved = gaps(self.ensemble(views(output, batch.landmarks, rng)), own)
        loss = (self._weights() @ F.relu(recipe.margin - moved)).mean()
        self._descend(self.optimiser, loss, self.net)
        learnt = self._teach(views(batch.crops, batch.landmarks, rng), batch.index)
        blend_in(self.average, self.net, recipe.ema, self.step)
        self.step += 1
        means = dict(zip(Ensemble.MEMBERS, moved.mean(1).tolist(), strict=True))
        return means | {"student's error": learnt}

    def _weights(self) -> Tensor:
        first, middle, student = self.recipe.weights
        ramp = min(1.0, self.step / max(1, self.recipe.warmup))
        return torch.tensor([first, middle, student * ramp], device=self.device)

    def _teach(self, seen: Tensor, index: Tensor) -> float:
        """Draws the student's embeddings towards dlib's of the same faces before augmentation."""
        student = self.ensemble.student
        with torch.autocast(self.device, torch.bfloat16, enabled=self.recipe.bf16):
            guess = student(seen).float()
        loss = gaps([guess], [self.embeddings[index]]).square().mean()
        self._descend(self.optimiser_student, loss, student)
        return loss.sqrt().item()

    def _descend(self, optimiser: torch.optim.Optimizer, loss: Tensor, net: nn.Module) -> None:
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()

    def save(self, path: Path) -> None:
        """Writes a checkpoint that `load` continues from."""
        state = {
            "step": self.step,
            "average": self.average,
            "net": self.net.state_dict(),
            "student": self.ensemble.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "optimiser_student": self.optimiser_student.state_dict(),
        }
        stored(state, path)

    def load(self, path: Path) -> None:
        """Continues from a checkpoint."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.step, self.average = state["step"], state["average"]
        self.net.load_state_dict(state["net"])
        self.ensemble.student.load_state_dict(state["student"])
        for name in ("optimiser", "optimiser_student"):
            getattr(self, name).load_state_dict(state[name])

    def export(self, folder: Path) -> None:
        """Writes both networks in half precision: `net` (averaged weights) and `student`."""
        net, student = PerturbNet(self.recipe.channels), Student(self.recipe.student)
        net.load_state_dict(self.average)
        student.load_state_dict(self.ensemble.student.state_dict())
        for name, part in (("net", net), ("student", student)):
            part.half().save_pretrained(folder / name, safe_serialization=True)
        write_sums(folder)


def train_perturb(
    source: Path,
    out: Path,
    recipe: PerturbRecipe,
    *,
    resume: bool = False,
    device: str = "cpu",
    minutes: float = 0,
    report: Callable[[str], None] = print,
    exclude: Collection[str] = (),
) -> Path:
    """Trains on the faces below `source`; `out` receives checkpoints and the export.

    Args:
        source: pictures of people who may be learnt from: synthetic, or with consent.
        out: `cache/`, `perturb.pt` and `export/` are written here.
        recipe: what to learn.
        resume: continue from `out/perturb.pt`.
        device: a torch device type.
        minutes: stop after this wall time; 0 for none.
        report: takes progress lines.
        exclude: pictures to leave out, as paths below `source`.

    Returns:
        The folder of the exported model, which `generator_options.weights` takes.

    Raises:
        ConfigError: `out` holds a run and `resume` is False; a picture to leave out is not there.
    """
    checkpoint = opened(out, "perturb.pt", resume)
    faces = prepare(source, out / "cache", recipe.size, report, exclude)
    trainer = PerturbTrainer(faces, recipe, device)
    if checkpoint.exists():
        trainer.load(checkpoint)
    pictures = TrainRecipe(size=recipe.size, batch=recipe.batch, seed=recipe.seed)
    stream = batches(faces, pictures, trainer.step, device)
    drive(trainer, stream, recipe.steps, checkpoint, minutes=minutes, report=report)
    trainer.export(out / "export")
    return out / "export"
