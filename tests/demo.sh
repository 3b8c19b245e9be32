# The example of the README, on a KVM that runs Linux guests; `make demo` starts it there.
set -u
export API_TOKEN=tk-demo-0123456789abcdef0123456789abcdef

echo '$ export API_TOKEN=tk-demo-0123456789abcdef0123456789abcdef'
echo "\$ cachot run --secret API_KEY=env:API_TOKEN -- sh -c 'ls -l /run/secrets && wc -c /run/secrets/API_KEY'"
cachot run --secret API_KEY=env:API_TOKEN -- sh -c 'ls -l /run/secrets && wc -c /run/secrets/API_KEY' || exit

echo
echo '$ cachot run --secret API_KEY=env:NO_SUCH_TOKEN -- true    # refused before anything boots'
code=0
cachot run --secret API_KEY=env:NO_SUCH_TOKEN -- true 2>&1 || code=$?
echo "(exit code $code)"
[ "$code" = 125 ] || exit 1

# In hundredths of a second: what busybox can tell.
now() { cut -d ' ' -f 1 /proc/uptime | tr -d .; }
echo
echo '$ time cachot run -- cut -d " " -f 1 /proc/uptime'
started=$(now)
uptime=$(cachot run -- cut -d ' ' -f 1 /proc/uptime) || exit
ended=$(now)
echo "$uptime"
echo "in user space $uptime s after the guest's kernel began; the whole command took $(((ended - started) * 10)) ms"
