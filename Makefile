# What there is to do with this tree. Each target installs and builds what it needs, and skips what is there.
.PHONY: all deps build guest demo test lint fmt bench clean
.NOTPARALLEL:

cargo_target = $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
scripts = $(shell grep -rlE '^\#!/bin/(ba)?sh' --exclude='*.rs' --exclude='*.md' .ci guest resources tests)
step = @printf '\n== %s\n'

all: build guest # the programs and what runs in guests

deps: # the Debian packages that are missing
	@resources/install-deps.sh

build: deps
	$(step) 'building cachot and cachot-vmm'
	cargo build --locked --release -p cachot -p cachot-vmm

guest: deps
	$(step) 'building what runs in guests (the kernel takes some minutes the first time)'
	guest/build.sh

demo: build guest # the example of the README
	$(step) 'the demo'
	tests/lab/lab auto tests/demo.sh

lint: deps
	$(step) 'formatting and lints'
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	shellcheck $(scripts)
	shellcheck -x -s sh tests/demo.sh tests/e2e/*.sh tests/fuzz/images.sh

test: build guest lint # everything; needs no hardware virtualisation
	$(step) 'preparing the lab'
	tests/lab/lab image
	$(step) 'tests (those of whole systems take minutes where KVM is emulated)'
	cargo test --locked --workspace --no-fail-fast

bench: build guest # times, exits and memory, measured now; PEER_FIRECRACKER=/path adds ratios
	$(step) 'the search for residue'
	cargo run --locked --release -p cachot-bench -- scan
	$(step) 'the store of secrets, and audit logs'
	cargo run --locked --release -p cachot-bench -- secrets
	$(step) 'bare metal, on this machine'
	cargo run --locked --release -p cachot-bench -- native --programs $(cargo_target)/release --guest target/guest \
		$(if $(PEER_FIRECRACKER),--peer $(PEER_FIRECRACKER))
	$(step) 'snapshots and restores on bare metal'
	cargo run --locked --release -p cachot-bench -- snapshot --programs $(cargo_target)/release --guest target/guest
	$(step) 'Linux, in fresh labs'
	cargo run --locked --release -p cachot-bench -- linux --lab tests/lab/lab $(if $(PEER_FIRECRACKER),--peer $(PEER_FIRECRACKER))

fmt:
	cargo fmt --all

clean: # build products; the cache of downloads and of the guest kernel is .cache
	cargo clean
	rm -rf target/guest
