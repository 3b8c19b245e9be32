#!/bin/sh
# Installs the Debian packages that building and testing cachot needs, if some are missing.
# Needs root, or sudo without a password. Where nothing is missing it changes nothing.
set -eu

# compilers and the guest kernel; the lab; initramfs, images, modules for Debian's kernels; the tests
packages='build-essential bc bison flex libelf-dev linux-source-6.12
qemu-system-x86 busybox-static zstd xz-utils kmod
cpio e2fsprogs util-linux pahole
procps shellcheck curl openssh-client age sqlite3 python3-pip'

missing=''
for package in $packages; do
    # shellcheck disable=SC2016 # a format of dpkg-query
    case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true) in
    'install ok installed') ;;
    *) missing="$missing $package" ;;
    esac
done

if ! command -v cargo >/dev/null; then
    echo 'install-deps: cargo is missing: install Rust with https://rustup.rs, then put ~/.cargo/bin on the PATH' >&2
    exit 1
fi
# rustup's minimal profile lacks them.
cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
# The lab's kernel is downloaded, not installed: apt has to know it.
if [ -z "$missing" ] && apt-cache show linux-image-6.12-cloud-amd64 >/dev/null 2>&1; then
    exit 0
fi

if [ "$(id -u)" = 0 ]; then
    as_root=''
elif sudo -n true 2>/dev/null; then
    as_root=sudo
else
    echo "install-deps: these packages are missing:$missing" >&2
    echo "install-deps: run as root: apt-get install --no-install-recommends$missing" >&2
    exit 1
fi

echo "install-deps: installing$missing"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get -q update
# shellcheck disable=SC2086 # a list of packages
[ -z "$missing" ] || $as_root apt-get -q -y install --no-install-recommends $missing
