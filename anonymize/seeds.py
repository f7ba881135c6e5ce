"""Everything random comes from one secret key by HMAC, so nothing depends on order or batch."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

import numpy as np

from anonymize.errors import ConfigError

KEY_BYTES = 32


def new_key() -> bytes:
    """A fresh 256-bit key from the operating system."""
    return secrets.token_bytes(KEY_BYTES)


def read_key(path: Path) -> bytes:
    """Reads a key file: 64 hexadecimal digits, as `write_key` writes them.

    Raises:
        ConfigError: absent, or not a key.
    """
    try:
        key = bytes.fromhex(path.read_text("ascii").strip())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read key file {path}: {error}") from error
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{path}: got a key of {len(key)} bytes, expected {KEY_BYTES}")
    return key


def write_key(path: Path, key: bytes) -> None:
    """Writes a key file that only its owner can read; never overwrites one."""
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(key.hex() + "\n", "ascii")


def kept_key(path: Path) -> bytes:
    """The key in a file, which receives a fresh one if it is not there."""
    if not path.exists():
        write_key(path, new_key())
    return read_key(path)


def derive(key: bytes, *purpose: str | int) -> bytes:
    """32 bytes for one purpose (HMAC-SHA256, RFC 2104); parts cannot run into each other."""
    message = b"".join(
        len(part).to_bytes(8, "big") + part
        for part in (str(p).encode("utf-8", "surrogateescape") for p in purpose)
    )
    return hmac.new(key, message, hashlib.sha256).digest()


def handle(key: bytes, *purpose: str | int) -> str:
    """An opaque name of 16 hexadecimal digits that only the key's owner can compute."""
    return derive(key, *purpose)[:8].hex()


def generator(key: bytes, *purpose: str | int) -> np.random.Generator:
    """A random generator (PCG64) for one purpose."""
    return np.random.default_rng(int.from_bytes(derive(key, *purpose), "big"))
