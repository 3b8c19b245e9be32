# Bad input: a clear line, exit code 125, nothing booted half-way, nothing left.
. "$IN/lib.sh"
export GOOD=a-value-that-is-fine EMPTY=

refuses "unknown scheme" 'A.*nope' cachot run --secret A=nope:x -- true
refuses "missing scheme" 'A' cachot run --secret A=plain -- true
refuses "missing variable" 'A.*NO_SUCH_VARIABLE' cachot run --secret A=env:NO_SUCH_VARIABLE -- true
refuses "empty value" 'A.*empty' cachot run --secret A=env:EMPTY -- true
refuses "missing file" 'A.*/no/such/file' cachot run --secret A=file:/no/such/file -- true
printf 'KEY=value\n' >"$work/dot.env"
refuses "missing key" 'A.*OTHER' cachot run --secret "A=dotenv:$work/dot.env#OTHER" -- true
refuses "duplicate name" 'A.*(twice|duplicate|more than once)' cachot run --secret A=env:GOOD --secret A=env:GOOD -- true
refuses "illegal name" 'declaration 1.*name' cachot run --secret 1A=env:GOOD -- true
exits "all failures together" 125 cachot run --secret A=env:NONE_1 --secret B=env:GOOD --secret C=nope:x --secret D=env:EMPTY -- true
for name in A C D; do matches "all failures together: $name" "$name" "$err"; done
absent "no failure of the good one" 'secret B' "$err"
matches "control: failures look like this" 'secret A' "$err"
absent "no value in messages" "$GOOD" "$err"

refuses "no such kernel" '/no/such/kernel' cachot run --kernel /no/such/kernel -- true
head -c 100000 /dev/urandom >"$work/noise"
refuses "not a kernel" 'noise' cachot run --kernel "$work/noise" -- true
: >"$work/nothing"
refuses "an empty kernel" 'nothing' cachot run --kernel "$work/nothing" -- true
head -c 1000 "$CACHOT_GUEST/vmlinux" >"$work/half"
refuses "half a kernel" 'kernel.*damaged' cachot run --kernel "$work/half" -- true
refuses "no such initrd" '/no/such/initrd' cachot run --initrd /no/such/initrd -- true
exits "a corrupt initrd" 125 cachot run --initrd "$work/noise" -- true
matches "a corrupt initrd: says so" '(panic|initrd)' "$err"
for memory in 0 1M 0M -5M 3x 100000G 257K; do
    exits "memory $memory" 125 cachot run --memory="$memory" -- true
    matches "memory $memory: says so" 'memory' "$err"
done
for cpus in 0 1000 -1 two; do
    exits "$cpus CPUs" 125 cachot run --cpus="$cpus" -- true
    matches "$cpus CPUs: says so" 'cpu' "$err"
done
exits "no command" 125 cachot run
exits "unknown option" 125 cachot run --frobnicate -- true

# A machine without KVM: the same /dev without that one node, for one process.
without_kvm() {
    mkdir -p "$work/dev"
    unshare -m sh -c 'mount -t tmpfs tmpfs "$0/dev" && for d in null zero random urandom tty; do
        touch "$0/dev/$d" && mount --bind "/dev/$d" "$0/dev/$d" || exit 99
    done && ln -s /proc/self/fd "$0/dev/fd" && mount --rbind "$0/dev" /dev && shift && exec "$@"' "$work" "$@"
}
refuses "no /dev/kvm" '/dev/kvm' without_kvm x cachot run -- true
# Found before anything else is needed, so a copy that everybody can reach will do.
chmod 755 "$work"
cp "$(command -v cachot)" "$CACHOT_GUEST/tiny" "$work"
as_nobody() { su -s /bin/sh nobody -c "HOME=/nowhere CACHOT_STATE=$work/nobody $*"; }
refuses "no permission" '/dev/kvm.*(permission|group)' as_nobody "$work/cachot" run --kernel "$work/tiny" --initrd none -- true
finish
