"""Open the page of `prunella serve` in headless Chromium with a recording as its microphone, record, and read the text.

    pip install playwright && playwright install chromium     # or a Chromium of the system, found by itself
    npm install axe-core                                      # for --axe
    python research/browser_check/check.py BUNDLE examples/clips/evaluation/goforward.flac -o out/browser_check \\
        --axe node_modules/axe-core/axe.min.js

Prints one JSON line: what the page showed for the microphone and for the same file dropped on it, and how long after the
last word the text stood there; whether recordings play, subtitles are saved, a file can be cancelled, what is no audio is
said in words; and which of axe's rules fail. Screenshots of a wide, a narrow and a dark window go to the output folder.
Exit code 1 where no text appeared, the page reported an error, or a rule fails.
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
from typing import Any, Literal

import numpy as np
import soundfile
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from prunella.device_runtime.sound.audio import load_audio

WINDOWS: dict[str, tuple[int, int, Literal["dark", "light"]]] = {
    "wide": (1280, 800, "light"),
    "narrow": (390, 844, "light"),
    "dark": (1280, 800, "dark"),
}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@contextlib.contextmanager
def running_server(bundle: str, phrases: str | None = None) -> Iterator[str]:
    """`prunella serve BUNDLE`, with a list of phrases if there is one, at a free port → its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "prunella", "serve", bundle, "--port", str(port)]
    server = subprocess.Popen(command + (["--phrases", phrases] if phrases else []))
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


def record(page: Page, seconds: float, picture: Path) -> dict[str, object]:
    """Press Record, take a picture of the first words, wait until the clip was played once, press Stop."""
    page.click("#record")
    page.locator("#state", has_text="Listening").wait_for(timeout=20_000)
    partials = set()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        partials |= {text for text in page.locator("#said .partial").all_inner_texts() if text}
        page.wait_for_timeout(50)
        if partials and not picture.exists():
            page.screenshot(path=picture)
    page.click("#record")
    page.locator("#label", has_text="Record").wait_for(timeout=60_000)
    return {
        "text": page.locator("#said .text").all_inner_texts(),
        "notes": page.locator("#said small").all_inner_texts(),
        "partials": len(partials),
        "state": page.inner_text("#state"),
    }


def use_file(page: Page, clip: str) -> dict[str, object]:
    """Choose the clip, play it, save its subtitles; cancel a long one; choose what is no audio."""
    before = page.locator("#said .text").count()
    page.set_input_files("#file", clip)
    page.locator("#said .text").nth(before).wait_for(timeout=60_000)
    text = page.locator("#said .text").all_inner_texts()[-1]
    entry = page.locator("article").last
    entry.get_by_text("Play").click()
    for _ in range(100):  # the page's policy forbids the polling of `wait_for_function`
        if page.evaluate("document.querySelector('audio').currentTime > 0.2"):
            break
        page.wait_for_timeout(50)
    else:
        raise SystemExit("the recording does not play")
    page.evaluate("document.querySelector('audio').pause()")
    with page.expect_download() as saving:
        entry.get_by_text("Save subtitles").click()
    subtitles = saving.value.path().read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        long = Path(folder) / "long.wav"
        soundfile.write(long, np.tile(load_audio(clip), 60), 16_000, subtype="PCM_16")
        page.set_input_files("#file", long)
        page.get_by_text("Cancel").click()
        page.locator("#state", has_text="was cancelled").wait_for(timeout=20_000)
    page.set_input_files(
        "#file", files=[{"name": "notes.wav", "mimeType": "audio/wav", "buffer": b"no audio" * 99}]
    )
    page.locator("#alert:not(:empty)").wait_for(timeout=20_000)
    return {"text": text, "subtitles": subtitles, "no audio": page.inner_text("#alert")}


def broken_rules(page: Page, axe: Path | None) -> list[str]:
    """Rules of axe that the page as it stands breaks."""
    if axe is None:
        return []
    page.evaluate(axe.read_text(encoding="utf-8"))
    found = page.evaluate("rules => axe.run({runOnly: {type: 'tag', values: rules}})", RULES)
    return [f"{one['id']}: {node['target']}" for one in found["violations"] for node in one["nodes"]]


def visit(
    browser: Browser, address: str, name: str, seconds: float, args: argparse.Namespace
) -> dict[str, Any]:
    """Do everything in one window → what the page showed, errors and broken rules."""
    width, height, scheme = WINDOWS[name]
    size: ViewportSize = {"width": width, "height": height}
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    # The refusal of what is no audio is an error of the network to the browser, and wanted here.
    page.on(
        "console",
        lambda line: (
            problems.append(line.text) if line.type == "error" and "400 (Bad" not in line.text else None
        ),
    )
    page.goto(address)
    page.locator("#model", has_text="·").wait_for()
    page.check("#details")
    rules = broken_rules(page, args.axe)
    page.screenshot(path=args.out / f"{name}-empty.png")
    spoken = record(page, seconds, args.out / f"{name}-recording.png")
    page.evaluate("document.getElementById('program').open = true")
    used = use_file(page, args.file or args.clip)
    rules += broken_rules(page, args.axe)
    page.screenshot(path=args.out / f"{name}-all.png", full_page=True)
    overflow = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    page.evaluate("document.getElementById('program').open = false")
    page.uncheck("#details")
    page.evaluate("document.getElementById('alert').textContent = ''; scrollTo(0, 0)")
    page.screenshot(path=args.out / f"{name}.png")
    context.close()
    return {"microphone": spoken, "file": used, "errors": problems, "rules": rules, "overflow": overflow}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("clip")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/browser_check"))
    parser.add_argument("--file", help="what is chosen as a file (default: the clip)")
    parser.add_argument("--axe", type=Path, help="axe.min.js of the npm package axe-core")
    parser.add_argument("--phrases", help="a list that the server is held to")
    parser.add_argument("--windows", nargs="+", choices=list(WINDOWS), default=list(WINDOWS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    with running_server(args.bundle, args.phrases) as address, tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "microphone.wav"
        seconds = microphone_file(args.clip, wav)
        with sync_playwright() as playwright:
            for name in args.windows:
                (args.out / f"{name}-recording.png").unlink(missing_ok=True)
                browser = playwright.chromium.launch(
                    executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
                    args=[
                        "--use-fake-ui-for-media-stream",
                        "--use-fake-device-for-media-stream",
                        f"--use-file-for-fake-audio-capture={wav}%noloop",
                        "--autoplay-policy=no-user-gesture-required",
                        "--no-sandbox",
                    ],
                )
                results[name] = visit(browser, address, name, seconds, args)
                browser.close()
    print(json.dumps(results, ensure_ascii=False))
    return int(any(map(_failed, results.values())))


def _failed(seen: dict[str, Any]) -> bool:
    used = seen["file"]
    heard = seen["microphone"]["text"] and used["text"] and "-->" in used["subtitles"]
    return not heard or seen["errors"] or seen["rules"] or seen["overflow"] or "ffmpeg" in used["no audio"]


if __name__ == "__main__":
    raise SystemExit(main())
