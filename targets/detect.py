"""Which target a machine is: the profile whose match rules all hold and say the most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prunella.device_runtime.base.errors import TargetError
from prunella.targets.machine import Machine
from prunella.targets.profile import TargetProfile

# A rule on the board says more than one on the card, and that more than one on the architecture.
_WEIGHTS = {"device_tree": 8, "l4t": 4, "soc": 4, "gpu": 4, "arch": 1, "os": 1}


@dataclass(frozen=True)
class Match:
    """How one target fits a machine.

    Attributes:
        holds: rules that hold, as `rule: what was found`.
        fails: rules that do not, as `rule: what was wanted, what was found`.
        score: of the rules that hold; the best target is the one with the highest.
    """

    target: TargetProfile
    holds: tuple[str, ...]
    fails: tuple[str, ...]
    score: int

    @property
    def fits(self) -> bool:
        """Whether the machine is of this target: it states rules, and none fails."""
        return bool(self.holds) and not self.fails


def match_target(target: TargetProfile, machine: Machine) -> Match:
    """Hold a target's rules against a machine."""
    holds, fails, score = [], [], 0
    for rule, weight in _WEIGHTS.items():
        wanted: tuple[str, ...] = getattr(target.match, rule)
        if not wanted:
            continue
        names = _found(machine, rule)
        hit = next((name for name in names if any(_same(rule, want, name) for want in wanted)), None)
        if hit is None:
            fails.append(
                f"{rule}: wants {' or '.join(wanted)}, is {', '.join(filter(None, names)) or 'unknown'}"
            )
        else:
            holds.append(f"{rule}: {hit}")
            score += weight
    return Match(target, tuple(holds), tuple(fails), score)


def detect(targets: Iterable[TargetProfile], machine: Machine) -> tuple[Match, ...]:
    """All targets, those that fit first and the best of them at the head.

    Raises:
        TargetError: none fits.
    """
    matches = [match_target(target, machine) for target in targets]
    ranked = sorted(matches, key=lambda match: (not match.fits, -match.score, match.target.name))
    if not ranked or not ranked[0].fits:
        nearest = min(ranked, key=lambda match: (len(match.fails), -match.score), default=None)
        why = (
            f" (nearest: {nearest.target.name}, but {nearest.fails[0]})" if nearest and nearest.fails else ""
        )
        raise TargetError(
            f"no target is for this machine{why}: write a profile of your own "
            '(`inherits = "..."` and what differs), its path works wherever a name does'
        )
    return tuple(ranked)


def _found(machine: Machine, rule: str) -> tuple[str, ...]:
    value = getattr(machine, {"gpu": "gpus"}.get(rule, rule))
    return value if isinstance(value, tuple) else (value,)


def _same(rule: str, want: str, name: str) -> bool:
    """Architectures and systems are equal; boards, chips and cards contain what is wanted, in any case."""
    if rule in ("arch", "os"):
        return want == name
    return want.lower() in name.lower()
