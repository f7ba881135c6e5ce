"""Turns face datasets of real people into datasets of people who do not exist."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "AnonymizeError": "anonymize.errors",
    "ConfigError": "anonymize.errors",
    "Face": "anonymize.record",
    "InpaintPipeline": "anonymize.inpaint",
    "Recipe": "anonymize.recipe",
    "Record": "anonymize.record",
    "ReleaseError": "anonymize.errors",
    "Summary": "anonymize.run",
    "WeightsError": "anonymize.errors",
    "seal": "anonymize.release",
    "CodePrior": "anonymize.priors",  # diffusers looks its components up at the package's root
    "FaceAdapter": "anonymize.inpaint",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Imports on first use, so that `import anonymize` and `--help` need no torch."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
