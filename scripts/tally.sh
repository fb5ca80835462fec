# shellcheck shell=bash
# Sourced after lib.sh: runs suites, shows what they say, counts what passed, and ends with one plain line.

passed=0 failed=0
broken=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Runs a command, shows its output and keeps it in $log. A file and not a pipe: whatever a broken test leaves running
# would hold a pipe open for ever.
observe() {
    : >"$log"
    "$@" >>"$log" 2>&1 </dev/null &
    local pid=$!
    tail -n +1 -s 0.2 -f --pid="$pid" "$log"
    wait "$pid"
}

# check NAME COMMAND...: one thing that passes or fails.
check() {
    local name=$1
    shift
    say "$name"
    if observe "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        broken+=("$name")
    fi
}

# suite NAME COMMAND...: many things, counted from what cargo test, nextest or our own closing line says. A suite that
# fails without naming a failure (it does not compile, say) counts as one.
suite() {
    local name=$1 status=0 ok bad
    shift
    say "$name"
    observe "$@" || status=$?
    read -r ok bad < <(awk '
        /^test result: / { ok += $4; bad += $6 }
        # 12 tests run: 10 passed (1 slow), 1 failed, 1 timed out, 3 skipped
        /^ *Summary \[/ {
            for (i = 1; i <= NF; i++) if ($i ~ /^tests?$/ && $(i + 1) == "run:") { ok += $(i + 2); bad += $(i - 1) - $(i + 2) }
        }
        /^[0-9]+ passed, [0-9]+ failed$/ { ours_ok = $1; ours_bad = $3 }
        END { print ok + ours_ok, bad + ours_bad }
    ' "$log")
    if ((status != 0 && bad == 0)); then bad=1; fi
    passed=$((passed + ok))
    failed=$((failed + bad))
    ((bad == 0)) || broken+=("$name ($bad)")
}

# The closing line; fails when anything did.
finish() {
    echo
    ((failed == 0)) || printf 'failed: %s\n' "${broken[@]}"
    echo "$passed passed, $failed failed"
    ((failed == 0 && passed > 0))
}
