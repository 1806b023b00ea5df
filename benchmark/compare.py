"""Measure systems side by side: each in its own process, the same clip by each in turn, so that noise hits all alike."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunella.benchmark.conditions import conditions
from prunella.benchmark.predicted import check_rates, with_prediction
from prunella.benchmark.record import BenchRecord, ClipTiming, bench_record, median_timings
from prunella.device_runtime.base.errors import EngineError, ManifestError, PrunellaError, UsageError
from prunella.device_runtime.decoding.limits import PAYING_BEAMS
from prunella.device_runtime.engines.providers import Missing, announce
from prunella.device_runtime.transcript import Effort
from prunella.evaluation.bootstrap import Interval, ratio_interval
from prunella.evaluation.manifest import SpeechManifest, Utterance
from prunella.targets.profile import TargetProfile


@dataclass(frozen=True)
class SpeedUp:
    """How many times as fast `system` is as `base`, on the same clips, with 95 % intervals (bootstrap over clips)."""

    base: str
    system: str
    end_to_end: Interval  # seconds of base / seconds of system
    decode: Interval | None  # seconds of decode a token, the same way; None where one does not time it

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """One record a system in the order asked for, and the speed-up of every one over the first."""

    records: tuple[BenchRecord, ...]
    speed_ups: tuple[SpeedUp, ...]

    def to_json(self) -> dict[str, Any]:
        """`records`, and `speed_ups` over the first system where there are several."""
        return {
            "records": [record.to_json() for record in self.records],
            "speed_ups": [speed_up.to_json() for speed_up in self.speed_ups],
        }


def measure(
    systems: Sequence[str],
    manifest: SpeechManifest,
    *,
    repeat: int = 3,
    guards: bool = True,
    threads: int | None = None,
    beams: int | None = None,
    language: str | None = None,
    effort: Effort | None = None,
    strict: bool = False,
    target: TargetProfile | None = None,
    tick: Callable[[], object] | None = None,
) -> Comparison:
    """Measure one or several systems on the clips of a manifest.

    All are loaded, one after the other; then every clip goes through all of them before the next clip does, with the
    order turned round at every repeat. The first call of each system is timed apart and not counted.

    Args:
        systems: names for `evaluation.systems.open_system`.
        manifest: the clips.
        repeat: how often each clip is timed; the median counts.
        guards: False switches the repeat stop and the silence gate off.
        threads: CPU threads of every system; by default each one's own choice.
        beams: transcripts that every system follows at once where it can, 0 for as many as pay; by default each one's own
            choice, which is greedy where the bundle says nothing else.
        language: that is spoken, by its code or English name, of systems that take one.
        effort: of systems with a CTC head, "fast", "balanced" or "exact"; by default each one's own.
        strict: refuse a system that runs on less than its bundle asks for.
        target: of whose machine the rates are known: bundles are held against what the cost model predicts there.
        tick: called after every transcription (`len(systems) * len(manifest) * repeat` times), for a progress bar.

    Raises:
        UsageError: no system, fewer than one repeat, or a target of unknown rates.
        PrunellaError: what a system raised, with its name; EngineError when its process died.
    """
    if not systems or repeat < 1:
        raise UsageError("a benchmark needs at least one system and one repeat")
    if target is not None:
        check_rates(target)
    clips = manifest.utterances
    if not clips:
        raise ManifestError(f"{manifest.path} has no clip to measure: choose others")
    before = conditions()  # now, before the measurement itself adds to the load
    if beams is not None:
        before["beams"] = beams
    if effort is not None:
        before["effort"] = effort
    timings: list[list[ClipTiming]] = [[] for _ in systems]
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(
                MeasuredProcess(
                    system,
                    guards=guards,
                    threads=threads,
                    beams=beams,
                    language=language,
                    effort=effort,
                    strict=strict,
                )
            )
            for system in systems
        ]
        first = [child.transcribe(clips[0].audio) for child in children]
        for i, timing in _in_turns(children, clips, repeat):
            timings[i].append(timing)
            if tick is not None:
                tick()
        records = tuple(
            child.record(timings[i], first[i], threads, before) for i, child in enumerate(children)
        )
    if target is not None:
        followed = PAYING_BEAMS if beams == 0 else beams or 1
        records = tuple(
            with_prediction(record, timing, target, beams=followed)
            for record, timing in zip(records, timings, strict=True)
        )
    speed_ups = [speed_up(systems[0], timings[0], systems[i], timings[i]) for i in range(1, len(systems))]
    return Comparison(records, tuple(speed_ups))


def _in_turns(
    children: Sequence[MeasuredProcess], clips: Sequence[Utterance], repeat: int
) -> Iterator[tuple[int, ClipTiming]]:
    """(number of the system, timing): every clip through all systems, their order turned round at every repeat."""
    for turn in range(repeat):
        for clip in clips:
            order = list(enumerate(children))
            for i, child in reversed(order) if turn % 2 else order:
                answer = child.transcribe(clip.audio)
                answer.pop("engine")
                yield i, ClipTiming(clip=clip.id, repeat=turn, **answer)


class MeasuredProcess:
    """A system in a fresh child process (`benchmark.measure`); a context manager that leaves no process behind."""

    def __init__(
        self,
        system: str,
        *,
        guards: bool = True,
        threads: int | None = None,
        beams: int | None = None,
        language: str | None = None,
        effort: Effort | None = None,
        strict: bool = False,
    ) -> None:
        """Start the child and wait until the system is loaded: `load_seconds` after the start of the process.

        Raises:
            PrunellaError: the system cannot be opened.
        """
        self.system = system
        command = [sys.executable, "-m", "prunella.benchmark.measure", system]
        command += [] if guards else ["--no-guards"]
        command += ["--strict"] if strict else []
        command += [] if threads is None else ["--threads", str(threads)]
        command += [] if beams is None else ["--beams", str(beams)]
        command += [] if language is None else ["--language", language]
        command += [] if effort is None else ["--effort", effort]
        began = time.perf_counter()
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        try:
            loaded = self._answer("loading")
            self.disk_bytes: int | None = loaded["disk_bytes"]
            announce([Missing(**one) for one in loaded["missing"]])
            self.load_seconds = time.perf_counter() - began
        except BaseException:
            self.__exit__()
            raise

    def transcribe(self, path: Path) -> dict[str, Any]:
        """Transcribe one file in the child: the fields of `ClipTiming` but clip and repeat, and `engine`."""
        self._send(json.dumps(str(path)) + "\n")
        return self._answer(f"transcribing {path}")

    def record(
        self,
        timings: Sequence[ClipTiming],
        first: dict[str, Any],
        threads: int | None,
        conditions: dict[str, Any],
    ) -> BenchRecord:
        """What was measured; the process ends."""
        ended = self.finish()
        if ended["threads"] is not None:
            conditions = {**conditions, "threads_used": ended["threads"]}
        return bench_record(
            timings,
            system=self.system,
            engine=first["engine"],
            threads=threads,
            load_seconds=self.load_seconds,
            first_call_seconds=first["total"],
            peak_memory_bytes=ended["peak_memory_bytes"],
            disk_bytes=self.disk_bytes,
            conditions=conditions,
        )

    def finish(self) -> dict[str, Any]:
        """End the child; its `peak_memory_bytes`, and the fewest and most `threads` that worked."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        return self._answer("ending")

    def __enter__(self) -> MeasuredProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _send(self, line: str) -> None:
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: the answer that does not come says so
            self._child.stdin.write(line)
            self._child.stdin.flush()

    def _answer(self, doing: str) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            code = self._child.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise EngineError(
                f"the process of {self.system} died while {doing} ({how}): what it said is above; "
                "try `prunella transcribe` with it alone"
            )
        answer = json.loads(line)
        if "error" in answer:
            error = PrunellaError(f"{self.system}: {answer['error']}")
            error.exit_code = answer["exit_code"]
            raise error
        return answer


def speed_up(base: str, base_timings: list[ClipTiming], system: str, timings: list[ClipTiming]) -> SpeedUp:
    a, b = median_timings(base_timings), median_timings(timings)
    decode = None
    timed = [(x, y) for x, y in zip(a, b, strict=True) if min(x.decode, y.decode, x.tokens, y.tokens) > 0]
    if timed:
        # A token of the one against a token of the other: their texts, and so the numbers of tokens, may differ.
        decode = ratio_interval(
            [x.decode / x.tokens for x, _ in timed], [y.decode / y.tokens for _, y in timed]
        )
    return SpeedUp(base, system, ratio_interval([t.total for t in a], [t.total for t in b]), decode)
