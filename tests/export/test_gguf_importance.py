"""The importance matrix: the energy of the decoder's inputs, in a file that quantisation heeds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from prunella.evaluation.manifest import read_manifest
from prunella.export.export import export
from prunella.export.importance import measure_importance
from prunella.pruning.calibration import speech_batches
from prunella.quantize.bundle_writer import requantize
from prunella.quantize.gguf_files import read_gguf
from prunella.quantize.gguf_importance import read_importance
from prunella.quantize.gguf_quantizer import quantize_decoder
from prunella.quantize.gguf_recipes import GGUF_RECIPES
from prunella.targets.profile import TargetProfile

pytestmark = pytest.mark.native

TARGET = TargetProfile("tests", "for tests", ("gguf",), "Q4_0", tuple(GGUF_RECIPES), threads=1)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    rows = []
    for index in range(3):
        samples = np.random.default_rng(index).normal(0, 0.1, 16_000 + 4_000 * index)
        soundfile.write(folder / f"{index}.wav", samples, 16_000)
        rows.append(
            {"audio_filepath": f"{index}.wav", "duration": len(samples) / 16_000, "text": f"clip {index}"}
        )
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return read_manifest(path)


def test_sums_are_of_the_true_positions(tiny_model, manifest):
    batches = list(speech_batches(tiny_model, manifest.utterances))
    found = measure_importance(tiny_model, batches)
    norm = tiny_model.decoder.model.layers[0].input_layernorm
    rows = torch.cat([norm(batch.inputs_embeds)[batch.is_token] for batch in batches])
    assert found.positions == len(rows) < sum(batch.is_token.numel() for batch in batches)
    np.testing.assert_allclose(found.sums["blk.0.attn_q.weight"], rows.square().sum(0), rtol=1e-4)
    assert set(found.sums) == {
        "token_embd.weight",
        *(
            f"blk.{layer}.{part}.weight"
            for layer in range(3)
            for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        ),
    }


def test_quantisation_heeds_it(tiny_model, manifest, tmp_path):
    source = export(tiny_model, TARGET, tmp_path / "float", recipe="F32", importance=manifest)
    decoder = source.file("gguf/decoder-F32.gguf")
    bundle = requantize(source, "Q4_0", tmp_path / "weighed")
    assert bundle.manifest.provenance["gguf"]["importance"] is True
    assert "gguf/importance.gguf" not in bundle.manifest.files
    quantize_decoder(decoder, tmp_path / "plain.gguf", GGUF_RECIPES["Q4_0"])

    name = "blk.1.ffn_down.weight"
    importance = read_importance(source.file("gguf/importance.gguf")).means()[name]
    exact = read_gguf(decoder).tensors[name].values()
    weighed, plain = (
        float((np.square(read_gguf(path).tensors[name].values() - exact) * importance).sum())
        for path in (bundle.file("gguf/decoder-Q4_0.gguf"), tmp_path / "plain.gguf")
    )
    assert weighed < 0.95 * plain
