"""Tokenizers of the kinds that decoders have, on both sides; and the chat template that is the fixed prompt."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_tokenizers

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.engines.llama_decoder import LlamaDecoder
from prunella.export.chat_template import speech_chat_template
from prunella.export.gguf_decoder import write_decoder
from prunella.export.gguf_gate import check_tokenizer
from prunella.export.gguf_vocabulary import read_vocabulary
from prunella.quantize.gguf_files import read_gguf
from prunella.speech_llm.config import Prompt
from prunella.speech_llm.model import SpeechLLM

pytestmark = pytest.mark.native

TEXT = Path(__file__).parents[2] / "examples" / "text" / "general.txt"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def mixed_lines(count: int, seed: int = 0) -> list[str]:
    """Lines of English, of other scripts, numbers, code, emoji and control characters, mixed at random."""
    rng = random.Random(seed)
    prose = [line.strip() for line in TEXT.read_text(encoding="utf-8").splitlines() if line.strip()]
    words = sorted({word for line in prose for word in line.split()})
    other = [
        "naïve",
        "café",
        "Straße",
        "señor",
        "東京タワー",
        "你好世界",
        "안녕하세요",
        "Привет",
        "мир",
        "สวัสดีครับ",
        "नमस्ते",
        "दुनिया",
        "שלום",
        "עולם",
        "مرحبا",
        "ﬁnance",
        "½",
        "²",
        "№",
        "™",
        "€",
        "—",
        "…",
        "“x”",
        "‘y’",
        "«z»",
        "🦙",
        "🚀",
        "👩\u200d👩\u200d👧",
        "✅",
        "０１２",
        "á",
        "x\u200dy",
        "\xa0",
        "\u3000",
        "I'll",
        "don't",
        "WE'RE",
        "it'S",
        "'tis",
        "3.14",
        "1,000,000",
        "2024-05-06",
        "0xFF",
        "12345678",
        "x=a[0];",
        "-->",
        "</tag>",
        "{json:1}",
        "###",
        "!!!",
        "??!",
        "...",
        "===",
        "//",
        "\\n",
        "<|im_end|>",
    ]
    spaces = [" ", " ", " ", "  ", "   ", "\t", "\n", "\n\n", " \n", "\r\n", ""]
    lines = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 12)):
            kind = rng.random()
            if kind < 0.5:
                parts.append(rng.choice(words))
            elif kind < 0.9:
                parts.append(rng.choice(other))
            else:
                parts.append(
                    "".join(
                        chr(rng.choice([rng.randint(32, 126), rng.randint(160, 0x24FF)])) for _ in range(4)
                    )
                )
            parts.append(rng.choice(spaces))
        lines.append("".join(parts))
    return lines


def check_same_tokens(path: Path, tokenizer: Tokenizer, lines: list[str]) -> None:
    decoder = LlamaDecoder(path, positions=256, threads=1)
    expected = [encoding.ids for encoding in tokenizer.encode_batch(lines, add_special_tokens=False)]
    different = [
        (line, theirs, ours)
        for line, ours in zip(lines, expected, strict=True)
        if (theirs := decoder.tokenize(line)) != ours
    ]
    assert not different, f"{len(different)} of {len(lines)} lines, for example {different[0]}"


def byte_level(pre_tokenizer, *, ignore_merges=False) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizer
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXT.read_text(encoding="utf-8").splitlines(), trainer)
    body = json.loads(core.to_str())
    body["model"]["ignore_merges"] = ignore_merges
    core = Tokenizer.from_str(json.dumps(body))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", bos_token="<|im_start|>")


def split(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama 2's kind: no pre-tokenizer, spaces as ▁, bytes for what has no piece, merges in the order of the pieces."""
    special = ["<unk>", "<s>", "</s>", "<|im_end|>"]
    pieces = special + [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        TEXT.read_text(encoding="utf-8").splitlines(),
        trainers.BpeTrainer(vocab_size=700, show_progress=False),
    )
    learned = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    pieces += [piece for piece, _ in learned if len(piece) > 1] + [
        piece for piece, _ in learned if len(piece) == 1
    ]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    # As transformers derives them from a SentencePiece model: every split of a piece into two, better pieces first.
    merges = [
        (piece[:at], piece[at:])
        for piece in pieces[len(special) + 256 :]
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab
    ]
    core = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<|im_end|>", unk_token="<unk>"
    )


KINDS = {
    "gpt-2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm": lambda: byte_level(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    ),
    "qwen2": lambda: byte_level(split(QWEN2)),
    "llama-bpe": lambda: byte_level(split(LLAMA3), ignore_merges=True),
    "smaug-bpe": lambda: byte_level(split(LLAMA3)),
    "default": sentencepiece,
}


@pytest.mark.parametrize("pre", KINDS)
def test_every_kind_tokenises_alike(pre, speech_llm_around, tmp_path):
    tokenizer = KINDS[pre]()
    config = LlamaConfig(
        vocab_size=1_000,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=1,
    )
    model = speech_llm_around(config, tokenizer)
    path = write_decoder(model, tmp_path / "decoder.gguf")
    assert read_gguf(path).keys["tokenizer.ggml.pre"] == pre
    check_same_tokens(path, tokenizer.backend_tokenizer, mixed_lines(2_000))


def test_the_references_tokens_on_ten_thousand_lines(reference, tmp_path):
    path = write_decoder(reference, tmp_path / "decoder.gguf")
    check_same_tokens(path, reference.tokenizer.backend_tokenizer, mixed_lines(10_000, seed=1))


@pytest.mark.parametrize(
    ("pre_tokenizer", "message"),
    [
        (split(r"\p{L}+|\p{N}+"), "has no name for this tokenizer's pre-tokenizer"),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), "no space before a text"),
        (pre_tokenizers.Whitespace(), "neither byte-level"),
    ],
)
def test_other_tokenizers_are_refused(pre_tokenizer, message):
    tokenizer = byte_level(pre_tokenizer)
    with pytest.raises(CheckpointError, match=message):
        read_vocabulary(tokenizer, 1_000)


def test_a_table_smaller_than_the_vocabulary_is_refused():
    with pytest.raises(CheckpointError, match="embedding table 100 rows"):
        read_vocabulary(KINDS["gpt-2"](), 100)


AUDIO = "<__media_3kd9__>"


@pytest.mark.parametrize(
    "content",
    [
        AUDIO,
        f"Transcribe audio to text (language: en){AUDIO}",
        f"{AUDIO}\nWhat is said?",
        [{"type": "text", "text": "Transcribe this."}, {"type": "media_marker", "text": AUDIO}],
    ],
)
def test_a_chat_with_one_audio_is_the_prompt(content, reference):
    # The settings of transformers; llama.cpp has a Jinja of its own with the same.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    prompt = reference.prompt
    template = environment.from_string(speech_chat_template(prompt.before_audio, prompt.after_audio))
    rendered = template.render(messages=[{"role": "user", "content": content}], add_generation_prompt=True)
    assert rendered == reference.prompt.before_audio + AUDIO + reference.prompt.after_audio


def test_the_template_is_in_the_file(speech_llm_around, tmp_path):
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    model = speech_llm_around(config)
    keys = read_gguf(write_decoder(model, tmp_path / "decoder.gguf")).keys
    prompt = model.prompt
    template = speech_chat_template(prompt.before_audio, prompt.after_audio)
    assert keys["tokenizer.chat_template"] == template
    assert keys["tokenizer.ggml.eos_token_id"] == model.prompt.eos_ids[0]
    assert keys["tokenizer.ggml.add_bos_token"] is False


@pytest.mark.parametrize(
    ("before", "after"),
    [("user: ", "\nsay it: "), ("<s>user: ", " say it: "), ("<s>user</s>\n", "</s>\n<s>it</s>\n")],
)
def test_a_space_before_the_first_word_alone(before, after, speech_llm_around, tmp_path):
    """Llama 2's tokenizer as transformers has it: llama.cpp's space would also go behind a special token."""
    tokenizer = tiny_tokenizers.llama2()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    tiny = speech_llm_around(LlamaConfig(vocab_size=1_000, **sizes), tokenizer)
    prompt = Prompt(before, after, "<|im_end|>")
    model = SpeechLLM(replace(tiny.own_config, prompt=prompt), tiny.decoder, tokenizer)
    path = write_decoder(model, tmp_path / "decoder.gguf", kind="F32")
    assert read_gguf(path).keys["tokenizer.ggml.add_space_prefix"] == (not before.startswith("<s>"))
    check_tokenizer(model, path)
