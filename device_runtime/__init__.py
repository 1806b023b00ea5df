"""What runs on a device: a bundle's text from files and microphones, without torch or transformers.

>>> from prunella.device_runtime import load_audio, open_transcriber
>>> transcriber = open_transcriber("out/demo/pruned-int4")  # doctest: +SKIP
>>> transcriber.transcribe(load_audio("clip.wav")).text  # doctest: +SKIP
'go forward ten meters'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunella.device_runtime.bundle import open_bundle as open_bundle
    from prunella.device_runtime.live.session import LiveSession as LiveSession
    from prunella.device_runtime.opening import open_transcriber as open_transcriber
    from prunella.device_runtime.sound.audio import load_audio as load_audio
    from prunella.device_runtime.transcriber import Transcriber as Transcriber
    from prunella.device_runtime.transcript import Transcript as Transcript

_HOMES = {
    "open_bundle": "bundle",
    "LiveSession": "live.session",
    "load_audio": "sound.audio",
    "Transcriber": "transcriber",
    "open_transcriber": "opening",
    "Transcript": "transcript",
}
__all__ = ["LiveSession", "Transcriber", "Transcript", "load_audio", "open_bundle", "open_transcriber"]


def __getattr__(name: str) -> Any:
    """A name's module is imported when the name is first asked for: `import prunella.device_runtime` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
