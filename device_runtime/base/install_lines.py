"""The lines that install prunella's extras: they name the checkout or the wheel that this prunella is of, never an index.

An index may know another project by our names, so none of them is ever looked up there.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from prunella._version import __version__

PACKAGE_FOLDER = Path(__file__).parents[2]
_PLACEHOLDER = re.compile(r"\{prunella\[([\w,-]+)\]\}")


def wheel_name() -> str:
    """File name of the wheel of this version, as `make wheels` writes it into `dist/`."""
    return f"prunella-{__version__}-py3-none-any.whl"


def install_line(*extras: str) -> str:
    """`pip install …` for the prunella that runs here with these extras, quoted for a shell.

    It names the checkout; the wheel or folder that pip installed from, while it is there; else the wheel's file name.
    """
    return f"pip install {_origin(','.join(extras))}"


def fill_in(line: str, *, elsewhere: bool = False) -> str:
    """A command line of a target with each `{prunella[cpu,gguf]}` replaced by what pip takes.

    Args:
        line: of a target's `install`.
        elsewhere: for another machine: the wheel's file name, wherever it will have been copied to.
    """
    return _PLACEHOLDER.sub(
        lambda found: _quoted(f"{wheel_name()}[{found[1]}]") if elsewhere else _origin(found[1]), line
    )


def _origin(asked: str) -> str:
    extras = f"[{asked}]" if asked else ""
    if (PACKAGE_FOLDER / "pyproject.toml").is_file():
        return f"-e {_quoted(f'{PACKAGE_FOLDER}{extras}')}"
    record = _direct_url()
    url = str(record.get("url", ""))
    if url.startswith("file:"):
        place = Path(url2pathname(urlsplit(url).path))
        if place.exists():
            return _quoted(f"{place}{extras}")
    elif "vcs_info" in record:
        vcs = record["vcs_info"]
        return _quoted(f"prunella{extras} @ {vcs.get('vcs', 'git')}+{url}@{vcs.get('commit_id', 'HEAD')}")
    elif url:
        return _quoted(f"prunella{extras} @ {url}")
    return _quoted(f"{wheel_name()}{extras}")


def _direct_url() -> dict[str, Any]:
    """What the installer wrote down about where it took this distribution from."""
    try:
        text = importlib.metadata.distribution("prunella").read_text("direct_url.json")
        record = json.loads(text or "{}")
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _quoted(argument: str) -> str:
    return subprocess.list2cmdline([argument]) if os.name == "nt" else shlex.quote(argument)
