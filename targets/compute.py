"""What a machine reaches: the constants of the cost model (`fit.py`), each measured by `ceilings.py` or derived from a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ROWS = (1, 8, 32, 128)  # rows at which a kernel's rates hold; a profile may state the first and the last
MANY_ROWS = ROWS[-1]
# Kernels by how weights are stored; behind "_" the size of a block, where its rate is known of itself.
KERNELS = ("float32", "float16", "int8_rows", "int8", "int4")


@dataclass(frozen=True)
class Compute:
    """Rates that are reached with a number of threads, not those of a data sheet. All zero: not known.

    Attributes:
        gb_per_s: at which weights are read from memory.
        rates: by kernel, multiplications and additions in 10^9 a second, weights coming from memory, with the numbers of
            rows in `ROWS`, or with the first and the last of them.
        attention: the same for attention in float32, of one row and of `MANY_ROWS`.
        elementwise: values in 10^9 a second through a norm and an activation.
        node_us: microseconds that any operator costs.
        call_us: microseconds that running a graph costs.
        features_ms: milliseconds of log-mel for a second of audio.
        gate_ms: milliseconds of telling speech from silence in a second of audio.
        source: where they are from.
    """

    gb_per_s: float = 0.0
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    attention: tuple[float, ...] = ()
    elementwise: float = 0.0
    node_us: float = 0.0
    call_us: float = 0.0
    features_ms: float = 0.0
    gate_ms: float = 0.0
    source: str = ""

    @property
    def known(self) -> bool:
        """Whether anything can be predicted with them."""
        return bool(self.gb_per_s and self.rates)

    def rate(self, kernel: str) -> tuple[float, ...]:
        """Of a kernel such as "int4_32", or of the nearest that is known: other blocks, then wider weights."""
        family = kernel if kernel == "int8_rows" else kernel.partition("_")[0]
        wider = {"int8_rows": "int8", "int8": "int8_64", "int4": "int4_32", "float16": "float32"}.get(
            family, "int8"
        )
        for name in (kernel, family, wider, "int8", "float32"):
            if name in self.rates:
                return self.rates[name]
        return next(iter(self.rates.values()))

    def product_seconds(self, weights: float, stored: float, kernel: str, rows: float) -> float:
        """Of a product with so many `weights` in `stored` bytes, for so many rows: arithmetic or memory, whichever is slower."""
        rates = self.rate(kernel)
        at = ROWS if len(rates) == len(ROWS) else (ROWS[0], ROWS[-1])
        spent = [2e-9 * weights * count / rate for count, rate in zip(at, rates, strict=True)]
        if rows >= at[-1]:
            found = spent[-1] * rows / at[-1]
        else:  # between two numbers of rows the time grows by as much with every row
            upper = next(place for place, count in enumerate(at) if count > rows)
            low, high = at[upper - 1], at[upper]
            share = (max(rows, 1) - low) / (high - low)
            found = spent[upper - 1] + (spent[upper] - spent[upper - 1]) * share
        return max(found, stored / (self.gb_per_s * 1e9))

    def attention_seconds(self, operations: float, rows: float) -> float:
        """Of so many multiplications and additions in a layer of attention."""
        one, many = self.attention
        return operations / (1e9 * (one if rows <= 1 else many))
