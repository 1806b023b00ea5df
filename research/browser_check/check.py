"""Open the page of `prunella serve` in headless Chromium with a recording as its microphone, record, and read the text.

    pip install playwright && playwright install chromium     # or a Chromium of the system, found by itself
    python research/browser_check/check.py BUNDLE examples/clips/evaluation/goforward.flac -o out/browser_check

Prints one JSON line: what the page showed for the microphone and for the same file dropped on it, and how long after the
last word the text stood there. Screenshots of a wide and a narrow window go to the output folder. Exit code 1 where
no text appeared, or where the page reported an error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from playwright.sync_api import Page, sync_playwright

from prunella.device_runtime.sound.audio import load_audio

WINDOWS = {"wide": (1280, 800), "narrow": (375, 740)}


@contextlib.contextmanager
def running_server(bundle: str) -> Iterator[str]:
    """`prunella serve BUNDLE` at a free port → its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "prunella", "serve", bundle, "--port", str(port)]
    server = subprocess.Popen(command)
    try:
        address = f"http://localhost:{port}"
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            if server.poll() is not None:
                raise SystemExit("the server did not start")
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def microphone_file(clip: str, path: Path) -> float:
    """Write what Chromium plays as a microphone: the clip between silences, at 48 kHz → seconds."""
    samples = load_audio(clip)
    quiet = np.zeros(16_000, np.float32)
    padded = np.concatenate([quiet, samples, quiet, quiet])
    soundfile.write(path, np.repeat(padded, 3), 48_000, subtype="PCM_16")
    return len(padded) / 16_000


def record(page: Page, seconds: float) -> dict[str, object]:
    """Press Record, wait until the clip was played once, press Stop."""
    page.click("#record")
    page.locator("#state", has_text="Listening").wait_for(timeout=20_000)
    partials = set()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        partials |= {text for text in page.locator("#said .partial").all_inner_texts() if text}
        page.wait_for_timeout(50)
    page.click("#record")
    page.locator("#label", has_text="Record").wait_for(timeout=60_000)
    return {
        "text": page.locator("#said .text").all_inner_texts(),
        "notes": page.locator("#said small").all_inner_texts(),
        "partials": len(partials),
        "state": page.inner_text("#state"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("clip")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/browser_check"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, object] = {}
    failed = False
    with running_server(args.bundle) as address, tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "microphone.wav"
        seconds = microphone_file(args.clip, wav)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
                args=[
                    "--use-fake-ui-for-media-stream",
                    "--use-fake-device-for-media-stream",
                    f"--use-file-for-fake-audio-capture={wav}%noloop",
                    "--no-sandbox",
                ],
            )
            for name, (width, height) in WINDOWS.items():
                context = browser.new_context(viewport={"width": width, "height": height})
                page = context.new_page()
                problems: list[str] = []
                page.on("pageerror", lambda error, seen=problems: seen.append(str(error)))
                page.on(
                    "console",
                    lambda line, seen=problems: seen.append(line.text) if line.type == "error" else None,
                )
                page.goto(address)
                page.locator("#model", has_text="·").wait_for()
                page.screenshot(path=args.out / f"{name}-empty.png")
                spoken = record(page, seconds)
                page.set_input_files("#file", args.clip)
                page.locator("#said .text").nth(len(spoken["text"])).wait_for(timeout=60_000)
                dropped = page.locator("#said .text").all_inner_texts()[-1]
                page.screenshot(path=args.out / f"{name}.png", full_page=True)
                overflow = page.evaluate("document.documentElement.scrollWidth > innerWidth")
                results[name] = {
                    "microphone": spoken,
                    "file": dropped,
                    "errors": problems,
                    "overflow": overflow,
                }
                failed |= not spoken["text"] or not dropped or bool(problems) or overflow
                context.close()
            browser.close()
    print(json.dumps(results, ensure_ascii=False))
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
