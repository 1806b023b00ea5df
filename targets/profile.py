"""What is known about a kind of device, read from one TOML file per target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prunella.device_runtime.base.errors import TargetError
from prunella.device_runtime.base.suggestions import did_you_mean
from prunella.device_runtime.bundle import Buckets, OptionValue, Provider
from prunella.targets.compute import Compute
from prunella.targets.schema import read_merged, read_toml, typed_fields

PROFILES = Path(__file__).parent


@dataclass(frozen=True)
class MatchRules:
    """Which machines a target is for. Every rule that is stated must hold, by any one of its values.

    Attributes:
        arch: as `platform.machine()` gives it.
        os: as `platform.system()` gives it.
        device_tree: a part of the board's model or of its compatible strings, as Linux shows them in /proc/device-tree.
        soc: a part of the name of the processor.
        gpu: a part of the name of a graphics card.
    """

    arch: tuple[str, ...] = ()
    os: tuple[str, ...] = ()
    device_tree: tuple[str, ...] = ()
    soc: tuple[str, ...] = ()
    gpu: tuple[str, ...] = ()
    l4t: tuple[str, ...] = ()  # beginning of the release of Jetson Linux, such as "R36"


@dataclass(frozen=True)
class Precision:
    """How single parts are stored where a recipe would store them otherwise: "float", "int8", or "" for the recipe's own.

    The decoder's precision is the recipe.
    """

    audio_encoder: str = ""
    embed_tokens: str = ""
    head: str = ""

    def overrides(self) -> dict[str, str]:
        """The parts that are not left to the recipe."""
        return {part: value for part, value in vars(self).items() if value}


@dataclass(frozen=True)
class MemoryBudget:
    """What a bundle may take in memory, and with whom the memory is shared."""

    budget_mb: int = 0  # 0: not limited
    shared_with: str = ""


@dataclass(frozen=True)
class Bandwidth:
    """Of the memory that the decoder's weights are read from, once a token: it bounds the tokens a second."""

    gb_per_s: float = 0.0  # 0: not known
    source: str = ""


@dataclass(frozen=True)
class Latency:
    """What is wanted of a target: seconds from the end of a command of 3 s until its text is there."""

    command_seconds: float = 1.5


@dataclass(frozen=True)
class TargetProfile:
    """One target. Every field but the first five has a default; a key that is not a field is an error."""

    name: str
    description: str
    engines: tuple[str, ...]  # in order of preference
    recipe: str  # the default one
    recipes: tuple[str, ...]  # all that work there
    providers: tuple[str, ...] = ("CPUExecutionProvider",)  # of ONNX Runtime, in order of preference
    provider_options: Mapping[str, Mapping[str, OptionValue]] = field(default_factory=dict)
    llama: Mapping[str, OptionValue] = field(default_factory=dict)  # llama.cpp's settings, by its own names
    threads: int = 0  # 0: one per physical core
    max_context: int = 2_048  # positions of the decoder
    python: str = "3.11"  # that its system has: `prunella pack` chooses wheels for it
    glibc: str = "2.28"  # likewise; on macOS without meaning
    install: tuple[
        str, ...
    ] = ()  # command lines for the device; `{prunella[cpu]}`: see install_lines.fill_in
    match: MatchRules = field(default_factory=MatchRules)
    precision: Precision = field(default_factory=Precision)
    memory: MemoryBudget = field(default_factory=MemoryBudget)
    bandwidth: Bandwidth = field(default_factory=Bandwidth)
    compute: Compute = field(default_factory=Compute)
    buckets: Buckets = field(default_factory=Buckets)
    latency: Latency = field(default_factory=Latency)

    def onnx_providers(self) -> tuple[Provider, ...]:
        """The providers with their options, as a bundle carries them."""
        return tuple(Provider(name, dict(self.provider_options.get(name, {}))) for name in self.providers)


def list_targets() -> tuple[str, ...]:
    """Names of the built-in targets, sorted."""
    return tuple(sorted(path.stem for path in PROFILES.glob("*.toml")))


def load_target(name: str | Path) -> TargetProfile:
    """A built-in target by name, or a profile of one's own by the path of its `.toml`.

    Raises:
        TargetError: unknown (with the nearest name), or malformed (with file and key).
    """
    return read_profile(target_path(name))


def target_path(name: str | Path) -> Path:
    """The file of a target.

    Raises:
        TargetError: neither a built-in name nor a path to a `.toml`.
    """
    text = str(name)
    if text in list_targets():
        return PROFILES / f"{text}.toml"
    if text.endswith(".toml"):
        return Path(name)
    hint = did_you_mean(text, list_targets(), cutoff=0.3) or f"there is {', '.join(list_targets())}."
    raise TargetError(
        f"no target '{text}': {hint} `prunella targets list` shows them; a path to a .toml works too"
    )


def read_profile(path: Path) -> TargetProfile:
    """Parse and check one profile, with what it inherits.

    Raises:
        TargetError: unreadable, not TOML, a key missing, unknown, of another type or with an impossible value.
    """
    merged = read_merged(path, TargetProfile, find=_parent)
    profile = TargetProfile(**typed_fields(merged, TargetProfile, path))
    _check_values(profile, path)
    return profile


def _parent(name: str, child: Path) -> Path:
    """A path in `inherits` counts from the file that it stands in."""
    return child.parent / name if name.endswith(".toml") else target_path(name)


def _check_values(profile: TargetProfile, path: Path) -> None:
    def among(key: str, value: str, known: tuple[str, ...]) -> None:
        if value not in known:
            raise TargetError(f"{path}: {key} {value!r}: choose among {', '.join(known)}")

    engines = ("onnx", "gguf")
    for engine in profile.engines:
        among("'engines' holds", engine, engines)
    if not profile.engines:
        raise TargetError(f"{path}: 'engines' is empty: choose among {', '.join(engines)}")
    if profile.recipe not in profile.recipes:
        raise TargetError(f"{path}: 'recipe' is {profile.recipe!r}, which is not in 'recipes'")
    for part, value in profile.precision.overrides().items():
        among(f"'precision.{part}' is", value, ("float", "int8"))
    for key, number, least, unit in (
        ("threads", profile.threads, 0, "0 (one per physical core) or more"),
        ("max_context", profile.max_context, 64, "64 or more"),
        ("memory.budget_mb", profile.memory.budget_mb, 0, "0 (not limited) or more"),
        ("bandwidth.gb_per_s", profile.bandwidth.gb_per_s, 0, "0 (not known) or more"),
    ):
        if number < least:
            raise TargetError(f"{path}: '{key}' must be {unit}, is {number}")
    if profile.bandwidth.gb_per_s and not profile.bandwidth.source:
        raise TargetError(f"{path}: 'bandwidth.source' is missing: say where the figure comes from")
    # Of this file alone: a child that chooses other providers may inherit options that it has no use for.
    for name in read_toml(path).get("provider_options", {}):
        if name not in profile.providers:
            raise TargetError(
                f"{path}: 'provider_options.{name}' is for a provider that is not in 'providers' "
                f"({', '.join(profile.providers)})"
            )
