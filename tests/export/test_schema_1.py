"""A bundle as prunella 0.1.0 wrote it transcribes what today's does, token for token."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np

from prunella.device_runtime.bundle import MANIFEST_NAME
from prunella.device_runtime.opening import open_transcriber


def test_it_transcribes_as_it_did(float_bundle, noise, tmp_path):
    old = shutil.copytree(float_bundle.path, tmp_path / "old")
    body = json.loads((old / MANIFEST_NAME).read_text())
    features = body["audio"].pop("features")
    before, _, after = body["prompt"].pop("segments")
    for key in ("answer", "languages", "language", "time_marks"):
        del body["prompt"][key]
    body["prompt"] |= {"before_audio": before["text"], "before_ids": before["ids"]}
    body["prompt"] |= {"after_audio": after["text"], "after_ids": after["ids"]}
    body["audio"] |= {"num_mel_bins": features["num_mel_bins"], "extra_padding": features["extra"]}
    assert body["audio"]["samples_per_token"] == features["multiple"]
    body = {key: value for key, value in body.items() if key not in ("manifest_sha256", "mmproj")}
    body["schema_version"] = 1
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    text = json.dumps({**body, "manifest_sha256": digest}, indent=2, sort_keys=True) + "\n"
    (old / MANIFEST_NAME).write_text(text)
    told = [open_transcriber(path, threads=1).with_options(guards=False) for path in (float_bundle.path, old)]
    for samples in (noise, np.tile(noise, 3)):
        today, then = (one.transcribe(samples) for one in told)
        assert then.tokens == today.tokens and then.text == today.text and len(then.tokens) > 3
        assert then.segments[0].audio_tokens == today.segments[0].audio_tokens
