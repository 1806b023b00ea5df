#!/usr/bin/env bash
# An archive for a raspberry-pi-5 in an emulated arm64 Debian without a network: install.sh, its self-test, and the doctor.
#
#     sudo examples/aarch64/archive.sh dist/prunella-...-raspberry-pi-5-....tar.gz
#
# ROOT (environment) is a folder with an arm64 Debian bookworm that has python3: transcribe.sh beside this makes one, build/arm64.
# The self-test holds the text to what the machine that packed it heard. Time and heat are not a Pi's.
set -euo pipefail

[ $# = 1 ] || { echo "usage: $0 ARCHIVE" >&2; exit 2; }
here=$(cd "$(dirname "$0")/../.." && pwd)
root=$(realpath "${ROOT:-$here/build/arm64}")
inside() {
    env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin OMP_NUM_THREADS=1 QEMU_CPU="${QEMU_CPU:-cortex-a76}" \
        unshare --net chroot "$root" "$@"
}
[ "$(id -u)" = 0 ] || { echo "run it as root: chroot and unshare need that" >&2; exit 2; }
[ "$(inside uname -m)" = aarch64 ] || { echo "$root runs no arm64 programs: transcribe.sh beside this makes it" >&2; exit 2; }

# What a Pi says of itself; the emulator says nothing.
mkdir -p "$root/proc/device-tree"
printf 'Raspberry Pi 5 Model B Rev 1.0\0' >"$root/proc/device-tree/model"
printf 'MemTotal: 8000000 kB\nMemFree: 6000000 kB\nMemAvailable: 7000000 kB\nBuffers: 0 kB\nCached: 0 kB\nActive: 0 kB\nInactive: 0 kB\nShmem: 0 kB\nSlab: 0 kB\n' >"$root/proc/meminfo"
rm -rf "$root/root/archive" "$root/opt/prunella"
mkdir -p "$root/root/archive"
tar -xzf "$1" -C "$root/root/archive" --strip-components=1
inside sh /root/archive/install.sh --no-systemd --service none --self-test-seconds 600
inside du -sb /opt/prunella/releases/
inside /opt/prunella/bin/prunella transcribe /root/archive/selftest/clip.flac
inside /opt/prunella/bin/prunella doctor --no-microphone
