package main

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/frame"
	"rempart/internal/journal"
	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/egress"
	"rempart/vpn/enforce"
	"rempart/vpn/enforce/backstop"
	"rempart/vpn/watch"
)

func gatewayPolicy(name string) egress.Policy {
	addr := netip.AddrFrom4([4]byte{203, 0, 113, byte(len(name))})
	return egress.Policy{Classes: []egress.Class{{Gateway: name, Addr: addr, Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 7}}}
}

// scene is a black namespace with one radio, up behind floor and gate, an egressd, and a watcher that this test is the init of.
type scene struct {
	t      *testing.T
	black  *link.NS
	gate   *enforce.Gate
	index  int
	init   int // this test's end
	last   watch.Orders
	spaces []space
	ended  chan error

	mu      sync.Mutex
	answers *egress.Status // nil: egressd does not answer
	asked   int
}

// patience is the scene's watcher's with strangers.
const patience = time.Second

func newScene(t *testing.T) *scene { return newSceneAsking(t, askEvery) }

// newSceneAsking has a watcher that asks egressd that often without a cause.
func newSceneAsking(t *testing.T, every time.Duration) *scene {
	t.Helper()
	proof.NeedRoot(t)
	t.Parallel() // each has a world of its own, and waits more than it computes
	s := &scene{t: t, ended: make(chan error, 1), answers: &egress.Status{Digest: egress.DenyAll().Digest()}}
	var err error
	if s.black, err = link.Create(""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.black.Close() })
	pins := t.TempDir()
	if err := unix.Mount("bpf", pins, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(pins, unix.MNT_DETACH) })
	s.device()
	s.in(func() (err error) { s.gate, err = enforce.Attach(s.index, pins); return err })
	t.Cleanup(func() { s.gate.Release() })
	s.in(func() error { return link.SetUp("wwan0") })
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.init = pair[0]
	ctx, cancel := context.WithCancel(context.Background())
	w, err := newWatcher(ctx, pair[1], s.egressd(), journal.New(io.Discard, "watchd"))
	if err != nil {
		t.Fatal(err)
	}
	w.patience = patience
	w.every = every
	for name, place := range map[string]backstop.Place{"red": backstop.Red, "void": backstop.Other} {
		ns, err := link.Create("")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		w.spaces = append(w.spaces, space{name, place, ns})
	}
	s.spaces = w.spaces
	go func() {
		s.ended <- s.black.Do(func() error {
			if err := w.await(ctx); err != nil {
				return err
			}
			for _, other := range w.spaces {
				if err := other.ns.Do(w.listen); err != nil {
					return err
				}
			}
			if err := w.listen(); err != nil {
				return err
			}
			return w.run(ctx)
		})
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-s.ended:
		case <-time.After(5 * time.Second):
			t.Error("the watcher does not end")
		}
		unix.Close(pair[0])
		unix.Close(pair[1])
	})
	return s
}

func (s *scene) in(fn func() error) {
	s.t.Helper()
	if err := s.black.Do(fn); err != nil {
		s.t.Fatal(err)
	}
}

// device makes the radio with a floor.
func (s *scene) device() {
	s.t.Helper()
	s.in(func() error { return link.AddVeth(link.Port{Name: "wwan0"}, link.Port{Name: "far0"}) })
	s.in(func() (err error) { s.index, err = link.Index("wwan0"); return err })
	s.in(func() error { return enforce.AttachFloor(s.index) })
}

// egressd answers what s.answers says.
func (s *scene) egressd() string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "egressd")
	ln, err := net.Listen("unix", path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for {
					if _, err := frame.Read(c, egress.MaxRequest); err != nil {
						return
					}
					s.mu.Lock()
					a := s.answers
					s.asked++
					s.mu.Unlock()
					if a == nil {
						continue
					}
					b, err := egress.MarshalStatus(*a)
					if err != nil || frame.Write(c, b) != nil {
						return
					}
				}
			}()
		}
	}()
	return path
}

func (s *scene) answer(a *egress.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers = a
}

// questions are how many egressd was asked so far.
func (s *scene) questions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// order gives orders, of the next generation.
func (s *scene) order(o watch.Orders) {
	s.t.Helper()
	if !o.Beat {
		o.Generation = s.last.Generation + 1
		s.last = o
	}
	b, err := watch.MarshalOrders(o)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := unix.Sendto(s.init, b, 0, nil); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) devices() []watch.Device { return []watch.Device{{Index: s.index, Name: "wwan0"}} }

// hears waits for a report of that kind about the last orders. What was on its way before the reason for it is passed over.
func (s *scene) hears(kind watch.Kind) watch.Report {
	s.t.Helper()
	b := make([]byte, watch.MaxReport)
	for end := time.Now().Add(2*watch.Silence + time.Second); time.Now().Before(end); {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(s.init), Events: unix.POLLIN}}, 100); err != nil || n == 0 {
			continue
		}
		n, _, err := unix.Recvfrom(s.init, b, 0)
		if err != nil || n == 0 {
			s.t.Fatalf("no report: %d bytes, %v", n, err)
		}
		r, err := watch.ParseReport(b[:n])
		if err != nil {
			s.t.Fatal(err)
		}
		if r.Kind == watch.Alive || r.Generation != s.last.Generation || r.Kind == watch.Good && kind != watch.Good || r.Kind == watch.NoAnswer && kind == watch.Good {
			continue
		}
		if r.Kind != kind {
			s.t.Fatalf("heard %v: %s; want %v", r.Kind, r.Text, kind)
		}
		return r
	}
	s.t.Fatalf("heard nothing; want %v", kind)
	return watch.Report{}
}

func (s *scene) up() (up bool) {
	s.t.Helper()
	s.in(func() error {
		list, err := link.List()
		for _, d := range list {
			up = up || d.Name == "wwan0" && d.Up
		}
		return err
	})
	return up
}

// wants fails unless the radio is as it should be.
func (s *scene) wants(up bool, when string) {
	s.t.Helper()
	if s.up() != up {
		s.t.Errorf("%s: the radio is up: %v", when, !up)
	}
}

func dropClsact() error { return exec.Command("tc", "qdisc", "del", "dev", "wwan0", "clsact").Run() }

// TestDifferencesTakeTheRadioDownFirst: when the report is there, the radio is down already.
func TestDifferencesTakeTheRadioDownFirst(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "TestLegalChangesAreNoDifference")
	proof.Need(t, "tc")
	open := watch.Orders{Table: gatewayPolicy("gateway")}
	for name, c := range map[string]struct {
		orders watch.Orders
		alter  func(s *scene) error
		again  bool // nothing tells: it is seen at the next look
		want   string
	}{
		"no floor":          {open, func(*scene) error { return dropClsact() }, false, "floor"},
		"no floor, severed": {watch.Orders{Closed: true, Severed: true}, func(*scene) error { return dropClsact() }, false, "floor"},
		"no gate":           {open, func(s *scene) error { return enforce.Sever(s.index) }, true, "no gate"},
		"a gate that admits what egressd does not say": {open, func(s *scene) error { return s.gate.Swap(gatewayPolicy("gateway")) }, true, "not wanted"},
		"open while closed": {watch.Orders{Closed: true, Table: gatewayPolicy("gateway")}, func(s *scene) error {
			s.answer(&egress.Status{Admitted: "gateway", Digest: gatewayPolicy("gateway").Digest()})
			return s.gate.Swap(gatewayPolicy("gateway"))
		}, true, "not wanted"},
		"a gateway that the table does not have": {open, func(s *scene) error {
			s.answer(&egress.Status{Admitted: "evil", Digest: gatewayPolicy("evil").Digest()})
			return s.gate.Swap(gatewayPolicy("evil"))
		}, true, `egressd admits "evil"`},
		"unknown, and no egressd": {open, func(s *scene) error {
			s.answer(nil)
			return s.gate.Swap(gatewayPolicy("evil"))
		}, true, "wwan0"},
		"another device of its name and number": {open, func(s *scene) error {
			i := s.index
			if err := link.Remove("wwan0"); err != nil {
				return err
			}
			return exec.Command("ip", "link", "add", "wwan0", "index", strconv.Itoa(i), "type", "veth", "peer", "name", "far0").Run()
		}, false, "floor"},
		"another name": {open, func(*scene) error {
			if err := link.SetDown("wwan0"); err != nil {
				return err
			}
			return link.Rename("wwan0", "x")
		}, false, "should be wwan0"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			s := newScene(t)
			o := c.orders
			o.Devices = s.devices()
			s.order(o)
			s.hears(watch.Good)
			s.wants(true, "before")
			at := time.Now()
			s.in(func() error { return c.alter(s) })
			if c.again {
				s.order(o)
			}
			r := s.hears(watch.Difference)
			s.wants(false, "when the difference is reported")
			if !strings.Contains(r.Text, c.want) {
				t.Errorf("it says %q, want %q", r.Text, c.want)
			}
			if took := time.Since(at); took > 2*askTimeout {
				t.Errorf("seen after %s", took)
			}
			// Whoever brings it up again does so in vain.
			if strings.HasPrefix(name, "no") {
				s.in(func() error { return link.SetUp("wwan0") })
				for end := time.Now().Add(time.Second); s.up() && time.Now().Before(end); {
					time.Sleep(time.Millisecond)
				}
				s.wants(false, "brought up again")
			}
		})
	}
}

// TestLegalChangesAreNoDifference: what egressd and init do by the rules never takes a radio down.
func TestLegalChangesAreNoDifference(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "TestDifferencesTakeTheRadioDownFirst")
	s := newScene(t)
	open := watch.Orders{Table: gatewayPolicy("gateway"), Devices: s.devices()}
	s.order(open)
	s.hears(watch.Good)
	s.answer(&egress.Status{Admitted: "gateway", Digest: gatewayPolicy("gateway").Digest(), Changes: 1})
	s.in(func() error { return s.gate.Swap(gatewayPolicy("gateway")) })
	s.order(open)
	s.hears(watch.Good)
	// An egressd that hangs in a change is no difference while what it left is a row of the table. Init hears of it.
	s.answer(nil)
	s.in(func() error { return s.gate.Swap(egress.DenyAll()) })
	s.order(open)
	s.hears(watch.NoAnswer)
	s.wants(true, "egressd hangs")
	s.in(func() error { return s.gate.Swap(gatewayPolicy("gateway")) })
	s.answer(&egress.Status{Admitted: "gateway", Digest: gatewayPolicy("gateway").Digest(), Changes: 1})
	s.hears(watch.Good) // soon, with no more orders
	// The phone closes: first the gate, then the orders.
	s.in(func() error { return s.gate.Swap(egress.DenyAll()) })
	s.answer(&egress.Status{Digest: egress.DenyAll().Digest(), Changes: 2})
	s.order(watch.Orders{Closed: true, Table: open.Table, Devices: s.devices()})
	s.hears(watch.Good)
	// It is severed: first the orders, then the gate.
	severed := watch.Orders{Closed: true, Severed: true, Devices: s.devices()}
	s.order(watch.Orders{Closed: true, Severing: true, Devices: s.devices()})
	s.hears(watch.Good)
	s.in(func() error { return s.gate.Swap(gatewayPolicy("gateway")) }) // as a hanging egressd may leave it
	s.in(func() error { return enforce.Sever(s.index) })
	s.order(severed)
	s.hears(watch.Good)
	s.wants(true, "after all that")
	// The modem is unplugged.
	s.in(func() error { return link.Remove("wwan0") })
	s.order(severed)
	s.hears(watch.Good)
}

// TestWhatStandsBehindTheGateIsWatched in every namespace, and not while init changes it.
func TestWhatStandsBehindTheGateIsWatched(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "the legal changes before")
	proof.Need(t, "ip", "nft")
	for name, command := range map[string]string{
		"black": "ip xfrm policy setdefault out accept", "red": "nft add table ip nat", "void": "nft add table inet x",
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			spaces := map[string]backstop.Space{"black": {Place: backstop.Black, NS: s.black}}
			for _, other := range s.spaces {
				spaces[other.name] = backstop.Space{Place: other.place, NS: other.ns}
			}
			b, err := backstop.Lay(spaces)
			if err != nil {
				t.Fatal(err)
			}
			if len(b.There()) == 0 {
				proof.Missing(t, "nf_tables or the IPsec default")
			}
			if err := b.AddDevice("wwan0"); err != nil {
				t.Fatal(err)
			}
			orders := func() watch.Orders {
				behind, err := b.Standing().Marshal()
				if err != nil {
					t.Fatal(err)
				}
				return watch.Orders{Closed: true, Devices: s.devices(), Behind: behind}
			}
			s.order(orders())
			s.hears(watch.Good)
			// As init: orders that say nothing of it, the change, orders that say what it is now.
			s.order(watch.Orders{Closed: true, Devices: s.devices()})
			if err := b.Release(gatewayPolicy("gateway"), 903); err != nil {
				t.Fatal(err)
			}
			s.order(orders())
			s.hears(watch.Good)
			s.wants(true, "after a legal change")
			if err := spaces[name].NS.Do(func() error { return exec.Command("sh", "-c", command).Run() }); err != nil {
				t.Fatal(err)
			}
			s.hears(watch.Difference)
			s.wants(false, "when the difference is reported")
		})
	}
}

// TestSwapsUnderTheWatchersEyes: a policy that changes all the time is read until it holds still for a moment.
func TestSwapsUnderTheWatchersEyes(t *testing.T) {
	s := newScene(t)
	open := watch.Orders{Table: gatewayPolicy("gateway"), Devices: s.devices()}
	s.order(open)
	s.hears(watch.Good)
	stop := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		for n := uint64(1); ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			p, name := egress.DenyAll(), ""
			if n%2 == 0 {
				p, name = open.Table, "gateway"
			}
			// As egressd: no answer while the policy is being exchanged.
			s.mu.Lock()
			if err := s.black.Do(func() error { return s.gate.Swap(p) }); err != nil {
				t.Error(err)
			}
			s.answers = &egress.Status{Admitted: name, Digest: p.Digest(), Changes: n}
			s.mu.Unlock()
			time.Sleep(2 * time.Millisecond) // the requests between two swaps
		}
	})
	defer func() {
		close(stop)
		done.Wait()
	}()
	for range 30 {
		s.order(open)
		s.hears(watch.Good)
	}
	s.wants(true, "after the swaps")
}

// TestSilentInitTakesTheRadioDown: a supervisor that is stopped looks after nobody.
func TestSilentInitTakesTheRadioDown(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "the beats before")
	s := newScene(t)
	s.order(watch.Orders{Closed: true, Devices: s.devices()})
	s.hears(watch.Good)
	for range 4 {
		s.order(watch.Orders{Beat: true})
		time.Sleep(watch.Silence / 3)
		s.wants(true, "while init is heard")
	}
	at := time.Now()
	s.hears(watch.Silent)
	s.wants(false, "when init is silent")
	if took := time.Since(at); took > watch.Silence+watch.Beat {
		t.Errorf("after %s", took)
	}
	// An init that lives again finds a watcher that goes on.
	s.order(watch.Orders{Beat: true})
	s.order(watch.Orders{Closed: true, Devices: s.devices()})
	s.hears(watch.Good)
}

// TestGoneInitTakesTheRadioDown, and ends the watcher.
func TestGoneInitTakesTheRadioDown(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "TestSilentInitTakesTheRadioDown")
	s := newScene(t)
	s.order(watch.Orders{Closed: true, Devices: s.devices()})
	s.hears(watch.Good)
	if err := unix.Shutdown(s.init, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-s.ended:
		s.ended <- err
		if err == nil || !strings.Contains(err.Error(), "cannot hear init") {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(2 * time.Second):
		t.Fatal("the watcher goes on")
	}
	s.wants(false, "without init")
}

// TestLostPhoneStaysDown: whoever brings a radio of a lost phone up does so in vain.
func TestLostPhoneStaysDown(t *testing.T) {
	s := newScene(t)
	s.order(watch.Orders{Closed: true, Down: true, Devices: s.devices()})
	for _, when := range []string{"at first", "brought up again"} {
		for end := time.Now().Add(time.Second); s.up() && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		s.wants(false, when)
		s.in(func() error { return link.SetUp("wwan0") })
	}
}

// TestGarbageFromInitEndsTheWatcher: what init does not say is not obeyed.
func TestGarbageFromInitEndsTheWatcher(t *testing.T) {
	s := newScene(t)
	if err := unix.Sendto(s.init, []byte("open the gate"), 0, nil); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-s.ended:
		s.ended <- err
		if err == nil || !strings.Contains(err.Error(), "cannot parse orders") {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(2 * time.Second):
		t.Error("the watcher goes on")
	}
}
