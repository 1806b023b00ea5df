"""Measure which decoder layers are redundant, for speech and for text: redundancy.json and a picture.

prunella analyze reference --speech calibration.jsonl --text general.txt -o out/redundancy
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from prunella.device_runtime.base.common_options import (
    add_output,
    add_speech,
    add_spoken_language,
    add_stream,
)
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.outputs import check_output, check_output_file
from prunella.evaluation.manifest import read_manifest
from prunella.pruning.calibration import read_lines, speech_batches, text_batches
from prunella.pruning.redundancy import (
    Agreement,
    RedundancyMap,
    agreement,
    is_map,
    measure_redundancy,
    save_maps,
)
from prunella.speech_llm import SpeechLLM, TextLLM, load_any
from prunella.speech_llm.batches import DecoderBatch

MAP_NAME, PICTURE_NAME = "redundancy.json", "redundancy.png"


@dataclass(frozen=True)
class Analysis:
    """Maps by what was measured ("speech", "text"), and how alike the two are where both were."""

    maps: dict[str, RedundancyMap]
    agreement: Agreement | None


def analyze(
    model: SpeechLLM | TextLLM,
    *,
    speech: Iterable[DecoderBatch] | None = None,
    text: Iterable[DecoderBatch] | None = None,
) -> Analysis:
    """Measure the redundancy maps, in one forward pass a batch.

    Raises:
        UsageError: neither speech nor text.
    """
    given = {name: batches for name, batches in (("speech", speech), ("text", text)) if batches is not None}
    if not given:
        raise UsageError("nothing to analyse: give --speech MANIFEST, --text FILE, or both")
    maps = {name: measure_redundancy(model.decoder, _shown(name, batches)) for name, batches in given.items()}
    alike = agreement(maps["speech"], maps["text"]) if len(maps) == 2 else None
    return Analysis(maps, alike)


def save_analysis(analysis: Analysis, folder: str | Path, name: str) -> None:
    """Write `redundancy.json` and `redundancy.png` into `folder`."""
    from prunella.pruning.picture import draw_maps

    folder = Path(folder)
    facts = {"model": name}
    if analysis.agreement is not None:
        facts["agreement"] = {
            "rank_correlation": analysis.agreement.rank_correlation,
            "overlap_by_size": list(analysis.agreement.overlap),
        }  # type: ignore[assignment]
    paths = {kind: [str(block) for block in one.path()] for kind, one in analysis.maps.items()}
    save_maps(analysis.maps, folder / MAP_NAME, **facts, best_blocks=paths)
    draw_maps(analysis.maps, folder / PICTURE_NAME, name)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella analyze`."""
    parser.add_argument(
        "model", help="'reference', a checkpoint folder, or a Hugging Face id (a text LLM too)"
    )
    add_speech(parser, "transcribed speech", required=False)
    add_spoken_language(parser)
    parser.add_argument("--text", metavar="FILE", help="plain text, one paragraph a line")
    parser.add_argument(
        "--clips", type=int, default=200, metavar="N", help="clips used at most (default 200)"
    )
    parser.add_argument(
        "--lines", type=int, default=200, metavar="N", help="lines used at most (default 200)"
    )
    add_stream(parser)
    add_output(parser, "folder of the maps (default: redundancy)", required=False, default="redundancy")


def run(args: argparse.Namespace) -> int:
    """`prunella analyze`."""
    _check_folder(args.out, args.model)
    model = load_any(args.model, stream=args.stream)
    if args.speech and isinstance(model, TextLLM):
        raise UsageError(f"'{args.model}' is a text LLM: analyse it with --text FILE alone")
    speech = text = None
    if args.speech and isinstance(model, SpeechLLM):
        manifest = (
            read_manifest(args.speech).sample(args.clips).in_language(model.known_language(args.language))
        )
        speech = speech_batches(model, manifest.utterances)
    if args.text:
        text = text_batches(model.decoder, model.tokenizer, read_lines(args.text)[: args.lines])
    analysis = analyze(model, speech=speech, text=text)
    save_analysis(analysis, args.out, Path(args.model).name)
    sys.stdout.write(
        render_analysis(analysis) + f"\nsaved {args.out}/{MAP_NAME} and {args.out}/{PICTURE_NAME}\n"
    )
    return 0


def _check_folder(folder: str, model: str) -> None:
    out = check_output(folder, inputs=[model], replaces=False)
    made = is_map(out / MAP_NAME)
    check_output_file(out / MAP_NAME, "redundancy map", is_map)
    check_output_file(out / PICTURE_NAME, "picture", lambda path: made)  # a picture says not whose it is


def render_analysis(analysis: Analysis) -> str:
    """Best block of some sizes for a terminal, and the agreement."""
    names = list(analysis.maps)
    lines = ["layers  " + "  ".join(f"{name:>16}" for name in names)]
    for size in range(1, max(one.num_layers for one in analysis.maps.values()) // 2 + 1):
        cells = []
        for one in analysis.maps.values():
            block, distance = one.ranked(size)[0]
            cells.append(f"{f'{block}  {distance:.3f}':>16}")
        lines.append(f"{size:>6}  " + "  ".join(cells))
    if analysis.agreement is not None:
        alike = analysis.agreement
        lines.append(
            f"speech and text: rank correlation {alike.rank_correlation:.3f}, overlap of the best blocks {alike.mean_overlap:.2f}"
        )
    return "\n".join(lines)


def _shown(name: str, batches: Iterable[DecoderBatch]) -> Iterator[DecoderBatch]:
    return iter(tqdm(batches, desc=f"measuring {name}", unit="batch", file=sys.stderr, disable=None))
