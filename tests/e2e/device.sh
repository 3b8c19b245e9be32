# What the device file answers, and what becomes of secrets in use when their device goes.
. "$IN/lib.sh"
probe=$CACHOT_GUEST/probe
guest_with_probe
"$probe" pattern 7 5000 >"$work/A"
"$probe" pattern 8 40 >"$work/B"
set -- --secret "A=file:$work/A" --secret "B=file:$work/B"

exits "the device's requests" 0 cachot run --initrd "$initrd" "$@" -- sh -c 'ls -l /dev/secrets; probe verify-device A 7 5000; probe verify-device B 8 40; probe verify-device B 7 40 || echo "another value is told apart"'
matches "for root only" '^crw------- +1 root +root .* /dev/secrets$' "$out"
equal "give what the files have" 2 "$(printf '%s\n' "$out" | grep -c '^/dev/secrets has the same$')"
matches "control: another value is told apart" '^another value' "$out"

cat >"$work/guest" <<'G'
probe watch /run/secrets/A >/tmp/file &
file=$!
(probe watch --mapping /run/secrets/B; echo "ended with $?") >/tmp/mapping 2>/dev/null &
mapping=$!
until [ -s /tmp/file ] && [ -s /tmp/mapping ]; do sleep 0.1; done
sleep 1
echo "no news"; cat /tmp/file /tmp/mapping
driver=/sys/bus/virtio/drivers/virtio_secrets
device=$(basename "$(ls -d $driver/virtio*)")
echo "$device" >$driver/unbind
wait $file $mapping
echo "gone"; cat /tmp/file /tmp/mapping
umount /run/secrets
echo "$device" >$driver/bind
mount -t secretsfs none /run/secrets
echo "back"; probe digest /run/secrets/A
G
exits "a device that goes and comes back" 0 cachot run --initrd "$initrd" "$@" -- sh -c "$(cat "$work/guest")"
a=$("$probe" digest "$work/A")
b=$("$probe" digest "$work/B")
wanted="no news
epoch 1 file $a name $a
epoch 1 mapping $b
gone
epoch 1 file $a name $a
epoch 0 file ENODEV name ENOENT
epoch 1 mapping $b
ended with 135
back
$a"
equal "files end with an error, mappings with a signal" "$wanted" "$out"
finish
