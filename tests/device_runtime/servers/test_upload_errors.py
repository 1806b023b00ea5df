"""Whatever is wrong with an upload, the error names it as its sender does."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient

from prunella.device_runtime.servers import http_api
from prunella.device_runtime.servers.http_api import create_app
from prunella.device_runtime.servers.service import Limits, TranscriptionService

URL = "/v1/audio/transcriptions"
LIMITS = Limits(upload_bytes=6_000_000, seconds=5.0)


@pytest.fixture
def client() -> TestClient:
    service = TranscriptionService(None, "tiny", "en", LIMITS, make_vad=lambda: lambda frame: 0.0)
    return TestClient(create_app(service), base_url="http://localhost:8000")


def wav(samples: np.ndarray, subtype: str = "PCM_16", rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype=subtype)
    return file.getvalue()


def too_long(form: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(16_000 * 6), 16_000, format=form)
    return file.getvalue()


def not_a_number() -> bytes:
    samples = np.zeros(16_000, np.float32)
    samples[77] = np.nan
    return wav(samples, "FLOAT")


def text_that_ffmpeg_is_asked_about() -> bytes:
    return b"never audio " * 200


def impossible_rate() -> bytes:
    return wav(np.zeros(100), rate=16_000).replace(
        (16_000).to_bytes(4, "little"), (3).to_bytes(4, "little"), 1
    )


WRONG = {
    "empty": (lambda: b"", 400),
    "a header alone": (lambda: wav(np.zeros(0)), 400),
    "a header cut short": (lambda: wav(np.zeros(16_000))[:30], 400),
    "not audio": (lambda: b"RIFF\x00\x00", 400),
    "text": (text_that_ffmpeg_is_asked_about, 400),
    "NaN": (not_a_number, 400),
    "rate": (impossible_rate, 400),
    "long": (lambda: too_long("WAV"), 413),
    "long and coded": (lambda: too_long("FLAC"), 413),
}


@pytest.mark.parametrize("stream", ["true", "false"])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("Zoë's memo.m4a", "Zoë's memo.m4a"),
        ("C:\\Users\\zoe\\memo 7.wav", "memo 7.wav"),
        ("../../etc/memo.wav", "memo.wav"),
        ("a\u202eb\tc.wav", "a b c.wav"),
        ("\ud83d", "the recording"),
        ("x" * 500, "x" * 80),
        (" ", "the recording"),
        ("dir/", "the recording"),
    ],
)
def test_the_upload_is_named_on_every_path(client, wrong, sent, shown, stream):
    make, status = WRONG[wrong]
    try:
        name = sent.encode().decode()
    except UnicodeEncodeError:
        name = ""
    head = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    field = f'--x\r\nContent-Disposition: form-data; name="stream"\r\n\r\n{stream}\r\n'.encode()
    answer = client.post(
        URL,
        content=field + head.replace(b"\\", b"\\\\") + make() + b"\r\n--x--\r\n",
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert answer.status_code == status
    message = answer.json()["error"]["message"]
    assert message.startswith(f"{shown} ") and "None" not in message and len(message.splitlines()) == 1


@pytest.mark.parametrize("wrong", ["not audio", "text", "NaN"])
def test_what_the_browser_may_convert_has_a_code(client, wrong):
    answer = client.post(URL, files={"file": ("a.wav", WRONG[wrong][0]())})
    assert answer.json()["error"]["code"] == http_api.UNREADABLE
    long = client.post(URL, files={"file": ("a.wav", WRONG["long"][0]())})
    assert long.json()["error"]["code"] is None


def test_a_server_without_room_says_so(client):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))  # then what is written ends in an error
    try:
        answer = client.post(URL, files={"file": ("memo.wav", b"\x00" * 3_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert answer.status_code == 507
    assert "no room" in answer.json()["error"]["message"]
