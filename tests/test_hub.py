"""`hub`: diffusers checkpoints as generators, tried on tiny ones that are assembled here."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import save
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)

from anonymize import registry
from anonymize.aligners import TEMPLATE
from anonymize.blenders import blend
from anonymize.errors import ConfigError, WeightsError
from anonymize.generators import GREY, Job, Mask
from anonymize.hub import Hub
from anonymize.images import read
from anonymize.outlines import outline
from anonymize.recipe import Recipe
from anonymize.record import Face, Pixels
from anonymize.run import run
from anonymize.stages import job

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'anonymize[hub]'"
)

WORDS = [f"{c}{end}" for end in ("", "</w>") for c in "abcdefghijklmnopqrstuvwxyz0123456789,"]
SIZE = 64


def text_parts(kind: str, width: int = 16) -> tuple[Any, Any]:
    """A tokenizer that spells and an untrained text encoder."""
    vocabulary = {word: i for i, word in enumerate(["<|startoftext|>", "<|endoftext|>", *WORDS])}
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_attention_heads=2,
        num_hidden_layers=1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    return tokenizer, getattr(transformers, kind)(config)


def image_parts(**options: Any) -> dict[str, Any]:
    """U-Net, autoencoder and schedule: 64 px pictures, 32 px latents, 9 channels in."""
    channels = (8, 16)
    unet = UNet2DConditionModel(
        sample_size=SIZE // 2,
        in_channels=9,
        out_channels=4,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
        **options,
    )
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    return {"unet": unet, "vae": vae, "scheduler": DDIMScheduler(steps_offset=1)}


def stable_diffusion() -> Any:
    tokenizer, encoder = text_parts("CLIPTextModel")
    return StableDiffusionInpaintPipeline(
        **image_parts(cross_attention_dim=16),
        tokenizer=tokenizer,
        text_encoder=encoder,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> Any:
    first = text_parts("CLIPTextModel")
    second = text_parts("CLIPTextModelWithProjection")
    parts = image_parts(
        cross_attention_dim=32,  # both encoders side by side
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    return StableDiffusionXLInpaintPipeline(
        **parts,
        tokenizer=first[0],
        text_encoder=first[1],
        tokenizer_2=second[0],
        text_encoder_2=second[1],
    )


@pytest.fixture(scope="module", params=[stable_diffusion, stable_diffusion_xl])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained checkpoint of each family."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    request.param().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hub(checkpoint: Path) -> Hub:
    return Hub(str(checkpoint), steps=2)


def outlined(image: Pixels, size: int = SIZE) -> Face:
    face = Face(np.zeros(4, np.float32), 1.0, (TEMPLATE * 1.5 + 20).astype(np.float32))
    return outline(image, face, size, "face")


def picture(seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (240, 240, 3)).astype(np.uint8)


def blank(person: str = "p1", image: int = 0, seed: int = 1) -> Job:
    made = job(outlined(picture(image)), baseline=False)
    return Job(made.crop, made.mask, made.landmarks, None, seed, person)


def test_crops_have_the_size_of_the_checkpoint(hub: Hub) -> None:
    assert hub.size == SIZE
    (drawn,) = hub([blank()])
    assert drawn.shape == (SIZE, SIZE, 3)
    assert drawn.dtype == np.uint8
    assert drawn[blank().mask].std() > 1
    assert hub([]) == []


def test_bytes_do_not_depend_on_the_batch(hub: Hub) -> None:
    jobs = [blank(f"p{i}", i) for i in range(3)]
    together, alone = hub(jobs), [hub([one])[0] for one in reversed(jobs)][::-1]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(together, alone, strict=True))


def test_the_seed_belongs_to_the_person(hub: Hub) -> None:
    """Not to the picture; whoever has no label gets that of the face."""
    base = hub([blank()])[0].tobytes()
    assert hub([blank(seed=2)])[0].tobytes() == base
    assert hub([blank("p2")])[0].tobytes() != base
    stranger = hub([blank("")])[0].tobytes()
    assert hub([blank("", seed=2)])[0].tobytes() != stranger


class Listener(Mask):
    """A baseline that remembers whose faces it was asked for."""

    heard: ClassVar[list[tuple[str, int]]] = []

    def __call__(self, jobs: Sequence[Job]) -> list[Pixels]:
        self.heard.extend((one.person, one.seed) for one in jobs)
        return super().__call__(jobs)


def test_jobs_name_the_person_in_an_opaque_way(dataset: Path, tmp_path: Path) -> None:
    """The same in all of their pictures; pictures without a label have nobody."""
    save(dataset / "loose.png", read(sorted(dataset.glob("*/*.jpg"))[0]))
    Listener.heard.clear()
    run(dataset, tmp_path / "release", Recipe(generator="test_hub:Listener"), key=bytes(32))
    counts = Counter(person for person, _ in Listener.heard)
    assert counts.pop(None) == 1
    assert set(counts.values()) == {3}
    assert not set(counts) & {folder.name for folder in dataset.iterdir()}
    assert len({seed for _, seed in Listener.heard}) == 10


def test_a_seed_alone_does_not_make_a_person(hub: Hub) -> None:
    """The same person before another context: what is drawn follows the context too."""
    one, other = (hub([blank(image=i)])[0] for i in (0, 1))
    assert (one[blank().mask] != other[blank().mask]).mean() > 0.5


def test_the_prompt_is_filled_in_and_counts(checkpoint: Path, hub: Hub) -> None:
    seen: list[str] = []
    other = Hub(str(checkpoint), prompt="{age} years", steps=2)
    pipeline, call = other._pipeline, other._pipeline.__call__

    def listening(**options: Any) -> Any:
        seen.append(options["prompt"])
        return call(**options)

    other._pipeline = listening
    drawn = other([blank(), blank("p2"), blank(image=1)])
    other._pipeline = pipeline
    ages = [int(prompt.removesuffix(" years")) for prompt in seen]
    assert all(20 <= age < 70 for age in ages)
    assert ages[0] == ages[2] != ages[1]
    assert drawn[0].tobytes() != hub([blank()])[0].tobytes()


def test_only_the_region_of_the_drawing_is_used(hub: Hub) -> None:
    image = picture()
    face = outlined(image)
    made = blank()
    assert (made.crop[made.mask] == GREY).all()
    (drawn,) = hub([made])
    out = blend(image, drawn, face)
    changed = (out != image).any(-1)
    assert changed.any()
    assert face.crop_from_image is not None
    rows, columns = np.nonzero(changed)
    points = np.stack([columns, rows], 1) @ face.crop_from_image[:, :2].T
    inside = np.rint(points + face.crop_from_image[:, 2]).astype(int)
    near = np.pad(made.mask, 1)  # a pixel of the crop covers several of the picture
    near = near | np.roll(near, 1, 0) | np.roll(near, -1, 0) | np.roll(near, (1, 1), (0, 1))
    assert near[inside[:, 1] + 1, inside[:, 0] + 1].mean() > 0.99


def test_a_run_withholds_what_shows_no_face(
    checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    """An untrained checkpoint draws noise; its folder's name stays private."""
    recipe = Recipe(generator=f"hub:{checkpoint}", generator_options={"steps": 1})
    shutil.rmtree(sorted(dataset.iterdir())[-1])
    summary = run(dataset, tmp_path / "release", recipe, workers=2)
    assert summary.read == summary.written + summary.withheld == 6
    assert summary.reasons["no usable face in the output"] >= 4
    text = (tmp_path / "release" / "run.json").read_text()
    described = json.loads(text)
    assert described["recipe"]["generator"] == "hub"
    assert checkpoint.name not in text
    assert "unet/diffusion_pytorch_model.safetensors" in described["weights"]


def test_weights_that_are_not_here_are_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    calls: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **_: calls.append(a))
    with pytest.raises(WeightsError, match="hf download nobody/nothing --local-dir"):
        registry.load("generator", "hub:nobody/nothing")
    assert not calls


def test_incomplete_checkpoints_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no model_index\.json"):
        Hub(str(tmp_path))
    folder = tmp_path / "partial"
    shutil.copytree(checkpoint, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WeightsError, match="cannot open"):
        Hub(str(folder))


def test_pickled_weights_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    """They would run whatever code is in them."""
    folder = tmp_path / "pickled"
    shutil.copytree(checkpoint, folder)
    stored = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(
        UNet2DConditionModel.from_pretrained(folder / "unet").state_dict(),
        stored.with_suffix(".bin"),
    )
    stored.unlink()
    with pytest.raises(WeightsError, match="cannot open"):
        Hub(str(folder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "float8"),
        ({"steps": 0}, "0 steps"),
        ({"strength": 1.5}, "strength 1.5"),
        ({"steps": 5, "strength": 0.1}, "leaves a step"),
        ({"prompt": "{name}"}, "only {age}"),
        ({}, "no checkpoint"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.load("generator", "hub", **options)


def test_without_transformers_it_says_what_to_install(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"anonymize\[hub\]"):
        Hub(str(checkpoint))
