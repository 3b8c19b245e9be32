# Machines of every size.
. "$IN/lib.sh"
for cpus in 1 2 4; do
    exits "$cpus CPUs" 0 cachot run --cpus "$cpus" -- sh -c 'nproc; for n in 1 2 3 4; do (i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done) & done; wait; echo done'
    equal "$cpus CPUs all work" "$cpus done" "$(echo $out)"
done
for memory in 128M 256M 1G 3G 4G; do
    exits "$memory" 0 cachot run --memory "$memory" -- sh -c 'awk "/MemTotal/ { print \$2 }" /proc/meminfo'
    case $memory in
    *M) wanted=$((${memory%M} * 1024)) ;;
    *G) wanted=$((${memory%G} * 1024 * 1024)) ;;
    esac
    if [ "$out" -gt $((wanted * 80 / 100)) ] && [ "$out" -le "$wanted" ]; then ok "$memory: the guest sees it"; else fail "$memory: the guest sees $out KiB"; fi
done
# Linux takes its highest memory first.
exits "memory above the hole works" 0 cachot run --memory 4G -- sh -c 'mkdir /m && mount -t tmpfs t /m && head -c 200000000 /dev/zero > /m/big && wc -c < /m/big'
equal "memory above the hole works" 200000000 "$(echo $out)"
exits "orderly clock" 0 cachot run -- date +%Y
if [ "$out" -ge 2024 ]; then ok "the guest knows the year"; else fail "the guest's year is $out"; fi
finish
