"""What commands share: messages, exit codes, progress."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from anonymize.errors import AnonymizeError, ConfigError

FAILED, USAGE, GATE, INTERRUPTED = 1, 2, 3, 130

FOLDER = click.Path(path_type=Path, file_okay=False)
PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)


def say(line: str) -> None:
    """A line on stderr. That nobody reads on is no reason to stop."""
    try:
        click.echo(line, err=True)
    except BrokenPipeError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Turns the package's own errors into one clear line and the right exit code."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except AnonymizeError as error:
            say(f"anonymize: {error}")
            sys.exit(USAGE if isinstance(error, ConfigError) else FAILED)
        except OSError as error:
            say(f"anonymize: {error.strerror or error}: {error.filename or ''}")
            sys.exit(FAILED)
        except KeyboardInterrupt:
            options = {option.name for option in click.get_current_context().command.params}
            then = "--resume goes on from here" if "resume" in options else "run it again to go on"
            say(f"anonymize: interrupted; {then}")
            sys.exit(INTERRUPTED)

    return wrapper


class Meter:
    """Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._phase = ""

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, phase: str, done: int, total: int, withheld: int) -> None:
        if phase != self._phase:
            self._start(phase, done - 1, total)
        if sys.stderr.isatty():
            self._bar.set_postfix(withheld=withheld, refresh=False)
            self._bar.update(1)
        elif done == total or done % max(1, total // 10) == 0:
            say(f"{phase}: {done} of {total}, {withheld} withheld")

    def steps(self, phase: str, done: int, total: int) -> None:
        """Progress of work that withholds nothing."""
        if phase != self._phase:
            self._start(phase, done - 1, total)
        if sys.stderr.isatty():
            self._bar.update(1)
        elif done == total:
            say(f"{phase}: {total}")

    def _start(self, phase: str, done: int, total: int) -> None:
        self.__exit__()
        self._phase = phase
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=phase, unit="image")
