package nft

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/proof"
	"rempart/vpn/egress"
)

// TestMain turns the test binary into an owner that is killed.
func TestMain(m *testing.M) {
	if os.Getenv("NFT_OWNER") == "" {
		os.Exit(m.Run())
	}
	o, err := Open()
	if err == nil {
		err = o.Put(Released("bl0", tunnel, tunneld, own...))
	}
	if err != nil {
		os.Stderr.WriteString(err.Error())
		os.Exit(1)
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// Root in black, with every capability and another socket, can neither change nor flush what init owns.
func TestNobodyElseChangesATable(t *testing.T) {
	proof.SFR(t, "FPT_PHP.1", "the same commands on a table that nobody owns")
	proof.Need(t, "nft")
	w := newWorld(t)
	w.put(Released("bl0", tunnel, tunneld, own...))
	commands := []string{
		"flush ruleset", "flush table netdev TABLE", "delete table netdev TABLE", "flush chain netdev TABLE egress",
		"delete chain netdev TABLE egress", "add rule netdev TABLE egress accept", "insert rule netdev TABLE egress accept",
		"add chain netdev TABLE more", "add chain netdev TABLE egress { policy accept; }", "add set netdev TABLE more { type ipv4_addr; }",
		"add element netdev TABLE out4 { 0 . udp . 198.51.100.7 . 9 }", "delete element netdev TABLE out4 { 903 . udp . 203.0.113.1 . 51820 }",
		"add table netdev TABLE { flags dormant; }",
	}
	nft := func(command string) error {
		var err error
		w.in(w.black, func() error { err = exec.Command("nft", command).Run(); return nil })
		return err
	}
	for _, c := range commands {
		err := nft(strings.ReplaceAll(c, "TABLE", "rempart-bl0"))
		// A flush of all passes over what it may not touch.
		if err == nil && c != "flush ruleset" && !strings.HasPrefix(c, "add table") {
			t.Errorf("%q was carried out", c)
		}
		if err := w.differences(Released("bl0", tunnel, tunneld, own...)); err != nil {
			t.Fatalf("after %q: %v", c, err)
		}
	}
	// The twin: a table of the same shape that nobody owns yields to each of them.
	for _, c := range commands {
		const twin = `table netdev twin { set out4 { type uid . inet_proto . ipv4_addr . inet_service; elements = { 903 . udp . 203.0.113.1 . 51820 }; };
			chain egress { type filter hook egress device bl0 priority 0; policy accept; counter; }; chain spare { }; }`
		if err := nft(twin); err != nil {
			t.Fatalf("the twin cannot be made: %v", err)
		}
		c = strings.ReplaceAll(c, "TABLE", "twin")
		if strings.HasPrefix(c, "delete chain") {
			c = strings.ReplaceAll(c, "egress", "spare")
		}
		if err := nft(c); err != nil {
			t.Errorf("twin: %q: %v", c, err)
		}
		_ = nft("delete table netdev twin") // some of the commands did that
	}
}

// When the owner is killed its tables go with it, or, where the kernel can, stay exactly as they were.
func TestTablesOfAKilledOwner(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "")
	w := newWorld(t)
	w.in(w.black, func() error {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), "NFT_OWNER=1")
		out, err := c.CombinedOutput()
		if len(out) > 0 || err == nil {
			t.Errorf("the owner ended %v: %s", err, out)
		}
		return nil
	})
	w.put(Table{Name: "rempart-probe", family: unix.NFPROTO_NETDEV}) // finds out what the kernel can
	crosses := w.udp(somebody, at(handset4, 51820), at(gateway4, 51820), 8)
	if crosses == w.owner.Persists() {
		t.Errorf("a table of a dead owner stands: %v, the kernel can keep it: %v", !crosses, w.owner.Persists())
	}
	if err := w.differences(Released("bl0", tunnel, tunneld, own...), Table{Name: "rempart-probe", family: unix.NFPROTO_NETDEV}); err == nil {
		t.Error("nobody owns the table, and the read-back does not say so")
	}
}

// A change of the content is one batch: under constant senders of both kinds none that the narrower of two policies refuses
// crosses, and the refused packets meet a table at every moment.
func TestAChangeHasNoGap(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the same sender before any table is there")
	w := newWorld(t)
	other := egress.Policy{Classes: []egress.Class{{Gateway: "h", Addr: netip.MustParseAddr("203.0.113.2"), Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 1}}}
	if !w.udp(somebody, at(handset4, 4000), at(gateway4, 9), 8) {
		t.Fatal("twin: the sender is not heard without a table")
	}
	w.put(Closed("bl0"))
	mark, stop := w.marker(), make(chan struct{})
	var senders sync.WaitGroup
	senders.Add(1)
	go func() {
		defer senders.Done()
		w.in(w.black, func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			to := &unix.SockaddrInet4{Port: 9, Addr: gateway4.As4()}
			for {
				select {
				case <-stop:
					return nil
				default:
					_ = unix.Sendto(fd, mark, 0, to) // refused or lost: the ear decides
				}
			}
		})
	}()
	for range 300 {
		w.put(Released("bl0", tunnel, tunneld, own...))
		w.put(Released("bl0", other, tunneld, own...))
		w.put(Closed("bl0"))
	}
	close(stop)
	senders.Wait()
	if w.heard(mark) {
		t.Error("a packet crossed during a change")
	}
}

// A device that is removed takes its hooks with it; its table can be removed and made again for the next of that name.
func TestRemovedDevice(t *testing.T) {
	w := newWorld(t)
	w.put(Closed("bl0"))
	if err := w.owner.Remove(Closed("bl0")); err != nil {
		t.Fatal(err)
	}
	if err := w.owner.Remove(Closed("bl0")); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
	if err := w.differences(); err != nil {
		t.Error(err)
	}
	w.put(Closed("bl0"))
	if err := w.differences(Closed("bl0")); err != nil {
		t.Error(err)
	}
}

// What the kernel refuses says which part of which table it was, and changes nothing.
func TestARefusedBatchNamesItsPart(t *testing.T) {
	w := newWorld(t)
	w.put(Closed("bl0"))
	bad := Released("bl0", tunnel, tunneld, own...)
	bad.chains[0].rules = append(bad.chains[0].rules, rule{in("no-such-set")})
	err := w.owner.Put(bad)
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "rule 4 of chain egress of rempart-bl0") {
		t.Errorf("error %v", err)
	}
	if err := w.differences(Closed("bl0")); err != nil {
		t.Errorf("the refused batch left something: %v", err)
	}
	if err := w.owner.Put(Closed("no-device")); err != nil && !strings.Contains(err.Error(), "no-device") {
		t.Errorf("error %v does not name the table", err)
	}
	start := time.Now()
	w.put(Released("bl0", tunnel, tunneld, own...))
	t.Logf("a release took %v", time.Since(start))
}
