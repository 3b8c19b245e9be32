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
finish
