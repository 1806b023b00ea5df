"""What a build is: everything that decides its artefacts, and the folder that is claimed for one."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from prunella._version import __version__
from prunella.building.artifacts import Artifacts
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.files import sha256, write_json
from prunella.device_runtime.base.outputs import contents
from prunella.speech_llm.load import resolve
from prunella.targets.profile import load_target


@dataclass(frozen=True)
class BuildPlan:
    """Everything that decides what a build makes."""

    model: str
    target: str
    calibration: str
    evaluation: str
    text: str | None = None
    drop: int | None = None
    keep: float | None = None
    blocks: tuple[str, ...] = ()
    strategy: str = "bridged"
    bridge: bool = True
    # Calibration clips used at most.
    clips: int = 200
    # Minutes of training after the cut, with the full model as teacher; None: no healing.
    heal_minutes: float | None = None
    # Manifests or hf: data sets to heal on; none: the calibration speech.
    heal_speech: tuple[str, ...] = ()
    # What was healed from a cut of `model`: that cut is made, and this is exported.
    healed: str | None = None
    # Texts whose tokens are kept (none and `lossless`: all that the model's style can write); None: the vocabulary stays whole.
    keep_vocabulary: tuple[str, ...] | None = None
    keep_tokens: int | None = None
    lossless: bool = False
    # What the pruned model is stored as; none: the target's own.
    recipe: str | None = None
    # Whisper tiny.en with its own decoder as a row.
    baseline: bool = True

    @property
    def heals(self) -> bool:
        """Whether the pruned model is trained in this build, not elsewhere before it."""
        return self.heal_minutes is not None

    @property
    def cuts_vocabulary(self) -> bool:
        """Whether tokens are cut too."""
        return self.keep_vocabulary is not None or self.lossless

    def decisions(self) -> dict[str, Any]:
        """What decides the artefacts, by the words in which a difference is said.

        Not the minutes of healing, of which a build may be given more, nor the baseline, which is only a row.
        """
        profile = asdict(load_target(self.target))
        beside = ("description", "install", "match", "bandwidth", "compute", "latency")
        facts = {key: value for key, value in profile.items() if key not in beside}
        data = {
            "--calibration": self.calibration,
            "--evaluation": self.evaluation,
            "--text": self.text,
            **{f"--heal-speech {path}": path for path in self.heal_speech},
            **{f"--keep-vocabulary {path}": path for path in self.keep_vocabulary or ()},
        }
        # Named where they are asked for alone: builds that an earlier prunella began go on.
        tokens = {"--keep-tokens": self.keep_tokens, "--lossless": self.lossless or None}
        models = {"the model": self.model, "--healed": self.healed}
        return {
            **{what: name and str(resolve(name).resolve()) for what, name in models.items()},
            "--target": profile["name"],
            "the target's profile": _digest(facts),
            "--drop": self.drop,
            "--keep": self.keep,
            "--block": " ".join(self.blocks) or None,
            "--strategy": self.strategy,
            "--no-bridge": not self.bridge,
            "--clips": self.clips,
            "--heal": self.heals,
            **({"the recipe": self.recipe} if self.recipe else {}),
            **{what: path and _file_digest(path) for what, path in data.items()},
            **{what: value for what, value in tokens.items() if value is not None},
            "prunella": __version__,
        }


def claim_folder(plan: BuildPlan, at: Artifacts) -> None:
    """Begin a build in its folder, or see that the one begun there is the same.

    Raises:
        UsageError: the folder holds another build (the message names what differs), or something else.
    """
    decisions = plan.decisions()
    known = begun(at)
    if known is None:
        write_json(at.plan, {"plan": asdict(plan), "decisions": decisions})
    elif known.get("decisions") != decisions:
        raise UsageError(
            f"{at.out} holds another build ({_differences(known.get('decisions'), decisions)}): give the same, "
            "choose another folder with -o, or remove it"
        )


def begun(at: Artifacts) -> dict[str, Any] | None:
    """What was written when the build in a folder began; None where it holds nothing yet.

    Raises:
        UsageError: it holds something else.
    """
    if not at.out.exists() or not contents(at.out):
        return None
    try:
        body = json.loads(at.plan.read_text(encoding="utf-8"))
        if "plan" in body:
            return dict(body)
    except (OSError, ValueError, TypeError):
        pass
    raise UsageError(f"{at.out} is not empty and holds no build: choose another folder with -o")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _file_digest(path: str) -> str:
    return path if path.startswith("hf:") else sha256(path)


def _differences(begun: dict[str, Any] | None, now: dict[str, Any]) -> str:
    """Such as "--drop 6 there, 9 now"."""
    if begun is None:
        return "an earlier prunella began it"
    said = []
    for what in dict.fromkeys([*begun, *now]):
        there, here = begun.get(what), now.get(what)
        if there == here:
            continue
        if isinstance(there, bool) or isinstance(here, bool):
            said.append(f"{what} there, not now" if there else f"{what} now, not there")
        elif _is_digest(there) and _is_digest(here):
            said.append(f"the content of {what}" if what.startswith("--") else what)
        else:
            shown = [
                "none" if value is None else "a file" if _is_digest(value) else value
                for value in (there, here)
            ]
            said.append(f"{what} {shown[0]} there, {shown[1]} now")
    return "; ".join(said)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
