package enforce

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"rempart/boot/manifest"
	"rempart/internal/proof"
	"rempart/vpn/egress"
	"rempart/vpn/egress/plan"
	"rempart/vpn/levels"
)

// TestKernelKeepsTheLevelRule walks the whole space of a policy with three levels: every
// app that can be (what it reads × what it writes), every network, both directions, with
// real packets, and compares the kernel's answer with levels.Rule's.
func TestKernelKeepsTheLevelRule(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the pairs that the rule allows")
	w := newLevelWorld(t)
	p := &manifest.Policy{Role: manifest.RoleHandset, Levels: []string{"low", "mid", "top"},
		Gateways: []manifest.Gateway{{Name: "gateway", Addresses: []netip.Addr{netip.MustParseAddr("10.0.9.1")}}}}
	at := plan.Places{Red: w.cookies["red"], Black: w.cookies["black"], Devices: w.devices, Cgroups: map[string]uint64{"linkd": 1}}
	at.Cgroups["tunneld"] = cgroupID(t, filepath.Join(w.handset, "tunneld"))
	for i, level := range p.Levels {
		p.Networks = append(p.Networks, manifest.Network{Name: level, Accredited: level, Inner: []netip.Prefix{prefix4(i+1, 0).Masked(), prefix6(i+1, 0).Masked()}})
	}
	for _, reads := range p.Levels {
		for _, writes := range p.Levels {
			name := reads + "-" + writes
			w.subgroup("apps/" + name)
			p.Apps = append(p.Apps, manifest.App{Name: name, Reads: reads, Writes: writes})
			at.Cgroups[name] = cgroupID(t, filepath.Join(w.handset, "apps", name))
		}
	}
	table, err := plan.Levels(p, at)
	if err != nil {
		t.Fatal(err)
	}
	w.swap(table)
	rule := levels.New(p)
	far := talk(t, w.far, filepath.Dir(w.handset))
	far.must("socket udp6")
	allowed := 0
	for _, app := range p.Apps {
		k := w.talk(w.red, "apps/"+app.Name)
		k.must("socket udp6")
		k.must("bind [::]:7000")
		k.must("patience")
		for i, n := range p.Networks {
			for _, to := range []string{fmt.Sprintf("[::ffff:10.0.%d.1]:9", i+1), fmt.Sprintf("[fd00:%d::1]:9", i+1)} {
				want := "EPERM"
				if rule.Send(app.Name, n.Name).Allowed {
					want, allowed = "ok", allowed+1
				}
				if got := k.do("sendto %s", to); got != want {
					t.Errorf("%s to %s (%s): %s, the rule says %v", app.Name, n.Name, to, got, rule.Send(app.Name, n.Name))
				}
			}
			for _, own := range []string{fmt.Sprintf("[::ffff:10.0.%d.11]:7000", i+1), fmt.Sprintf("[fd00:%d::11]:7000", i+1)} {
				before := w.refused(egress.HookPacketIn, egress.LevelReceive)
				far.must("sendto %s", own)
				got := "EAGAIN"
				for end := time.Now().Add(2 * time.Second); got == "EAGAIN" && w.refused(egress.HookPacketIn, egress.LevelReceive) == before && time.Now().Before(end); {
					got = k.do("receive")
				}
				if (got == "ok") != rule.Receive(app.Name, n.Name).Allowed {
					t.Errorf("%s from %s (%s): %s, the rule says %v", app.Name, n.Name, own, got, rule.Receive(app.Name, n.Name))
				}
			}
		}
		k.must("socket unix")
	}
	if allowed == 0 {
		t.Error("the rule allows nothing")
	}
}

// TestLevelProgramEqualsModel runs the packet hooks on random packets from several
// cgroups under random tables, and compares answer and reason with the model.
func TestLevelProgramEqualsModel(t *testing.T) {
	w := newLevelWorld(t)
	groups := []string{"apps/notes", "apps/games", "voiced", "tunneld", "shell"}
	ids := map[string]uint64{}
	for _, g := range groups {
		ids[g] = cgroupID(t, filepath.Join(w.handset, g))
	}
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	seen := map[egress.LevelReason]int{}
	for range 20 {
		table := randomTable(r, w, ids)
		c, err := w.levels.load(table)
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range groups {
			join(t, filepath.Join(w.handset, g))
			in(t, w.red, func() error {
				for range 60 {
					if err := w.compare(r, c, table, ids[g], seen); err != nil {
						return err
					}
				}
				return nil
			})
		}
		c.Close()
	}
	join(t, filepath.Join(w.handset, "egressd"))
	for reason := egress.LevelAllowed; reason < egress.LevelReasons; reason++ {
		// The others are of the calls.
		if seen[reason] == 0 && reason != egress.LevelNamespace && reason != egress.LevelSocket {
			t.Errorf("no packet had reason %v", reason)
		}
	}
}

func join(t *testing.T, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
}

// compare runs one random packet through program and model.
func (w *levelWorld) compare(r *rand.Rand, c *ebpf.Collection, table egress.LevelTable, cgroup uint64, seen map[egress.LevelReason]int) error {
	dir := egress.Direction(r.IntN(2))
	devices := []int{egress.Loopback, w.devices["low"], w.devices["mid"], w.devices["top"]}
	ifindex, mark := devices[r.IntN(len(devices))], [4]uint32{0, egress.LoopbackMark | 1, egress.LoopbackMark | 2, 7}[r.IntN(4)]
	packet, remote := randomPacket(r, dir)
	want := egress.LevelPacket
	if remote.IsValid() || ifindex == egress.Loopback {
		want = table.DecidePacket(dir, cgroup, ifindex, remote, mark)
	} else if got := table.DecidePacket(dir, cgroup, egress.Loopback, remote, egress.LoopbackMark); got == egress.LevelProcess {
		want = got
	}
	hook, name := egress.HookPacketOut, "level_egress"
	if dir == egress.Ingress {
		hook, name = egress.HookPacketIn, "level_ingress"
	}
	before, err := w.levels.Counters()
	if err != nil {
		return err
	}
	answer, err := c.Programs[name].Run(&ebpf.RunOptions{Data: packet, Context: [11]uint32{2: mark, 10: uint32(ifindex)}})
	if err != nil {
		return err
	}
	after, err := w.levels.Counters()
	if err != nil {
		return err
	}
	seen[want]++
	if (answer == 1) != (want == egress.LevelAllowed) || after[hook][want] != before[hook][want]+1 {
		return fmt.Errorf("%v from cgroup %d on device %d, mark %#x, remote %v: the program says %d, counted %v; the model says %v; table %+v, packet %x",
			dir, cgroup, ifindex, mark, remote, answer, after[hook], want, table, packet)
	}
	return nil
}

// randomPacket is an Ethernet frame and the remote address in it, invalid if there is none.
func randomPacket(r *rand.Rand, dir egress.Direction) ([]byte, netip.Addr) {
	p := make([]byte, 14+60)
	far, own := randomAddr(r), randomAddr(r)
	for own.Is4() != far.Is4() {
		own = randomAddr(r)
	}
	src, dst := own, far
	if dir == egress.Ingress {
		src, dst = far, own
	}
	ip := p[14:]
	if far.Is4() {
		p[12], ip[0], ip[9] = 8, 0x45, egress.UDP
		binary.BigEndian.PutUint16(ip[2:], 60)
		copy(ip[12:], src.AsSlice())
		copy(ip[16:], dst.AsSlice())
	} else {
		p[12], p[13], ip[0], ip[6] = 0x86, 0xdd, 0x60, egress.UDP
		copy(ip[8:], src.AsSlice())
		copy(ip[24:], dst.AsSlice())
	}
	if r.IntN(20) == 0 {
		ip[0] = byte(r.IntN(4)) << 4
		return p, netip.Addr{}
	}
	return p, far
}

// randomAddr is near one of the prefixes of randomTable.
func randomAddr(r *rand.Rand) netip.Addr {
	switch r.IntN(4) {
	case 0:
		return netip.AddrFrom4([4]byte{10, byte(r.IntN(2)), byte(r.IntN(4)), byte(r.IntN(4))})
	case 1:
		return netip.AddrFrom16([16]byte{0xfd, 0, 0, byte(r.IntN(4)), 15: byte(r.IntN(3))})
	case 2:
		return netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff, 12: 10, 14: byte(r.IntN(4)), 15: 1}) // IPv4 as IPv6, on the wire
	}
	return netip.AddrFrom4([4]byte{byte(r.IntN(256)), 0, 0, 1})
}

func randomTable(r *rand.Rand, w *levelWorld, ids map[string]uint64) egress.LevelTable {
	var t egress.LevelTable
	cookies := []uint64{w.cookies["red"], w.cookies["black"]}
	used := map[netip.Prefix]bool{}
	for i := range 1 + r.IntN(4) {
		n := egress.LevelNetwork{Name: fmt.Sprintf("n%d", i), Netns: cookies[r.IntN(5)/4], Ifindex: []int{0, w.devices["low"], w.devices["mid"]}[r.IntN(3)]}
		for len(n.Prefixes) < 1+r.IntN(3) {
			a := randomAddr(r).Unmap()
			p := netip.PrefixFrom(a, r.IntN(a.BitLen()+1)).Masked()
			if !used[p] {
				used[p] = true
				n.Prefixes = append(n.Prefixes, p)
			}
		}
		t.Networks = append(t.Networks, n)
	}
	for _, g := range []string{"apps/notes", "apps/games", "voiced", "tunneld"} {
		if r.IntN(5) == 0 {
			continue
		}
		all := uint32(1)<<len(t.Networks) - 1
		t.Rows = append(t.Rows, egress.LevelRow{Name: fmt.Sprintf("r%d", len(t.Rows)), Cgroup: ids[g], Netns: cookies[r.IntN(5)/4], Send: r.Uint32() & all, Receive: r.Uint32() & all})
	}
	// What a table may not say (one IPv6 prefix over all of IPv4, …) is never put in force.
	if t.Check() != nil {
		return randomTable(r, w, ids)
	}
	return t
}

// TestLevelsSwapUnderASender: while tables change, what neither of them allows never
// passes, and the far end of the other is heard of both.
func TestLevelsSwapUnderASender(t *testing.T) {
	w := newLevelWorld(t)
	open, shut := w.table(), w.table().Closed()
	w.swap(open)
	k := w.talk(w.red, "apps/notes")
	k.must("socket udp4")
	k.must("bind 10.0.2.11:7000")
	low, mid := talk(t, w.far, filepath.Dir(w.handset)), talk(t, w.far, filepath.Dir(w.handset))
	for to, far := range map[string]*talker{"10.0.1.1:9": low, "10.0.2.1:9": mid} {
		far.must("socket udp4")
		far.must("bind %s", to)
	}
	done := make(chan error, 1)
	go func() {
		for i := range 60 {
			next := shut
			if i%2 == 1 {
				next = open
			}
			if err := w.levels.Swap(next); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	sent, refused := 0, 0
	for running := true; running; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		default:
		}
		switch got := k.do("sendto 10.0.2.1:9"); got {
		case "ok":
			sent++
		case "EPERM":
			refused++
		default:
			t.Fatal(got)
		}
		if got := k.do("sendto 10.0.1.1:9"); got != "EPERM" {
			t.Fatalf("downwards, in the middle of a swap: %s", got)
		}
	}
	if sent == 0 || refused == 0 {
		t.Errorf("%d sent and %d refused in 60 swaps", sent, refused)
	}
	if got := low.do("receive"); got != "EAGAIN" {
		t.Errorf("below: %s", got)
	}
	mid.must("receive")
}
