package e2e_test

import (
	"errors"
	"net"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/internal/proof"
)

// unaffected: the handsets share this desk's kernel. What they may not do, a process of the desk may, while they run: the twin
// of every refusal inside.
func unaffected(t *testing.T, w *world) {
	proof.SFR(t, "FDP_IFC_EXT.1", "TestNothingLeavesTheHandset")
	if g := w.look(t, "a").Boot; g == nil || len(g.Guard) == 0 || w.machine(t, "a").PID == 0 {
		t.Fatal("no handset runs")
	}
	ns, err := link.Create("")
	if err != nil {
		t.Fatalf("a network namespace: %v", err)
	}
	defer ns.Close()
	err = ns.Do(func() error {
		if err := link.AddVeth(link.Port{Name: "one"}, link.Port{Name: "two"}); err != nil {
			return err
		}
		if err := link.SetUp("lo"); err != nil {
			return err
		}
		if err := errors.Join(link.SetUp("one"), link.SetUp("two")); err != nil { // a pair with one end down carries nothing
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
			return err
		}
		i, err := link.Index("one")
		if err != nil {
			return err
		}
		frame := append([]byte{255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 0x88, 0xb5}, make([]byte, 46)...)
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: i}); err != nil {
			return err
		}
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.WriteTo([]byte("to myself"), c.LocalAddr())
		return err
	})
	if err != nil {
		t.Errorf("in a namespace of the desk's own: %v", err)
	}
	for what, family := range map[string]int{"XDP": unix.AF_XDP, "netlink": unix.AF_NETLINK} {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Errorf("a socket of family %s: %v", what, err)
			continue
		}
		unix.Close(fd)
	}
	// An unknown command: judged by whoever judges bpf, and then refused by the kernel as unknown.
	if _, _, errno := unix.Syscall(unix.SYS_BPF, 9999, 0, 0); errno != unix.EINVAL {
		t.Errorf("bpf: %v", errno)
	}
	if out, err := exec.Command("unshare", "--user", "--net", "--map-root-user", "true").CombinedOutput(); err != nil {
		t.Errorf("a user namespace: %v: %s", err, out)
	}
	if out, err := exec.Command("nsenter", "--net="+w.machine(t, "a").Paths.Own, "ip", "link").CombinedOutput(); err != nil {
		t.Errorf("the desk in the handset's own network: %v: %s", err, out)
	}
}
