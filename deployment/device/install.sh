#!/bin/sh
# Installs prunella with its bundle on this machine, without a network. Run it in the unpacked archive:
#
#     sudo sh install.sh                                   into /opt/prunella, as a systemd service
#     sh install.sh --no-systemd --prefix ~/prunella       as this user, kept running by a small script
#
#     --prefix DIR          where to (default: /opt/prunella)
#     --no-systemd          a supervisor script in place of systemd units
#     --service NAMES       what to run: serve, listen, both with a comma, or none (default: serve)
#     --keep N              releases that stay beside the current one (default: 1)
#     --trust FILE          public key (.pub) whose signatures are asked for from now on, unless one is trusted already
#     --self-test-seconds S at most for the shipped clip (default: what the archive says)
#     --uninstall           stop the services and remove what was installed; settings in PREFIX/etc stay, unless --purge
#     --rollback            back to the release before
#     --list                the releases that are there
#
# Running it again is safe. The release that runs stays in place until the new one has transcribed the shipped clip.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
prefix=/opt/prunella
trust=
action=install
purge=
system="@OS@"
arch="@ARCH@"
version="@PYTHON@"

fail() { echo "prunella: $*" >&2; exit 1; }
sha256() { if command -v sha256sum >/dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi; }

count=$#
while [ "$count" -gt 0 ]; do
    word=$1
    shift
    count=$((count - 1))
    case $word in
        --prefix | --trust)
            [ "$count" -gt 0 ] || fail "$word needs a value"
            if [ "$word" = --prefix ]; then prefix=$1; else trust=$1; fi
            shift
            count=$((count - 1))
            ;;
        --prefix=*) prefix=${word#*=} ;;
        --trust=*) trust=${word#*=} ;;
        --uninstall | --rollback | --list) action=${word#--} ;;
        --purge) purge=--purge ;;
        -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) set -- "$@" "$word" ;; # the installer's own
    esac
done
case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac

[ "$(uname -s)" = "$system" ] || fail "this archive is for $system, and this is $(uname -s): pack it for another target"
case $(uname -m) in
    "$arch") ;;
    *) fail "this archive is for $arch, and this machine is $(uname -m): pack it for another target" ;;
esac

python=
for candidate in ${PYTHON:+"$PYTHON"} "python$version" python3 /usr/local/bin/python3 "/opt/homebrew/bin/python$version"; do
    found=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    if [ "$found" = "$version" ]; then python=$candidate; break; fi
done
[ -n "$python" ] || fail "Python $version is not here (python3 is $(python3 -V 2>&1)): install it, or pack with --python for the one that is"

if [ "$action" != install ]; then
    exec "$python" -sB "$here/lib/installer.py" "$action" --prefix "$prefix" $purge "$@"
fi

# Nothing of the archive but this script runs before this. What is installed is what was signed.
keys=$prefix/etc/allowed_signers
cd "$here"
if [ -n "$trust" ] && [ ! -e "$keys" ]; then
    [ -r "$trust" ] || fail "the public key $trust cannot be read"
    mkdir -p "$prefix/etc"
    sed 's/^/prunella namespaces="prunella" /' "$trust" >"$keys.new"
    mv "$keys.new" "$keys"
fi
if [ -e "$keys" ]; then
    [ -e SHA256SUMS.sig ] || fail "the archive is not signed, and $keys asks for a signature: pack it with --key"
    command -v ssh-keygen >/dev/null || fail "ssh-keygen, which verifies the signature, is not here: apt install openssh-client"
    ssh-keygen -Y verify -f "$keys" -I prunella -n prunella -s SHA256SUMS.sig <SHA256SUMS >/dev/null 2>&1 ||
        fail "the signature is not by a key of $keys: do not install it"
fi
sha256 -c SHA256SUMS >/dev/null 2>&1 ||
    fail "$(sha256 -c SHA256SUMS 2>/dev/null | grep -v ': OK$' | head -n 1 | cut -d: -f1) is corrupt or missing: copy the archive again"
listed=$(wc -l <SHA256SUMS)
there=$(find . -type f ! -name SHA256SUMS ! -name SHA256SUMS.sig | wc -l)
[ "$listed" -eq "$there" ] || fail "the archive holds $there files, and SHA256SUMS lists $listed: unpack it again, into an empty folder"

exec "$python" -sB "$here/lib/installer.py" install --source "$here" --prefix "$prefix" "$@"
