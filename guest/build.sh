#!/bin/sh
# Builds everything that runs in a guest, into target/guest: vmlinux, virtio_secrets.ko, init, tiny, and
# initrd, an uncompressed cpio archive with busybox, the module and /init.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
out=$root/target/guest
target=${CARGO_TARGET_DIR:-$root/target}
mkdir -p "$out"

"$here/kernel/build.sh"
"$here/driver/build.sh"
"$here/tiny/build.sh"

# The guest has no libraries, and the probe of the tests runs there too.
echo 'guest: building PID 1'
cd "$root"
RUSTFLAGS='-C target-feature=+crt-static' cargo build --locked --release --target x86_64-unknown-linux-gnu \
    -p cachot-init -p cachot-probe
cp "$target/x86_64-unknown-linux-gnu/release/cachot-init" "$out/init"
cp "$target/x86_64-unknown-linux-gnu/release/cachot-probe" "$out/probe"

echo 'guest: packing the initramfs'
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
umask 022
chmod 0755 "$stage"
for folder in bin dev etc home lib/modules mnt proc root run sys tmp usr var; do
    mkdir -p "$stage/$folder"
done
chmod 0700 "$stage/root"
chmod 1777 "$stage/tmp"
ln -s bin "$stage/sbin"
ln -s ../bin "$stage/usr/bin"
ln -s ../bin "$stage/usr/sbin"
ln -s ../run "$stage/var/run"
cp "$out/init" "$stage/init"
cp "$(command -v busybox)" "$stage/bin/busybox"
for applet in $(busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "$stage/bin/$applet"
done
cp "$out/virtio_secrets.ko" "$stage/lib/modules/"
echo /lib/modules/virtio_secrets.ko >"$stage/lib/modules/load.list"
cat >"$stage/etc/passwd" <<'P'
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/sh
P
printf 'root:x:0:\nnogroup:x:65534:\n' >"$stage/etc/group"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$stage/etc/hosts"
# The same inputs give the same bytes.
find "$stage" -exec touch -h -d @0 {} +
(cd "$stage" && find . | LC_ALL=C sort | cpio --quiet --reproducible -o -H newc -R 0:0) >"$out/initrd.new"
mv "$out/initrd.new" "$out/initrd"
ls -l "$out"
