"""What a transcription request asks for, in OpenAI's field names, and what of it is not followed."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from prunella.device_runtime.base.languages import is_language
from prunella.device_runtime.servers.formats import FORMATS, TIMED
from prunella.device_runtime.servers.service import TranscriptionService

_GRANULARITIES = ("timestamp_granularities", "timestamp_granularities[]")
_FIELDS = {
    "file",
    "language",
    "model",
    "phrases",
    "prompt",
    "response_format",
    "stream",
    "temperature",
    *_GRANULARITIES,
}
_TRUE, _FALSE = ("true", "1"), ("", "false", "0")
_NAME = 80  # characters of a file's name
_SHOWN = 40  # characters of a value that a warning or an error repeats


@dataclass(frozen=True)
class Asked:
    """A request's fields, checked. `notes`: what was asked for and is not done, in words."""

    file: UploadFile
    form: str
    stream: bool
    phrases: str | None
    notes: tuple[str, ...]
    language: str | None = None  # see `TranscriptionService.find_language`

    @property
    def name(self) -> str:
        """What errors call the recording: its file's name, of which a client may have made anything."""
        last = (self.file.filename or "").replace("\\", "/").rpartition("/")[2]
        plain = "".join(letter if letter.isprintable() else " " for letter in last)
        return " ".join(plain.split())[:_NAME] or "the recording"


def read_fields(form: FormData, service: TranscriptionService) -> Asked:
    """Check the fields of a request.

    Args:
        form: as it came.
        service: that is to do it.

    Raises:
        HTTPException: 400, with what may be asked for.
        UsageError: a language that the model does not take.
    """
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise HTTPException(400, "the form has no file: put the recording in a field named 'file'")
    name = _text(form, "response_format").lower() or "json"
    if name not in FORMATS:
        raise HTTPException(
            400,
            f"the response_format '{name[:_SHOWN]}' is not known here: choose one of {', '.join(FORMATS)}",
        )
    stream = _text(form, "stream").lower()
    if stream not in (*_TRUE, *_FALSE):
        raise HTTPException(400, f"stream is true or false, not '{stream[:_SHOWN]}'")
    language = service.find_language(_text(form, "language"))
    notes = _notes(form, service)
    if stream in _TRUE and name != "json":
        notes.append(f"a stream has events of its own, the response_format '{name}' was not used")
    granularities = _granularities(form)
    if "word" in granularities:
        notes.append("this model has no times of words: the segments have theirs")
    if granularities and (stream in _TRUE or name not in TIMED):
        notes.append(f"times are in the formats {', '.join(TIMED)} alone")
    return Asked(file, name, stream in _TRUE, _text(form, "phrases") or None, tuple(notes), language)


def _granularities(form: FormData) -> set[str]:
    """Of either spelling, in fields of their own or in one with commas, as JSON or without."""
    values = [value for name in _GRANULARITIES for value in form.getlist(name) if isinstance(value, str)]
    asked = {word.strip(" \t\r\n\"'[]").lower() for value in values for word in value.split(",")} - {""}
    if asked - {"segment", "word"}:
        unknown = min(asked - {"segment", "word"})[:_SHOWN]
        raise HTTPException(400, f"timestamp_granularities are 'segment' or 'word', not '{unknown}'")
    return asked


def _notes(form: FormData, service: TranscriptionService) -> list[str]:
    notes = []
    model, language = service.model, service.language
    wanted = _text(form, "language")
    followed = wanted.lower() in ("", "auto") or service.languages
    if not followed and not is_language(wanted, language):
        notes.append(f"this model transcribes '{language}', the language '{wanted[:_SHOWN]}' was not used")
    asked = _text(form, "model")
    if asked and asked != model:
        notes.append(f"this server has one model, '{model}', the model '{asked[:80]}' was not used")
    if _text(form, "prompt"):
        notes.append("this model's prompt is fixed, the request's was not used")
    temperature = _text(form, "temperature")
    if temperature and not _is_zero(temperature):
        notes.append(
            f"the most likely text is searched for, as at temperature 0: '{temperature[:_SHOWN]}' was not used"
        )
    unknown = [name[:_SHOWN] for name in dict.fromkeys(form.keys()) if name not in _FIELDS]
    if unknown:
        notes.append(f"not known here and not used: {', '.join(map(repr, unknown))}")
    return notes


def _is_zero(text: str) -> bool:
    try:
        return float(text) == 0
    except ValueError:
        return False


def _text(form: FormData, name: str) -> str:
    value = form.get(name)
    return value.strip() if isinstance(value, str) else ""
