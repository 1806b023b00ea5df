"""What was measured of a machine, as a target of one's own."""

from __future__ import annotations

from prunella.targets.compute import Compute


def profile_text(compute: Compute, threads: int, *, base: str, name: str) -> str:
    """A profile in TOML that inherits all but the speeds.

    Args:
        compute: measured.
        threads: that it was measured with.
        base: the target that it is a machine of.
        name: of the profile.
    """
    numbers = ("gb_per_s", "elementwise", "node_us", "call_us", "features_ms", "gate_ms")
    lines = [
        f'name = "{name}"',
        f'description = "{base}, as measured on this machine"',
        f'inherits = "{base}"',
        f"threads = {threads}",
        "",
        "[compute]",
        *(f"{key} = {getattr(compute, key):g}" for key in numbers),
        f"attention = {list(compute.attention)}",
        f'source = "{compute.source}"',
        "",
        "[compute.rates]  # 10^9 operations a second, by the number of rows (targets/compute.py)",
        *(f"{kernel} = {list(rates)}" for kernel, rates in compute.rates.items()),
    ]
    return "\n".join(lines) + "\n"
