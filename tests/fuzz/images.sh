# Two images of Linux guests, for the corpora (src/bin/seeds.rs): one with a secret, one with two CPUs and a disk.
#   tests/lab/lab run tests/fuzz/images.sh --program mkfs.ext4 --out target/fuzz/images
set -eu
work=$(mktemp -d)
export CACHOT_STATE="$work/state" TOKEN=tk-demo-0123456789abcdef0123456789abcdef
mkdir -p "$work/root/bin" "$work/root/dev" "$work/root/etc" "$work/root/proc" "$work/root/run" "$work/root/sys" "$work/root/tmp"
cp /bin/busybox "$work/root/bin/sh"
ln -s sh "$work/root/bin/sleep"
mkfs.ext4 -q -d "$work/root" "$work/rootfs" 8M

# shellcheck disable=SC2016 # it is for the guest's shell
cachot run -d --name plain --memory 64M --secret TOKEN=env:TOKEN,env -- \
    sh -c 'copy=$(cat /run/secrets/TOKEN); while :; do sleep 1; done'
cachot run -d --name disk --memory 64M --cpus 2 --secret TOKEN=env:TOKEN --secret KEY=env:TOKEN,uid=7 \
    --rootfs "$work/rootfs" -- sh -c 'sleep 1000'
for name in plain disk; do
    cachot snapshot create "$name" "$work/$name"
    mkdir -p "$OUT/$name"
    for part in manifest.json plan state; do
        cp "$work/$name/$part" "$OUT/$name/"
    done
    cachot stop "$name"
done
