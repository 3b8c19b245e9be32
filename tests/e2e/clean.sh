# Where a value must not be: processes, files and memory of the host, and everything of the guest but
# the attached pages. Each search has a positive control.
. "$IN/lib.sh"
export PLAIN=nothing-secret-5f0c2d9ab1e34c7788d6
probe=$CACHOT_GUEST/probe
guest_with_probe
"$probe" pattern 77 64 | base64 -w 0 | head -c 40 >"$work/value"
value=$(cat "$work/value")
printf %s "$PLAIN" >"$work/plain"

# A running VM whose workload has only looked at its secret through a mapping, so that the one copy in
# the guest is the attached page.
cat >"$work/wait" <<'S'
test -s /run/secrets/API_KEY && echo ready
while ! [ -e /tmp/never ]; do sleep 1; done
S
API_TOKEN=$value cachot run --initrd "$initrd" --secret API_KEY=env:API_TOKEN --env "MARK=$PLAIN" -- \
    sh -c "$(cat "$work/wait")" >"$work/log" 2>"$work/errors" &
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

files_with() { find "$CACHOT_STATE" -type f -exec grep -alF -e "$1" {} +; }
equal "the state folder" "" "$(files_with "$value")"
matches "control: the state folder names the secret" config "$(files_with API_KEY)"

"$probe" scan-process "$monitor" "$work/value" >"$work/scan"
equal "one copy in the monitor's memory" 1 "$(grep -c '^hit' "$work/scan")"
"$probe" scan-process "$monitor" "$work/plain" >"$work/scan-plain"
matches "control: what the guest holds is found there" '^hit' "$(cat "$work/scan-plain")"
address=$(sed -n 's/^hit \(0x[0-9a-f]*\) .*/\1/p' "$work/scan")
case $address in
*000) ok "it begins a page" ;;
*) fail "the copy at $address does not begin a page" ;;
esac

"$probe" scan-process "$keeper" "$work/value" >"$work/scan-keeper"
absent "the keeper's stack and heap" "[stack]" "$(cat "$work/scan-keeper")"
absent "the keeper's heap" "[heap]" "$(cat "$work/scan-keeper")"

kill -TERM "$keeper"
wait "$shell"

# From inside: the command line, the initramfs, the kernel's log, block devices.
cat >"$work/inside" <<'S'
find_in() { name=$1; shift; if cat "$@" 2>/dev/null | grep -aqF -f /run/secrets/API_KEY; then echo "FOUND in $name"; else echo "clean $name"; fi; }
find_in cmdline /proc/cmdline
find_in init-environment /proc/1/environ /proc/1/cmdline
find_in kernel-log /dev/kmsg-copy
dmesg > /tmp/dmesg; find_in dmesg /tmp/dmesg
for f in /init /bin/busybox; do find_in $f $f; done
for d in /dev/vd?; do find_in $d $d; done
find_in control /run/secrets/API_KEY
S
API_TOKEN=$value exits "a search from inside" 0 cachot run --secret API_KEY=env:API_TOKEN -- sh -c "$(cat "$work/inside")"
for place in cmdline init-environment dmesg /init /bin/busybox; do
    matches "not in the guest's $place" "^clean $place$" "$out"
done
matches "control: the search finds what is there" '^FOUND in control$' "$out"
absent "nowhere else" 'FOUND in /' "$out"
finish
