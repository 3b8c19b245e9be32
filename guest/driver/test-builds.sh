#!/bin/sh
# Builds the driver against Debian's 6.1 and 6.12 kernels, so that it also works in their guests. Their
# headers are downloaded into ${CACHOT_CACHE:-.cache}, not installed. Prints the modules' paths.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${CACHOT_CACHE:-$root/.cache}

fail() {
	echo "driver: $*" >&2
	exit 1
}

# Unpacks the headers $1 and what they depend on into $2, as if $2 were /.
unpack() {
	work=$(mktemp -d "$cache/headers.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	trap 'exit 1' HUP INT TERM
	packages=$(apt-cache depends "$1" | sed -n 's/^ *Depends: \(linux-headers-.*\|linux-kbuild-.*\)$/\1/p')
	[ -n "$packages" ] || fail "apt does not know what $1 depends on: run apt-get update"
	# shellcheck disable=SC2086 # a list of packages
	(cd "$work" && apt-get -q -o APT::Sandbox::User=root download "$1" $packages >&2) ||
		fail "cannot download $1"
	for package in "$work"/*.deb; do
		dpkg-deb -x "$package" "$work/root"
	done
	# It names the other folder from the root
	sed -i "s|^include /|include $2/|" "$work/root/usr/src/$1/Makefile"
	mv -T "$work/root" "$2"
	rm -rf "$work"
	trap - EXIT HUP INT TERM
}

mkdir -p "$cache"
for version in 6.1 6.12; do
	headers=$(apt-cache pkgnames "linux-headers-$version." |
		grep -x "linux-headers-$version\.[0-9].*-cloud-amd64" | grep -v -- '-rt-' | sort -V | tail -n 1)
	[ -n "$headers" ] || fail "apt knows no linux-headers-$version.*-cloud-amd64: run apt-get update"
	[ -d "$cache/$headers" ] || unpack "$headers" "$cache/$headers"
	out=$cache/$headers/virtio_secrets.ko
	"$here/build.sh" --kdir "$cache/$headers/usr/src/$headers" --out "$out"
	echo "$out"
done
