# What every script here begins with: checks that count failures, and a guest with the probe in it.
# shellcheck shell=sh
work=$(mktemp -d)
export CACHOT_STATE="$work/state"
failures=0
trap 'rm -rf "$work"' EXIT

ok() { echo "ok: $1"; }

fail() {
    echo "FAILED: $1" >&2
    failures=$((failures + 1))
}

# equal NAME WANTED GOT
equal() {
    if [ "$2" = "$3" ]; then ok "$1"; else fail "$1: wanted '$2', got '$3'"; fi
}

# matches NAME PATTERN TEXT: an extended regular expression that some line of TEXT matches
matches() {
    if printf '%s\n' "$3" | grep -Eq -- "$2"; then ok "$1"; else fail "$1: no '$2' in: $3"; fi
}

# absent NAME PATTERN TEXT: a fixed string that is nowhere in TEXT
absent() {
    if printf '%s\n' "$3" | grep -Fq -- "$2"; then fail "$1: '$2' is in: $3"; else ok "$1"; fi
}

# exits NAME CODE COMMAND...: leaves the output of the command in $out and $err
exits() {
    name=$1 wanted=$2
    shift 2
    code=0
    "$@" >"$work/out" 2>"$work/err" </dev/null || code=$?
    out=$(cat "$work/out")
    err=$(cat "$work/err")
    if [ "$code" = "$wanted" ]; then ok "$name"; else fail "$name: wanted exit code $wanted, got $code: $out $err"; fi
}

# refuses NAME PATTERN COMMAND...: exit code 125, one line on stderr that matches, nothing on stdout
refuses() {
    what=$1 pattern=$2
    shift 2
    exits "$what" 125 "$@"
    matches "$what: says why" "$pattern" "$err"
    equal "$what: one line" 1 "$(printf '%s\n' "$err" | wc -l | tr -d ' ')"
    equal "$what: nothing on stdout" "" "$out"
}

# guest_with_probe: sets $initrd to an initramfs that also has /bin/probe
guest_with_probe() {
    mkdir -p "$work/extra/bin"
    cp "$CACHOT_GUEST/probe" "$work/extra/bin/probe"
    (cd "$work/extra" && find . | cpio -o -H newc 2>/dev/null) >"$work/extra.cpio"
    initrd=$work/initrd
    cat "$CACHOT_GUEST/initrd" "$work/extra.cpio" >"$initrd"
}

# gone: waits until no process of a VM is left, and looks for what it left behind
nothing_left() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        pidof cachot cachot-vmm >/dev/null || break
        sleep 0.5
    done
    equal "no process is left" "" "$(pidof cachot cachot-vmm)"
    equal "no file is left" "" "$(ls -A "$CACHOT_STATE/vms" 2>/dev/null)"
}

finish() {
    nothing_left
    if [ "$failures" != 0 ]; then
        echo "$failures checks failed" >&2
        exit 1
    fi
    ok "finished"
}
