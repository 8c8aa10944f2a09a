package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"rempart/internal/bpf"
)

// What the form Calls counts (enum call in calls.c).
const (
	CallFamily = iota
	CallHere
	CallCompat
	CallURing
	CallBPF
	CallGetFD
	CallShare
	CallSetns
	CallInet
	CallOption
	CallDevice
)

func callCounters() []string {
	return []string{CallFamily: "socket family", CallHere: "socket in init's namespace", CallCompat: "32-bit system call", CallURing: "io_uring",
		CallBPF: "bpf", CallGetFD: "pidfd_getfd", CallShare: "shared descriptors", CallSetns: "entering init's namespace",
		CallInet: "inet socket in init's namespace", CallOption: "packet socket option", CallDevice: "unknown device"}
}

// MaxDevices is how many devices may be admitted at a time.
const MaxDevices = 64

// loadCalls loads the programs with this machine's system call numbers.
func loadCalls() (*Guard, error) {
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		return nil, fmt.Errorf("%w: system calls of %s are not known", ErrNoGuard, runtime.GOARCH)
	}
	spec, err := bpf.LoadCalls()
	if err != nil {
		return nil, err
	}
	own, err := netnsCookie()
	if err != nil {
		return nil, err
	}
	arm64 := uint32(0)
	if runtime.GOARCH == "arm64" {
		arm64 = 1
	}
	for name, value := range map[string]any{
		"nr_socket": uint32(unix.SYS_SOCKET), "nr_socketpair": uint32(unix.SYS_SOCKETPAIR), "nr_bpf": uint32(unix.SYS_BPF),
		"nr_pidfd_getfd": uint32(unix.SYS_PIDFD_GETFD), "nr_setns": uint32(unix.SYS_SETNS), "nr_uring_setup": uint32(unix.SYS_IO_URING_SETUP),
		"on_arm64": arm64, "own_netns": own,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	programs, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("%w: it does not load the tracepoints: %w", ErrNoGuard, err)
	}
	g := &Guard{form: Calls, programs: programs, alive: aliveCalls, counters: callCounters}
	// The refusing programs come first: what is killed for could not be used even before.
	for _, h := range []hook{
		{name: "calls_device", cgroup: ebpf.AttachCGroupInetEgress},
		{name: "calls_inet", cgroup: ebpf.AttachCGroupInetSockCreate},
		{name: "calls_option", cgroup: ebpf.AttachCGroupSetsockopt},
		{name: "calls_fork", point: "sched_process_fork", judges: true},
		{name: "calls_exit", point: "sys_exit", judges: true},
		{name: "calls_enter", point: "sys_enter", judges: true},
	} {
		h.program = programs.Programs[h.name]
		g.hooks = append(g.hooks, h)
	}
	return g, nil
}

// aliveCalls looks whether a listed call of a supervisor is seen: reading a counter is
// a bpf call itself.
func aliveCalls(seen *ebpf.Map, _ string) error {
	before, err := countsIn(seen, CallBPF)
	if err != nil {
		return err
	}
	after, err := countsIn(seen, CallBPF)
	if err != nil {
		return err
	}
	if after.Trusted <= before.Trusted {
		return fmt.Errorf("%w: the tracepoint is attached and was not called, or the caller is no supervisor", ErrNoGuard)
	}
	return nil
}

// survivors says whether a caller lives that should have been killed.
func survivors(seen *ebpf.Map) error {
	var errs []error
	for hook, name := range callCounters() {
		c, err := countsIn(seen, hook)
		if err == nil && c.Failed > 0 {
			err = fmt.Errorf("%d callers were not killed: %s", c.Failed, name)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// device is a device of one network namespace, as the map in calls.c has it.
type device struct {
	Netns uint64 // cookie
	Index uint64
}

func (d device) key() []byte {
	return binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, d.Netns), d.Index)
}

// Admit lets IPv4 and IPv6 packets of the handset's sockets leave through device
// ifindex of the calling thread's network namespace. In the form [Calls] they may
// leave through no other device, lo included; the form [LSM] needs no such list,
// since in it no one but a supervisor can bring a device up, and Admit does nothing.
func (g *Guard) Admit(ifindex int) error {
	if err := g.Expect(ifindex); err != nil || g.form != Calls {
		return err
	}
	netns, err := netnsCookie()
	if err != nil {
		return fmt.Errorf("cannot admit device %d: %w", ifindex, err)
	}
	if err := g.programs.Maps["devices"].Put(device{netns, uint64(ifindex)}.key(), uint32(1)); err != nil {
		return fmt.Errorf("cannot admit device %d: %w", ifindex, err)
	}
	return nil
}

// Expect is the first half of [Guard.Admit]: the guard's [Standing] has the device,
// and nothing leaves by it yet. Who is told the standing knows of it before it holds.
func (g *Guard) Expect(ifindex int) error {
	if g.form != Calls {
		return nil
	}
	if ifindex <= 0 {
		return fmt.Errorf("cannot admit device %d: no such number", ifindex)
	}
	netns, err := netnsCookie()
	if err != nil {
		return fmt.Errorf("cannot admit device %d: %w", ifindex, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if d := (device{netns, uint64(ifindex)}); !slices.Contains(g.admitted, d) {
		g.admitted = append(g.admitted, d)
	}
	return nil
}

// Revoke undoes an [Guard.Admit]: the device is gone, and its number may become
// another's.
func (g *Guard) Revoke(ifindex int) error {
	if g.form != Calls {
		return nil
	}
	netns, err := netnsCookie()
	if err != nil {
		return fmt.Errorf("cannot revoke device %d: %w", ifindex, err)
	}
	d := device{netns, uint64(ifindex)}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !slices.Contains(g.admitted, d) {
		return nil
	}
	if err := g.programs.Maps["devices"].Delete(d.key()); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("cannot revoke device %d: %w", ifindex, err)
	}
	g.admitted = slices.DeleteFunc(g.admitted, func(other device) bool { return other == d })
	return nil
}

// deviceDifference compares the map of devices with what was admitted; unless it must
// be exact, a device may be admitted and not let through yet, or no longer.
func deviceDifference(devices *ebpf.Map, admitted []device, exact bool) error {
	want := map[string]bool{}
	for _, d := range admitted {
		want[string(d.key())] = true
	}
	var errs []error
	var key []byte
	var value uint32
	all := devices.Iterate()
	for all.Next(&key, &value) {
		if !want[string(key)] {
			errs = append(errs, fmt.Errorf("device %d of namespace %d is let through and was not admitted",
				binary.NativeEndian.Uint64(key[8:]), binary.NativeEndian.Uint64(key)))
		}
		delete(want, string(key))
	}
	if len(want) > 0 && exact {
		errs = append(errs, fmt.Errorf("%d admitted devices are not let through", len(want)))
	}
	return errors.Join(append(errs, all.Err())...)
}

// netnsCookie returns the kernel's number for the calling thread's network namespace,
// which is never used twice (SO_NETNS_COOKIE, Linux 5.14).
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("cannot ask for the network namespace's cookie: %w", err)
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return 0, fmt.Errorf("cannot ask for the network namespace's cookie: %w", err)
	}
	return cookie, nil
}
