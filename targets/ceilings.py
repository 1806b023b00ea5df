"""Ceiling kernels: what this machine's memory and ONNX Runtime's products reach, on random weights, in under a minute.

`fit`, `bench` and `targets check` use these and no others. No model is read: what they give never comes from what it judges.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from prunella.device_runtime.base.extras import explained
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE, log_mel
from prunella.device_runtime.sound.vad import TOGETHER, SileroVad, as_frames
from prunella.targets.compute import MANY_ROWS, ROWS, Compute
from prunella.targets.onnx_wire import MICROSOFT, Node, write_graph

Array = npt.NDArray[Any]
WIDTH = 768  # of the matrices: between those of small decoders and those of large ones
STREAMED = 80e6  # bytes of matrices behind one another, which no cache holds: weights come from memory, as a decoder's do
_HEADS, _HEAD, _SEEN = 8, 64, 128  # of attention: heads, their width, positions of the cache
_NODES, _CHAIN = 200, 4
ROUNDS, SECONDS, LONGEST = (
    6,
    0.02,
    0.4,
)  # of each kernel; the fastest counts: what else a machine does is no ceiling of it
KERNELS = ("float32", "int8_rows", "int8_64", "int4_32")  # where none are asked for


@dataclass(frozen=True)
class Kernel:
    """A way to multiply: its name in `Compute.rates`, bits, and weights in a block (0: none)."""

    name: str
    bits: int
    block: int = 0

    @property
    def stored(self) -> float:
        """Bytes of a weight."""
        return self.bits / 8 + (4 / self.block if self.block else 0)

    @property
    def count(self) -> int:
        """Matrices that no cache holds."""
        return int(STREAMED / (WIDTH**2 * self.stored))

    @staticmethod
    def parse(name: str) -> Kernel:
        """Such as "float32", "int8_rows", "int4_32"."""
        family, _, block = name.partition("_")
        bits = {"float32": 32, "int8": 8, "int4": 4}[family]
        return Kernel(name, bits, int(block) if block.isdigit() else 0)


class Ceilings:
    """The kernels, loaded once and timed as often as asked."""

    def __init__(self, threads: int, kernels: Iterable[str] = KERNELS) -> None:
        self._runtime, self.threads = _onnxruntime(), threads
        self._names = tuple(dict.fromkeys(kernels))
        self._runs = {
            **{name: self._product(Kernel.parse(name)) for name in self._names},
            "node": self._session(_nodes(_NODES)),
            "call": self._session(_nodes(1)),
            "one": self._session(_cached_attention()),
            "many": self._session(_attention()),
            "elementwise": self._session(_elementwise()),
        }
        self._voice = SileroVad()

    def measure(self) -> Compute:
        """Constants of this machine, now."""
        run = self._runs
        rates = {}
        for name in self._names:
            session, weights = run[name], Kernel.parse(name).count * WIDTH**2
            rates[name] = tuple(
                _short(2 * weights * rows / _spent(session, x=(rows, WIDTH)) / 1e9) for rows in ROWS
            )
        cache = (1, _HEADS, _SEEN, _HEAD)
        row = (1, 1, _HEADS * _HEAD)
        one = _spent(run["one"], q=row, k=row, v=row, pk=cache, pv=cache)
        seen = (1, _HEADS, MANY_ROWS, _HEAD)
        many = _spent(run["many"], q=seen, k=(1, _HEADS, _HEAD, MANY_ROWS), v=seen)
        values = _spent(run["elementwise"], x=(MANY_ROWS, WIDTH))
        tiny = (1, 64)
        call = _spent(run["call"], x=tiny)
        node = (_spent(run["node"], x=tiny) - call) / (_NODES - 1)
        return Compute(
            gb_per_s=_short(self._bandwidth(rates)),
            rates=rates,
            attention=(
                _short(4 * _HEADS * _HEAD * _SEEN / one / 1e9),
                _short(4 * _HEADS * _HEAD * MANY_ROWS**2 / many / 1e9),
            ),
            elementwise=_short(3 * _CHAIN * MANY_ROWS * WIDTH / values / 1e9),
            node_us=round(1e6 * max(node, 0.0), 2),
            call_us=round(1e6 * call, 1),
            features_ms=round(1e3 * _features(), 2),
            gate_ms=round(1e3 * _gate(self._voice), 2),
            source=f"measured by `prunella fit --calibrate`, {self.threads} thread{'s' * (self.threads > 1)}, "
            f"onnxruntime {self._runtime.__version__}",
        )

    def _bandwidth(self, rates: Mapping[str, tuple[float, ...]]) -> float:
        """GB/s: the most that any kernel reads with one row."""
        return max(rate[0] / 2 * Kernel.parse(name).stored for name, rate in rates.items())

    def _product(self, kernel: Kernel) -> Any:
        return self._session(product_graph(kernel, WIDTH, kernel.count))

    def _session(self, model: bytes) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return self._runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure_ceilings(threads: int, kernels: Iterable[str] = KERNELS, *, passes: int = 2) -> Compute:
    """Constants of this machine with so many threads, the best of some passes.

    Raises:
        EngineError: onnxruntime is not installed.
    """
    ceilings = Ceilings(threads, kernels)
    found = ceilings.measure()
    for _ in range(passes - 1):
        found = best_of(found, ceilings.measure())
    return found


def best_of(first: Compute, second: Compute) -> Compute:
    """The higher rates and lower costs of two measurements: on a machine that does other things too, the nearer to its ceiling."""
    return replace(
        first,
        gb_per_s=max(first.gb_per_s, second.gb_per_s),
        rates={
            name: tuple(map(max, rates, second.rates.get(name, rates))) for name, rates in first.rates.items()
        },
        attention=tuple(map(max, first.attention, second.attention)),
        elementwise=max(first.elementwise, second.elementwise),
        node_us=min(first.node_us, second.node_us),
        call_us=min(first.call_us, second.call_us),
        features_ms=min(first.features_ms, second.features_ms),
        gate_ms=min(first.gate_ms, second.gate_ms),
    )


def _short(rate: float) -> float:
    """Four digits, however slow a machine is."""
    return float(f"{rate:.4g}")


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise explained(error, "measuring this machine") from error
    return onnxruntime


def _spent(session: Any, **shapes: Sequence[int]) -> float:
    """Seconds of a run with inputs of such shapes: of the fastest of some rounds in which it is repeated."""
    rng = np.random.default_rng(0)
    inputs = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    return timed(lambda: session.run(None, inputs))


def timed(run: Callable[[], object]) -> float:
    """Seconds of a call: of the fastest of some rounds in which it is repeated."""
    run()
    start = time.perf_counter()
    run()
    repeats = max(1, int(SECONDS / max(time.perf_counter() - start, 1e-6)))
    rounds: list[float] = []
    began = time.perf_counter()
    while len(rounds) < ROUNDS and (not rounds or time.perf_counter() - began < LONGEST):
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        rounds.append((time.perf_counter() - start) / repeats)
    return min(rounds)


def product_graph(kernel: Kernel, width: int, count: int) -> bytes:
    """So many products with square matrices of their own, behind one another: x (rows, width) to y."""
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {}
    nodes: list[Node] = []
    for at in range(count):
        source, result = ("x" if at == 0 else f"h{at - 1}"), f"h{at}"
        weights |= _matrix(kernel, width, f"w{at}", rng)
        nodes += _product(kernel, width, source, result, f"w{at}")
    return write_graph(nodes, weights, {"x": ("rows", width)}, [f"h{count - 1}"])


def _matrix(kernel: Kernel, width: int, name: str, rng: np.random.Generator) -> dict[str, Array]:
    if kernel.bits == 32:
        return {name: rng.standard_normal((width, width), dtype=np.float32) / np.float32(math.sqrt(width))}
    if not kernel.block:
        return {
            name: rng.integers(-127, 128, (width, width), dtype=np.int8),
            f"{name}z": np.zeros(width, np.int8),
            f"{name}s": np.full(width, 1e-4, np.float32),
        }
    blocks = -(-width // kernel.block)
    return {
        name: rng.integers(0, 256, (width, blocks, kernel.block * kernel.bits // 8), dtype=np.uint8),
        f"{name}s": np.full((width, blocks), 1e-3, np.float32),
    }


def _product(kernel: Kernel, width: int, source: str, result: str, name: str) -> list[Node]:
    if kernel.bits == 32:
        return [Node("MatMul", [source, name], [result])]
    if not kernel.block:
        inner = [f"{result}q", f"{result}s", f"{result}z"]
        return [
            Node("DynamicQuantizeLinear", [source], inner),
            Node("MatMulInteger", [inner[0], name, inner[2], f"{name}z"], [f"{result}i"]),
            Node("Cast", [f"{result}i"], [f"{result}f"], {"to": 1}),
            Node("Mul", [inner[1], f"{name}s"], [f"{result}m"]),
            Node("Mul", [f"{result}f", f"{result}m"], [result]),
        ]
    attributes = {
        "K": width,
        "N": width,
        "bits": kernel.bits,
        "block_size": kernel.block,
        "accuracy_level": 4,
    }
    return [Node("MatMulNBits", [source, name, f"{name}s"], [result], attributes, MICROSOFT)]


def _nodes(count: int) -> bytes:
    """Operators that do next to nothing."""
    nodes = [Node("Add", ["x" if at == 0 else f"h{at - 1}", "w"], [f"h{at}"]) for at in range(count)]
    return write_graph(nodes, {"w": np.ones(64, np.float32)}, {"x": (1, 64)}, [f"h{count - 1}"])


def _attention() -> bytes:
    """Many rows over themselves, as in an audio encoder."""
    nodes = [
        Node("MatMul", ["q", "k"], ["s"]),
        Node("Softmax", ["s"], ["p"], {"axis": -1}),
        Node("MatMul", ["p", "v"], ["y"]),
    ]
    seen = (1, _HEADS, MANY_ROWS, _HEAD)
    return write_graph(nodes, {}, {"q": seen, "k": (1, _HEADS, _HEAD, MANY_ROWS), "v": seen}, ["y"])


def _cached_attention() -> bytes:
    """One row over a cache, by the decoder's own operator."""
    row, cache = (1, 1, _HEADS * _HEAD), (1, _HEADS, _SEEN, _HEAD)
    names = ["q", "k", "v", "pk", "pv", "last", "total"]
    attributes = {"num_heads": _HEADS, "kv_num_heads": _HEADS}
    nodes = [Node("GroupQueryAttention", names, ["y", "nk", "nv"], attributes, MICROSOFT)]
    lengths: dict[str, Array] = {
        "last": np.array([_SEEN - 1], np.int32),
        "total": np.array([_SEEN], np.int32),
    }
    return write_graph(nodes, lengths, {"q": row, "k": row, "v": row, "pk": cache, "pv": cache}, ["y"])


def _elementwise() -> bytes:
    """A norm, an activation and an addition, again and again."""
    nodes = []
    for at in range(_CHAIN):
        source = "x" if at == 0 else f"h{at - 1}"
        nodes += [
            Node("LayerNormalization", [source, "g", "b"], [f"n{at}"], {"axis": -1}),
            Node("Gelu", [f"n{at}"], [f"a{at}"]),
            Node("Add", [f"a{at}", source], [f"h{at}"]),
        ]
    weights: dict[str, Array] = {"g": np.ones(WIDTH, np.float32), "b": np.zeros(WIDTH, np.float32)}
    return write_graph(nodes, weights, {"x": (MANY_ROWS, WIDTH)}, [f"h{_CHAIN - 1}"])


def _features() -> float:
    """Seconds of log-mel for a second of audio."""
    seconds = 3
    noise = np.random.default_rng(0).standard_normal(seconds * SAMPLE_RATE).astype(np.float32) * 0.1
    return timed(lambda: log_mel(noise, 80)) / seconds


def _gate(voice: SileroVad) -> float:
    """Seconds of telling speech from silence in a second of audio."""
    noise = np.random.default_rng(0).standard_normal(TOGETHER).astype(np.float32) * 0.01
    frames = as_frames(noise)
    return SAMPLE_RATE / TOGETHER * timed(lambda: voice.judge(frames))
