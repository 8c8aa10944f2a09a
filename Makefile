# Rempart. `make demo` shows the promise; `make test` proves it; `make check` is the quick half of the test.

SHELL := /bin/bash
export CGO_ENABLED ?= 0
# In every build, so that vet, the tests and the programs share what is compiled: no path of this machine in any of it.
export GOFLAGS ?= -trimpath
GO      := go
DAEMONS := init egressd watchd keyd linkd tunneld voiced gatewayd rempart
TOOLS   := rempart-lab rempart-policy
# Reproducible: no build id of this machine, no symbol tables.
BUILD   := $(GO) build -trimpath -buildvcs=false -ldflags='-s -w -buildid='

.PHONY: all setup demo test check race scenarios leakmatrix soak guest bench generate clean build

all: build

# Debian packages, and the Go tools that go.mod pins, built into the build cache.
setup:
	@tools/setup/install.sh test
	@tools/setup/kernel.sh out/guest
	@for t in staticcheck bpf2go; do $(GO) tool -n $$t >/dev/null; done

build:
	@mkdir -p bin
	@$(BUILD) -o bin/ $(addprefix ./daemons/,$(DAEMONS))
	@$(BUILD) -o bin/rempart-lab ./tools/lab
	@$(BUILD) -o bin/rempart-policy ./tools/policy

demo:
	@tools/setup/install.sh demo
	@$(MAKE) -s build
	@bin/rempart-lab demo

# Packages in three lots: tried on the board (they need the built programs and quiet), raced (they have goroutines), the rest.
# Left out of the race is what spends its time in the kernel or in `go list`: there the detector costs minutes.
BOARD  := ./tools/bench ./board/... ./tools/lab/...
PLAIN  := $(addprefix ./internal/,archtest bpf proof sandbox/guard) ./boot/... ./vpn/enforce ./tools/policy/... ./tools/report/... ./tools/sound/...
RACED  := ./internal/... ./keystore/... ./vpn/... ./voice/... ./gateway/... ./daemons/...
raced   = $$($(GO) list $(RACED) | grep -v -e internal/archtest -e internal/bpf -e internal/proof -e internal/sandbox/guard -e vpn/enforce)

.PHONY: lint
lint:
	@tools/setup/install.sh test
	@tools/setup/kernel.sh out/guest
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# The quick half: no board, no race detector.
check: lint
	$(GO) test $(PLAIN) $(RACED)

# The race detector needs a C compiler.
race:
	CGO_ENABLED=1 $(GO) test -race $(raced)

# The netns board and all that is tried on it, one package after another: they measure time.
scenarios: build
	REMPART_BIN=$(CURDIR)/bin $(GO) test -count=1 -p 1 -timeout 15m $(BOARD)

# Everything, each test once. The scenarios come last, so that the run ends with the test runner's own lines.
test: lint
	$(GO) test $(PLAIN)
	@$(MAKE) -s race
	@$(MAKE) -s scenarios

# All tests of the guard and the gate under the guest's kernel, and the whole attack table; make test runs a part of both there.
guest: build
	@tools/setup/install.sh test
	@tools/setup/kernel.sh out/guest
	REMPART_LONG=1 $(GO) test -count=1 -timeout 30m -run '^TestGuest$$' ./board/guest
	bin/rempart-lab hostile

# Every way to send, in every state of a handset, and each layer alone; make test runs a part that holds every pair of values.
leakmatrix:
	@tools/setup/install.sh test
	@tools/setup/kernel.sh out/guest
	@$(MAKE) -s build
	@bin/rempart-lab leakmatrix

# Swaps and kills by the thousand, up to an hour; a run that was interrupted goes on.
soak:
	@tools/setup/install.sh test
	@$(MAKE) -s build
	@bin/rempart-lab soak --resume

# Ten million frames on the gate's program and its model; `make test` tries a million. GATE_FUZZ_SEED repeats a run.
.PHONY: gate-fuzz
gate-fuzz:
	GATE_FUZZ_FRAMES=10000000 $(GO) test ./vpn/enforce -count=1 -v -timeout 30m -run 'TestProgramEqualsModel$$'

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
