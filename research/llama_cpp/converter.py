"""llama.cpp's own converter on a checkpoint of a stock class, pruned or not, and its tensors beside those that prunella writes.

`python research/llama_cpp/converter.py LLAMA_CPP CHECKPOINT`, where LLAMA_CPP is its source, as llama-cpp-python's sdist holds it
(`vendor/llama.cpp`). Needs sentencepiece, which the converter imports. `--pre qwen2` names the pre-tokenizer of a tokenizer
that it does not know, such as a random model's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from prunella.device_runtime.base.errors import PrunellaError
from prunella.export.gguf_decoder import write_decoder
from prunella.export.gguf_mmproj import write_mmproj
from prunella.quantize.gguf_files import read_gguf
from prunella.speech_llm import load

# Runs in the child: the converter's own program, which knows a pre-tokenizer by a hash of what it does to a text.
CONVERT = """
import sys
source, pre, *arguments = sys.argv[1:]
sys.path[:0] = [f"{source}/gguf-py", source]
import conversion.base as base
if pre:
    for kind in vars(base).values():
        if hasattr(kind, "get_vocab_base_pre"):
            kind.get_vocab_base_pre = lambda self, tokenizer: pre
import convert_hf_to_gguf
sys.argv = [f"{source}/convert_hf_to_gguf.py", *arguments]
convert_hf_to_gguf.main()
"""


def convert(source: Path, checkpoint: Path, out: Path, pre: str, *options: str) -> str | None:
    """Run the converter; its last words where it failed."""
    arguments = [str(checkpoint), "--outfile", str(out), "--outtype", "f32", *options]
    command = [sys.executable, "-c", CONVERT, str(source), pre, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0 and out.is_file():
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with {done.returncode}"


def compare(ours: Path, theirs: Path) -> str:
    """One line: names that one of the files has alone, and the largest difference of a value."""
    mine, other = read_gguf(ours), read_gguf(theirs)
    common = mine.tensors.keys() & other.tensors.keys()
    alone = sorted(mine.tensors.keys() ^ other.tensors.keys())
    difference = 0.0
    for name in common:
        a, b = mine.tensors[name].values(), other.tensors[name].values()
        difference = max(difference, float(np.abs(a - b).max()) if a.shape == b.shape else float("inf"))
    kinds = {
        file.keys.get("clip.projector_type", file.keys["general.architecture"]) for file in (mine, other)
    }
    told = f"{len(common)} tensors, largest difference {difference:.3g}, {' / '.join(sorted(kinds))}"
    return f"{told}, only in one: {', '.join(alone)}" if alone else told


def main() -> None:
    """Both files of a checkpoint, as far as each side writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("llama_cpp", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pre", default="")
    given = parser.parse_args()
    model = load(given.checkpoint)
    writers = {
        "decoder": (lambda path: write_decoder(model, path, kind="F32"), ()),
        "audio half": (lambda path: write_mmproj(model, path, kind="F32"), ("--mmproj",)),
    }
    with tempfile.TemporaryDirectory() as work:
        for what, (write, options) in writers.items():
            theirs, ours = Path(work) / f"theirs {what}.gguf", Path(work) / f"ours {what}.gguf"
            failed = convert(given.llama_cpp, given.checkpoint, theirs, given.pre, *options)
            if failed is not None:
                print(f"{what}: llama.cpp's converter does not read it: {failed}")
                continue
            try:
                write(ours)
            except PrunellaError as error:
                print(f"{what}: converted; prunella does not write it: {error}")
                continue
            print(f"{what}: {compare(ours, theirs)}")


if __name__ == "__main__":
    main()
