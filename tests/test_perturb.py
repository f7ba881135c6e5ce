"""`perturb`: bounded perturbations, what they do and what undoes them; and their training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anonymize import registry
from anonymize.aligners import TEMPLATE
from anonymize.blenders import overlay
from anonymize.detectors import MTCNN
from anonymize.embedders import DlibEmbedder, chip
from anonymize.errors import ConfigError, WeightsError
from anonymize.generators import BASELINE_NOTE, Job, bundled, check_sums
from anonymize.images import decode, encode, read
from anonymize.outlines import outline
from anonymize.perturb import Ensemble, Perturb, PerturbNet, Student, ascend, gaps
from anonymize.perturb_train import PerturbRecipe, train_perturb
from anonymize.readers import Folder
from anonymize.recipe import Recipe
from anonymize.record import Face, Pixels
from anonymize.run import run
from anonymize.stages import job
from anonymize.state import read_links
from anonymize.views import blurred, jpeg, views

METHODS = {"perturb": {}, "perturb:pgd": {"steps": 3}}


@pytest.fixture(scope="module")
def generators() -> dict[str, Perturb]:
    return {name: registry.load("generator", name, **more) for name, more in METHODS.items()}


@pytest.fixture(scope="module")
def jobs(people: Path) -> list[Job]:
    """Three sample people, as baselines see them."""
    return [job(found, baseline=True) for found in faces(people, 3)]


def faces(people: Path, count: int) -> list[Face]:
    images = [read(sorted(person.glob("*.jpg"))[0]) for person in sorted(people.iterdir())[:count]]
    looks = zip(images, MTCNN()(images), strict=True)
    return [outline(image, found[0], 128, "face") for image, found in looks]


def apart(a: Pixels, b: Pixels) -> np.ndarray:
    return np.abs(a.astype(int) - b.astype(int))


@pytest.mark.parametrize("name", METHODS)
def test_no_value_moves_beyond_the_bound(
    generators: dict[str, Perturb], jobs: list[Job], name: str
) -> None:
    for one, made in zip(jobs, generators[name](jobs), strict=True):
        moved = apart(made, one.crop)
        assert moved.max() == 8
        assert moved[one.mask].mean() > 2
        assert moved[~one.mask].max() == 0


@pytest.mark.parametrize("eps", [1, 3.9, 16])
def test_the_bound_is_an_option(jobs: list[Job], eps: float) -> None:
    dark = Job(np.zeros_like(jobs[0].crop), jobs[0].mask, jobs[0].landmarks, None, 1)
    for one in (jobs[0], dark):
        moved = apart(Perturb(eps=eps)([one])[0], one.crop)
        assert 0 < moved.max() <= int(eps)


@pytest.mark.parametrize("name", METHODS)
def test_a_face_depends_on_its_own_job_only(
    generators: dict[str, Perturb], jobs: list[Job], name: str
) -> None:
    generator = generators[name]
    together = generator(jobs)
    alone = [generator([one])[0] for one in reversed(jobs)][::-1]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(together, alone, strict=True))
    assert generator([]) == []


def test_the_start_of_the_ascent_is_seeded(generators: dict[str, Perturb], jobs: list[Job]) -> None:
    one, pgd = jobs[0], generators["perturb:pgd"]
    other = Job(one.crop, one.mask, one.landmarks, None, one.seed + 1)
    assert pgd([one])[0].tobytes() != pgd([other])[0].tobytes()


@pytest.mark.parametrize("name", METHODS)
def test_dlib_sees_another_face(generators: dict[str, Perturb], jobs: list[Job], name: str) -> None:
    """More so than noise of the same size does."""
    embedder, rng = DlibEmbedder(), np.random.default_rng(0)

    def moved(crops: list[Pixels]) -> float:
        marks = [one.landmarks for one in jobs]
        after = embedder([chip(c, m) for c, m in zip(crops, marks, strict=True)])
        before = embedder([chip(one.crop, m) for one, m in zip(jobs, marks, strict=True)])
        return float(np.linalg.norm(after - before, axis=1).mean())

    noise = [
        np.clip(one.crop + rng.choice([-8, 8], one.crop.shape), 0, 255).astype(np.uint8)
        for one in jobs
    ]
    assert moved(generators[name](jobs)) > 2 * moved(noise)
    assert moved(generators[name](jobs)) > 0.3


@pytest.mark.parametrize("index", range(3))
def test_more_steps_climb_higher(jobs: list[Job], index: int) -> None:
    one, torch_seed = jobs[index], 3
    crops = torch.from_numpy(one.crop).permute(2, 0, 1)[None].float() / 127.5 - 1
    marks, mask = torch.from_numpy(one.landmarks)[None], torch.ones(1, 1, 128, 128)
    torch.manual_seed(0)
    ensemble = Ensemble(Student())

    def height(steps: int) -> float:
        rng = torch.Generator().manual_seed(torch_seed)
        change = ascend(ensemble, crops, marks, mask, bound=8 / 127.5, steps=steps, rng=rng)
        assert change.abs().max() <= 8 / 127.5 + 1e-6
        rng = torch.Generator().manual_seed(torch_seed)
        with torch.no_grad():
            seen, own = (ensemble(views(c, marks, rng)) for c in (crops + change, crops))
        return float(gaps(seen, own)[0])

    assert height(8) > 1.1 * height(1)


def photograph(side: int = 400) -> tuple[Pixels, Face]:
    """A picture of noise, and a face that is twice as large in it as in its crop."""
    image = np.random.default_rng(0).integers(20, 230, (side, side, 3)).astype(np.uint8)
    marks = (TEMPLATE * 2 + 60).astype(np.float32)
    return image, outline(image, Face(np.zeros(4, np.float32), 1.0, marks), 128, "face")


def test_an_unchanged_crop_leaves_the_photograph_as_it_is() -> None:
    image, face = photograph()
    assert face.crop is not None
    assert overlay(image, face.crop, face).tobytes() == image.tobytes()


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.7])
def test_only_the_change_reaches_the_photograph_and_keeps_its_bound(scale: float) -> None:
    image, _ = photograph()
    marks = (TEMPLATE * scale + 40).astype(np.float32)
    face = outline(image, Face(np.zeros(4, np.float32), 1.0, marks), 128, "face")
    assert face.crop is not None
    rng = np.random.default_rng(1)
    change = 8 * np.sign(cv2.GaussianBlur(rng.standard_normal((128, 128, 3)), (0, 0), 3))
    out = overlay(image, (face.crop + change).clip(0, 255).astype(np.uint8), face)
    moved = apart(out, image)
    assert 4 <= moved.max() <= 8
    assert (out != image).any(-1).mean() < 0.9 * scale**2


@pytest.mark.parametrize("name", METHODS)
def test_a_release_keeps_the_bound_and_says_what_it_is_not(
    dataset: Path, tmp_path: Path, name: str
) -> None:
    recipe = Recipe(generator=name, format="png", generator_options={"eps": 6} | METHODS[name])
    for person in sorted(dataset.iterdir())[1:]:
        shutil.rmtree(person)
    summary = run(dataset, tmp_path / "release", recipe, key=bytes(32), batch_size=2, workers=2)
    assert summary.written == summary.read == 3
    for source, output in read_links(tmp_path / "release"):
        before = decode(Folder(dataset).load(source))
        moved = apart(read(tmp_path / "release" / output), before)
        assert 3 <= moved.max() <= 6
        assert 0.1 < (moved > 0).any(-1).mean() < 0.9
    described = json.loads((tmp_path / "release" / "run.json").read_text())
    assert described["recipe"]["generator"] == name
    assert described["label"] == Perturb.label != BASELINE_NOTE
    assert described["label"].startswith("not anonymisation")
    assert "net/diffusion_pytorch_model.safetensors" in described["weights"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("perturb:magic", {}, "magic"),
        ("perturb", {"eps": 0.5}, "eps 0.5"),
        ("perturb:pgd", {"steps": 0}, "0 steps"),
    ],
)
def test_options_out_of_range_are_refused(
    name: str, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.load("generator", name, **options)


def test_the_bundled_weights_are_small_and_checked(tmp_path: Path) -> None:
    folder = bundled("perturb-128")
    assert set(check_sums(folder)) >= {"README.md", "net/config.json", "student/config.json"}
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 4_000_000
    altered = tmp_path / "altered"
    shutil.copytree(folder, altered)
    (altered / "net" / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="not what was published"):
        Perturb(weights=str(altered))


def test_jpeg_is_imitated(people: Path) -> None:
    """Closer to what the codec makes of a picture than the picture itself is."""
    image = read(sorted(people.glob("*/*.jpg"))[0])[:128, :128]
    image = np.clip(image + np.random.default_rng(0).normal(0, 9, image.shape), 0, 255)
    pixels = torch.from_numpy(image.transpose(2, 0, 1))[None].float() / 127.5 - 1
    for quality in (40, 75):
        stored = decode(encode(image.astype(np.uint8), "jpg", quality)).astype(int)
        made = (jpeg(pixels, quality)[0].permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(made - stored).mean() < 0.5 * np.abs(image - stored).mean()


def test_blur_is_gaussian() -> None:
    image = np.random.default_rng(0).random((40, 50, 3)).astype(np.float32)
    expected = cv2.GaussianBlur(image, (0, 0), 1.3, borderType=cv2.BORDER_REPLICATE)
    made = blurred(torch.from_numpy(image.transpose(2, 0, 1))[None], 1.3)[0].permute(1, 2, 0)
    assert np.abs(made.numpy() - expected).max() < 0.01


def test_views_are_seeded_and_let_gradients_through() -> None:
    marks = torch.from_numpy(TEMPLATE)[None]
    crops = torch.rand(1, 3, 128, 128, requires_grad=True)
    made = [views(crops, marks, torch.Generator().manual_seed(i % 10)) for i in range(20)]
    assert made[0].shape == (1, 3, 150, 150)
    assert all(torch.equal(made[i], made[i + 10]) for i in range(10))
    assert len({chips.sum().item() for chips in made}) == 10
    for chips in made[:10]:
        (slope,) = torch.autograd.grad(chips.sum(), crops, retain_graph=True)
        assert slope.abs().sum() > 0


def toy(**changes: object) -> PerturbRecipe:
    values: dict[str, object] = {
        "channels": (8, 16),
        "student": (8, 16),
        "batch": 4,
        "steps": 4,
        "warmup": 2,
        "bf16": False,
    }
    return PerturbRecipe(**(values | changes))  # type: ignore[arg-type]


def weights(folder: Path) -> list[bytes]:
    return [(folder / part).read_bytes() for part in sorted(check_sums(folder))]


def test_training_resumes_where_it_stopped(people: Path, tmp_path: Path) -> None:
    """Two steps, a stop and two more give the bytes of four steps at once."""
    whole = train_perturb(people, tmp_path / "whole", toy(), report=lambda _: None)
    half = tmp_path / "half"
    train_perturb(people, half, toy(steps=2), report=lambda _: None)
    with pytest.raises(ConfigError, match="--resume"):
        train_perturb(people, half, toy(), report=lambda _: None)
    resumed = train_perturb(people, half, toy(), resume=True, report=lambda _: None)
    assert weights(resumed) == weights(whole)
    assert Perturb(weights=str(whole)).hashes == check_sums(whole)


def test_training_learns_to_move_what_dlib_sees(people: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    recipe = toy(steps=100, batch=3, rate=3e-3)
    train_perturb(people, tmp_path, recipe, report=lines.append)
    moved = [float(line.split("dlib ")[1].split()[0]) for line in lines if line.startswith("step")]
    assert len(moved) == 2
    assert moved[1] > 1.15 * moved[0]


def test_networks_work_at_other_sizes() -> None:
    torch.manual_seed(0)
    made = PerturbNet((8, 16))(torch.rand(2, 3, 64, 64))
    assert made.shape == (2, 3, 64, 64)
    assert made.abs().max() <= 1
