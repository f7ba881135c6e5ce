"""Whole configurations of a run and of a training: frozen dataclasses that are also TOML files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from anonymize.aligners import REGIONS
from anonymize.augment import KINDS
from anonymize.errors import ConfigError
from anonymize.images import FORMATS

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What `anonymize run` does to every picture.

    Attributes:
        generator: a registered generator or `package.module:attr`.
        region: `face` (forehead to hairline, cheeks, jaw; not what covers them) or `head`
            (hairline and ears too, whatever covers them).
        context_codes: draw each new person from the cell that the visible context suggests; False
            draws blindly.
        reader: the source's format, empty to tell by its looks.
        writer: the release's format.
        detector: finds the faces to replace.
        auditor: another detector that looks for missed faces in every output.
        format: `jpg` or `png`.
        quality: of JPEG, 1..100.
        crop: 0 publishes whole pictures; else only the head of whom the picture is labelled with,
            upright, as a square of so many pixels: no scenery, and nothing to join sizes by.
        max_pixels: larger pictures are withheld.
        reader_options, generator_options, detector_options, auditor_options: keyword arguments of
            the components.
    """

    generator: str = "inpaint"
    region: str = "face"
    context_codes: bool = True
    reader: str = ""
    writer: str = "folder"
    detector: str = "mtcnn"
    auditor: str = "centerface"
    format: str = "jpg"
    quality: int = 95
    crop: int = 0
    max_pixels: int = 100_000_000
    reader_options: Mapping[str, Any] = field(default_factory=dict)
    generator_options: Mapping[str, Any] = field(default_factory=dict)
    detector_options: Mapping[str, Any] = field(default_factory=dict)
    auditor_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.region not in REGIONS:
            raise ConfigError(f"region: got {self.region!r}, expected {' or '.join(REGIONS)}")
        if self.format not in FORMATS:
            raise ConfigError(f"format: got {self.format!r}, expected {' or '.join(FORMATS)}")
        if not (self.crop == 0 or 32 <= self.crop <= 4096):
            raise ConfigError(f"crop: got {self.crop}, expected 0 or 32 to 4096 pixels")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality: got {self.quality}, expected 1 to 100")


@dataclass(frozen=True, slots=True)
class TrainRecipe:
    """Everything that decides what a training run learns.

    Attributes:
        size: side of the crops in pixels.
        channels: U-Net channels per level, finest first.
        depth: residual blocks per level of the U-Net; the adapter grows with it.
        cells: cells of the code prior.
        people: folders directly below the source after whose faces new people are drawn; all if
            there are none. The faces of all folders teach how to draw.
        batch: crops per step; half keep their own code, half get a new person's.
        echo: steps that every view takes part in, with new codes and noise, where processors
            augment more slowly than a GPU learns (data echoing, Choi et al. 2019); divides `batch`.
        steps: optimiser steps of the whole run.
        rate: learning rate of the generator.
        rate_adversary, rate_projected: of the adversaries.
        decay: share of the steps, at the end, over which all rates fall to nothing.
        ema: decay of the averaged weights that are exported.
        pixels, rim, tone, context, identity, landmarks, fine, steady, features, adversary: weights:
            L1 inside the region (own code only), L1 of smoothed crops in the region's outermost
            part and on the forehead (new codes only: hairline, cheeks and jaw continue what is
            visible whoever the new person is), L1 of the region averaged over an eighth of the crop
            (skin tone and light come from the picture), L1 outside the region, 1 - cosine to the
            code, how far landmarks are from where MTCNN finds them in the picture itself, finer
            detail than the picture's (new codes only), L1 to the same mirrored and moved (new codes
            only), the adversary's feature matching (own code only), the adversary's verdict.
        likeness, projected: weights: how far features are from the picture's that a network trained
            on natural pictures finds (`projected.apart`; of new codes in the region's outermost
            part and on the forehead), the verdict of the adversary that sees these features.
        noise: standard deviation of the noise that faces start from, as runs have it.
        emphasis: least and greatest factor by which codes of new people are lengthened, as runs do.
        steepness: weight of the adversary's R1 and R2 penalties.
        adversary_channels: the adversary's base width, a multiple of 16.
        warmup: steps over which the adversaries' and the recogniser's weights rise.
        share_head, share_all: how often the region is `head`, or the whole crop; else `face`.
        share_strangers: how often a new code comes from any cell rather than from the picture's,
            because the guess of the cell errs.
        share_noised: how often a picture with its own code starts from a noised face rather than
            from pure noise, which is what sampling in several steps meets.
        without: kinds of augmentation to leave out, see `anonymize.augment.KINDS`.
        bf16: compute in bfloat16 where torch's autocast thinks fit.
        cell_steps: batches of 4 x `batch` views from which the guess of a person's cell from the
            context is fitted, at the end of the run.
        seed: of everything random.
    """

    size: int = 128
    channels: tuple[int, ...] = (64, 128, 192)
    depth: int = 2
    cells: int = 8
    people: tuple[str, ...] = ()
    batch: int = 16
    echo: int = 1
    steps: int = 20_000
    rate: float = 2e-4
    rate_adversary: float = 2e-4
    decay: float = 0.3
    ema: float = 0.999
    pixels: float = 1.0
    rim: float = 1.5
    tone: float = 3.0
    context: float = 2.0
    identity: float = 2.5
    landmarks: float = 4.0
    fine: float = 5.0
    steady: float = 2.0
    features: float = 1.0
    adversary: float = 0.2
    likeness: float = 0.6
    projected: float = 0.25
    rate_projected: float = 2e-4
    noise: float = 0.2
    emphasis: tuple[float, ...] = (1.3, 1.7)
    steepness: float = 0.01
    adversary_channels: int = 32
    warmup: int = 300
    share_head: float = 0.2
    share_all: float = 0.12
    share_strangers: float = 0.2
    share_noised: float = 0.25
    without: tuple[str, ...] = ()
    bf16: bool = True
    cell_steps: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.without) - set(KINDS)):
            raise ConfigError(
                f"without: got {', '.join(unknown)}, expected some of {', '.join(KINDS)}"
            )
        if len(self.emphasis) != 2 or not 0 < self.emphasis[0] <= self.emphasis[1]:
            raise ConfigError(
                f"emphasis: got {list(self.emphasis)}, expected the least and the greatest factor, "
                "such as [1.3, 1.7]"
            )
        if self.echo < 1 or self.batch % self.echo:
            raise ConfigError(f"echo: got {self.echo}, expected a divisor of batch {self.batch}")


def as_dict(recipe: Any) -> dict[str, Any]:
    """A recipe as plain values, ready for JSON or TOML."""
    return dataclasses.asdict(recipe)


def digest(recipe: Any) -> str:
    """SHA-256 of a recipe: two runs may share a release only if theirs are equal."""
    return hashlib.sha256(json.dumps(as_dict(recipe), sort_keys=True).encode()).hexdigest()


def build(cls: type[T], values: Mapping[str, Any], origin: str) -> T:
    """Makes a recipe of class `cls` from plain values; unknown keys and wrong types are errors.

    Args:
        cls: a recipe dataclass.
        values: field name to value.
        origin: named in error messages.

    Raises:
        ConfigError: with the key, what was got and what is expected.
    """
    hints = get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{origin}: unknown key {key!r}; known: {', '.join(hints)}")
        if not _fits(value, hints[key]):
            expected = getattr(hints[key], "__name__", str(hints[key]))
            raise ConfigError(f"{origin}: {key}: got {value!r}, expected {expected}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _fits(value: Any, hint: Any) -> bool:
    origin = getattr(hint, "__origin__", hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, (list, tuple) if origin is tuple else origin)


def load(cls: type[T], path: Path | None, settings: Iterable[str] = (), option: str = "--set") -> T:
    """Reads a recipe from a TOML file and `KEY=VALUE` settings, the latter winning.

    Values are TOML; a bare word is a string. `a.b=1` sets key `b` of table `a`. Messages about
    settings name the `option` that they come from.

    Raises:
        ConfigError: unreadable file, bad TOML, unknown key or wrong type.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read recipe {path}: {error}") from error
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"{option}: got {setting!r}, expected KEY=VALUE")
        table, _, last = key.strip().rpartition(".")
        place = values.setdefault(table, {}) if table else values
        place[last] = _value(text)
    return build(cls, values, str(path or option))


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
