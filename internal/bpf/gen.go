package bpf

// The objects and their Go are committed, so that a build needs no C compiler.
// TestGenerated makes them again with the pinned clang (14) and compares. The
// prefix map keeps this machine's paths out of the objects.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types -cflags "-O2 -Wall -Werror -mcpu=v3" Floor c/floor.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types -cflags "-O2 -Wall -Werror -mcpu=v3" Gate c/gate.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types -cflags "-O2 -Wall -Werror -mcpu=v3" Closed c/closed.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types -cflags "-O2 -Wall -Werror -mcpu=v3" Guard c/guard.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types -cflags "-O2 -Wall -Werror -mcpu=v3" Calls c/calls.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types -cflags "-O2 -Wall -Werror -mcpu=v3" Level c/level.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types -cflags "-O2 -Wall -Werror -mcpu=v3" Depth c/depth.c
