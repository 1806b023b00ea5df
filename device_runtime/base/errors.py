"""The errors that users meet. Each message is one line, names the remedy and, where there are some, the alternatives."""

from __future__ import annotations


class PrunellaError(Exception):
    """The work failed. Everything prunella raises on purpose derives from this; `exit_code` is the command's."""

    exit_code = 1


class UsageError(PrunellaError):
    """What was asked for cannot be asked for: an unknown name, a number out of range."""

    exit_code = 2


class AudioError(PrunellaError):
    """A file or a buffer that is not usable audio: unreadable, empty, NaN."""


class UnreadableError(AudioError):
    """What nothing here can decode, or what makes no sound: another program may convert it."""


class TooLongError(AudioError):
    """A recording longer than what is taken here."""


class ClosedError(PrunellaError):
    """A stream that was closed from elsewhere while this still waited for it."""


class BundleError(PrunellaError):
    """A bundle that is incomplete, corrupt, or made by another version."""


class EngineError(PrunellaError):
    """The inference engine cannot run here: not installed, provider missing."""


class ManifestError(PrunellaError):
    """A speech manifest that cannot be read, or has no usable row."""


class CheckpointError(PrunellaError):
    """A model folder or id that cannot be loaded, or did not survive being saved."""


class TargetError(UsageError):
    """An unknown or malformed target profile."""


class ExportError(PrunellaError):
    """A file that was written is not what its source says, or its runtime does not take it."""


class OutputError(PrunellaError):
    """An output that is complete and cannot take its place."""
