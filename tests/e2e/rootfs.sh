# A root file system of one's own: read-only, and under an overlay in memory. The image never changes.
. "$IN/lib.sh"
image=$IN/rootfs.ext4
before=$(sha256sum <"$image")
export API_TOKEN=tk-demo-0123456789abcdef0123456789abcdef

exits "an overlay" 0 cachot run --no-mask --rootfs "$image" --secret API_KEY=env:API_TOKEN -- \
    sh -c 'cat /etc/image-name; echo new > /etc/new && cat /etc/new; cat /run/secrets/API_KEY; echo; grep " / " /proc/mounts | cut -d " " -f 1'
equal "an overlay can be written" "an-image new $API_TOKEN overlay" "$(echo $out)"
exits "what was written is gone" 1 cachot run --rootfs "$image" -- test -e /etc/new

exits "read-only" 0 cachot run --no-mask --rootfs "$image,ro" --secret API_KEY=env:API_TOKEN -- \
    sh -c 'cat /etc/image-name; touch /etc/new || echo refused; cat /run/secrets/API_KEY; echo x > /tmp/x && echo tmp works'
equal "read-only refuses" "an-image refused ${API_TOKEN}tmp works" "$(echo $out)"
exits "a user of the image" 0 cachot run --rootfs "$image" --user app -- sh -c 'id -u; echo $HOME; pwd'
equal "a user of the image" "1500 /home/app /home/app" "$(echo $out)"
equal "the image did not change" "$before" "$(sha256sum <"$image")"

head -c 1048576 /dev/zero >"$work/empty.img"
exits "not a file system" 125 cachot run --rootfs "$work/empty.img" -- true
matches "not a file system: says so" 'ext4' "$err"
refuses "no such image" 'rootfs.*missing.img' cachot run --rootfs "$work/missing.img" -- true

# A snapshot of a VM that only reads its disk does not have it: what is restored has the very same one.
cp "$image" "$work/disk"
exits "a VM" 0 cachot run -d --name src --memory 128M --rootfs "$work/disk" -- sh -c 'while :; do busybox sleep 1; done'
exits "an image of it" 0 cachot snapshot create src "$work/snapshot"
matches "it has the disk's digest" '"blake3": "[0-9a-f]{64}"' "$(grep -A 6 '"disks"' "$work/snapshot/manifest.json")"
exits "two copies" 0 cachot fork "$work/snapshot" --count 2 --names one,two
for child in one two; do
    equal "$child reads its disk" an-image "$(cachot exec "$child" -- cat /etc/image-name)"
done
exits "they end" 0 cachot rm -f one two
byte=$(od -An -tu1 -j 30000000 -N 1 "$work/disk" | tr -d ' ')
printf %b "\\0$(printf %o $((byte ^ 1)))" | dd of="$work/disk" bs=1 seek=30000000 conv=notrunc 2>/dev/null
refuses "a restore with one bit of the disk changed" 'disk.*content' cachot restore -d --name never "$work/snapshot"
exits "who trusts the image trusts the disk" 0 cachot restore -d --name one --trust-image "$work/snapshot"
exits "it ends" 0 cachot rm -f one
cp "$image" "$work/other"
mv "$work/disk" "$work/away"
mv "$work/other" "$work/disk"
exits "the same disk in another file" 0 cachot restore -d --name one "$work/snapshot"
exits "it ends" 0 cachot rm -f one
refuses "an image of a VM whose disk is another file" 'disk.*inode' cachot snapshot create src "$work/never"
refuses "a fork of it" 'disk.*inode' cachot fork src
truncate -s +4096 "$work/disk"
refuses "a longer disk" 'disk.*length' cachot restore -d --name never "$work/snapshot"
rm "$work/disk"
refuses "no disk" 'disk' cachot restore -d --name never "$work/snapshot"
mv "$work/away" "$work/disk"
exits "the disk is back" 0 cachot snapshot create src "$work/again"
exits "it ends" 0 cachot rm -f src
finish
