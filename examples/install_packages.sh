#!/usr/bin/env bash
# Install those of Debian's packages that are missing.
#
#     install_packages.sh PACKAGE|COMMAND=PACKAGE...
#
# COMMAND=PACKAGE is for a package that is not needed where the command came in another way.
set -euo pipefail

fail() {
    echo "error: $1" >&2
    exit 1
}

missing=()
for item in "$@"; do
    package=${item#*=}
    if [ "$item" != "$package" ] && command -v "${item%%=*}" >/dev/null; then
        continue
    fi
    case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true) in
    *" ok installed") ;;
    *) missing+=("$package") ;;
    esac
done
[ "${#missing[@]}" -gt 0 ] || exit 0

command -v apt-get >/dev/null || fail "no apt-get here; the examples need what Debian calls ${missing[*]}"
[ "$(id -u)" = 0 ] || command -v sudo >/dev/null || fail "neither root nor sudo; install ${missing[*]} first"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
as_root=(env DEBIAN_FRONTEND=noninteractive)
[ "$(id -u)" = 0 ] || as_root=(sudo "${as_root[@]}")
if ! {
    "${as_root[@]}" apt-get update -qq &&
        "${as_root[@]}" apt-get install -qq --no-install-recommends "${missing[@]}"
} >"$log" 2>&1; then
    fail "apt-get cannot install ${missing[*]}: $(grep -m 1 '^E: ' "$log" || tail -n 1 "$log")"
fi
