"""Shapes of a bundle, and how they are stored, as its graphs say it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from prunella.device_runtime.base.errors import BundleError
from prunella.device_runtime.bundle import Bundle, DecoderSpec
from prunella.targets.onnx_wire import ReadGraph, read_graph
from prunella.targets.shapes import DecoderShapes, EncoderShapes, ModelShapes, encoder_shapes
from prunella.targets.storage import FLOAT32, Format, Storage

_AUDIO_ENCODER = "onnx/audio_encoder.onnx"
_EMBED_TOKENS = "onnx/embed_tokens.onnx"
_DECODER = "onnx/decoder_model_merged.onnx"
_INT8_ROWS = Format("int8_rows", 8)
_SAMPLES = 16_000
_NO_TABLE = 1_000_000  # bytes of a graph that looks tokens up in the head


@dataclass(frozen=True)
class _Product:
    """A matrix product with constant weights."""

    inputs: int
    outputs: int
    how: Format


def bundle_shapes(bundle: Bundle) -> tuple[ModelShapes, Storage]:
    """What a bundle's products are, without a look at its weights.

    Raises:
        BundleError: a graph is no ONNX file.
    """
    encoder = _graph(bundle, _AUDIO_ENCODER)
    products = list(_products(encoder))
    audio, encoder_format = _encoder(bundle, encoder, products)
    manifest = bundle.manifest
    engine = manifest.engines[0]
    if engine == "onnx":
        decoder, storage = _onnx_decoder(bundle)
    else:
        decoder, storage = _gguf_decoder(bundle)
    embeddings = manifest.files.get(_EMBED_TOKENS)
    tied = embeddings is None or embeddings.bytes < _NO_TABLE
    shapes = ModelShapes(
        name=manifest.name,
        title=manifest.name,
        decoder=replace(decoder, tied=tied),
        encoder=audio,
        prompt_tokens=len(manifest.prompt.after_ids),
        answer_tokens=manifest.prompt.opening_ids,
        source="the bundle's graphs",
    )
    ends = {(inputs, outputs) for inputs, outputs, _ in audio.projector}
    projector = next((one.how for one in products if (one.inputs, one.outputs) in ends), FLOAT32)
    kept = replace(storage, encoder=encoder_format, shared=tied, name=manifest.recipe, projector=projector)
    return shapes, kept


def _graph(bundle: Bundle, name: str) -> ReadGraph:
    try:
        return read_graph(bundle.file(name))
    except (ValueError, OSError) as error:
        raise BundleError(
            f"{bundle.path / name} cannot be read ({error}): export the bundle again"
        ) from error


def _products(graph: ReadGraph) -> Iterable[_Product]:
    # What is stored as half floats is made whole before it is multiplied with.
    shapes = dict(graph.shapes)
    for node in graph.nodes:
        if node.op == "Cast" and node.inputs[0] in shapes:
            shapes[node.outputs[0]] = shapes[node.inputs[0]]
    for node in graph.nodes:
        if node.op == "MatMulNBits":
            bits, block = node.attributes["bits"], node.attributes["block_size"]
            how = Format(f"int{bits}_{block}", bits, block)
            yield _Product(node.attributes["K"], node.attributes["N"], how)
            continue
        shape = shapes.get(node.inputs[1]) if len(node.inputs) > 1 else None
        if shape is None or len(shape) != 2:
            continue
        if node.op in ("MatMul", "Gemm"):
            turned = node.op == "Gemm" and node.attributes.get("transB", 0)
            inputs, outputs = reversed(shape) if turned else shape
            yield _Product(inputs, outputs, FLOAT32)
        elif node.op == "MatMulInteger":
            yield _Product(shape[0], shape[1], _INT8_ROWS)


def _encoder(bundle: Bundle, graph: ReadGraph, products: list[_Product]) -> tuple[EncoderShapes, Format]:
    """Its widths: most products are square, four a layer."""
    manifest = bundle.manifest
    squares = Counter(one.inputs for one in products if one.inputs == one.outputs)
    if not squares:
        raise BundleError(f"{bundle.path} has no audio encoder of a kind that is known here")
    width, count = squares.most_common(1)[0]
    wide = max(
        (one.outputs for one in products if one.inputs == width and _repeated(products, width, one.outputs)),
        default=4 * width,
    )
    how = next(one.how for one in products if one.inputs == one.outputs == width)
    spec = manifest.audio.features
    convolutions = [shape for shape in graph.shapes.values() if len(shape) == 4]
    audio = {
        "d_model": width,
        "encoder_layers": count // 4,
        "encoder_ffn_dim": wide,
        "num_mel_bins": spec.num_mel_bins,
        "downsample_hidden_size": max((shape[0] for shape in convolutions), default=0),
        "n_window": spec.frame_multiple // 2,
        "n_window_infer": 8 * spec.frame_multiple,
    }
    kind = "qwen3_asr" if convolutions else "whisper"
    config = {"audio_config": audio, "ctc_alphabet": manifest.audio.ctc_alphabet}
    found = encoder_shapes(kind, config, manifest.decoder.hidden_size)
    tokens = _SAMPLES / manifest.audio.samples_per_token
    rows = found.rows_per_second if kind == "whisper" else tokens
    inside = {(one.inputs, one.outputs) for one in products if one.outputs == manifest.decoder.hidden_size}
    last = max(inside - {(width, width)}, default=(width, manifest.decoder.hidden_size))
    first = max(
        (
            (one.inputs, one.outputs)
            for one in products
            if one.inputs >= width and one.inputs % width == 0 and one.outputs in (last[0], 2 * last[0])
        ),
        default=last,
    )
    return (
        replace(
            found,
            rows_per_second=rows,
            tokens_per_second=tokens,
            projector=tuple((*shape, tokens) for shape in dict.fromkeys((first, last))),
            whole_seconds=30.0 if spec.multiple >= 30 * _SAMPLES else 0.0,
            padding_seconds=(spec.extra + spec.multiple / 2) / _SAMPLES if spec.multiple < _SAMPLES else 0.0,
        ),
        how,
    )


def _repeated(products: list[_Product], inputs: int, outputs: int) -> bool:
    return sum((one.inputs, one.outputs) == (inputs, outputs) for one in products) > 1


def _onnx_decoder(bundle: Bundle) -> tuple[DecoderShapes, Storage]:
    spec = bundle.manifest.decoder
    products = list(_products(_graph(bundle, _DECODER)))
    hidden = spec.hidden_size
    head = next((one.how for one in reversed(products) if one.outputs == spec.vocab_size), FLOAT32)
    back = sorted({one.inputs for one in products if one.outputs == hidden}) or [hidden]
    queries, wide = back[0], back[-1]
    if hidden in back:
        queries = hidden if len(back) < 3 else queries
    by = {(one.inputs, one.outputs): one.how for one in products}
    attention = by.get((queries, hidden), head)
    return (
        _decoder_shapes(spec, queries, wide, tied=False),
        Storage(
            name="",
            engine="onnx",
            attention=attention,
            gate_up=by.get((hidden, wide), attention),
            down=by.get((wide, hidden), attention),
            head=head,
            encoder=FLOAT32,
            embeddings=_INT8_ROWS if head.bits < FLOAT32.bits else FLOAT32,
        ),
    )


def _decoder_shapes(spec: DecoderSpec, queries: int, wide: int, *, tied: bool) -> DecoderShapes:
    """With what the manifest does not say: how wide queries and the feed-forward part are, and whether the head is the table."""
    return DecoderShapes(
        layers=spec.num_layers,
        hidden=spec.hidden_size,
        queries=queries,
        keys=spec.num_kv_heads * spec.head_dim,
        feed_forward=wide,
        vocabulary=spec.vocab_size,
        tied=tied,
        heads=queries // spec.head_dim,
        kv_heads=spec.num_kv_heads,
    )


def _gguf_decoder(bundle: Bundle) -> tuple[DecoderShapes, Storage]:
    """Its widths are not in the manifest: what the file's bytes leave for a layer says how wide it is inside."""
    spec = bundle.manifest.decoder
    stored = sum(
        entry.bytes for name, entry in bundle.manifest.files.items() if name.startswith("gguf/decoder-")
    )
    digits = re.search(r"(\d+)", bundle.manifest.recipe.split("+")[-1])
    named = int(digits.group(1)) if digits else 4
    bits = {16: 16.0, 32: 32.0}.get(named, named + 0.6)
    kernel = "float32" if named == 32 else "float16" if named == 16 else "int8" if named == 8 else "int4"
    keys, hidden = spec.num_kv_heads * spec.head_dim, spec.hidden_size
    layer = max(stored * 8 / bits - hidden * spec.vocab_size, 0.0) / spec.num_layers
    wide = max(int((layer / hidden - 2 * hidden - 2 * keys) / 3), hidden)
    how = Format(kernel, bits)
    return (
        _decoder_shapes(spec, hidden, wide, tied=True),
        Storage("", "gguf", how, how, how, how, FLOAT32, how, shared=True),
    )
