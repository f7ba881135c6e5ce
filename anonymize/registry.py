"""Finds components by name: built-in, installed by a third party, or any `module:attr`."""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import entry_points
from typing import Any

from anonymize.errors import ConfigError

BUILTIN: dict[str, dict[str, str]] = {
    "detector": {
        "mtcnn": "anonymize.detectors:MTCNN",
        "centerface": "anonymize.detectors:CenterFace",
        "aligned": "anonymize.aligned:Aligned",
    },
    "embedder": {
        "dlib": "anonymize.embedders:DlibEmbedder",
        "dlib-densenet": "anonymize.embedders:DenseNetEmbedder",
        "deepface": "anonymize.embedders:DeepFaceEmbedder",
    },
    "reader": {
        "folder": "anonymize.readers:Folder",
        "manifest": "anonymize.manifest:Manifest",
        "msceleb-tsv": "anonymize.tsv:MsCelebTsv",
        "recordio": "anonymize.recordio:RecordIO",
        "verification-bin": "anonymize.verification:VerificationBin",
        "webdataset": "anonymize.shards:WebDataset",
    },
    "writer": {
        "folder": "anonymize.writers:FolderWriter",
        "img2dataset": "anonymize.shards:Img2datasetWriter",
        "manifest": "anonymize.manifest:ManifestWriter",
        "manifest-parquet": "anonymize.manifest:ParquetWriter",
        "msceleb-tsv": "anonymize.tsv:MsCelebTsvWriter",
        "recordio": "anonymize.recordio:RecordIOWriter",
        "verification-bin": "anonymize.verification:VerificationBinWriter",
        "webdataset": "anonymize.shards:WebDatasetWriter",
    },
    "generator": {
        "inpaint": "anonymize.generators:Inpaint",
        "blur": "anonymize.generators:Blur",
        "pixelate": "anonymize.generators:Pixelate",
        "mask": "anonymize.generators:Mask",
        "k-same-pixel": "anonymize.ksame:KSamePixel",
        "k-same-eigen": "anonymize.ksame:KSameEigen",
        "k-same-select": "anonymize.ksame:KSameSelect",
        "hub": "anonymize.hub:Hub",
        "perturb": "anonymize.perturb:Perturb",
    },
}


def names(kind: str) -> dict[str, str]:
    """Known components of a kind: name to where it is defined, built-in ones first.

    Raises:
        ConfigError: no such kind.
    """
    if kind not in BUILTIN:
        raise ConfigError(f"unknown kind {kind!r}: expected one of {', '.join(BUILTIN)}")
    installed = {entry.name: entry.value for entry in entry_points(group=f"anonymize.{kind}")}
    return installed | BUILTIN[kind]


def find(kind: str, name: str) -> tuple[Any, list[str]]:
    """What makes a component, and the argument that its name carries.

    Args:
        kind: `detector`, `embedder` or `generator`.
        name: a known name, one with an argument after a colon (`deepface:ArcFace`), or
            `package.module:attr`.

    Raises:
        ConfigError: unknown name or failed import.
    """
    known = names(kind)
    base, _, argument = name.partition(":")
    if base in known:
        target, arguments = known[base], ([argument] if argument else [])
    elif argument:
        target, arguments = name, []
    else:
        raise ConfigError(
            f"unknown {kind} {name!r}: expected one of {', '.join(sorted(known))}, "
            "or package.module:attr"
        )
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute), arguments
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot load {kind} {name!r} from {target}: {error}") from error


def check(kind: str, name: str, **options: Any) -> None:
    """Refuses a name or options that `load` would refuse, without making anything.

    Raises:
        ConfigError: unknown name, failed import, or options that do not fit.
    """
    made, arguments = find(kind, name)
    try:
        inspect.signature(made).bind(*arguments, **options)
    except TypeError as error:
        raise ConfigError(f"{kind} {name!r} does not take these options: {error}") from error


def load(kind: str, name: str, device: str = "cpu", /, **options: Any) -> Any:
    """Makes a component.

    Args:
        kind, name: see `find`.
        device: a torch device type, handed to components that take `device`.
        options: keyword arguments for it; those it does not take are an error.

    Raises:
        ConfigError: unknown name, failed import, or options that do not fit.
    """
    made, arguments = find(kind, name)
    if "device" in inspect.signature(made).parameters:
        options["device"] = device
    try:
        return made(*arguments, **options)
    except TypeError as error:
        raise ConfigError(f"{kind} {name!r} does not take these options: {error}") from error
