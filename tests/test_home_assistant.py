"""The compose file's service, as its container would let it write: nowhere but in its tmpfs.

No container engine is asked for. Of the container this has the read-only root, the tmpfs with its size, the command line and the
environment; the capabilities, the other user and the image it has not. Where no mounts may be made, only TMPDIR is left.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from served import free_ports, there

FOLDER = Path(__file__).parents[1] / "examples" / "home_assistant"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
SERVICE = COMPOSE["services"]["prunella"]

# All mounts become read-only, in a mount namespace of its own; then the tmpfs, and a look whether anything else can be written.
CONTAINED = r"""
set -e
mount --make-rprivate /
if [ -n "$TMPFS" ]; then mount -t tmpfs -o "$TMPFS" tmpfs "$ROOM"; fi
cut -d' ' -f5 /proc/self/mountinfo | sort -ur | while read -r place; do
    if [ "$place" != "$ROOM" ] || [ -z "$TMPFS" ]; then mount -o remount,bind,ro "$place" 2>/dev/null || true; fi
done
for place in "$ELSEWHERE" /tmp /var/tmp "$PWD"; do
    if touch "$place/.written" 2>/dev/null; then echo "$place can be written" >&2; exit 99; fi
done
exec "$@"
"""


def _namespace() -> list[str]:
    for words in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        with contextlib.suppress(OSError):
            tried = [*words, "sh", "-c", "mount --make-rprivate / && mount -o remount,bind,ro /"]
            if subprocess.run(tried, capture_output=True).returncode == 0:
                return words
    return []


def _started(bundle: Path, folder: Path, tmpfs: str) -> tuple[subprocess.Popen[str], str]:
    room, elsewhere = folder / "room", folder / "elsewhere"
    for made in (room, elsewhere):
        made.mkdir(exist_ok=True)
    http, wyoming = map(str, free_ports(2))
    places = {"/bundle": str(bundle), "/commands.txt": str(FOLDER / "commands.txt"), "0.0.0.0": "127.0.0.1"}
    words = [places.get(word, word) for word in SERVICE["command"]]
    words[words.index("--wyoming") + 1 : words.index("--wyoming") + 1] = [wyoming]
    namespace = _namespace()
    contained = [*namespace, "sh", "-c", CONTAINED, "sh"] if namespace else []
    environment = {**os.environ, **SERVICE["environment"], "HOME": "/nonexistent", "TMPDIR": str(room)}
    environment |= {
        "ROOM": str(room),
        "ELSEWHERE": str(elsewhere),
        "TMPFS": tmpfs,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [*contained, sys.executable, "-m", "prunella", "serve", *words, "--port", http]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd="/")
    return process, f"http://127.0.0.1:{http}"


@contextlib.contextmanager
def serving(bundle: Path, folder: Path) -> Iterator[str]:
    """The service's address."""
    (mount,) = SERVICE["tmpfs"]
    place, _, options = mount.partition(":")
    assert place == SERVICE["environment"]["TMPDIR"]
    process, address = _started(bundle, folder, options)
    with there(process):
        yield address


def _post(address: str, content: bytes) -> dict[str, object]:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    request = urllib.request.Request(
        f"{address}/v1/audio/transcriptions",
        head + content + b"\r\n--x--\r\n",
        {"Content-Type": "multipart/form-data; boundary=x"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def _wav(size: int) -> tuple[bytes, float]:
    """So many bytes of quiet, at 48 kHz in stereo, and how many seconds they are."""
    file = io.BytesIO()
    frames = size // 4
    soundfile.write(file, np.zeros((frames, 2), np.int16), 48_000, format="WAV", subtype="PCM_16")
    return file.getvalue(), frames / 48_000


def test_the_service_takes_25_mb_where_only_its_tmpfs_can_be_written(reference_bundle, tmp_path):
    content, seconds = _wav(25_000_000)
    with serving(reference_bundle, tmp_path) as address:
        answer = _post(address, content)
    assert answer["usage"]["seconds"] == pytest.approx(seconds, abs=0.01)


def test_without_its_tmpfs_it_says_at_once_what_is_missing(tmp_path):
    if not _namespace():
        return  # then it can write everywhere
    process, _ = _started(tmp_path / "no-bundle", tmp_path, "")
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2, told
    assert "TMPDIR" in told and "Traceback" not in told


def test_the_tmpfs_holds_all_that_may_wait():
    (mount,) = SERVICE["tmpfs"]
    size = int(mount.partition("size=")[2].partition("m")[0]) * (1 << 20)
    words = SERVICE["command"]
    largest = float(words[words.index("--max-upload-mb") + 1]) * 1e6
    from prunella.device_runtime.servers.service import Limits

    assert largest >= 25e6
    assert size >= largest * (Limits().requests + 2)  # and two copies of the one that is read
    assert SERVICE["read_only"] is True


def test_wyoming_is_published_on_purpose_alone_and_home_assistant_is_joined():
    ports = [port for port in SERVICE["ports"] if port.endswith(":10300")]
    assert ports == ["${WYOMING_ADDRESS:-127.0.0.1}:10300:10300"]
    others = [service for name, service in COMPOSE["services"].items() if name != "prunella"]
    assert others and all(service["profiles"] for service in others)


def test_what_the_compose_file_names_is_there():
    assert (FOLDER / SERVICE["build"]["context"] / SERVICE["build"]["dockerfile"]).is_file()
    mounted = [volume for volume in SERVICE["volumes"] if isinstance(volume, str)]
    assert mounted and all((FOLDER / volume.partition(":")[0]).is_file() for volume in mounted)
    told = (FOLDER / "compose.yaml").read_text(encoding="utf-8").split("services:")[0]
    assert "cd examples/home_assistant" in told and "BUNDLE=../../out/demo/" in told
