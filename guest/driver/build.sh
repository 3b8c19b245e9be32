#!/bin/sh
# Builds the guest's driver: against our own kernel into target/guest/virtio_secrets.ko, or against
# another kernel's build directory (such as /usr/src/linux-headers-6.12*-cloud-amd64):
#     guest/driver/build.sh [--kdir DIR --out FILE]
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)

fail() {
	echo "driver: $*" >&2
	exit 1
}

case $#:${1-}:${3-} in
0::)
	kdir=$("$root/guest/kernel/build.sh" --tree)
	out=$root/target/guest/virtio_secrets.ko
	;;
4:--kdir:--out)
	kdir=$2
	out=$4
	;;
*) fail "usage: build.sh [--kdir DIR --out FILE]" ;;
esac
[ -f "$kdir/Makefile" ] || fail "$kdir is not a kernel's build directory; install its linux-headers package"

# Away from the sources, which then hold no build products
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$here"/*.[ch] "$here/Kbuild" "$work"
make -s -C "$kdir" M="$work" modules >"$work/log" 2>&1 || {
	cat "$work/log" >&2
	fail "the build against $kdir failed"
}
strip --strip-debug "$work/virtio_secrets.ko"
mkdir -p "$(dirname "$out")"
mv "$work/virtio_secrets.ko" "$out"
echo "driver: $out"
