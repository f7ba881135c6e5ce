"""What runs and trainings make on a GPU is what they make on a CPU, but for rounding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from anonymize.generators import Inpaint
from anonymize.images import read
from anonymize.recipe import Recipe, TrainRecipe
from anonymize.release import problems
from anonymize.run import run
from anonymize.state import read_links
from anonymize.train import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def test_a_release_made_on_a_gpu_is_that_of_a_cpu(people: Path, tmp_path: Path) -> None:
    """The same pictures are written and withheld, and pixels differ as after other rounding."""
    released = {}
    for device in ("cpu", "cuda"):
        target = tmp_path / device
        run(people, target, Recipe(), device=device, key=bytes(range(32)))
        assert not list(problems(target))
        assert json.loads((target / "run.json").read_text())["device"] == device
        links = dict(read_links(target))
        released[device] = {source: read(target / path) for source, path in links.items()}
    on_cpu, on_gpu = released["cpu"], released["cuda"]
    assert len(on_cpu) > 60
    assert len(on_cpu.keys() ^ on_gpu.keys()) <= 2  # near a threshold rounding decides
    for source in on_cpu.keys() & on_gpu.keys():
        apart = np.abs(on_cpu[source].astype(int) - on_gpu[source])
        assert apart.mean() < 3
        assert np.median(apart) == 0


def test_training_on_a_gpu_learns_and_its_export_runs_on_a_cpu(
    people: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    recipe = TrainRecipe(channels=(16, 24), cells=2, batch=8, steps=100, rate=2e-3, cell_steps=4)
    exported = train(people, tmp_path, recipe, device="cuda", report=lines.append)
    errors = [float(line.split("context ")[1].split()[0]) for line in lines if "context " in line]
    assert errors[-1] < 0.8 * errors[0]
    assert Inpaint(str(exported)).prior.mean.shape == (2, 128)
