"""For which system, processor, Python and C library a target's wheels are chosen."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prunella.device_runtime.base.errors import TargetError, UsageError
from prunella.targets.profile import TargetProfile

# manylinux names of before they were numbers.
_NAMED = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_OLDEST_GLIBC = 17
_PROCESSORS = {"Linux": ("x86_64", "aarch64"), "Darwin": ("arm64", "x86_64")}  # as `uname -m` says there
# What the wheels of a processor are compiled for, as the kernel names it in /proc/cpuinfo. ONNX Runtime chooses among what is
# beyond it when it starts; numpy's x86 wheels need x86-64-v2.
_FLAGS = {"x86_64": ("sse4_2", "ssse3", "popcnt"), "aarch64": ("asimd",)}


@dataclass(frozen=True)
class DevicePlatform:
    """Where an archive is installed.

    Attributes:
        os: as `uname -s`: "Linux" or "Darwin".
        arch: as `uname -m`.
        python: "3.11".
        glibc: minor version of the newest glibc that may be needed, 36 for 2.36; of macOS: its oldest major version.
    """

    os: str
    arch: str
    python: str
    glibc: int

    @staticmethod
    def of(target: TargetProfile, python: str | None = None) -> DevicePlatform:
        """A target's, with another Python if one is named.

        Raises:
            UsageError: no such Python.
            TargetError: the target does not say what it is, or is a system that archives are not made for.
        """
        version = python or target.python
        if not re.fullmatch(r"3\.\d+", version) or int(version[2:]) < 10:
            raise UsageError(f"Python {version}: give 3.10 or a newer one, as in --python 3.11")
        if not (target.match.arch and target.match.os):
            raise TargetError(
                f"{target.name} names no architecture and system in [match]: add `arch` and `os`"
            )
        system = next((one for one in target.match.os if one in _PROCESSORS), None)
        arch = next((one for one in target.match.arch if one in _PROCESSORS.get(system or "", ())), None)
        if system is None or arch is None:
            raise TargetError(
                f"{target.name} is for {' or '.join(target.match.os)} on {' or '.join(target.match.arch)}: archives are made for "
                "Linux and macOS, on x86-64 and 64-bit ARM"
            )
        return DevicePlatform(system, arch, version, int(target.glibc.partition(".")[2] or 0))

    @property
    def tags(self) -> tuple[str, ...]:
        """Platform tags of wheels that run there, as pip takes them, best first."""
        if self.os == "Darwin":
            return tuple(
                f"macosx_{major}_0_{arch}" for major in (14, 13, 12, 11) for arch in (self.arch, "universal2")
            )
        found = []
        for minor in range(self.glibc, _OLDEST_GLIBC - 1, -1):
            found.append(f"manylinux_2_{minor}_{self.arch}")
            if minor in _NAMED:
                found.append(f"{_NAMED[minor]}_{self.arch}")
        return (*found, f"linux_{self.arch}")

    @property
    def markers(self) -> dict[str, str]:
        """The environment that a requirement's marker is evaluated in there."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.arch,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": self.os,
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": self.os.lower(),
        }

    @property
    def flags(self) -> tuple[str, ...]:
        """Features that the processor must have, by /proc/cpuinfo's names."""
        return _FLAGS.get(self.arch, ()) if self.os == "Linux" else ()
