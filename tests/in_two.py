"""All tests in two pytests at once, for two cores: the models' rooms, and everything else.

    python tests/in_two.py [OPTIONS OF PYTEST]

The first holds every test that `docs/families.md` is compared with. Its output is shown as it comes, the other's behind it, and
last what both counted. Exit code 1 if one of them failed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
MODELS = ("export", "families", "healing", "pruning", "speech_llm")


def main() -> int:
    """Entry."""
    pytest = [sys.executable, "-m", "pytest", *sys.argv[1:]]
    # One core each: threads that wait for a core that the other has take longer than one thread alone.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as heard:
        others = [*pytest, "-o", "cache_dir=.pytest_cache/others"]
        others += [f"--ignore={HERE / name}" for name in MODELS]
        running = subprocess.Popen(others, stdout=heard, stderr=subprocess.STDOUT, env=environment)
        with subprocess.Popen(
            [*pytest, *(str(HERE / name) for name in MODELS)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        ) as models:
            assert models.stdout is not None
            said = []
            for line in models.stdout:
                said.append(line)
                sys.stdout.write(line)
                sys.stdout.flush()
        codes = (models.returncode, running.wait())
        heard.seek(0)
        other = heard.read()
    sys.stdout.write(other)
    counted: Counter[str] = Counter()
    for text in ("".join(said), other):
        for count, what in re.findall(r"(\d+) (passed|failed|errors?|xfailed|xpassed|skipped)", text[-400:]):
            counted[what] += int(count)
    sys.stdout.write(", ".join(f"{count} {what}" for what, count in sorted(counted.items())) + " in both\n")
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
