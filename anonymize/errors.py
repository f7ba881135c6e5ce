"""Every exception the package raises on purpose.

`AnonymizeError` is what the command line prints without a traceback: bad input or configuration,
with what was got, what was expected and what to do. `Withhold` is not a failure of the program but
a result for one image: it is not published, and the manifest says why.
"""


class AnonymizeError(Exception):
    """Something the user can fix. The message says got, expected and what to do."""


class ConfigError(AnonymizeError):
    """A recipe, option or component name that does not fit. Exit code 2."""


class WeightsError(AnonymizeError):
    """A weight file is absent, altered or of another format."""


class ReleaseError(AnonymizeError):
    """A release directory or its private state is not in the state that the command needs."""


class Withhold(Exception):  # noqa: N818 - a result, not an error
    """This image must not be published.

    Args:
        reason: short, stable and free of anything identifying; it goes into the public manifest.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
