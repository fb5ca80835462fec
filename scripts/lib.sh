# shellcheck shell=bash disable=SC2034
# Words that the scripts share; sourced, never run. Leaves the working directory at the repository's root.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit

# rustup's cargo before the distribution's; newuidmap, runc and others live where an unprivileged user's PATH does not look.
PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin

# What survives a clean checkout: toolchains' output and tools, keyed by content below.
cache=${LUNA_CACHE:-$HOME/.cache/luna}

say() { printf '\n=== %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$1" >&2
    shift
    (($# == 0)) || printf '  %s\n' "$@" >&2
    exit 1
}

# The directory with luna, luna-init and luna-workspace.
release() {
    local target=${CARGO_TARGET_DIR:-$root/target}
    printf '%s/%s/release\n' "$target" "$(rustc -vV | sed -n 's/^host: //p')"
}
