# Where a value must not be: processes, files and memory of the host, and everything of the guest but
# the attached pages. Each search has a positive control. $IN/identity is a private key of age.
. "$IN/lib.sh"
export PLAIN=nothing-secret-5f0c2d9ab1e34c7788d6
probe=$CACHOT_GUEST/probe
guest_with_probe
"$probe" pattern 77 64 | base64 -w 0 | head -c 40 >"$work/value"
value=$(cat "$work/value")
printf %s "$PLAIN" >"$work/plain"

# Values that the host keeps: in the store, and in a bundle.
for kept in stored bundled; do head -c 30 /dev/urandom | base64 -w 0 >"$work/$kept"; done
cp "$IN/identity" "$work/age.key"
chmod 600 "$work/age.key"
printf 'secrets_dir: %s\nsecrets_age_key_path: %s\n' "$work/bundles" "$work/age.key" >"$work/config.yaml"
export CACHOT_CONFIG="$work/config.yaml"
printf 'env:\n  BUNDLED: "%s"\n' "$(cat "$work/bundled")" | cachot bundle encrypt default - >"$work/made" || fail "no bundle: $(cat "$work/made")"
cachot secret set STORED --from "file:$work/stored" >"$work/made" || fail "nothing stored: $(cat "$work/made")"

# A running VM whose workload has only looked at its secrets through mappings, so that the one copy in the guest
# is the attached page.
"$probe" pattern 5 64 >"$work/looked-at"
cat >"$work/wait" <<'S'
probe look /run/secrets/LOOKED_AT 5 64 && test -s /run/secrets/API_KEY && echo ready
while ! [ -e /tmp/never ]; do sleep 1; done
S
API_TOKEN=$value cachot run --initrd "$initrd" --secret API_KEY=env:API_TOKEN --secret "LOOKED_AT=file:$work/looked-at" \
    --secret STORED=store:STORED --secret BUNDLED=bundle:default#env.BUNDLED --env "MARK=$PLAIN" -- sh -c "$(cat "$work/wait")" >"$work/log" 2>"$work/errors" &
shell=$!
for _ in $(seq 100); do
    grep -q ready "$work/log" && break
    sleep 0.3
done
matches "the VM runs" ready "$(cat "$work/log" "$work/errors")"
keeper=$(pidof cachot)
monitor=$(pidof cachot-vmm)

for process in "$keeper" "$monitor"; do
    absent "argv of $process" "$value" "$(tr '\0' '\n' <"/proc/$process/cmdline")"
    absent "environment of $process" "$value" "$(tr '\0' '\n' <"/proc/$process/environ")"
done
matches "control: argv of the keeper can be read" "$PLAIN" "$(tr '\0' '\n' <"/proc/$keeper/cmdline")"
matches "control: the environment of the keeper can be read" "^PLAIN=$PLAIN" "$(tr '\0' '\n' <"/proc/$keeper/environ")"

files_with() { find "$CACHOT_STATE" "$work/bundles" -type f -exec grep -alF -e "$1" {} +; }
for kept in value stored bundled; do
    equal "the state folder and the bundle: $kept" "" "$(files_with "$(cat "$work/$kept")")"
done
matches "control: the state folder names the secret" config "$(files_with API_KEY)"

"$probe" scan-process "$monitor" "$work/value" >"$work/scan"
equal "one copy in the monitor's memory" 1 "$(grep -c '^hit' "$work/scan")"
"$probe" scan-process "$monitor" "$work/looked-at" >"$work/scan-looked-at"
equal "one copy of what was read through a mapping" 1 "$(grep -c '^hit' "$work/scan-looked-at")"
searched=$(sed -n 's/^scanned \([0-9]*\) bytes.*/\1/p' "$work/scan")
if [ "$searched" -ge $((256 * 1024 * 1024)) ]; then ok "all of the guest's RAM was searched"; else fail "only $searched bytes were searched"; fi
"$probe" scan-process "$monitor" "$work/plain" >"$work/scan-plain"
matches "control: what the guest holds is found there" '^hit' "$(cat "$work/scan-plain")"
address=$(sed -n 's/^hit \(0x[0-9a-f]*\) .*/\1/p' "$work/scan")
case $address in
*000) ok "it begins a page" ;;
*) fail "the copy at $address does not begin a page" ;;
esac

# smaps_flags PROCESS ADDRESS: the flags of the mapping that the address is in
smaps_flags() {
    while read -r first rest; do
        case $first in
        *-*) [ $(($2)) -ge $((0x${first%-*})) ] && [ $(($2)) -lt $((0x${first#*-})) ] && found=1 ;;
        VmFlags:) [ -z "$found" ] || { echo " $rest "; return; } ;;
        esac
    done <"/proc/$1/smaps"
}

# The keeper holds the value in sealed memory, and, to mask it, in locked memory; nowhere else, wherever it came from.
for kept in value stored bundled; do
    "$probe" scan-process "$keeper" "$work/$kept" >"$work/scan-keeper" || fail "the keeper cannot be searched"
    matches "control: the keeper holds the value: $kept" '^hit .*memfd:cachot-secret' "$(cat "$work/scan-keeper")"
    grep '^hit' "$work/scan-keeper" | grep -v memfd:cachot-secret | cut -d ' ' -f 2 >"$work/copies"
    while read -r address; do
        found=
        flags=$(smaps_flags "$keeper" "$address")
        matches "the copy at $address is locked: $kept" ' lo ' "$flags"
        matches "and left out of core dumps: $kept" ' dd ' "$flags"
    done <"$work/copies"
done

kill -TERM "$keeper"
wait "$shell"

# From inside: each place is searched for the value, and for a mark that it also holds.
mark="mark-1d0f7a5c93"
cat >"$work/inside" <<'S'
dmesg >/tmp/dmesg 2>/dev/null
printf %s "$MARK" >/tmp/mark
for place in $PLACES; do
    cat "$place" >/dev/null || echo "cannot read $place"
    # grep looks at a line up to its first zero byte.
    tr '\0' '\n' <"$place" | grep -aqF -f /tmp/mark && echo "marked $place"
    tr '\0' '\n' <"$place" | grep -aqF -f /run/secrets/API_KEY && echo "FOUND $place"
done
true
S
# search WHERE MARK PLACES OPTION...
search() {
    where=$1 marked=$2 places=$3
    shift 3
    API_TOKEN=$value exits "a search of $where" 0 cachot run "$@" --secret API_KEY=env:API_TOKEN --env "MARK=$marked" --env "PLACES=$places" -- \
        sh -c "echo $marked >/dev/kmsg; $(cat "$work/inside")"
    absent "all of $where can be read" 'cannot read' "$out"
    absent "the value is nowhere in $where" FOUND "$out"
    for place in $places; do
        matches "control: the mark is found in $place" "^marked $place$" "$out"
    done
}
search "the kernel's texts" "$mark" "/proc/cmdline /tmp/dmesg" --cmdline "$mark"
search "the initramfs" /run/secrets "/init"
search "the initramfs's programs" BusyBox "/bin/busybox"
search "the block device" an-image "/dev/vda" --rootfs "$IN/rootfs.ext4"
API_TOKEN=$value exits "control: the search finds a value" 0 cachot run --secret API_KEY=env:API_TOKEN --env MARK=x --env PLACES=/run/secrets/API_KEY -- \
    sh -c "$(cat "$work/inside")"
matches "control: the search finds a value where it is" '^FOUND /run/secrets/API_KEY$' "$out"
finish
