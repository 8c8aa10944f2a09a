package enforce

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"rempart/vpn/egress"
)

// Trial is one frame on which the gate's decision is timed.
type Trial struct {
	Policy    egress.Policy
	Direction egress.Direction
	Frame     []byte
}

// Measure times the gate's decision on a frame that it must admit, by test runs of the
// programs as egressd loads them: with CAP_BPF and CAP_NET_ADMIN alone the kernel puts
// barriers into a program that it leaves out for root. Each round runs an empty program
// repeat times, then the gate, or the other way round; a sample is the gate's nanoseconds
// of one run above the empty program's. Nothing is attached to a device.
func Measure(t Trial, rounds, repeat int) (above []float64, err error) {
	done := make(chan error)
	go func() {
		// The thread ends with the goroutine, and its lack of capabilities with it.
		runtime.LockOSThread()
		if err := onlyEgressdsCapabilities(); err != nil {
			done <- err
			return
		}
		var err error
		above, err = measure(t, rounds, repeat)
		done <- err
	}()
	if err := <-done; err != nil {
		return nil, fmt.Errorf("cannot measure the gate: %w", err)
	}
	return above, nil
}

func onlyEgressdsCapabilities() error {
	const caps = 1<<unix.CAP_NET_ADMIN | 1<<(unix.CAP_BPF-32)<<32
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{}
	for i, word := range []uint32{caps & 0xffffffff, caps >> 32} {
		data[i] = unix.CapUserData{Effective: word, Permitted: word}
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("cannot give capabilities up: %w", err)
	}
	return nil
}

func measure(t Trial, rounds, repeat int) (above []float64, err error) {
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "empty", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	if err != nil {
		return nil, err
	}
	defer empty.Close()
	var m memory
	defer func() { err = errors.Join(err, m.close()) }()
	if m.counters, err = newCounters(); err != nil {
		return nil, err
	}
	if m.link, err = newLinkState(); err != nil {
		return nil, err
	}
	in, err := loadInstance(t.Policy, egress.LinkFacts{}, m)
	if err != nil {
		return nil, err
	}
	defer in.close()
	gate := in.programs[t.Direction]
	if verdict, err := gate.Run(&ebpf.RunOptions{Data: t.Frame}); err != nil || verdict != 0 {
		return nil, fmt.Errorf("the frame is not admitted: verdict %d, %v", verdict, err)
	}
	for round := range rounds {
		var took [2]time.Duration
		for i := range took {
			which := (i + round) % 2 // 0: the empty program
			_, d, err := []*ebpf.Program{empty, gate}[which].Benchmark(t.Frame, repeat, nil)
			if err != nil {
				return nil, err
			}
			took[which] = d
		}
		above = append(above, float64(took[1]-took[0]))
	}
	return above, nil
}
