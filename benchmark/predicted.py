"""What the cost model (`targets/fit.py`) says of the clips that were measured: how near a system is to what its machine can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prunella.benchmark.record import BenchRecord, ClipTiming, median_timings
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.bundle import open_bundle
from prunella.evaluation.systems import split_engine, system_kind
from prunella.targets.bundle_shapes import bundle_shapes
from prunella.targets.fit import predict
from prunella.targets.profile import TargetProfile


def check_rates(target: TargetProfile) -> None:
    """Refuse a target of whose machine no rates are known.

    Raises:
        UsageError: that is so.
    """
    if not target.compute.known:
        raise UsageError(
            f"nothing is known of how fast {target.name} is: measure this machine with "
            "`prunella fit --calibrate -o here.toml` and give --target here.toml"
        )


def with_prediction(
    record: BenchRecord, timings: Sequence[ClipTiming], target: TargetProfile, *, beams: int
) -> BenchRecord:
    """The record and its `predicted_real_time_factor` on the target: the same clips, and as many tokens as were said.

    What is no bundle comes back as it is. Beams count as rows of every step, whether followed or not.
    """
    folder, _ = split_engine(record.system)
    if system_kind(folder) != "bundle":
        return record
    shapes, storage = bundle_shapes(open_bundle(folder, verify=False))
    seconds = sum(
        predict(
            shapes, storage, target.compute, seconds=one.audio_seconds, tokens=one.tokens, beams=beams
        ).total
        for one in median_timings(timings)
    )
    return replace(record, predicted_real_time_factor=seconds / record.audio_seconds)
