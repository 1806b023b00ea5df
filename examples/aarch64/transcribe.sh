#!/usr/bin/env bash
# A raspberry-pi-5 bundle in an emulated arm64 Debian: the install of README's device line, and the text of x86.
#
#     sudo examples/aarch64/transcribe.sh BUNDLE CLIP...
#
# BUNDLE  from `prunella export MODEL --target raspberry-pi-5 -o BUNDLE`
# CLIP    recordings
# ROOT    (environment) folder of the arm64 system, default build/arm64: made where it is not there, 450 MB, kept
#
# Needs, on an x86-64 Debian or Ubuntu: apt install debootstrap qemu-user-static, root, and this checkout's .venv
# (PYTHON names another interpreter with prunella). It tells the kernel, until the next boot, to run arm64 programs
# through qemu. The wheels are those that a Pi would get: pip resolves them for
# aarch64 from the package index, and pip inside the arm64 system installs them without a network.
#
# It shows that the aarch64 wheels of every dependency exist, install and work together, that nothing in the runtime
# is x86 only, and that ONNX Runtime's ARM kernels for the features of a Cortex-A76 (its dot products, too) give the
# same text. It cannot show speed, memory bandwidth, heat or power, real microphones, or the real board: what a Pi
# says of itself in /proc is written by hand below.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 BUNDLE CLIP..." >&2; exit 2; }
bundle=$(realpath "$1"); shift
here=$(cd "$(dirname "$0")/../.." && pwd)
root=$(realpath -m "${ROOT:-$here/build/arm64}")
python=${PYTHON:-$here/.venv/bin/python}
suite=${SUITE:-bookworm}   # Python 3.11, as on a Raspberry Pi OS of its time
python_version=3.11

say() { echo "aarch64: $*" >&2; }
# A clean environment: nothing of this machine's Python or pip settings leaks in.
inside() {
    env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin OMP_NUM_THREADS=1 QEMU_CPU="${QEMU_CPU:-cortex-a76}" \
        nice -n "${NICE:-10}" chroot "$root" "$@"
}

[ "$(id -u)" = 0 ] || { say "run it as root: debootstrap and chroot need that"; exit 2; }
for tool in debootstrap qemu-aarch64-static; do
    command -v "$tool" >/dev/null || { say "no $tool: apt install debootstrap qemu-user-static"; exit 2; }
done
# The kernel starts arm64 programs through qemu once it is told so.
binfmt=/proc/sys/fs/binfmt_misc
[ -e $binfmt/register ] || mount -t binfmt_misc none $binfmt
[ -e $binfmt/qemu-aarch64 ] || cat /usr/lib/binfmt.d/qemu-aarch64.conf >$binfmt/register

if [ ! -e "$root/ready" ]; then
    say "installing Debian $suite for arm64 into $root"
    if [ -e "$root" ] && [ ! -e "$root/debootstrap" ] && [ -n "$(ls -A "$root")" ]; then
        say "$root is there and is no arm64 system of this script: name another folder with ROOT"
        exit 2
    fi
    rm -rf "$root"
    nice -n "${NICE:-10}" debootstrap --foreign --arch=arm64 --variant=minbase \
        --include=python3,python3-venv,ca-certificates "$suite" "$root" http://deb.debian.org/debian >&2
    inside /debootstrap/debootstrap --second-stage >&2
    touch "$root/ready"
fi

say "fetching the aarch64 wheels of prunella[cpu]"
rm -rf "$root/wheels" "$root/venv"
mkdir -p "$root/wheels"
"$python" -m pip wheel -q --no-deps -w "$root/wheels" "$here"
platforms=()
for glibc in 36 35 34 31 28 27 26 24 17; do platforms+=(--platform "manylinux_2_${glibc}_aarch64"); done
"$python" -m pip download -q -d "$root/wheels" --only-binary=:all: --implementation cp \
    --python-version "$python_version" "${platforms[@]}" --platform manylinux2014_aarch64 \
    -c "$here/constraints.txt" "$(echo "$root"/wheels/prunella-*.whl)[cpu]"

say "installing them on $(inside uname -m)"
inside python3 -m venv /venv
inside /venv/bin/pip install -q --no-index --find-links /wheels "/wheels/$(basename "$root"/wheels/prunella-*.whl)[cpu]"
if inside /venv/bin/python -c 'import torch' 2>/dev/null; then say "torch is there: it should not be"; exit 1; fi

# ONNX Runtime asks /sys and /proc which processors there are, `prunella targets` which board.
mkdir -p "$root/sys" "$root/proc/device-tree"
for core in 0 1 2 3; do
    printf 'processor\t: %s\nBogoMIPS\t: 108.00\nFeatures\t: %s\n' $core \
        'fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp'
    printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n'
done >"$root/proc/cpuinfo"
printf 'Raspberry Pi 5 Model B Rev 1.0\0' >"$root/proc/device-tree/model"
printf 'raspberrypi,5-model-b\0brcm,bcm2712\0' >"$root/proc/device-tree/compatible"
mount -o ro -t sysfs sysfs "$root/sys"
trap 'umount "$root/sys"' EXIT
[ "$(inside /venv/bin/prunella targets detect)" = raspberry-pi-5 ] || { say "this is not found to be a Pi"; exit 1; }

rm -rf "$root/bundle" "$root/clips" && cp -r "$bundle" "$root/bundle" && mkdir "$root/clips" && cp "$@" "$root/clips"
inside /venv/bin/prunella targets check raspberry-pi-5 --bundle /bundle >&2
differ=0
for clip in "$@"; do
    name=$(basename "$clip")
    there=$(inside /venv/bin/prunella transcribe /bundle "/clips/$name" --threads 1)
    x86=$("$python" -m prunella transcribe "$bundle" "$clip" --threads 1)
    printf 'aarch64  %s\t%s\nx86-64   %s\t%s\n' "$name" "$there" "$name" "$x86"
    [ -n "$x86" ] && [ "$there" = "$x86" ] || { say "the texts of $name differ, or there is none"; differ=1; }
done
exit $differ
