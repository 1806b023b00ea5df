"""A bundle as one archive that installs on a device without a network, and starts there as a service.

    prunella pack out/pi --target raspberry-pi-5 -o dist/
    prunella deploy dist/prunella-pi-raspberry-pi-5-....tar.gz pi@kitchen.local

In it: the bundle, the wheels for the device's platform and Python, install.sh, units for systemd (launchd on a Mac), files for
podman, docker and Home Assistant, a bill of materials (CycloneDX) and the sha256 of everything, signed where --key is given.
The same inputs give the same bytes. The archive's path goes to stdout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunella._version import __version__
from prunella.deployment import formats
from prunella.deployment.archive import check_key, sign, write_archive, write_sums
from prunella.deployment.device_platform import DevicePlatform
from prunella.deployment.release import Release, SelfTest, read_release
from prunella.deployment.sbom import bill_of_materials
from prunella.deployment.service_files import write_service_files
from prunella.deployment.wheelhouse import Wheel, collect_wheels
from prunella.device_runtime.base.common_options import add_output
from prunella.device_runtime.base.errors import ExportError, PrunellaError, UsageError
from prunella.device_runtime.base.files import scratch_directory, sha256
from prunella.device_runtime.base.install_lines import fill_in
from prunella.device_runtime.base.outputs import check_output, check_output_file
from prunella.device_runtime.bundle import MANIFEST_NAME, Bundle, open_bundle
from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.sound.audio import load_audio
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.targets.fit import fit_bundle
from prunella.targets.profile import TargetProfile, load_target

CLIP = Path(__file__).parent / "clip.flac"  # "go forward ten meters", of examples/clips
_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
_KEPT = (
    "bundle",
    "selftest",
    "lib",
    "etc",
    "release.json",
    "install.sh",
    "DEVICE.md",
    "sbom.cdx.json",
    "SHA256SUMS",
)
_BYTECODE = 1.15  # of a runtime's size; measured 1.11 (docs/deploy.md)
_ROOMY_MB = 200  # a runtime that takes more is said to


@dataclass(frozen=True)
class PackOptions:
    """What may be chosen about an archive.

    Attributes:
        python: of the device, "3.11"; None: the target's.
        clip: the self-test's recording.
        texts: that it may give; none: what this machine hears.
        seconds: that it may take on the device; None: as long as the clip is.
        wheels: a folder of wheels that are taken first.
        indexes: further package indexes.
        constraints: versions, as pip reads them.
        key: an SSH private key that signs.
        licenses: of the model, for the bill of materials.
        data: what the model was trained on, likewise.
    """

    python: str | None = None
    clip: Path = CLIP
    texts: tuple[str, ...] = ()
    seconds: float | None = None
    wheels: Path | None = None
    indexes: tuple[str, ...] = ()
    constraints: Path | None = None
    key: Path | None = None
    licenses: tuple[str, ...] = ()
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class Packed:
    """What was written.

    Attributes:
        path: of the archive.
        release: what it says of itself.
        wheels: that a device installs from it.
    """

    path: Path
    release: Release
    wheels: tuple[Wheel, ...]


def pack(bundle: Bundle, target: TargetProfile, out: Path, options: PackOptions | None = None) -> Packed:
    """Write the archive into the folder `out`.

    Raises:
        UsageError: the target runs no engine or recipe of the bundle, or something that is named is not there; before any work.
        ExportError: no wheels for the device.
        PrunellaError: the clip cannot be heard here, and no text was given for it.
    """
    options = options or PackOptions()
    platform = DevicePlatform.of(target, options.python)
    engines = usable_engines(bundle, target)
    if options.key is not None:
        check_key(options.key)
    for named in (options.clip, options.wheels, options.constraints):
        if named is not None and not named.exists():
            raise UsageError(f"{named} is not there: name one that is")
    check_output(out, inputs=[bundle.path], replaces=False)
    test = _self_test(bundle, engines, options)
    name = _name(bundle)
    with scratch_directory(out / f"prunella-{name}", "packing") as scratch:
        wheelhouse = scratch / "wheels"
        wheelhouse.mkdir()
        wheels = _wheels(wheelhouse, target, engines, platform, options)
        identity = _identity(bundle, wheelhouse, target, test, options)
        runtime = sum(wheel.installed_bytes for wheel in wheels)
        release = Release(
            id=identity,
            bundle=name,
            target=target.name,
            recipe=bundle.manifest.recipe,
            engines=engines,
            version=__version__,
            os=platform.os,
            arch=platform.arch,
            python=platform.python,
            glibc=_glibc(wheels),
            flags=platform.flags,
            memory_mb=round(fit_bundle(target, bundle).needed_mb),
            installed_bytes=int(_BYTECODE * runtime) + bundle.total_bytes + 1_000_000,
            self_test=test,
            kept=(*_KEPT, "launchd" if platform.os == "Darwin" else "systemd"),
        )
        folder = scratch / f"prunella-{name}-{target.name}-{identity}"
        folder.mkdir()
        wheelhouse.rename(folder / "wheels")
        _copy_bundle(bundle, folder / "bundle" / name)
        (folder / "selftest").mkdir()
        shutil.copyfile(options.clip, folder / test.clip)
        write_service_files(folder, release, target)
        bill = bill_of_materials(bundle, wheels, identity, licenses=options.licenses, data=options.data)
        (folder / "sbom.cdx.json").write_text(bill)
        (folder / "release.json").write_text(release.dumps())
        write_sums(folder)
        if options.key is not None:
            sign(folder, options.key)
        path = out / f"{folder.name}.tar.gz"
        check_output_file(path, "archive", _is_archive)
        write_archive(folder, path)
    return Packed(path, release, wheels)


def usable_engines(bundle: Bundle, target: TargetProfile) -> tuple[str, ...]:
    """The bundle's engines that the target can use, in the bundle's order.

    Raises:
        UsageError: none, or the target does not run the bundle's recipe.
    """
    manifest = bundle.manifest
    engines = tuple(name for name in manifest.engines if name in target.engines)
    again = f"export the model for it (`prunella export MODEL --target {target.name}`)"
    if not engines:
        raise UsageError(
            f"{bundle.path} is for {' and '.join(manifest.engines)}, and {target.name} runs {' and '.join(target.engines)}: {again}"
        )
    if manifest.recipe not in target.recipes:
        raise UsageError(
            f"{bundle.path} has the recipe {manifest.recipe}, and {target.name} runs {', '.join(target.recipes)}: {again}, or "
            "`prunella quantize` with one of these"
        )
    return engines


def size_table(packed: Packed) -> str:
    """What each package takes on the device, largest first, in MB."""
    rows = sorted(packed.wheels, key=lambda wheel: -wheel.installed_bytes)
    width = max(len(wheel.name) + len(wheel.version) + 1 for wheel in rows)
    lines = [
        f"{f'{wheel.name} {wheel.version}':<{width}}  {wheel.installed_bytes / 1e6:7.1f} MB" for wheel in rows
    ]
    total = sum(wheel.installed_bytes for wheel in rows)
    return "\n".join([*lines, f"{'runtime, without bytecode':<{width}}  {total / 1e6:7.1f} MB"])


def _self_test(bundle: Bundle, engines: tuple[str, ...], options: PackOptions) -> SelfTest:
    samples = load_audio(options.clip)
    texts = options.texts
    if not texts:
        try:
            # As `transcribe` and `serve` decode where nothing else is asked for.
            transcriber = open_transcriber(bundle.path, engine=engines[0]).with_options(beams=0)
            texts = (transcriber.transcribe(samples).text,)
        except PrunellaError as error:
            raise type(error)(
                f"{error}; or say with --expect what the device must hear in the clip"
            ) from error
        if not texts[0]:
            raise ExportError(
                f"the bundle hears nothing in {options.clip}: name another --clip, whose text can be tested"
            )
    return SelfTest(
        f"selftest/{options.clip.name}", tuple(texts), options.seconds or round(len(samples) / SAMPLE_RATE, 2)
    )


def _wheels(
    folder: Path,
    target: TargetProfile,
    engines: tuple[str, ...],
    platform: DevicePlatform,
    options: PackOptions,
) -> tuple[Wheel, ...]:
    onnx = "cuda" if any(name in target.providers for name in _GPU) else "cpu"
    extras = ["serve", onnx, *(["gguf"] if engines[0] == "gguf" else [])]
    try:
        return collect_wheels(
            folder,
            extras,
            platform,
            constraints=options.constraints,
            wheels=options.wheels,
            indexes=options.indexes,
        )
    except ExportError as error:
        lines = [line for line in target.install if "pip install" in line and "python3-venv" not in line]
        told = "; ".join(fill_in(line, elsewhere=True) for line in lines)
        compiled = f". What is compiled on the device: {told}" if {"cuda", "gguf"} & set(extras) else ""
        raise ExportError(f"{error}{compiled}") from error


def _identity(
    bundle: Bundle, wheelhouse: Path, target: TargetProfile, test: SelfTest, options: PackOptions
) -> str:
    """Of everything that goes in."""
    parts = {
        "bundle": sha256(bundle.path / MANIFEST_NAME),
        "wheels": (wheelhouse / "requirements.txt").read_text(),
        "target": repr(target),
        "test": [sha256(options.clip), test.texts, test.seconds],
        "told": [options.licenses, options.data],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _name(bundle: Bundle) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", bundle.path.resolve().name).strip("-.")
    return name or re.sub(r"[^A-Za-z0-9._-]+", "-", bundle.manifest.name).strip("-.") or "bundle"


def _copy_bundle(bundle: Bundle, folder: Path) -> None:
    for name in (MANIFEST_NAME, *bundle.manifest.files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / name, folder / name)


def _glibc(wheels: Sequence[Wheel]) -> str:
    """The newest that any of them needs: of each the oldest that it says it runs with."""
    needed = [17]
    for wheel in wheels:
        tags = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)_", wheel.path.name)]
        tags += [17] if "manylinux2014" in wheel.path.name else []
        needed += [min(tags)] if tags else []
    return f"2.{max(needed)}"


def _is_archive(path: Path) -> bool:
    try:
        read_release(path)
    except UsageError:
        return False
    return True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella pack`."""
    parser.add_argument(
        "bundle", metavar="BUNDLE", help="a directory made by `prunella export` or `prunella build`"
    )
    parser.add_argument(
        "--target", required=True, metavar="T", help="a target's name, or the path of a .toml"
    )
    add_output(parser, "folder for the archive")
    parser.add_argument("--python", metavar="3.N", help="of the device (default: the target's)")
    parser.add_argument(
        "--format",
        choices=("tar", *formats.FORMATS),
        default="tar",
        help="also for an updater of fleets: a Mender artifact, an OCI artifact, or an image for systemd-sysext, or the recipe for it "
        "where its tool is not here (default: the archive alone)",
    )
    test = parser.add_argument_group("the self-test on the device")
    test.add_argument(
        "--clip",
        type=Path,
        default=CLIP,
        metavar="FILE",
        help="a recording (default: the one that comes with prunella)",
    )
    test.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="TEXT",
        help="what it must give (repeatable: one of them; default: what the bundle hears here)",
    )
    test.add_argument(
        "--latency",
        type=float,
        metavar="S",
        help="seconds that it may take there (default: as long as it is)",
    )
    wheels = parser.add_argument_group("the runtime")
    wheels.add_argument(
        "--wheels",
        type=Path,
        metavar="DIR",
        help="take wheels from here first, such as one of llama-cpp-python that was compiled on a device",
    )
    wheels.add_argument(
        "--extra-index-url",
        action="append",
        default=[],
        metavar="URL",
        help="a further package index (repeatable)",
    )
    wheels.add_argument(
        "--constraint",
        type=Path,
        metavar="FILE",
        help="versions, as pip reads them (default: the checkout's)",
    )
    papers = parser.add_argument_group("what it says of itself")
    papers.add_argument("--key", type=Path, metavar="FILE", help="sign with this SSH private key")
    papers.add_argument(
        "--license", action="append", default=[], metavar="NAME", help="of the model (repeatable)"
    )
    papers.add_argument(
        "--training-data",
        action="append",
        default=[],
        metavar="NAME",
        help="what the model was trained on (repeatable)",
    )


def run(args: argparse.Namespace) -> int:
    """`prunella pack`."""
    if args.latency is not None and not args.latency > 0:
        raise UsageError(f"--latency {args.latency}: give seconds above 0")
    target = load_target(args.target)
    options = PackOptions(
        python=args.python,
        clip=args.clip,
        texts=tuple(args.expect),
        seconds=args.latency,
        wheels=args.wheels,
        indexes=tuple(args.extra_index_url),
        constraints=args.constraint,
        key=args.key,
        licenses=tuple(args.license),
        data=tuple(args.training_data),
    )
    bundle = open_bundle(args.bundle)
    fit = fit_bundle(target, bundle)
    if not fit.fits:
        _tell(f"the bundle takes {fit.describe()}: it may not run there")
    packed = pack(bundle, target, Path(args.out), options)
    _tell(size_table(packed))
    runtime = sum(wheel.installed_bytes for wheel in packed.wheels) / 1e6
    if runtime > _ROOMY_MB:
        _tell(f"the runtime takes {runtime:.0f} MB: more than {_ROOMY_MB}")
    test = packed.release.self_test
    _tell(f"self-test: {' or '.join(map(repr, test.texts))} within {test.seconds:g} s")
    sys.stdout.write(f"{packed.path}\n")
    if args.format != "tar":
        for made in formats.FORMATS[args.format](packed.path, packed.release, target):
            sys.stdout.write(f"{made}\n")
    return 0


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
