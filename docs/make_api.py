"""Writes docs/api.md: public names with the first line of their docstrings.

    python docs/make_api.py

A test fails while the file differs from what this writes.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anonymize
from anonymize.recipe import Recipe, TrainRecipe

MODULES = (
    "anonymize.run",
    "anonymize.engines",
    "anonymize.recipe",
    "anonymize.release",
    "anonymize.sweep",
    "anonymize.record",
    "anonymize.pipeline",
    "anonymize.registry",
    "anonymize.detectors",
    "anonymize.embedders",
    "anonymize.generators",
    "anonymize.readers",
    "anonymize.writers",
    "anonymize.images",
    "anonymize.train",
    "anonymize.errors",
    "anonymize.testing",
    "anonymize.testing_writers",
    "anonymize.eval.command",
    "anonymize.eval.harness",
    "anonymize.eval.links",
    "anonymize.eval.trial",
    "anonymize.eval.attacks",
    "anonymize.eval.learned",
    "anonymize.eval.risk",
    "anonymize.eval.stats",
    "anonymize.eval.utility",
    "anonymize.eval.report",
    "anonymize.eval.compare",
    "anonymize.eval.tradeoff",
    "anonymize.eval.audit",
    "anonymize.eval.testing",
)
"""Modules that somebody who writes components or evaluates by Python meets."""

HEAD = """# API

Written by `python docs/make_api.py` from the docstrings, which say more: shapes, ranges, errors.
Names of the first table are held by a test; the modules below may change between versions.
"""


def text() -> str:
    """The page."""
    public = [(name, getattr(anonymize, name)) for name in anonymize.__all__]
    parts = [HEAD, "## anonymize\n", *_rows(public)]
    for name in MODULES:
        module = importlib.import_module(name)
        parts += [f"\n## {name}\n", f"{_first(module)}\n", *_rows(_own(module))]
    for recipe in (Recipe, TrainRecipe):
        parts += [f"\n## Keys of {recipe.__name__}\n", *_keys(recipe)]
    return "\n".join(parts) + "\n"


def _own(module: Any) -> list[tuple[str, Any]]:
    """Public classes and functions that a module defines, as they stand in it."""
    return [
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def _rows(names: list[tuple[str, Any]]) -> Iterator[str]:
    yield "| name | |\n|---|---|"
    for name, value in names:
        yield f"| `{name}{_parameters(value)}` | {_cell(_first(value))} |"


def _parameters(value: Any) -> str:
    """Names of what a function takes; classes tell theirs in their docstrings."""
    if not inspect.isfunction(value):
        return ""
    return f"({', '.join(inspect.signature(value).parameters)})"


def _first(value: Any) -> str:
    """The first sentence or two of a docstring: what stands before its first empty line."""
    return " ".join(inspect.cleandoc(value.__doc__ or "").split("\n\n")[0].split())


def _keys(recipe: type) -> Iterator[str]:
    """The keys of a recipe with their defaults, from its docstring."""
    attributes = inspect.cleandoc(recipe.__doc__ or "").split("Attributes:\n")[1]
    entries = re.findall(r"^    ([\w, ]+): (.*?)(?=^    \w|\Z)", attributes, re.M | re.S)
    yield "| key | default | |\n|---|---|---|"
    plain = recipe()
    for names, about in entries:
        keys = names.split(", ")
        shown = [", ".join(f"`{k}`" for k in column) for column in (keys, _defaults(plain, keys))]
        yield f"| {shown[0]} | {shown[1]} | {_cell(about)} |"


def _defaults(plain: Any, keys: list[str]) -> list[str]:
    return [repr(getattr(plain, key)) for key in keys]


def _cell(about: str) -> str:
    return " ".join(about.split()).replace("|", "\\|")


if __name__ == "__main__":
    (Path(__file__).parent / "api.md").write_text(text(), "utf-8")
