"""The models that go by a name, known without loading any."""

from __future__ import annotations

EMBEDDED = ("reference", "reference-pruned")
BASELINE = "whisper-tiny.en"
