# shellcheck shell=bash disable=SC2154
# Sourced after lib.sh: makes sure that `cargo` is young enough, with the components named in $components.
# Debian 12's own is 1.63; the workspace's `rust-version` is the least that compiles it.

components=${components:-}
# What rustup installs where nothing of sufficient age is found.
pinned=1.95.0
least=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

young_enough() {
    local have component
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2) || return 1
    [[ $(printf '%s\n' "$least" "$have" | sort -V | head -n1) == "$least" ]] || return 1
    # rustup leaves a proxy for each component, present or not, so each is asked its version.
    for component in $components; do
        case $component in
        clippy) cargo clippy --version ;;
        rustfmt) cargo fmt --version ;;
        esac >/dev/null 2>&1 || return 1
    done
}

# rustup from the same place as the toolchains, checked against the digest published beside it.
fetch_rustup() {
    local from directory
    from=https://static.rust-lang.org/rustup/dist/$(uname -m)-unknown-linux-gnu
    directory=$(mktemp -d)
    curl --proto '=https' --tlsv1.2 -fsS --retry 3 -o "$directory/rustup-init" "$from/rustup-init" &&
        curl --proto '=https' --tlsv1.2 -fsS --retry 3 -o "$directory/sha256" "$from/rustup-init.sha256" &&
        echo "$(cut -d' ' -f1 "$directory/sha256")  $directory/rustup-init" | sha256sum --quiet --check &&
        chmod +x "$directory/rustup-init" &&
        "$directory/rustup-init" -y --quiet --no-modify-path --profile minimal --default-toolchain none \
            </dev/null >/dev/null
    local result=$?
    rm -rf "$directory"
    return "$result"
}

if ! young_enough; then
    if ! command -v rustup >/dev/null; then
        say "Rust $least or later is not here: installing rustup into ${CARGO_HOME:-$HOME/.cargo} from static.rust-lang.org"
        fetch_rustup || die "cannot install rustup" \
            "install Rust $least or later another way (https://www.rust-lang.org/tools/install) and run this again"
        hash -r
    fi
    export RUSTUP_TOOLCHAIN=$pinned
    if ! young_enough; then
        say "Installing Rust $pinned with rustup"
        # shellcheck disable=SC2086,SC2046
        rustup toolchain install "$pinned" --profile minimal --no-self-update \
            $(printf -- '--component %s ' rustc $components) </dev/null >&2 ||
            die "cannot install Rust $pinned with rustup"
        young_enough || die "cannot use the Rust that rustup installed" "\`cargo --version\` says: $(cargo --version 2>&1)"
    fi
fi
