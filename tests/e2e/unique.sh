# Copies of one VM are not alike: random numbers, ids, names, keys and the time are each one's own.
. "$IN/lib.sh"
. "$IN/hold.sh"
value key 72
cat >"$work/says" <<'W'
echo "boot $(cat /proc/sys/kernel/random/boot_id) machine $(cat /etc/machine-id) host $(cat /proc/sys/kernel/hostname) key $(cat /etc/ssh/ssh_host_ed25519_key) is"
W
exits "a VM" 0 cachot run -d --name src --memory 128M --rootfs "$IN/rootfs.ext4" --secret "KEY=file:$values/key" -- \
    sh -c "while :; do $(cat "$work/says"); busybox sleep 0.1; done"
until_matches "it says who it is" '^boot [-0-9a-f]{36} machine [0-9a-f]{32} host .* key .+ is$' cachot logs src
first=$(cachot logs src | head -n 1)

exits "an image of the workload at rest" 0 cachot snapshot create src "$images/rest" --quiesce-workload
taken=$(date +%s)
forgets rest key
before=$(cachot logs src | wc -l)
goes_on() { [ "$(cachot logs src | wc -l)" -gt $((before + 3)) ] && echo on; }
until_matches "the workload goes on" on goes_on
equal "it is what it was" "$first" "$(cachot logs src | tail -n 1)"
while [ "$(date +%s)" -lt $((taken + 20)) ]; do sleep 1; done

exits "three copies" 0 cachot fork "$images/rest" --count 3 --names one,two,three
cat >"$work/tells" <<'W'
set -- $(sh -c "$0")
echo "boot_id $2"; echo "machine-id $4"; echo "hostname $6"; echo "ssh-key $8"
echo "random $(busybox head -c 16 /dev/urandom | busybox od -An -tx1 | tr -d ' ')"
W
for vm in src one two three; do
    goes_on() { [ "$(cachot logs "$vm" | wc -l)" -gt 3 ] && echo on; }
    until_matches "$vm says who it is" on goes_on
    cachot exec "$vm" -- sh -c "$(cat "$work/tells")" "$(cat "$work/says")" >"$work/of-$vm" || fail "$vm cannot be asked"
done
for what in boot_id machine-id hostname ssh-key random; do
    of() { sed -n "s/^$what \(..*\)/\1/p" "$work"/of-*; }
    equal "$what: four, no two alike" "4 4" "$(of | wc -l | tr -d ' ') $(of | sort -u | wc -l | tr -d ' ')"
done
for vm in one two three; do
    matches "$vm: its name" "^hostname $vm\$" "$(cat "$work/of-$vm")"
    # It rested until all was its own. The first line it may have been about to say when it was brought to rest, with
    # what it had read by then; no other is the source's.
    cachot logs "$vm" | tail -n +2 >"$work/said"
    equal "$vm: its workload never saw what it was" "" "$(grep -E "$(echo "$first" | cut -d ' ' -f 2)|$(echo "$first" | cut -d ' ' -f 4)" "$work/said")"
    lines=$(sort -u "$work/said" | grep -c '^boot .* is$')
    equal "$vm: and is one and the same since" 1 "$lines"
    before=$(date +%s)
    exits "$vm: the time" 0 cachot exec "$vm" -- busybox date +%s
    if [ "$out" -ge $((before - 2)) ] && [ "$out" -le $(($(date +%s) + 2)) ]; then ok "$vm: is right"; else fail "$vm: it is $out in the guest, and $before"; fi
    matches "$vm: the kernel's random generator knows" 'crng reseeded' "$(cachot exec "$vm" -- busybox dmesg)"
done
absent "control: the source's did not" 'reseeded due to virtual machine' "$(cachot exec src -- busybox dmesg)"
matches "control: the source saw what it was" "$(echo "$first" | cut -d ' ' -f 2)" "$(cachot logs src)"
exits "they end" 0 cachot rm -f src one two three
finish
