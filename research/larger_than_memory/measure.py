"""Peak memory, time and disk traffic of one command, or of loading and running the model with transformers, each in a process of its own.

python research/larger_than_memory/measure.py analyze out/llama --text lines.txt -o out/map
python research/larger_than_memory/measure.py load out/llama float32
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

_CHILD = "--child"


def measured(arguments: list[str]) -> int:
    """Do it in this process (after loading, run eight tokens), and say what it took as a line of JSON on stdout."""
    Path("/proc/self/oom_score_adj").write_text(
        "1000"
    )  # where memory runs out, this process goes and no other
    start = time.perf_counter()
    if arguments[0] == "load":
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(arguments[1], dtype=getattr(torch, arguments[2]))
        with torch.inference_mode():  # files are only mapped until then
            model(torch.arange(8)[None])
        code = 0
    else:
        from prunella.cli import main

        code = main(arguments)
    seconds = time.perf_counter() - start
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    traffic = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    found = {
        "command": " ".join(arguments),
        "code": code,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "peak_gb": round(int(status["VmHWM"].split()[0]) * 1024 / 1e9, 2),
        "read_gb": round(int(traffic["rchar"]) / 1e9, 1),  # asked for; the rest is of the disk itself
        "read_from_disk_gb": round(int(traffic["read_bytes"]) / 1e9, 1),
        "written_gb": round(int(traffic["write_bytes"]) / 1e9, 1),
    }
    sys.stdout.write(json.dumps(found) + "\n")
    return code


if __name__ == "__main__":
    if sys.argv[1:2] == [_CHILD]:
        sys.exit(measured(sys.argv[2:]))
    done = subprocess.run([sys.executable, __file__, _CHILD, *sys.argv[1:]])
    if done.returncode < 0:
        sys.stdout.write(
            json.dumps({"command": " ".join(sys.argv[1:]), "killed_by": -done.returncode}) + "\n"
        )
    sys.exit(done.returncode)
