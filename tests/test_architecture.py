"""The shape of the package: who may import whom, what is public, what stays unsaid."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import anonymize

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"errors", "record"},
    {"seeds", "packages", "registry", "pipeline"},
    {
        "images",
        "aligners",
        "outlines",
        "dlib_format",
        "devices",
        "augment",
        "cascade",
        "onnx_graph",
    },
    {
        "detectors",
        "embedders",
        "priors",
        "identities",
        "readers",
        "writers",
        "lists",
        "adversary",
        "projected",
        "retouch",
    },
    {"aligned", "manifest", "recordio", "shards", "tsv", "verification"},
    {"inpaint", "blenders", "recipe", "faces", "cells", "views"},
    {"generators", "hub", "ksame", "perturb"},
    {"stages", "kept", "training", "testing"},
    {"losses"},
    {"state", "testing_writers", "train", "perturb_train", "work"},
    {"enrolment", "ray_engine"},
    {"engines"},
    {"run"},
    {"datasheet"},
    {"release", "sheet", "doctor", "estimate", "sweep"},
    {"console"},
    {"cli_eval"},
    {"cli"},
    {"__main__"},
]


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "anonymize":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anonymize."):
            found.add((node.module or "").split(".")[1])
    return found & {path.stem for path in (ROOT / "anonymize").glob("*.py")}


def test_imports_point_downward_only() -> None:
    rank = {name: index for index, layer in enumerate(LAYERS) for name in layer}
    modules = {p.stem: p for p in (ROOT / "anonymize").glob("*.py") if p.stem != "__init__"}
    assert set(modules) == set(rank)
    upward = {
        (name, other)
        for name, path in modules.items()
        for other in imported(path)
        if rank[other] > rank[name]
    }
    assert not upward


def test_the_evaluation_knows_nothing_of_how_pictures_were_made() -> None:
    """It must serve any tool's output: no pipeline, generator or command line in it."""
    core = {"errors", "record", "images", "aligners", "outlines", "packages", "registry"}
    core |= {"readers", "shards"}  # the audit reads datasets of every format
    for path in (ROOT / "eval").glob("*.py"):
        assert imported(path) <= core | {"detectors", "embedders"}, path.name


def test_only_images_decodes_and_encodes() -> None:
    words = ("imencode", "imdecode", "imread", "imwrite", "Image.open")
    users = {
        path.stem
        for path in (ROOT / "anonymize").glob("*.py")
        if any(word in path.read_text("utf-8") for word in words)
    }
    # augment imitates JPEG in memory, release looks for metadata
    assert users <= {"images", "augment", "release"}


def test_public_names() -> None:
    assert anonymize.__all__ == [
        "AnonymizeError",
        "CodePrior",
        "ConfigError",
        "Face",
        "FaceAdapter",
        "InpaintPipeline",
        "Recipe",
        "Record",
        "ReleaseError",
        "Summary",
        "WeightsError",
        "seal",
    ]
    assert all(getattr(anonymize, name).__doc__ for name in anonymize.__all__)


def test_help_needs_no_heavy_imports() -> None:
    code = (
        "import sys; from anonymize.cli import main; main(['run', '-h'], standalone_mode=False);"
        "sys.exit(bool({'torch', 'cv2', 'diffusers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_no_module_is_called_utils_and_files_stay_readable() -> None:
    paths = [p for folder in ("anonymize", "eval") for p in (ROOT / folder).rglob("*.py")]
    assert not {p.stem for p in paths} & {"util", "utils", "helpers", "common", "misc"}
    assert not [(p.name, n) for p in paths if (n := len(p.read_text().splitlines())) > 450]
