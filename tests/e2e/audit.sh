# Audit logs: who was given which secret, recorded before the value is given out, and whether that is still what was written.
. "$IN/lib.sh"
export TOKEN_A=value-of-the-first-secret-0001 TOKEN_B=value-of-the-second-secret-0002

audit() { cachot secret audit "$@"; }

# A run is recorded in the host's log, and in its own only if that is asked for.
exits "run" 0 cachot run -d --name plain --secret A=env:TOKEN_A -- sleep 1000
exits "run with a log of its own" 0 cachot run -d --name web --secrets-audit --secret A=env:TOKEN_A --secret B=env:TOKEN_B -- sleep 1000
exits "the host's log" 0 audit
equal "the host's log: a line a secret" 3 "$(printf '%s\n' "$out" | wc -l | tr -d ' ')"
matches "the host's log: a line" '^[0-9TZ:.-]+ A materialize allow vm=plain user=0 source=env$' "$out"
exits "the log of a VM" 0 audit web
equal "the log of a VM: its secrets" "A B" "$(printf '%s\n' "$out" | cut -d ' ' -f 2 | paste -s -d ' ' -)"
exits "a VM without a log" 125 audit plain
matches "a VM without a log: says so" 'no audit log' "$err"
exits "a VM that there is not" 125 audit nobody
equal "modes" "700 600 600" "$(stat -c %a "$CACHOT_STATE/vms/web/audit" "$CACHOT_STATE/vms/web/audit/log.jsonl" "$CACHOT_STATE/audit/log.jsonl" | paste -s -d ' ' -)"
exits "verify" 0 audit verify
matches "verify: the host's" 'log of the host, 3 records .* as it was written' "$out"
matches "verify: the VM's" 'log of the VM web, 2 records .* as it was written' "$out"

# A secret that cannot be resolved is recorded as well, without what was typed.
exits "no value" 125 cachot run --name lost --secret C="env:$TOKEN_A" -- true
matches "no value: recorded" ' C materialize error vm=lost user=0 source=env: no such variable$' "$(audit)"

# Copies keep a log, with what they descend from.
exits "a snapshot" 0 cachot snapshot create web "$work/snap"
exits "restore" 0 cachot restore "$work/snap" -d --name again
matches "restore: recorded" ' A rehydrate allow vm=again user=0 source=env from=image:[0-9a-f]{32}$' "$(audit again)"
exits "fork of a VM" 0 cachot fork web --count 2 --names one,two
matches "fork: recorded" ' B rehydrate allow vm=two user=0 source=env from=vm:web$' "$(audit two)"
exits "secret check" 0 cachot secret check A=env:TOKEN_A
matches "secret check: recorded" ' A check allow user=0 source=env$' "$(audit | tail -n 1)"
exits "snapshot verify" 0 cachot snapshot verify "$work/snap"
matches "snapshot verify: recorded" ' B check allow user=0 source=env from=image:' "$(audit | tail -n 1)"
exits "verify all" 0 audit verify
equal "verify all: five logs" 5 "$(printf '%s\n' "$out" | grep -c 'as it was written')"

# Who follows sees what comes, until the VM ends; the log of a VM that has ended stays.
cachot secret audit web --follow >"$work/followed" &
follower=$!
cachot secret audit --follow --json >"$work/host" &
host_follower=$!
sleep 1
exits "one more use" 0 cachot secret check LATE=env:TOKEN_A
sleep 1
matches "--follow --json: it comes" '"name":"LATE"' "$(cat "$work/host")"
exits "stop" 0 cachot stop web again one two plain
wait "$follower"
equal "--follow: ends with the VM" 2 "$(wc -l <"$work/followed" | tr -d ' ')"
kill "$host_follower"
exits "the log of a VM that has ended" 0 audit web
exits "verify one that has ended" 0 audit verify web

# No value is in any log; the control is one that was never a secret.
logs="$CACHOT_STATE/audit $CACHOT_STATE/vms"
for value in "$TOKEN_A" "$TOKEN_B"; do
    # shellcheck disable=SC2086
    equal "no value in a log" 0 "$(grep -raF -- "$value" $logs | wc -l | tr -d ' ')"
done
# shellcheck disable=SC2086
equal "control: a name is found" yes "$(grep -raqF LATE $logs && echo yes)"

# An older log in the place of one that has grown: good in itself, and the host knows better.
exits "a log that grows" 0 cachot run -d --name old --secrets-audit --secret A=env:TOKEN_A -- sleep 1000
cp -a "$CACHOT_STATE/vms/old/audit" "$work/old"
exits "a copy of a log" 0 audit verify "$work/old"
rm -r "$CACHOT_STATE/vms/old/audit"
exits "a log that is gone" 1 audit verify
matches "a log that is gone: says so" '^wrong: .*vms/old/audit: the log is missing' "$out"
cp -a "$CACHOT_STATE/vms/web/audit" "$CACHOT_STATE/vms/old/audit"
exits "stop" 0 cachot stop old
cachot rm old web again one two plain >/dev/null

# Where nothing can be recorded nothing is given out.
refused() {
    exits "$1: run" 125 cachot run --name no --secret A=env:TOKEN_A -- true
    matches "$1: says why" "no secret is given out, as that cannot be recorded: .*$2" "$err"
    exits "$1: secret check" 125 cachot secret check A=env:TOKEN_A
    equal "$1: nothing of the value" "" "$out"
    exits "$1: without secrets it runs" 0 cachot run -- true
}
chmod 640 "$CACHOT_STATE/audit/log.jsonl"
refused "a log that others read" "open to others"
chmod 600 "$CACHOT_STATE/audit/log.jsonl"
mv "$CACHOT_STATE/audit" "$work/audit"
ln -s "$work/audit" "$CACHOT_STATE/audit"
refused "a link in the place of the folder" "not a folder"
rm "$CACHOT_STATE/audit"
mkdir -m 700 "$CACHOT_STATE/audit"
mount -t tmpfs -o size=64k,mode=700 full "$CACHOT_STATE/audit"
cp -a "$work/audit/." "$CACHOT_STATE/audit/"
exits "a small disk" 0 cachot secret check A=env:TOKEN_A
dd if=/dev/zero of="$CACHOT_STATE/audit/filler" bs=1k 2>/dev/null
# What is left of the last block.
for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do cachot secret check A=env:TOKEN_A >/dev/null 2>&1; done
refused "a full disk" "No space left"
rm "$CACHOT_STATE/audit/filler"
exits "a disk with room again" 0 cachot secret check A=env:TOKEN_A
exits "a disk that was full: verify" 0 audit verify
mount -o remount,ro "$CACHOT_STATE/audit"
refused "a read-only disk" "Read-only"
exits "a read-only disk: verify" 0 audit verify
mount -o remount,rw "$CACHOT_STATE/audit"

# Changes are found, and named.
log="$CACHOT_STATE/audit/log.jsonl"
cp -a "$log" "$work/good"
sed -i '3s/"allow"/"deny"/' "$log"
exits "a changed record" 1 audit verify
matches "a changed record: where" "^wrong: .*log.jsonl:4: " "$out"
cp -a "$work/good" "$log"
sed -i '$d' "$log"
exits "a cut" 1 audit verify
matches "a cut: says so" 'does not reach its head' "$out"
refused "a log that was cut" "has lost lines"
cp -a "$work/good" "$log"
exits "as it was" 0 audit verify
umount "$CACHOT_STATE/audit"
finish
