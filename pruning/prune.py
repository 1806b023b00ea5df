"""Cut decoder layers, bridge the gap, cut tokens, and save what is left as an ordinary checkpoint that was read back and compared.

prunella prune reference --drop 3 --speech calibration.jsonl -o out/pruned
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedModel

from prunella.device_runtime.base.common_options import (
    add_output,
    add_speech,
    add_spoken_language,
    add_stream,
)
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.files import whole_directory, write_json
from prunella.device_runtime.base.outputs import check_output, check_space
from prunella.evaluation.manifest import SpeechManifest, read_manifest
from prunella.pruning.blocks import Block, check_blocks
from prunella.pruning.bridge import BridgeReport, Method, bridge_blocks
from prunella.pruning.calibration import Calibration, speech_calibration, text_calibration
from prunella.pruning.history import with_cut
from prunella.pruning.prune_vocabulary import (
    VocabularyReport,
    add_vocabulary_arguments,
    check_has_tokenizer,
    cuts_vocabulary,
    prune_vocabulary_asked,
    render_vocabulary,
)
from prunella.pruning.redundancy import RedundancyMap, load_maps
from prunella.pruning.selection import STRATEGIES, Evidence, choose_blocks
from prunella.pruning.structure import check_cut, check_structure
from prunella.pruning.surgery import check_reload, check_stock_reload, drop_layers
from prunella.speech_llm import SpeechLLM, TextLLM, load_any, save_checkpoint
from prunella.speech_llm.batches import cross_entropies
from prunella.speech_llm.checkpoint import DECODER_NAME, save_decoder, saved_bytes
from prunella.speech_llm.decoder_view import decoder_view
from prunella.speech_llm.streaming import stream_of

REPORT_NAME = "pruning.json"
Model = TypeVar("Model", SpeechLLM, TextLLM)
Report = TypeVar("Report", "PruneReport", VocabularyReport)


@dataclass(frozen=True)
class PruneReport:
    """What was cut and what it did to the cross-entropy (nats a token) of the held-out part; None where not measured.

    Blocks are in the numbering of the model that was given, whatever had been cut from it before.
    """

    strategy: str
    blocks: tuple[str, ...]
    layers_before: int
    layers_after: int
    loss_full: float | None = None
    loss_cut: float | None = None
    loss_pruned: float | None = None
    bridges: tuple[BridgeReport, ...] = ()
    max_logit_difference: float | None = None
    vocabulary: VocabularyReport | None = None

    @property
    def recovered(self) -> float | None:
        """Share of the loss that the cut cost which the bridge gave back."""
        if self.loss_full is None or self.loss_cut is None or self.loss_pruned is None:
            return None
        cost = self.loss_cut - self.loss_full
        return (self.loss_cut - self.loss_pruned) / cost if cost > 0 else None


def prune(
    model: Model,
    blocks: Sequence[Block],
    *,
    calibration: Calibration | None = None,
    bridge: bool = True,
    method: Method = Method.REFIT,
    strategy: str = "block",
) -> tuple[Model, PruneReport]:
    """The model without `blocks`; the one given is left as it was and shares its weights.

    Args:
        model: a speech LLM or a text LLM.
        blocks: what to cut.
        calibration: fits the bridges and measures the losses; without it there is no bridge.
        bridge: heal every gap in closed form, see `bridge.py`.
        method: what a bridge fits.
        strategy: how the blocks were chosen, for the report.

    Returns:
        The smaller model, a speech LLM with an entry added to `provenance["pruning"]` (its blocks in the numbering
        before the first cut of all), and what was done.

    Raises:
        UsageError: blocks that do not exist or cannot be cut.
        CheckpointError: a family that cannot be cut there, see `drop_layers` and `check_structure`.
    """
    decoder = model.decoder
    merged = check_blocks(blocks, len(decoder_view(decoder)))
    pruned = drop_layers(decoder, merged)
    check_structure(pruned)
    losses: dict[str, Any] = {}
    reports: list[BridgeReport] = []
    if calibration is not None:
        full, cut = cross_entropies([decoder, pruned], calibration.held_out)
        losses |= {"loss_full": full, "loss_cut": cut, "loss_pruned": cut}
        if bridge:
            pruned, reports = bridge_blocks(decoder, merged, calibration, method=method, loss=cut)
            losses["loss_pruned"] = reports[-1].loss_after
    report = PruneReport(
        strategy=strategy,
        blocks=tuple(map(str, merged)),
        layers_before=len(decoder_view(decoder)),
        layers_after=len(decoder_view(pruned)),
        bridges=tuple(reports),
        **losses,
    )
    if isinstance(model, TextLLM):
        return replace(model, decoder=pruned), report
    result = model.with_decoder(pruned)
    known = model.config.provenance
    name = known.get("name") or known.get("base_model") or model.config.family
    result.config = model.config.with_provenance(
        pruning=with_cut(model, report),
        name=f"{name}-cut-{'+'.join(map(str, merged))}",  # never that of the model it was cut from
    )
    return result, report


def save_pruned(model: SpeechLLM | TextLLM, report: Report, folder: str | Path) -> Report:
    """Save a pruned model, read its decoder back, compare the logits, and only then let `folder` appear.

    Raises:
        CheckpointError: what was read back differs.
    """
    with whole_directory(folder) as partial:
        if isinstance(model, TextLLM):
            decoder_folder = partial
            save_decoder(model.decoder, model.tokenizer, partial)
        else:
            save_checkpoint(model, partial)
            decoder_folder = partial / DECODER_NAME
        if isinstance(model, SpeechLLM) and model.stock is not None:
            check = check_stock_reload(model, partial)
        else:
            check = check_reload(model.decoder, decoder_folder)
        report = replace(report, max_logit_difference=check.max_logit_difference)
        write_json(partial / REPORT_NAME, asdict(report))
    return report


def layers_to_drop(num_layers: int, *, drop: int | None = None, keep: float | None = None) -> int:
    """Number of layers for `--drop N` or `--keep SHARE`.

    Raises:
        UsageError: out of range.
    """
    if keep is not None:
        if not 0 < keep < 1:
            raise UsageError(
                f"--keep {keep} is no share of the layers: give a number between 0 and 1, such as 0.7"
            )
        drop = num_layers - max(1, round(num_layers * keep))
    if drop is None or not 0 < drop < num_layers:
        raise UsageError(f"cannot drop {drop} of {num_layers} layers: drop 1 to {num_layers - 1}")
    return drop


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella prune`."""
    parser.add_argument("model", help="'reference', a checkpoint folder, or a Hugging Face id")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--drop", type=int, metavar="N", help="number of layers to cut")
    amount.add_argument(
        "--keep", type=float, metavar="SHARE", help="share of the layers to keep, such as 0.7"
    )
    amount.add_argument(
        "--block", action="append", metavar="START:STOP", help="cut these layers (0-based, STOP not included)"
    )
    parser.add_argument(
        "--strategy", default="bridged", choices=STRATEGIES, help="how layers are chosen (default: bridged)"
    )
    add_speech(parser, "calibration speech", required=False)
    add_spoken_language(parser)
    parser.add_argument("--text", metavar="FILE", help="calibration text, for a text LLM")
    parser.add_argument(
        "--map", metavar="FILE", help="redundancy.json of `prunella analyze`, not to measure it again"
    )
    parser.add_argument(
        "--clips", type=int, default=200, metavar="N", help="calibration clips used (default 200)"
    )
    parser.add_argument("--no-bridge", action="store_true", help="leave the gap as it is")
    parser.add_argument(
        "--bridge-method", default="refit", choices=[one.value for one in Method], help="what the bridge fits"
    )
    add_stream(parser)
    add_vocabulary_arguments(parser)
    add_output(parser, "folder of the pruned checkpoint")


def run(args: argparse.Namespace) -> int:
    """`prunella prune`."""
    cuts_layers = any(one is not None for one in (args.drop, args.keep, args.block))
    cuts_tokens = cuts_vocabulary(args)
    if not cuts_layers and not cuts_tokens:
        raise UsageError(
            "nothing to cut: give --drop, --keep or --block for layers, --keep-vocabulary for tokens"
        )
    check_output(
        args.out, inputs=[args.model, args.speech, args.text, args.map, *(args.keep_vocabulary or ())]
    )
    if cuts_tokens:
        check_has_tokenizer(args.model)
    model = load_any(args.model, stream=args.stream)
    if cuts_tokens and stream_of(model.decoder) is not None:
        raise UsageError(
            "the vocabulary of a model that is read layer by layer cannot be cut: cut its layers first, and the "
            "tokens of what is left, or read it whole (--stream off) where there is the memory"
        )
    manifest = _manifest(model, args)
    if cuts_layers:
        model, report = _prune_layers(model, manifest, args)
    else:
        check_space(args.out, _written_bytes(model.decoder))
        count = len(decoder_view(model.decoder))
        report = PruneReport("none", (), count, count)
    if cuts_tokens:  # behind the layers, which are chosen by all that the model could say
        model, tokens = prune_vocabulary_asked(model, args, manifest)  # type: ignore[type-var]
        report = replace(report, vocabulary=tokens)
    report = save_pruned(model, report, args.out)
    sys.stdout.write(render_report(report) + f"\nsaved     {args.out}\n")
    return 0


def _prune_layers(
    model: SpeechLLM | TextLLM, manifest: SpeechManifest | None, args: argparse.Namespace
) -> tuple[SpeechLLM | TextLLM, PruneReport]:
    count = len(decoder_view(model.decoder))
    blocks = tuple(Block.parse(text) for text in args.block or ())
    size = (
        sum(map(len, check_blocks(blocks, count)))
        if blocks
        else layers_to_drop(count, drop=args.drop, keep=args.keep)
    )
    check_space(args.out, _written_bytes(model.decoder) * (count - size) / count)
    check_cut(model.decoder, blocks, size)
    calibration = _calibration(model, manifest, args)
    strategy = "block" if blocks else args.strategy
    if not blocks:
        evidence = Evidence(model.decoder, _map(args.map) if args.map else None, calibration)
        blocks = choose_blocks(evidence, size, strategy)
    elif calibration is None and not args.no_bridge:
        raise UsageError("the bridge needs calibration data: give --speech MANIFEST (or --no-bridge)")
    return prune(  # type: ignore[type-var]
        model,
        blocks,
        calibration=calibration,
        bridge=not args.no_bridge,
        method=Method(args.bridge_method),
        strategy=strategy,
    )


def _written_bytes(decoder: PreTrainedModel) -> int:
    stream = stream_of(decoder)
    return saved_bytes(decoder) if stream is None else stream.stored_bytes


def render_report(report: PruneReport) -> str:
    """The report as a few lines for a terminal."""
    lines = []
    if report.blocks:
        lines.append(
            f"cut       {' '.join(report.blocks)} ({report.strategy}): {report.layers_before} → {report.layers_after} layers"
        )
    if report.loss_full is not None:
        lines.append(
            f"loss      full {report.loss_full:.3f}, cut {report.loss_cut:.3f}, now {report.loss_pruned:.3f} nats a token (held out)"
        )
    for one in report.bridges:
        what = (
            f"ridge {one.ridge:g}: {one.loss_before:.3f} → {one.loss_after:.3f}"
            if one.applied
            else f"none: {one.reason}"
        )
        lines.append(f"bridge    {one.block} {what}")
    if report.recovered is not None and report.bridges:
        lines.append(f"recovered {100 * report.recovered:.0f} % of what the cut cost")
    if report.vocabulary is not None:
        lines += render_vocabulary(report.vocabulary)
    return "\n".join(lines)


def _manifest(model: SpeechLLM | TextLLM, args: argparse.Namespace) -> SpeechManifest | None:
    if not args.speech:
        return None
    if isinstance(model, TextLLM):
        raise UsageError(f"'{args.model}' is a text LLM: calibrate it with --text FILE")
    manifest = read_manifest(args.speech).sample(args.clips)
    return manifest.in_language(model.known_language(args.language))


def _calibration(
    model: SpeechLLM | TextLLM, manifest: SpeechManifest | None, args: argparse.Namespace
) -> Calibration | None:
    if manifest is not None and isinstance(model, SpeechLLM):
        return speech_calibration(model, manifest)
    return text_calibration(model, Path(args.text)) if args.text else None


def _map(path: str) -> RedundancyMap:
    maps = load_maps(path)
    return maps.get("speech") or maps["text"]
