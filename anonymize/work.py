"""What a run does to pictures in each of its passes, wherever that happens: the part of a worker.

A worker opens SRC itself and builds its own networks, so what it is sent and what it sends back is
small; what must happen once (names, plan, journal, writing) is not its part.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from anonymize import registry
from anonymize.aligners import align
from anonymize.embedders import DlibEmbedder
from anonymize.images import decode, encode
from anonymize.outlines import outline
from anonymize.packages import version
from anonymize.pipeline import Stage, batched, compose, each
from anonymize.readers import open_source
from anonymize.recipe import Recipe
from anonymize.record import Floats, Pixels, Record
from anonymize.stages import Replace, Survey

Phase: TypeAlias = Literal["survey", "cast", "learn", "replace"]
"""Passes of a run; progress calls them so, too."""

NOTHING: Pixels = np.zeros((0, 0, 3), np.uint8)
"""The picture of a record that is not read yet, or not needed any more."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all workers of a run must know: SRC, the recipe, and the secret key."""

    source: Path
    recipe: Recipe
    key: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One picture to work on.

    Attributes:
        record: without its picture.
        locator: where SRC's reader finds that.
        code: (128,) of the new person, where a pass needs it and the generator takes one.
        template: (128,) mean embedding of the old person's sources, likewise.
    """

    record: Record
    locator: str
    code: Floats | None = None
    template: Floats | None = None


class Worker:
    """The networks of a run, loaded once, and what they do; threads may share one.

    Args:
        setting: of the run.
        device: a torch device type.

    Raises:
        ConfigError: components that are unknown, or options that do not fit.
    """

    def __init__(self, setting: Setting, device: str) -> None:
        recipe = setting.recipe
        self._setting = setting
        self._detector = registry.load(
            "detector", recipe.detector, device, **recipe.detector_options
        )
        self.generator = load_generator(recipe, device)
        self._auditor = registry.load("detector", recipe.auditor, device, **recipe.auditor_options)
        self._embedder = DlibEmbedder(device, bf16=True)
        self._reader = open_source(setting.source, recipe.reader, **recipe.reader_options)

    def work(self, phase: Phase, tasks: Sequence[Task]) -> list[Record]:
        """What a pass makes of some pictures.

        Returns:
            A record per task, withheld or without the source's picture. From `survey` it has faces,
            from `learn` the subject's with its crop, from `replace` an output; `cast` withholds
            those whose subject `RESEMBLES`.
        """
        places = {task.record.key: task.locator for task in tasks}

        def load(record: Record) -> Record:
            data = self._reader.load(places[record.key])
            return record.but(image=decode(data, self._setting.recipe.max_pixels))

        stage = compose(each(load), *self._stages(phase, tasks))
        return [record.but(image=NOTHING) for record in stage(task.record for task in tasks)]

    def _stages(self, phase: Phase, tasks: Sequence[Task]) -> list[Stage]:
        if phase == "survey":
            return [batched(self._survey(), len(tasks))]
        if phase == "learn":
            return [each(self._aligned)]
        if phase == "cast":
            drafts = getattr(self.generator, "draft", self.generator)
            return [batched(self._replace(tasks, drafts).unlike, len(tasks))]
        replace = self._replace(tasks, self.generator)
        crop = [each(self._head)] if self._setting.recipe.crop else []
        return [batched(replace, len(tasks)), *crop]

    def _survey(self) -> Survey:
        recipe, generator = self._setting.recipe, self.generator
        cells = getattr(generator, "cells", None) if recipe.context_codes else None
        embedder = None if generator.baseline else self._embedder
        return Survey(self._detector, embedder, cells, generator.size, recipe.region)

    def _aligned(self, record: Record) -> Record:
        size, region = self.generator.size, self._setting.recipe.region
        return record.but(faces=(outline(record.image, record.faces[0], size, region),))

    def _replace(self, tasks: Sequence[Task], generator: Any) -> Replace:
        finder = getattr(self._detector, "finder", self._detector)
        return Replace(
            generator=generator,
            region=self._setting.recipe.region,
            key=self._setting.key,
            codes=_by_identity(tasks, "code").__getitem__,
            templates=_by_identity(tasks, "template").__getitem__,
            detector=finder,
            searched=finder is self._detector,
            auditor=self._auditor,
            embedder=self._embedder,
            encode=self._encode,
        )

    def _head(self, record: Record) -> Record:
        """The record with nothing but its subject's head as the output."""
        assert record.output is not None
        head = align(record.output, record.faces[0], self._setting.recipe.crop).crop
        assert head is not None
        return record.but(output=head, encoded=self._encode(head))

    def _encode(self, image: Pixels) -> bytes:
        return encode(image, self._setting.recipe.format, self._setting.recipe.quality)


def _by_identity(tasks: Sequence[Task], name: str) -> dict[str, Floats]:
    found = {task.record.identity: getattr(task, name) for task in tasks}
    return {who: value for who, value in found.items() if who is not None and value is not None}


def load_generator(recipe: Recipe, device: str) -> Any:
    """The generator of a recipe."""
    return registry.load("generator", recipe.generator, device, **recipe.generator_options)


def weights(generator: Any) -> str:
    """The hashes of a generator's weights, as the journal remembers them."""
    return json.dumps(getattr(generator, "hashes", {}), sort_keys=True)


def versions() -> dict[str, str]:
    """What decides the last bits of a picture, besides weights and processor."""
    names = ("torch", "diffusers", "numpy", "opencv")
    return {name: version(name) for name in names} | {"python": platform.python_version()}
