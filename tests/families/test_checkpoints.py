"""What is written is what transformers writes: the same names and keys as of the uncut model, in every kind of folder."""

from __future__ import annotations

import json
import re

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_families import (
    FAMILIES,
    FAMILY_NAMES,
    other_size,
    sound,
    stock_extractor,
    stock_rows,
    tiny_stock,
    tiny_tokenizer,
    write_tiny,
)
from transformers import AutoProcessor, AutoTokenizer

from prunella.device_runtime.base.errors import CheckpointError
from prunella.pruning.blocks import Block
from prunella.pruning.prune import prune, save_pruned
from prunella.speech_llm import load, load_any
from prunella.speech_llm.batches import SpeechExample, layout_batch
from prunella.speech_llm.stock import assembled
from prunella.speech_llm.torch_engine import model_features

CUT = (Block(1, 2), Block(3, 4))
TIES = {
    "tied": (True, True),
    "its own": (False, False),
    "text only": (True, False),
    "top only": (False, True),
}


@pytest.fixture(params=FAMILY_NAMES)
def family(request):
    return request.param


def tensors(folder) -> dict[str, tuple[list[int], str]]:
    """Shapes and dtypes of all of a folder's."""
    found = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no dict
                part = file.get_slice(name)
                found[name] = (part.get_shape(), part.get_dtype())
    return found


def config_keys(body, path="") -> set[str]:
    inner = [config_keys(value, f"{path}{key}.") for key, value in body.items() if isinstance(value, dict)]
    return {f"{path}{key}" for key in body}.union(*inner)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def cut(folder, out):
    """The folder's model without CUT's layers, saved."""
    pruned, report = prune(load(folder), CUT, bridge=False)
    save_pruned(pruned, report, out)
    return out


def renumbered(name: str) -> str | None:
    """Name of a tensor after the cut; None: it went."""
    kept = [0, 2, 4, 5]
    found = re.match(r"(.*language_model.*\.layers\.|model\.layers\.)(\d+)(\..*)", name)
    if found is None:
        return name
    layer = int(found[2])
    return f"{found[1]}{kept.index(layer)}{found[3]}" if layer in kept else None


@pytest.mark.parametrize("tie", TIES)
def test_names_and_keys_are_those_of_the_uncut_model(family, tie, tmp_path):
    """What vLLM and MLX read: names and keys alone tell them where things are."""
    text, top = TIES[tie]
    whole = write_tiny(
        family, tmp_path / "whole", text={"tie_word_embeddings": text}, rest={"tie_word_embeddings": top}
    )
    out = cut(whole, tmp_path / "cut")
    expected = {renumbered(name): facts for name, facts in tensors(whole).items() if renumbered(name)}
    assert tensors(out) == expected
    before, after = config_of(whole), config_of(out)
    assert config_keys(after) == config_keys(before)
    assert after.get("text_config", after)["num_hidden_layers"] == 4
    for part, changed in (
        (None, ("num_hidden_layers",) if FAMILIES[family].flat else ()),
        (FAMILIES[family].audio_part, ()),
        *([] if FAMILIES[family].flat else [("text_config", ("num_hidden_layers", "layer_types"))]),
    ):
        old, new = (body[part] if part else body for body in (before, after))
        assert {key for key in old if not isinstance(old[key], dict) and old[key] != new[key]} <= set(changed)
    _says_the_same(out, load(out))


def _says_the_same(folder, model):
    """The stock class, loaded by itself, on the embeddings that prunella's decoder is given."""
    stock = FAMILIES[model.config.family].stock.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[5, 30, 99, 7]])
    with torch.inference_mode():
        expected = stock(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        found = model.decoder(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    found = found * model.stock.family.stock_logits(stock.config)
    torch.testing.assert_close(found, expected)


def test_a_file_with_the_names_of_the_class_in_memory_keeps_those(family, tmp_path):
    """Files of both kinds are about: transformers reads both, and writes what it has read."""
    folder = write_tiny(family, tmp_path / "whole")
    stock = FAMILIES[family].stock.from_pretrained(folder)
    stored = {name for name, _ in stock.named_buffers()} & stock.state_dict().keys()
    named = {name: tensor.clone() for name, tensor in stock.named_parameters()}
    named |= {name: tensor.clone() for name, tensor in stock.named_buffers() if name in stored}
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    out = cut(folder, tmp_path / "cut")
    assert set(tensors(out)) == {renumbered(name) for name in named} - {None}
    _says_the_same(out, load(out))


def test_weights_that_are_not_there_are_not_made_up(family, tmp_path):
    folder = write_tiny(family, tmp_path / "whole")
    there = load_file(folder / "model.safetensors")
    gone = next(name for name in there if name.endswith("layers.3.mlp.down_proj.weight"))
    save_file(
        {name: there[name] for name in there if name != gone}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(
        CheckpointError, match=r"lacks 1 tensors .*layers\.3\.mlp\.down_proj\.weight: its weights are in"
    ):
        load(folder)
    renamed = {f"another.{name}": tensor for name, tensor in there.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="in another layout"):
        load(folder)


def test_a_head_of_its_own_stays_one(family, tmp_path):
    """Whatever a configuration says of ties: the decoder's says what is, for whoever exports it."""
    for tie, (text, top) in TIES.items():
        folder = write_tiny(
            family, tmp_path / tie, text={"tie_word_embeddings": text}, rest={"tie_word_embeddings": top}
        )
        decoder = load(folder).decoder
        assert decoder.config.tie_word_embeddings == (
            decoder.lm_head.weight is decoder.model.embed_tokens.weight
        )


def test_shards_and_bfloat16_are_read_and_float32_is_written(family, tmp_path):
    stock = tiny_stock(family)
    for name, kind, options in (
        ("whole", torch.float32, {}),
        ("shards", torch.float32, {"max_shard_size": "60KB"}),
        ("half", torch.bfloat16, {}),
    ):
        stock.to(kind).save_pretrained(tmp_path / name, **options)
        tiny_tokenizer(family).save_pretrained(tmp_path / name)
        stock.to(torch.float32)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert config_of(tmp_path / "half")["dtype"] == "bfloat16"
    whole = load(tmp_path / "whole")
    for name, parameter in load(tmp_path / "shards").named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name))
    for name, parameter in load(tmp_path / "half").named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name).bfloat16().float())
    for name in ("shards", "half"):
        out = cut(tmp_path / name, tmp_path / f"{name}-cut")
        assert {dtype for _, dtype in tensors(out).values()} - {"I64"} == {"F32"}  # some norms count batches
        assert config_of(out)["dtype"] == "float32"
        assert config_keys(config_of(out)) == config_keys(config_of(tmp_path / name))
        _says_the_same(out, load(out))


# The other families' processors want torchaudio, or take pictures too and want what reads those.
@pytest.mark.parametrize(
    "family",
    sorted(
        set(FAMILY_NAMES)
        - {"fun_asr_nano", "granite_speech", "granite_speech_plus", "phi4_multimodal", "qwen2_5_omni_thinker"}
    ),
)
def test_the_stock_processor_reads_what_was_saved(family, tmp_path):
    folder = write_tiny(family, tmp_path / "whole")
    kind = getattr(transformers, f"{FAMILIES[family].name}Processor")
    special = dict(
        zip(("audio_token", "audio_bos_token", "audio_eos_token"), FAMILIES[family].tokens, strict=False)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, extra_special_tokens=special)
    processor = kind(feature_extractor=stock_extractor(family), tokenizer=tokenizer)
    processor.save_pretrained(folder)
    out = cut(folder, tmp_path / "cut")
    again = AutoProcessor.from_pretrained(out)
    assert type(again) is kind
    options = {"sampling_rate": 16_000, "return_tensors": "pt"} | FAMILIES[family].heard
    samples = sound(1.3)
    found = again.feature_extractor(samples, **options)["input_features"]
    assert torch.equal(found, processor.feature_extractor(samples, **options)["input_features"])
    assert again.tokenizer("Hello").input_ids == processor.tokenizer("Hello").input_ids


def test_side_files_travel_and_code_does_not(family, tmp_path):
    folder = write_tiny(family, tmp_path / "whole")
    for name in ("tekken.json", "LICENSE.md", "merges.txt", "chat_template.json"):
        (folder / name).write_text("{}")
    ran = tmp_path / "ran"
    (folder / "modeling_my.py").write_text(f"open({str(ran)!r}, 'w')\n")
    body = config_of(folder) | {"auto_map": {"AutoConfig": "modeling_my.My", "AutoModel": "modeling_my.My"}}
    (folder / "config.json").write_text(json.dumps(body))
    model = load_any(folder)
    pruned, report = prune(model, CUT, bridge=False)
    save_pruned(pruned, report, tmp_path / "cut")
    assert {"LICENSE.md", "chat_template.json"} <= {path.name for path in (tmp_path / "cut").iterdir()}
    assert not list((tmp_path / "cut").glob("*.py")) and not ran.exists()


@torch.inference_mode()
def test_another_size_is_heard_cut_and_saved_alike(family, tmp_path):
    """Odd head counts, one head for all keys, widths that differ, 80 bins, other windows, the head tied the other way."""
    folder = write_tiny(family, tmp_path / "whole", **other_size(family))
    model = load(folder)
    for seconds in (0.3, 1.0, 2.31):
        heard, valid = model_features(model, sound(seconds))
        count = model.config.audio_tokens(model.config.encoder_frames(valid))
        told = torch.tensor([valid]) if valid < heard.shape[1] else None
        rows = model.embed_audio(heard[None], told)[0, :count]
        torch.testing.assert_close(rows, stock_rows(model, sound(seconds)), atol=1e-4, rtol=1e-4)
    cut(folder, tmp_path / "cut")
    again = load(tmp_path / "cut")
    batch = layout_batch(again, [rows], [SpeechExample(heard, (9, 30, 2), valid)])
    stock = assembled(again).model
    says = getattr(stock, "language_model", stock)
    expected = says(inputs_embeds=batch.inputs_embeds).last_hidden_state
    found = again.decoder.model(inputs_embeds=batch.inputs_embeds).last_hidden_state
    torch.testing.assert_close(found, expected)
