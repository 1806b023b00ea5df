"""The table of text decoders in `docs/families.md`: what the code says of each before any work.

    python docs/decoder_matrix.py

It asks the checks that `prune` and `export` ask, about tiny models of the real classes (`tests/decoder_families.py`);
`tests/export/test_decoders.py` compares what is a "yes" with transformers, ONNX Runtime and llama.cpp in numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "families.md"
COLUMNS = ("cut", "bridge", "loss", "ONNX", "GGUF")
_BETWEEN = "<!-- decoders: docs/decoder_matrix.py -->\n{text}<!-- end of decoders -->"
_CONTEXT = 2_048  # of the targets
YES = "yes"


@cache
def statuses(row: str) -> dict[str, str]:
    """Column → "yes", "yes: " and a condition, or "no: " and the reason, of the decoder in a row."""
    sys.path.insert(0, str(ROOT / "tests"))
    from decoder_families import decoder_config
    from transformers import AutoModelForCausalLM

    from prunella.device_runtime.base.errors import CheckpointError
    from prunella.export.gguf_families import find_family
    from prunella.export.onnx_families import check_onnx_decoder
    from prunella.speech_llm.decoder_view import decoder_view

    config = decoder_config(row)
    found = {
        "ONNX": _said(lambda: check_onnx_decoder(config, _CONTEXT)),
        "GGUF": _said(lambda: find_family(config, _CONTEXT)),
    }
    decoder = AutoModelForCausalLM.from_config(config)
    try:
        decoder_view(decoder)
    except CheckpointError as error:
        return found | dict.fromkeys(("cut", "bridge", "loss"), f"no: {error}")
    return found | {"cut": _cut(decoder), "bridge": _bridge(decoder), "loss": YES}


def cuts(decoder: Any) -> list[int]:
    """Sizes of the blocks that can be cut wherever they begin; the last layer stays."""
    from prunella.device_runtime.base.errors import PrunellaError
    from prunella.pruning.blocks import Block
    from prunella.pruning.structure import check_structure
    from prunella.pruning.surgery import drop_layers

    count, sizes = decoder.config.num_hidden_layers, []
    for size in range(1, count - 1):
        try:
            for start in range(count - size):
                check_structure(drop_layers(decoder, [Block(start, start + size)]))
        except PrunellaError:
            continue
        sizes.append(size)
    return sizes


def _cut(decoder: Any) -> str:
    from prunella.pruning.blocks import Block
    from prunella.pruning.structure import check_cut

    sizes = cuts(decoder)
    if not sizes:
        return _said(lambda: check_cut(decoder, [Block(1, 2)], 1))
    return YES if sizes[0] == 1 else f"yes: whole groups of {sizes[0]} layers"


def _bridge(decoder: Any) -> str:
    from prunella.pruning.blocks import Block
    from prunella.pruning.bridge import why_no_bridge

    reason = why_no_bridge(decoder, Block(2, 3))
    return f"no: {reason}" if reason else YES


def _said(check: Callable[[], object]) -> str:
    from prunella.device_runtime.base.errors import PrunellaError

    try:
        check()
    except PrunellaError as error:
        return f"no: {error}"
    return YES


def shown(status: str) -> str:
    """A cell: without the list of what there is instead, which is this table."""
    return status.partition(": there are ")[0].replace("|", "\\|")


def table() -> str:
    """A row for every decoder."""
    sys.path.insert(0, str(ROOT / "tests"))
    from decoder_families import ROWS

    rows = [["decoder", *COLUMNS], [":--"] * (len(COLUMNS) + 1)]
    for name in ROWS:
        found = statuses(name)
        kind, _, variant = name.partition(", ")
        label = f"`{kind}`" + (f", {variant}" if variant else "")
        rows.append([label, *(shown(found[column]) for column in COLUMNS)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def between(page: str) -> str:
    """The table that stands in a page."""
    begin, end = _BETWEEN.format(text="\0").split("\0")
    return page.split(begin)[1].split(end)[0]


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    old = _BETWEEN.format(text=between(page))
    PAGE.write_text(page.replace(old, _BETWEEN.format(text=table())), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
