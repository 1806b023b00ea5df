"""A Hugging Face causal LM to `decoder_model_merged.onnx`: float32, GroupQueryAttention, embeddings as input.

The graph comes from onnxruntime-genai's model builder, which knows the families (`onnx_families.py`); what it leaves out
of some, and what the device needs beyond it, is added by passes over the graph.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import tempfile
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from transformers import AutoConfig

from prunella.device_runtime.base.errors import CheckpointError
from prunella.export.onnx_families import FAMILIES, adapt_config, complete_graph

DECODER_NAME = "decoder_model_merged.onnx"
NUM_LOGITS = "num_logits_to_keep"
_CHECKPOINT_FILE = "config.json"
_LAST = 2**63 - 1
# A ring of keys and values in layers with a window could not be wound back, and takes no buffer smaller than the window.
_OPTIONS = ["exclude_embeds=true", "hf_token=false", "windowed_kv_cache=false"]
_LOG = logging.getLogger(__name__)


def export_decoder(decoder: Path, out: Path, *, max_context: int = 2048) -> Path:
    """Write the float32 decoder graph and its weights (`.onnx` and `.onnx_data`).

    Inputs of the graph: `inputs_embeds` (1, n, hidden) float32; `attention_mask` (1, past + n) int64, ones;
    `num_logits_to_keep` () int64, 0 for the logits of all n positions, k for the last k;
    `past_key_values.{layer}.key|value` (1, kv_heads, past, head_dim) float32, which may be bound to the same
    buffer as `present.{layer}.key|value`. Output: `logits` (1, kept, vocab) float32.

    Args:
        decoder: an ordinary Hugging Face folder (config, safetensors, tokenizer).
        out: directory for the files; it is created.
        max_context: positions the rotary tables are cut to.

    Returns:
        The path of the `.onnx` file.

    Raises:
        CheckpointError: not a decoder folder, or a family that the builder does not know.
    """
    if not (decoder / _CHECKPOINT_FILE).is_file():
        raise CheckpointError(f"{decoder} holds no {_CHECKPOINT_FILE}: not a Hugging Face decoder folder")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".builder-", dir=out) as name:
        work = Path(name)
        _build(decoder, work, max_context)
        model = onnx.load(str(work / "model.onnx"), load_external_data=False)
        complete_graph(model, AutoConfig.from_pretrained(decoder).get_text_config(), max_context)
        keep_last_logits(model)
        _cut_rotary_tables(model, max_context)
        _move_weights(model, work, out)
        onnx.save(model, str(out / DECODER_NAME))
    return out / DECODER_NAME


def keep_last_logits(model: onnx.ModelProto) -> None:
    """Give the graph the input `num_logits_to_keep`, applied to the hidden states before the head.

    A prefill then multiplies one position by the vocabulary instead of all of them. 0 keeps all positions.
    """
    graph = model.graph
    # The head is the last matrix product on the way to the logits; a bias, scale or soft cap may follow it.
    producer = {output: node for node in graph.node for output in node.output}
    node = producer["logits"]
    while node.op_type != "MatMul":
        node = producer[next(name for name in node.input if name in producer)]
    hidden, kept = node.input[0], "/lm_head/kept_hidden_states"
    prefix = "/lm_head/keep"
    constants = [
        helper.make_tensor(f"{prefix}/end", TensorProto.INT64, [1], [_LAST]),
        helper.make_tensor(f"{prefix}/axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor(f"{prefix}/shape", TensorProto.INT64, [1], [1]),
    ]
    # start = -k counts from the end, and -0 is the beginning: "0 keeps all" needs no branch.
    inserted = [
        helper.make_node("Neg", [NUM_LOGITS], [f"{prefix}/start_scalar"], f"{prefix}/Neg"),
        helper.make_node(
            "Reshape", [f"{prefix}/start_scalar", f"{prefix}/shape"], [f"{prefix}/start"], f"{prefix}/Reshape"
        ),
        helper.make_node(
            "Slice",
            [hidden, f"{prefix}/start", f"{prefix}/end", f"{prefix}/axis"],
            [kept],
            f"{prefix}/Slice",
        ),
    ]
    node.input[0] = kept
    at = next(i for i, other in enumerate(graph.node) if other is node or other.output == node.output)
    nodes = list(graph.node)
    nodes[at:at] = inserted
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    graph.input.append(helper.make_tensor_value_info(NUM_LOGITS, TensorProto.INT64, []))
    for output in graph.output:
        if output.name == "logits":
            output.type.tensor_type.shape.dim[1].dim_param = NUM_LOGITS
    # Shapes noted behind the head still say sequence_length.
    del graph.value_info[:]


def _build(decoder: Path, work: Path, max_context: int) -> None:
    """Run the model builder. What it prints goes to the log, so that it cannot mix with results."""
    from onnxruntime_genai import models

    printed = io.StringIO()
    path_before = list(sys.path)
    # The builder imports its parts by bare names as common as `quantization`: only while it runs.
    sys.path.append(str(Path(models.__file__).parent))
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            from onnxruntime_genai.models.builder import create_model, parse_extra_options

            place = (str(decoder), str(decoder), str(work), "fp32", "cpu", str(work / "cache"))
            options = parse_extra_options(*place, _OPTIONS)
            adapt_config(options["hf_details"]["hf_config"], max_context)
            create_model(*place, **options)
    except OSError:
        raise
    except Exception as error:  # of many classes: the builder checks nothing
        kind = json.loads((decoder / _CHECKPOINT_FILE).read_text(encoding="utf-8")).get("model_type")
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the ONNX model builder cannot build decoders of the kind '{kind}' ({type(error).__name__}: {reason}): "
            f"there are {', '.join(FAMILIES)}"
        ) from error
    finally:
        sys.path[:] = path_before
        _LOG.debug("%s", printed.getvalue())


def _cut_rotary_tables(model: onnx.ModelProto, max_context: int) -> None:
    """Shorten cos_cache and sin_cache (positions, rotary_dim / 2): a recorded 8k context costs megabytes."""
    for tensor in model.graph.initializer:
        if tensor.name not in ("cos_cache", "sin_cache") or tensor.dims[0] <= max_context:
            continue
        entries = {entry.key: entry for entry in tensor.external_data}
        if "length" not in entries:
            continue
        entries["length"].value = str(int(entries["length"].value) // tensor.dims[0] * max_context)
        tensor.dims[0] = max_context


def _move_weights(model: onnx.ModelProto, work: Path, out: Path) -> None:
    """Rename the weights' file instead of copying it, and tell every tensor."""
    data_name = f"{DECODER_NAME}_data"
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data_name
    source = work / "model.onnx.data"
    if source.exists():
        source.replace(out / data_name)
