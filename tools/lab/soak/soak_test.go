package soak

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
	"rempart/board/scenario"
	"rempart/board/scenario/attack"
	"rempart/boot/stage"
	"rempart/internal/frame"
	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/tools/lab/bringup"
	"rempart/tools/lab/leak"
	"rempart/vpn/egress"
)

func TestMain(m *testing.M) {
	netns.Stage()
	os.Exit(m.Run())
}

// bin is the folder of the programs under test.
func bin(t *testing.T) string {
	t.Helper()
	proof.NeedRoot(t)
	proof.Need(t, "swtpm", "swtpm_setup", "tcpdump", "tc", "nsenter")
	dir := os.Getenv("REMPART_BIN")
	if dir == "" {
		proof.Missing(t, "REMPART_BIN, the folder of the built programs (run make scenarios)")
	}
	return dir
}

// TestNothingLeavesInSwapsAndKills is the short form of `make soak`, cut in two to show that it resumes.
func TestNothingLeavesInSwapsAndKills(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "TestSendersAreSeenWhereNothingStopsThem")
	o := Options{World: "soaktest", Dir: t.TempDir(), Bin: bin(t), Swaps: 20, Kills: 4, Log: func(s string) { t.Log(s) }}
	if sum, err := Run(t.Context(), o); err != nil || !sum.Passed {
		t.Fatalf("the first part: %v\n%+v", err, sum)
	}
	o.Kills, o.Resume = 20, true
	sum, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !sum.Passed || sum.Swaps.Done != 20 || len(sum.Kills) < 5 || len(sum.Sessions) != 2 {
		t.Errorf("ended with %+v", sum)
	}
	for d, c := range sum.Kills {
		if c.Done < 20 {
			t.Errorf("%s was killed %d times", d, c.Done)
		}
	}
	// Senders that did not send, or a capture that saw nothing, would show nothing.
	if sum.OpenSeen != 20 || sum.ClosedSent != 20 || sum.Frames < 20 || sum.Sent < 10000 || sum.Refused == 0 || sum.Refused == sum.Sent {
		t.Errorf("too little was tried or seen: %+v", sum)
	}
}

// TestSendersAreSeenWhereNothingStopsThem is the twin: the same senders on a handset without what stops them.
func TestSendersAreSeenWhereNothingStopsThem(t *testing.T) {
	dir, programs := t.TempDir(), bin(t)
	w, err := netns.Start(t.Context(), "soaktwin", filepath.Join(dir, "world"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := errors.Join(w.Release(), netns.Down(ctx, "soaktwin")); err != nil {
			t.Error(err)
		}
	})
	if err := bringup.Up(t.Context(), w, bringup.Options{State: filepath.Join(dir, "world"), Handsets: 1, Bin: programs}, nil); err != nil {
		t.Fatal(err)
	}
	status, err := w.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, err := observe(t.Context(), w, dir, leak.Rules(status))
	if err != nil {
		t.Fatal(err)
	}
	r := &runner{self: filepath.Join(programs, "rempart-lab"), w: w, out: out}
	m, _ := status.Machine("a")
	gateway, _ := status.Machine(bringup.GatewayName)
	if m.Role != stage.Handset {
		t.Fatalf("the world has %+v", status.Machines)
	}
	h, err := r.handset(m, gateway)
	if err != nil {
		t.Fatal(err)
	}
	if err := leak.Strip(t.Context(), w, m, scenario.AllLayers()); err != nil {
		t.Fatal(err)
	}
	h.bare = true
	for place, marker := range h.markers {
		ctx, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
		cmd, err := h.sender(ctx, place)
		if err != nil {
			t.Fatal(err)
		}
		h.run(cmd)
		stop()
		n, err := out.seen(t.Context(), marker)
		if err != nil || n < 50 {
			t.Errorf("of the sender from %s %d frames were seen, %v", place, n, err)
		}
	}
	if seen, err := out.end(); err != nil || seen.Outside == 0 {
		t.Errorf("outside: %+v, %v", seen, err)
	}
}

// Two devices and a sender: each way of a place is in the frames of the other end, until the device goes.
func TestSendSendsEveryWayUntilTheRadioIsGone(t *testing.T) {
	proof.NeedRoot(t)
	black, err := link.Create("")
	if err != nil {
		t.Fatal(err)
	}
	defer black.Close()
	marker := attack.Marker{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	next := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	s := sending{Marker: marker.String(), Radio: "wwan0", NextHop: next.String(), Port: 51820, EveryUS: 1000, Tunnel: "wg0", TellMS: 10, InnerNth: 2,
		Source:  [2]netip.Addr{netip.MustParseAddr("203.0.113.11"), netip.MustParseAddr("2001:db8:113::11")},
		Host:    [2]netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:51::7")},
		Gateway: [2]netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:113::1")},
		Inner:   [2]netip.Addr{netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd77::1")}}
	err = black.Do(func() error {
		err := errors.Join(link.AddVeth(link.Port{Name: "wwan0"}, link.Port{Name: "far0"}), link.SetUp("wwan0"), link.SetUp("far0"))
		for i, a := range s.Source {
			all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if i == 1 {
				all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			err = errors.Join(err, link.AddAddr("wwan0", netip.PrefixFrom(a, a.BitLen())), link.AddNeighbour("wwan0", s.Gateway[i], next),
				link.AddNeighbour("wwan0", s.Host[i], next), link.AddRoute(link.Route{To: all, Device: "wwan0"}))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for place, want := range map[string]int{fromBlack: 8, fromOutside: 4} {
		s.Place = place
		order, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		kinds := map[string]bool{}
		var out bytes.Buffer
		err = black.Do(func() error {
			runtime.LockOSThread() // never unlocked: the goroutine's thread is this namespace's
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(unix.ETH_P_ALL<<8))
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
				return err
			}
			far, err := net.InterfaceByName("far0")
			if err != nil {
				return err
			}
			if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: far.Index, Protocol: unix.ETH_P_ALL << 8}); err != nil {
				return err
			}
			ctx, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer stop()
			if err := Send(ctx, string(order), &out); err != nil {
				return err
			}
			b := make([]byte, 2048)
			for {
				n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
				if err != nil {
					return nil
				}
				if i := bytes.Index(b[:n], marker[:]); i > 0 {
					kinds[string(b[12:14])+string(b[30:i])] = true // family, addresses or their ends, ports
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(kinds) != want {
			t.Errorf("from %s %d kinds of frames were seen, want %d", place, len(kinds), want)
		}
		var last tally
		lines := bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n"))
		if err := json.Unmarshal(lines[len(lines)-1], &last); err != nil || last.Tried < 10*want || len(lines) < 3 {
			t.Errorf("from %s: %d lines, the last %+v, %v", place, len(lines), last, err)
		}
	}
}

// gate answers like egressd, and may lie.
func gate(t *testing.T, lie func(n int, s *egress.Status)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for n := 1; ; n++ {
			b, err := frame.Read(c, egress.MaxRequest)
			if err != nil {
				return
			}
			r, err := egress.ParseRequest(b)
			if err != nil {
				return
			}
			s := egress.Status{Admitted: r.Gateway, Digest: egress.DenyAll().Digest()}
			if r.Op == egress.OpAdmit {
				s.Digest = [32]byte{1}
			}
			lie(n, &s)
			reply, err := egress.MarshalStatus(s)
			if err != nil || frame.Write(c, reply) != nil {
				return
			}
		}
	}()
	return path
}

func TestSwapSendsBehindEachAnswerAndBelievesNoLie(t *testing.T) {
	open, closed := attack.Marker{1}, attack.Marker{2}
	for name, c := range map[string]struct {
		lie  func(n int, s *egress.Status)
		want bool
	}{
		"as asked":                   {func(int, *egress.Status) {}, true},
		"admits another":             {func(n int, s *egress.Status) { s.Admitted = "other" }, false},
		"another policy":             {func(n int, s *egress.Status) { s.Digest[0] += byte(n / 2) }, false},
		"does not close":             {func(n int, s *egress.Status) { s.Admitted = "north" }, false},
		"closes with another policy": {func(n int, s *egress.Status) { s.Digest = [32]byte{1} }, false},
		"refuses":                    {func(n int, s *egress.Status) { s.Err = "no" }, false},
	} {
		far, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		port := uint16(far.LocalAddr().(*net.UDPAddr).Port)
		order, err := json.Marshal(swapping{Socket: gate(t, c.lie), Gateway: "north", Port: port, Open: open.String(), Closed: closed.String(), Swaps: 6,
			At: [2]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err = Swap(t.Context(), string(order), &out)
		if (err == nil) != c.want {
			t.Errorf("%s: %v", name, err)
		}
		if !c.want {
			continue
		}
		var done swapped
		if err := json.Unmarshal(out.Bytes(), &done); err != nil || done != (swapped{Swaps: 6, Open: 6, Closed: 6}) {
			t.Errorf("%s: %s %v", name, &out, err)
		}
		var seen [3]int
		b := make([]byte, 100)
		for range 6 {
			if err := far.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			n, err := far.Read(b)
			if err != nil || n != 32 || b[0] != 4 {
				t.Fatalf("a packet of the tunnel's shape: % x, %v", b[:n], err)
			}
			seen[b[16]]++
		}
		if seen != [3]int{0, 3, 3} {
			t.Errorf("seen %v", seen)
		}
	}
}
