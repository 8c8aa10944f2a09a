# Rempart. `make demo` shows the promise; `make test` proves it; `make check` is the quick half of the test.

SHELL := /bin/bash
export CGO_ENABLED ?= 0
GO      := go
DAEMONS := init egressd keyd tunneld voiced gatewayd rempart
TOOLS   := rempart-lab rempart-policy
# Reproducible: no paths, no build id of this machine, no symbol tables.
BUILD   := $(GO) build -trimpath -buildvcs=false -ldflags='-s -w -buildid='

.PHONY: all setup demo test check race scenarios bench generate clean build

all: build

setup:
	@tools/setup/install.sh test

build:
	@mkdir -p bin
	@$(BUILD) -o bin/ $(addprefix ./daemons/,$(DAEMONS))
	@$(BUILD) -o bin/rempart-lab ./tools/lab
	@$(BUILD) -o bin/rempart-policy ./tools/policy

demo:
	@tools/setup/install.sh demo
	@$(MAKE) -s build
	@bin/rempart-lab demo

# The quick half: no board, no race detector.
check:
	@tools/setup/install.sh test
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test ./internal/... ./boot/... ./keystore/... ./vpn/... ./voice/... ./gateway/... ./daemons/... \
	  $$($(GO) list ./tools/... | grep -v -e /tools/lab -e /tools/bench)

# What can race is run under the race detector, which needs a C compiler. Left out is what has no goroutine of its own and
# spends its time in the kernel or in `go list`: there the detector costs minutes and can find nothing.
race:
	CGO_ENABLED=1 $(GO) test -race $$($(GO) list ./internal/... ./keystore/... ./vpn/... ./voice/... ./gateway/... ./daemons/... \
	  | grep -v -e internal/archtest -e internal/bpf -e internal/proof -e internal/sandbox/guard -e vpn/enforce)

# The netns board and all that is tried on it, one package after another: they measure time.
scenarios: build
	REMPART_BIN=$(CURDIR)/bin $(GO) test -count=1 -p 1 -timeout 15m ./tools/bench ./board/... ./tools/lab/...

# Everything. The scenarios come last, so that the run ends with the test runner's own lines.
test:
	@tools/setup/install.sh test
	@$(MAKE) -s check race
	@$(MAKE) -s scenarios

bench:
	@tools/setup/install.sh bench
	@$(MAKE) -s build
	@$(GO) run ./tools/bench

# The BPF objects are committed; this makes them again with the pinned clang.
generate:
	@tools/setup/install.sh generate
	$(GO) generate ./internal/bpf

clean:
	@if [ -x bin/rempart-lab ]; then bin/rempart-lab down --all; fi
	rm -rf bin out
