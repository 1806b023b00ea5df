"""`bin/prunella` of a release: its own runtime and its own bundle, wherever the release lies. Of the standard library alone."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

_START = "import sys\n\nfrom prunella.cli import main\n\nsys.exit(main())\n"


def write_launcher(folder: Path, bundle: str, python: str = sys.executable) -> None:
    """Write it into a release.

    Args:
        folder: of the release, with `site` and `bundle` in it.
        bundle: its name.
        python: the interpreter there.
    """
    (folder / "bin").mkdir()
    command = folder / "bin" / "prunella"
    command.write_text(
        f"""#!/bin/sh
root=$(cd "$(dirname "$0")/.." && pwd -P)
PYTHONPATH=$root/site PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH PYTHONNOUSERSITE PYTHONDONTWRITEBYTECODE
PRUNELLA_BUNDLE=${{PRUNELLA_BUNDLE:-$root/bundle/{shlex.quote(bundle)}}}
PRUNELLA_RELEASE=$root
export PRUNELLA_BUNDLE PRUNELLA_RELEASE
exec {shlex.quote(python)} "$root/bin/start.py" "$@"
"""
    )
    command.chmod(0o755)
    (folder / "bin" / "start.py").write_text(_START)
