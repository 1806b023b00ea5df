"""Where a bundle's memory goes: what each part adds to the process, and the most that it ever had.

`python research/memory_by_part.py BUNDLE [BUNDLE ...] --clip CLIP`

Linux. "Own" is memory of this process alone (RssAnon), "mapped" pages of files (RssFile), which processes that run the same bundle
share and which the kernel may drop; "peak" is VmHWM. One thread; each bundle in processes of its own: part by part, all together and
greedy, and all together with 4 beams where it has letters.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def status() -> tuple[float, float, float]:
    """Own, mapped and peak memory of this process in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    kilobytes = {line.partition(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    own, mapped, peak = (int(kilobytes[name]) / 1024 for name in ("RssAnon", "RssFile", "VmHWM"))
    return own, mapped, peak


class Table:
    """Lines as parts are added."""

    def __init__(self, title: str) -> None:
        self.before = (0.0, 0.0)
        sys.stdout.write(f"\n| {title} | own MB | mapped MB | peak so far |\n| :-- | --: | --: | --: |\n")

    def add(self, part: str) -> None:
        """What came since the line before."""
        own, mapped, peak = status()
        sys.stdout.write(
            f"| {part} | {own - self.before[0]:.1f} | {mapped - self.before[1]:.1f} | {peak:.0f} |\n"
        )
        self.before = (own, mapped)


def measure(folder: Path, clip: Path) -> None:
    """Write one bundle's table to stdout."""
    table = Table(folder.name)
    table.add("Python")
    import onnxruntime

    table.add("numpy, ONNX Runtime")
    from prunella.device_runtime.bundle import open_bundle
    from prunella.device_runtime.engines.onnx_audio_encoder import OnnxAudioEncoder
    from prunella.device_runtime.engines.onnx_engine import DECODER, EMBED_TOKENS
    from prunella.device_runtime.sound.audio import load_audio

    load_audio(clip)
    table.add("prunella, a clip")
    bundle = open_bundle(folder, verify=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    kept: list[object] = [OnnxAudioEncoder(bundle, threads=1)]
    table.add("audio encoder")
    for name in (EMBED_TOKENS, DECODER):
        kept.append(
            onnxruntime.InferenceSession(str(bundle.file(name)), options, providers=["CPUExecutionProvider"])
        )
        table.add(Path(name).stem)


def measure_whole(folder: Path, clip: Path, beams: int) -> None:
    """Write a line of a bundle to stdout: all together, as programs open it, after three transcripts."""
    from prunella.device_runtime import open_transcriber
    from prunella.device_runtime.sound.audio import load_audio

    samples = load_audio(clip)
    transcriber = open_transcriber(folder, threads=1).with_options(beams=beams)
    for _ in range(3):
        text = transcriber.transcribe(samples).text
    own, mapped, peak = status()
    what = f"{'greedy' if beams == 1 else 'beams'}, after 3 transcripts of {len(samples) / 16_000:.1f} s, {len(text.split())} words"
    sys.stdout.write(f"| all, with tokenizer and caches, {what} | {own:.1f} | {mapped:.1f} | {peak:.0f} |\n")


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--part", choices=("parts", "greedy", "beams"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part is not None:
        if args.part == "parts":
            measure(args.bundles[0], args.clip)
        else:
            measure_whole(args.bundles[0], args.clip, beams=1 if args.part == "greedy" else 0)
        return
    for bundle in args.bundles:
        for part in ("parts", "greedy", "beams"):
            command = [sys.executable, __file__, str(bundle), "--clip", str(args.clip), "--part", part]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
