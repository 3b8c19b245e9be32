# The power button: the guest hears it, its command may end by itself, and one that does not is ended.
. "$IN/lib.sh"

# press COMMAND: presses the button of the only VM, by COMMAND, once the guest's command is ready; sets $code and $took
press() {
    for _ in $(seq 300); do
        grep -q ready "$work/log" && break
        sleep 0.2
    done
    begun=$(date +%s)
    "$@"
    code=0
    wait "$vm" || code=$?
    took=$(($(date +%s) - begun))
}

signal() { kill -TERM "$(pidof cachot-vmm)"; }
request() {
    curl -s -o "$work/reply" -w '%{http_code}\n' -X PUT -d '{"mode":"power-button"}' \
        --unix-socket "$(echo "$CACHOT_STATE"/vms/*/api.sock)" http://vm/v1/stop >"$work/status"
}

for way in request signal; do
    cachot run -- sh -c 'trap "echo caught; exit 7" TERM; echo ready; while :; do sleep 0.1; done' \
        >"$work/log" 2>&1 &
    vm=$!
    press "$way"
    matches "$way: the command hears of the button" '^caught$' "$(cat "$work/log")"
    equal "$way: its exit code counts" 7 "$code"
done
equal "the request is accepted" 204 "$(cat "$work/status")"

cachot run -- sh -c 'trap "" TERM; echo ready; while :; do sleep 0.1; done' >"$work/log" 2>&1 &
vm=$!
press signal
equal "a command that stays is killed" 137 "$code"
if [ "$took" -ge 4 ]; then ok "but has its time"; else fail "after $took s"; fi
finish
