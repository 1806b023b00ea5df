"""Run a program as on a processor with AVX2 alone: what `cpuid` and `xgetbv` answer ONNX Runtime is changed under gdb.

`python research/mask_avx512.py research/decoder_ceiling.py BUNDLE --threads 1`

ONNX Runtime has no switch for it, and chooses its kernels once, as it is loaded. gdb and objdump (Debian's gdb and binutils) stop it at
each of these instructions in its library, and hide AVX-512, AVX-VNNI and AMX; once it runs nothing stops it any more. Other libraries
(numpy) keep what the processor has.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

LIBRARY = "onnxruntime_pybind11_state"
# Bits to hide, by leaf and register: Intel's Software Developer's Manual, volume 2A, CPUID.
HIDDEN = {
    (7, 0): {
        "rbx": (16, 17, 21, 26, 27, 28, 30, 31),  # AVX-512
        "rcx": (1, 6, 11, 12, 14),  # VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ
        "rdx": (2, 3, 8, 22, 23, 24, 25),  # 4VNNIW, 4FMAPS, VP2INTERSECT, AMX, FP16
    },
    (7, 1): {"rax": (4, 5), "rdx": (4, 5, 10, 19)},  # AVX-VNNI and its kin, AVX-512 in bfloat16, AVX10
}
_STATE = 0b111  # x87, SSE and AVX: of XCR0 what an operating system without AVX-512 keeps


def find_instructions(library: Path) -> list[tuple[int, str]]:
    """Offset and name of every cpuid and xgetbv in a library."""
    command = ["objdump", "-d", "--no-show-raw-insn", str(library)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\s*([0-9a-f]+):\s+(cpuid|xgetbv)\s*$", lines, re.MULTILINE)
    return [(int(offset, 16), name) for offset, name in found]


def inside_gdb() -> None:
    """What gdb runs: it holds the program, and the paths are in its environment."""
    import gdb

    for setting in ("pagination off", "confirm off", "print thread-events off"):
        gdb.execute(f"set {setting}")
    gdb.execute(f"catch load {LIBRARY}")
    gdb.execute("run", to_string=True)
    mappings = gdb.execute("info proc mappings", to_string=True).splitlines()
    line = next(line for line in mappings if LIBRARY in line)
    base, path = int(line.split()[0], 16), Path(line.split()[-1])
    stops = {base + offset: name for offset, name in find_instructions(path)}
    for address in stops:
        gdb.Breakpoint(f"*{address:#x}")
    count = 0
    while True:
        gdb.execute("continue", to_string=True)
        try:
            address = gdb.selected_frame().pc()
        except gdb.error:  # the program is over
            break
        if address not in stops:
            raise SystemExit(f"stopped where nothing was to stop, at {address:#x}")
        count += 1
        leaf = (_register("rax"), _register("rcx"))
        gdb.execute("stepi", to_string=True)
        if stops[address] == "xgetbv":
            gdb.execute(f"set $rax = {_register('rax') & _STATE}")
        for name, bits in HIDDEN.get(leaf, {}).items() if stops[address] == "cpuid" else ():
            gdb.execute(f"set ${name} = {_register(name) & ~sum(1 << bit for bit in bits)}")
    sys.stderr.write(f"{count} answers of the processor were looked at, from {path.name}\n")


def _register(name: str) -> int:
    import gdb

    return int(gdb.parse_and_eval(f"${name}")) & 0xFFFF_FFFF


def main() -> None:
    """Entry."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    program = [sys.executable, *sys.argv[1:]]
    sys.exit(
        subprocess.run(["gdb", "-q", "-batch", "-x", __file__, "--args", *program], check=False).returncode
    )


if __name__ == "__main__":
    try:
        import gdb  # noqa: F401
    except ImportError:
        main()
    else:
        inside_gdb()
