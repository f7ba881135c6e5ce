"""Checks that what a run needs is installed and works, each by using it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anonymize.errors import AnonymizeError


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, whether it works, and what was seen or what to do."""

    name: str
    good: bool
    detail: str


def examine() -> list[Finding]:
    """Runs every check; none stops the others."""
    checks: dict[str, Callable[[], str]] = {
        "python": _python,
        "torch": _torch,
        "codecs": _codecs,
        "detector mtcnn": lambda: _detector("mtcnn"),
        "auditor centerface": lambda: _detector("centerface"),
        "embedder dlib": _embedder,
        "generator inpaint": _generator,
    }
    return [_finding(name, check) for name, check in checks.items()]


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except (AnonymizeError, ImportError, OSError, RuntimeError) as error:
        return Finding(name, False, str(error))


def _python() -> str:
    return sys.version.split()[0]


def _torch() -> str:
    import torch

    seen = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only"
    return f"{torch.__version__}, {seen}"


def _codecs() -> str:
    from anonymize.images import decode, encode

    image = np.full((16, 16, 3), 90, np.uint8)
    for kind in ("jpg", "png"):
        if np.abs(decode(encode(image, kind)).astype(int) - image).max() > 4:
            raise RuntimeError(f"{kind}: decoding does not give back what was encoded")
    return "jpg, png"


def _detector(name: str) -> str:
    from anonymize import registry

    found = registry.load("detector", name)([np.zeros((64, 64, 3), np.uint8)])
    if found != [()]:
        raise RuntimeError("found a face in a black picture")
    return "loads and runs"


def _embedder() -> str:
    from anonymize import registry

    embeddings = registry.load("embedder", "dlib")([np.zeros((150, 150, 3), np.uint8)])
    return f"loads and runs, {embeddings.shape[1]} numbers per face"


def _generator() -> str:
    from anonymize import registry

    return f"weights as published, {len(registry.load('generator', 'inpaint').hashes)} files"
