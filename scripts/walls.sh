# shellcheck shell=bash disable=SC2154
# Sourced after lib.sh, with $luna set: which walls a test goes through, and why not the others.

# The walls this host has, each a word for `--isolation`; what is skipped is said with the host's own reason. WALLS, where
# set, is the list.
walls() {
    if [[ -n ${WALLS:-} ]]; then
        echo "$WALLS"
        return
    fi
    local wall refusal
    for wall in container vm; do
        if refusal=$("$luna" explain --isolation "$wall" luna/agent:latest 2>&1 >/dev/null); then
            echo "$wall"
        else
            printf 'skipped: %s: %s\n' "$wall" "$(tr '\n' ' ' <<<"$refusal")" >&2
        fi
    done
}
