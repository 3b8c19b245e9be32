#!/bin/sh
# Builds the bare-metal test guest into target/guest/tiny.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=$here/../../target/guest
mkdir -p "$out"
# General registers only: nobody switched the others on, and interpreting KVMs know few instructions of them.
${CC:-gcc} -std=c11 -O2 -Wall -Wextra -Werror -ffreestanding -nostdlib -static -no-pie -fno-pic -mcmodel=small \
    -mgeneral-regs-only -mno-red-zone -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables \
    -fno-tree-loop-distribute-patterns -fno-strict-aliasing \
    -Wl,-T,"$here/tiny.ld" -Wl,--build-id=none -Wl,-z,noexecstack -Wl,-z,max-page-size=4096 -Wl,--no-warn-rwx-segments \
    "$here"/start.S "$here"/*.c -o "$out/tiny.new"
strip "$out/tiny.new"
mv "$out/tiny.new" "$out/tiny"
