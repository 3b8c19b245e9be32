# What scripts about snapshots share: secrets, VMs whose workload has one of them everywhere, and searches.
# shellcheck shell=sh
probe=$CACHOT_GUEST/probe
# By its path: busybox's shell takes its own one otherwise, which reads no binary files.
gnu_grep=$(which grep)
images=$work/images
values=$work/values
mkdir "$images" "$values"

# value NAME LENGTH [START]: a text that has no run in common with any other one, in values/NAME. The signs in it make
# its encodings differ from each other, and no letter else needs an escape, so that those of two are of one length.
value() {
    random() { head -c 3072 /dev/urandom | base64 -w 0 | tr -d '+/' | head -c "$1"; }
    printf '%s%s~~?"%s' "$3" "$(random $((24 - ${#3})))" "$(random $(($2 - 28)))" >"$values/$1"
}

# until_matches NAME PATTERN COMMAND...: the command prints a line that matches, within half a minute
until_matches() {
    what=$1 pattern=$2
    shift 2
    for _ in $(seq 60); do
        seen=$("$@" 2>&1) || true
        if printf '%s\n' "$seen" | grep -Eq -- "$pattern"; then
            ok "$what"
            return
        fi
        sleep 0.5
    done
    fail "$what: no '$pattern' in: $(printf '%s\n' "$seen" | tail -n 30)"
}

# holding VM OPTION...: starts a VM whose workload puts the secret KEY into 21 places, and into those of $hold; it
# looks at them when it is asked to, and at each epoch
holding() {
    vm=$1
    shift
    exits "$vm starts" 0 cachot run -d --name "$vm" --initrd "$initrd" --memory 128M "$@" -- \
        sh -c "probe hold /run/secrets/KEY --watch --trigger /tmp/look $hold"
    until_matches "$vm holds its secret everywhere" '^holding 2[0-9] places$' cachot logs "$vm"
}
hold=

# log_behind VM LINES: what its log has behind so many lines
log_behind() { cachot logs "$1" | tail -n +$(($2 + 1)); }

# looks VM: has the workload look at its places; what it says is then in $seen
looks() {
    lines=$(cachot logs "$1" | wc -l)
    cachot exec "$1" -- touch /tmp/look || fail "$1 cannot be asked"
    until_matches "$1 looks at its places" '^done$' log_behind "$1" "$lines"
    seen=$(printf '%s\n' "$seen" | sed -n '/^triggered$/,$p')
}

# holds VM VALUE: all of its places have the value, but for the start of one that is too short to be known
holds() {
    looks "$1"
    matches "$1: the file is right" "^value $("$probe" digest "$values/$2")$" "$seen"
    others=$(printf '%s\n' "$seen" | grep -Ev '^(triggered|value|done|freed-heap)| same$')
    equal "$1: all places are" "" "$others"
    same=$(printf '%s\n' "$seen" | grep -c ' same$')
    if [ "$same" -ge 20 ]; then ok "$1: $same of them"; else fail "$1: only $same of them"; fi
}

# forms VALUE: the forms of it that any tool can look for, a line each
forms() {
    cat "$values/$1"
    echo
    base64 -w 0 "$values/$1"
    echo
    base64 -w 0 "$values/$1" | tr '+/' '-_'
    echo
    base64 -w 76 "$values/$1" | head -n 1
    hex=$(od -An -v -tx1 "$values/$1" | tr -d ' \n')
    echo "$hex"
    echo "$hex" | tr a-f A-F
    sed 's/"/\\"/' "$values/$1"
    echo
    sed 's/+/%2B/g; s,/,%2F,g; s/?/%3F/g; s/"/%22/g' "$values/$1"
    echo
}

# greps VALUE PATH: prints what grep finds of those forms, each once
greps() {
    forms "$1" >"$work/forms"
    LC_ALL=C "$gnu_grep" -rhaoF -f "$work/forms" "$2" | sort -u
}

# forgets IMAGE VALUE: nothing of the value is in the image, for a search that shares no code with cachot's, for
# cachot's, and for grep
forgets() {
    exits "$1 has no residue of $2" 0 "$probe" scan "$images/$1" --needle "$values/$2"
    exits "$1 has none for cachot" 0 cachot snapshot scan "$images/$1" --secret "KEY=file:$values/$2"
    equal "$1 has none for grep" "" "$(greps "$2" "$images/$1")"
}

# monitor_of VM, keeper_of VM: the processes
keeper_of() { sed -n 's/.*"keeper": *\([0-9]*\).*/\1/p' "$CACHOT_STATE/vms/$1/config.json" | head -n 1; }
monitor_of() {
    for process in $(pidof cachot-vmm); do
        if [ "$(sed -n 's/^PPid:\t//p' "/proc/$process/status")" = "$(keeper_of "$1")" ]; then echo "$process"; fi
    done
}

# in_memory PROCESS VALUE: how often the process has the value
in_memory() { "$probe" scan-process "$1" "$values/$2" | grep -c '^hit' || true; }
