#!/bin/sh
# Builds the guest kernel, target/guest/vmlinux, from Debian's linux-source-6.12 with
# resources/kernel.config and patches/. The result and a tree to build modules against are kept in
# ${CACHOT_CACHE:-.cache} under a hash of all that goes into them; the first build takes minutes.
#     guest/kernel/build.sh           build if needed, publish vmlinux
#     guest/kernel/build.sh --tree    the same, and print the tree for modules
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
config=$root/resources/kernel.config
source=/usr/src/linux-source-6.12.tar.xz
cache=${CACHOT_CACHE:-$root/.cache}

say() {
	echo "kernel: $*" >&2
}

fail() {
	say "$*"
	exit 1
}

case $#:${1-} in
0: | 1:--tree) ;;
*) fail "usage: build.sh [--tree]" ;;
esac

[ -f "$source" ] || fail "$source is missing; install the package linux-source-6.12"
for tool in gcc make flex bison bc patch; do
	command -v "$tool" >/dev/null || fail "$tool is missing; install the package $tool"
done
[ -f /usr/include/gelf.h ] || fail "gelf.h is missing; install the package libelf-dev"

# Raised when what this script does gives another kernel from the same sources
recipe=1

# Modules only load if they were built by the same compiler, so it is part of the identity
identity=$({
	echo "$recipe"
	cat "$config" "$here"/patches/*.patch
	dpkg-query -W -f '${Version}\n' linux-source-6.12
	gcc --version | head -n 1
} | sha256sum | cut -c 1-16)
built=$cache/kernel-$identity

# Every line of the fragment that is not in the resulting configuration
lost_symbols() {
	grep -E '^(CONFIG_|# CONFIG_.* is not set$)' "$config" | grep -vxFf "$1" || true
}

build() {
	say "building into $built (5 minutes on two idle cores)"
	work=$(mktemp -d "$cache/kernel-building.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	trap 'exit 1' HUP INT TERM

	say "unpacking $source"
	mkdir "$work/source" "$work/objects" "$work/done"
	tar -C "$work/source" --strip-components=1 -xf "$source"
	for change in "$here"/patches/*.patch; do
		patch -s -d "$work/source" -p1 <"$change" || fail "$change does not fit $source"
	done

	make_kernel() {
		nice make -C "$work/source" O="$work/objects" ARCH=x86_64 \
			KBUILD_BUILD_USER=cachot KBUILD_BUILD_HOST=cachot \
			KBUILD_BUILD_TIMESTAMP=1970-01-01 "$@" >>"$work/log" 2>&1 || {
			tail -n 30 "$work/log" >&2
			fail "make $1 failed"
		}
	}
	make_kernel KCONFIG_ALLCONFIG="$config" allnoconfig
	lost=$(lost_symbols "$work/objects/.config")
	[ -z "$lost" ] || fail "these lines of $config did not survive: $lost"

	# A line from time to time, with the number of files compiled so far
	(
		while sleep 20; do
			say "$(grep -c '^  CC ' "$work/log") of about 1,450 files compiled"
		done
	) &
	progress=$!
	trap 'kill $progress 2>/dev/null; rm -rf "$work"' EXIT
	make_kernel -j"$(nproc)" vmlinux modules
	kill "$progress"

	strip -s -o "$work/done/vmlinux" "$work/objects/vmlinux"
	cp "$work/objects/System.map" "$work/objects/.config" "$work/done"
	# shellcheck disable=SC2016 # the variables are make's
	make_kernel run-command KBUILD_RUN_COMMAND='$(srctree)/scripts/package/install-extmod-build '"$work/done/tree"

	mv -T "$work/done" "$built"
	rm -rf "$work"
	trap - EXIT HUP INT TERM
}

if [ ! -f "$built/vmlinux" ]; then
	# One build at a time: a second one would only take processors away from the first
	mkdir -p "$cache"
	exec 9>"$cache/kernel.lock"
	flock 9
	[ -f "$built/vmlinux" ] || build
	exec 9>&-
fi

mkdir -p "$root/target/guest"
if ! cmp -s "$built/vmlinux" "$root/target/guest/vmlinux"; then
	new=$(mktemp "$root/target/guest/vmlinux.XXXXXX")
	cp "$built/vmlinux" "$new"
	chmod 0644 "$new"
	mv "$new" "$root/target/guest/vmlinux"
	say "$root/target/guest/vmlinux"
fi
if [ "${1-}" = --tree ]; then
	echo "$built/tree"
fi
