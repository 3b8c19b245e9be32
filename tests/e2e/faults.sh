# Deaths at bad moments: of the keeper, of the monitor, of the guest's kernel, and a full disk.
. "$IN/lib.sh"
export API_TOKEN=tk-demo-0123456789abcdef0123456789abcdef

start() {
    cachot run --secret API_KEY=env:API_TOKEN -- sh -c 'echo ready; while :; do sleep 1; done' >"$work/log" 2>"$work/err" &
    vm=$!
    for _ in $(seq 100); do
        grep -q ready "$work/log" && return
        sleep 0.3
    done
    fail "the VM did not start: $(cat "$work/err")"
}

start
kill -9 "$(pidof cachot)"
wait $vm 2>/dev/null
nothing_left

start
kill -9 "$(pidof cachot-vmm)"
code=0
wait $vm || code=$?
equal "the monitor killed: exit code" 125 "$code"
matches "the monitor killed: says so" 'monitor' "$(cat "$work/err")"
nothing_left

start
kill -9 "$(pidof cachot-vmm)" "$(pidof cachot)"
wait $vm 2>/dev/null
exits "the next command" 0 cachot run -- true
nothing_left

exits "a panic before user space" 125 cachot run --initrd none -- true
matches "a panic before user space: says so" 'panic' "$err"
exits "a panic later" 125 cachot run --memory 64M -- sh -c 'echo 2 > /proc/sys/vm/panic_on_oom; tail /dev/zero; sleep 10'
matches "a panic later: says so" 'panic' "$err"
exits "a guest that powers off by itself" 125 cachot run -- sh -c 'poweroff -f; sleep 10'
exits "a guest that resets itself" 125 cachot run -- sh -c 'reboot -f; sleep 10'

mkdir "$work/small"
mount -t tmpfs -o size=64k tmpfs "$work/small"
head -c 65536 /dev/zero >"$work/small/full" 2>/dev/null
CACHOT_STATE=$work/small/state exits "a full disk" 125 cachot run -- true
matches "a full disk: says so" 'space' "$err"
umount "$work/small"
finish
