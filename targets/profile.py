"""What is known about a kind of device, read from one TOML file per target."""

from __future__ import annotations

import difflib
import sys
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from prunella.device_runtime.errors import TargetError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROFILES = Path(__file__).parent
_ENGINES = ("onnx", "gguf")


@dataclass(frozen=True)
class MatchRules:
    """Which machines a target is for; values as `platform.machine()` and `platform.system()` give them."""

    arch: tuple[str, ...] = ()
    os: tuple[str, ...] = ()


@dataclass(frozen=True)
class TargetProfile:
    """One target. Every field but the first five has a default; a key that is not a field is an error."""

    name: str
    description: str
    engines: tuple[str, ...]  # in order of preference
    recipe: str  # the default one
    recipes: tuple[str, ...]  # all that work there
    providers: tuple[str, ...] = ("CPUExecutionProvider",)  # of ONNX Runtime, in order of preference
    threads: int = 0  # 0: one per physical core
    max_context: int = 2_048  # positions of the decoder
    install: tuple[str, ...] = ()  # command lines for the device
    match: MatchRules = field(default_factory=MatchRules)


def list_targets() -> tuple[str, ...]:
    """Names of the built-in targets, sorted."""
    return tuple(sorted(path.stem for path in PROFILES.glob("*.toml")))


def load_target(name: str | Path) -> TargetProfile:
    """A built-in target by name, or a profile of one's own by the path of its `.toml`.

    Raises:
        TargetError: unknown (with the nearest name), or malformed (with file and key).
    """
    text = str(name)
    if text in list_targets():
        return read_profile(PROFILES / f"{text}.toml")
    if text.endswith(".toml"):
        return read_profile(Path(name))
    near = difflib.get_close_matches(text, list_targets(), n=1, cutoff=0.3)
    hint = f"did you mean '{near[0]}'?" if near else f"there is {', '.join(list_targets())}."
    raise TargetError(
        f"no target '{text}': {hint} `prunella targets list` shows them; a path to a .toml works too"
    )


def read_profile(path: Path) -> TargetProfile:
    """Parse and check one profile.

    Raises:
        TargetError: unreadable, not TOML, a key missing, unknown, or of another type.
    """
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TargetError(f"cannot read the target {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise TargetError(f"{path} is not valid TOML: {error}") from error
    rules = body.pop("match", {})
    if not isinstance(rules, dict):
        raise TargetError(f"{path}: 'match' must be a table: write [match]")
    values = _checked(body, TargetProfile, path, skip=("match",))
    values["match"] = MatchRules(**_checked(rules, MatchRules, path, prefix="match."))
    profile = TargetProfile(**values)
    _check_values(profile, path)
    return profile


def _checked(
    body: dict[str, Any], kind: type, path: Path, *, prefix: str = "", skip: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Values of a table by field name, each of the type that its field has."""
    known = {entry.name: entry for entry in fields(kind) if entry.name not in skip}
    for key in body:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known keys: {', '.join(known)}"
            raise TargetError(f"{path}: unknown key '{prefix}{key}': {hint}")
    values: dict[str, Any] = {}
    for key, entry in known.items():
        if key not in body:
            if entry.default is MISSING and entry.default_factory is MISSING:
                raise TargetError(f"{path}: the key '{prefix}{key}' is missing ({entry.type})")
            continue
        values[key] = _typed(body[key], str(entry.type), f"{path}: '{prefix}{key}'")
    return values


def _typed(value: Any, kind: str, where: str) -> Any:
    if kind.startswith("tuple"):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise TargetError(f"{where} must be a list of strings, is {value!r}")
        return tuple(value)
    expected = {"str": str, "int": int}[kind]
    if not isinstance(value, expected) or isinstance(value, bool):
        raise TargetError(
            f"{where} must be {'a string' if kind == 'str' else 'a whole number'}, is {value!r}"
        )
    return value


def _check_values(profile: TargetProfile, path: Path) -> None:
    for engine in profile.engines:
        if engine not in _ENGINES:
            raise TargetError(f"{path}: 'engines' holds {engine!r}: choose among {', '.join(_ENGINES)}")
    if not profile.engines:
        raise TargetError(f"{path}: 'engines' is empty: choose among {', '.join(_ENGINES)}")
    if profile.recipe not in profile.recipes:
        raise TargetError(f"{path}: 'recipe' is {profile.recipe!r}, which is not in 'recipes'")
    if profile.threads < 0:
        raise TargetError(
            f"{path}: 'threads' must be 0 (one per physical core) or more, is {profile.threads}"
        )
    if profile.max_context < 64:
        raise TargetError(f"{path}: 'max_context' must be 64 or more, is {profile.max_context}")
