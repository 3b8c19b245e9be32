#!/bin/sh
# Builds the guest's driver.
#     guest/driver/build.sh                           target/guest/virtio_secrets.ko, for the guest kernel
#     guest/driver/build.sh --kdir DIR --out FILE     for the kernel whose build tree or headers are in DIR
# For a kernel of a distribution "make -C DIR M=$PWD modules" in this folder does as well.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)

case $#:${1-}:${3-} in
0::)
	tree=$("$here/../kernel/build.sh" --tree)
	out=$root/target/guest/virtio_secrets.ko
	;;
4:--kdir:--out)
	tree=$2
	out=$4
	;;
*)
	echo "driver: usage: build.sh [--kdir DIR --out FILE]" >&2
	exit 1
	;;
esac

# Objects do not belong beside the sources
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cp "$here"/*.c "$here"/*.h "$here/Kbuild" "$work"
# The folder's name is in warnings only; W=1 and -Werror: they are looked at
if ! make -C "$tree" M="$work" W=1 KCFLAGS="-Werror -fmacro-prefix-map=$work=." modules >"$work/log" 2>&1; then
	cat "$work/log" >&2
	echo "driver: building against $tree failed" >&2
	exit 1
fi
strip --strip-debug "$work/virtio_secrets.ko"

if ! cmp -s "$work/virtio_secrets.ko" "$out"; then
	mkdir -p "$(dirname "$out")"
	cp "$work/virtio_secrets.ko" "$out.new"
	mv "$out.new" "$out"
	echo "driver: $out" >&2
fi
