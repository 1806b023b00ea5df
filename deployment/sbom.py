"""The bill of materials of an archive, as CycloneDX 1.6: wheels, runtime, model, what it was trained on, and their licenses."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from prunella.deployment.wheelhouse import Wheel
from prunella.device_runtime.base.model_names import EMBEDDED
from prunella.device_runtime.bundle import Bundle

_SPACE = uuid.UUID("6b0f5d0a-6f0e-5c0e-9f5e-70756e656c6c")  # so that serial numbers are prunella's own
# What the embedded models were trained on, as their cards say.
_EMBEDDED_DATA = (
    "LibriSpeech train-clean-5 (CC BY 4.0)",
    "speechocean762 (CC BY 4.0)",
    "Flight of the Amazon Queen (freeware, redistributable with notice)",
    "kathleen (CC0)",
    "an4 (BSD-like)",
    "Asterisk's prompts (CC BY-SA 3.0)",
    "picovoice keywords (Apache-2.0)",
    "spoken digits (CC BY-SA 4.0)",
    "LJSpeech (public domain)",
    "moonshine alnum (MIT)",
    "sentences spoken by hibari-tts and flite",
)


def bill_of_materials(
    bundle: Bundle,
    wheels: Sequence[Wheel],
    release: str,
    *,
    licenses: Sequence[str] = (),
    data: Sequence[str] = (),
) -> str:
    """The text of `sbom.cdx.json`: the same for the same archive, without a date.

    Args:
        bundle: the model.
        wheels: of the wheelhouse, prunella's own among them.
        release: id of the archive.
        licenses: of the model.
        data: names of what it was trained on; of the embedded models they are known.
    """
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import DisjunctiveLicense
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    def named(names: Iterable[str]) -> list[DisjunctiveLicense]:
        return [DisjunctiveLicense(name=name) for name in names if name]

    manifest = bundle.manifest
    parts = [
        Component(
            name=wheel.name,
            version=wheel.version,
            type=ComponentType.APPLICATION if wheel.name == "prunella" else ComponentType.LIBRARY,
            bom_ref=f"pkg:pypi/{wheel.name}@{wheel.version}",
            purl=PackageURL("pypi", name=wheel.name, version=wheel.version),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=wheel.sha256)],
            licenses=named([wheel.license]),
        )
        for wheel in wheels
    ]
    files = [
        Component(
            name=name,
            type=ComponentType.FILE,
            bom_ref=f"bundle/{name}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=entry.sha256)],
        )
        for name, entry in sorted(manifest.files.items())
    ]
    facts = {"family": manifest.family, "recipe": manifest.recipe, "layers": manifest.decoder.num_layers}
    facts |= {
        key: manifest.provenance[key] for key in ("base_model", "decoder_base") if key in manifest.provenance
    }
    model = Component(
        name=manifest.name,
        version=release,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="model",
        licenses=named(licenses or _licenses(bundle)),
        properties=[
            Property(name=f"prunella:{key}", value=str(value)) for key, value in sorted(facts.items())
        ],
        components=files,
    )
    root = Component(
        name=f"prunella-{manifest.name}", version=release, type=ComponentType.FIRMWARE, bom_ref="archive"
    )
    bom = Bom(
        components=[*parts, model],
        serial_number=uuid.uuid5(_SPACE, release),
        metadata=BomMetaData(component=root),
    )
    bom.register_dependency(root, [*parts, model])
    body = json.loads(JsonV1Dot6(bom).output_as_string())
    del body["metadata"]["timestamp"]  # the same inputs give the same bytes
    for component in body["components"]:
        if component["type"] == "machine-learning-model":
            component["modelCard"] = _card(bundle, data)  # which the library has no words for
    return json.dumps(body, indent=2, sort_keys=True) + "\n"


def _card(bundle: Bundle, data: Sequence[str]) -> dict[str, Any]:
    names = list(data) or (list(_EMBEDDED_DATA) if _is_embedded(bundle) else _told(bundle))
    return {
        "modelParameters": {
            "task": "automatic-speech-recognition",
            "architectureFamily": bundle.manifest.family,
            "datasets": [{"type": "dataset", "name": name} for name in names],
            "inputs": [{"format": f"audio, {bundle.manifest.audio.sampling_rate} Hz, mono"}],
            "outputs": [{"format": "text"}],
        }
    }


def _is_embedded(bundle: Bundle) -> bool:
    return bundle.manifest.provenance.get("base_model") in EMBEDDED or bundle.manifest.name in EMBEDDED


def _licenses(bundle: Bundle) -> tuple[str, ...]:
    if _is_embedded(bundle):
        return ("Apache-2.0", "MIT (the encoder, of Whisper tiny.en)")
    return (str(bundle.manifest.provenance.get("license", "")),)


def _told(bundle: Bundle) -> list[str]:
    """What its provenance says that it was healed with: hours, where it names nothing else."""
    stages = bundle.manifest.provenance.get("healing") or []
    hours = sum(
        float(stage.get("hours_of_speech") or 0)
        for stage in (stages if isinstance(stages, list) else [])
        if isinstance(stage, dict)
    )
    return [f"{hours:g} h of speech, not named (prunella heal)"] if hours else []
