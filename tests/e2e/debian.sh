# Debian's own cloud kernel, a bzImage with everything in modules, with the driver built against its headers.
. "$IN/lib.sh"
export API_TOKEN=tk-demo-0123456789abcdef0123456789abcdef
kernel=$IN/vmlinuz
cat "$CACHOT_GUEST/initrd" "$IN/modules.cpio" >"$work/initrd"

exits "it boots and has its secret" 0 cachot run --no-mask --kernel "$kernel" --initrd "$work/initrd" --cpus 2 --secret API_KEY=env:API_TOKEN -- \
    sh -c 'uname -r; nproc; ls -l /run/secrets; cat /run/secrets/API_KEY'
matches "it is Debian's" '^6\..*cloud-amd64$' "$out"
matches "with two CPUs" '^2$' "$out"
matches "mode and length" '^-r-------- +1 root +root +40 .* API_KEY$' "$out"
matches "value" "$API_TOKEN" "$out"
exits "a root image on it" 0 cachot run --no-mask --kernel "$kernel" --initrd "$work/initrd" --rootfs "$IN/rootfs.ext4" --secret API_KEY=env:API_TOKEN -- \
    sh -c 'cat /etc/image-name /run/secrets/API_KEY; touch /etc/new && echo written'
matches "the image and the value" "^$API_TOKEN" "$out"
matches "under an overlay" 'written$' "$out"

cachot run --kernel "$kernel" --initrd "$work/initrd" -- \
    sh -c 'trap "echo caught; exit 7" TERM; echo ready; while :; do sleep 0.1; done' >"$work/log" 2>&1 &
vm=$!
for _ in $(seq 300); do
    grep -q ready "$work/log" && break
    sleep 0.2
done
kill -TERM "$(pidof cachot-vmm)"
code=0
wait $vm || code=$?
matches "the power button is heard" '^caught$' "$(cat "$work/log")"
equal "and the command ends by itself" 7 "$code"
finish
