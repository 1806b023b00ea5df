"""prunella: measure, prune, heal, export and run speech LLMs on small machines."""

import os

# Here, because every process of ours, `python -m prunella.X` and children too, comes by before a library is imported that
# reads these once: ONNX Runtime otherwise reports the machine to its makers and writes a device id into HOME.
for _switch in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(_switch, "1")

from prunella import openers as openers  # noqa: E402
from prunella._version import __version__ as __version__  # noqa: E402
