package enforce

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/egress"
)

// levelWorld is a handset's cgroup with processes below it, red with three tunnel
// networks and the far ends of these, and black with a gateway behind it. The test
// itself is in the handset, as egressd.
type levelWorld struct {
	*testing.T
	red, black, far *link.NS
	handset, pins   string
	record          *Record
	levels          *Levels
	devices         map[string]int
	cookies         map[string]uint64 // red, black
}

// levelNets are the networks of red: the third byte of their IPv4 addresses.
var levelNets = []string{"low", "mid", "top"}

func newLevelWorld(t *testing.T) *levelWorld {
	t.Helper()
	proof.NeedRoot(t)
	w := &levelWorld{T: t, red: namespace(t), black: namespace(t), far: namespace(t), devices: map[string]int{}, cookies: map[string]uint64{}}
	for i, name := range levelNets {
		w.cable(w.red, name, i+1)
	}
	w.cable(w.black, "radio", 9)
	in(t, w.red, func() error { return link.SetUp("lo") })
	w.handset = cgroup(t, "handset")
	for _, name := range []string{"egressd", "tunneld", "voiced", "shell", "apps", "apps/notes", "apps/games", "apps/notes/worker"} {
		w.subgroup(name)
	}
	w.enter("egressd")
	w.pins = bpffs(t)
	for name, ns := range map[string]*link.NS{"red": w.red, "black": w.black} {
		var err error
		if w.cookies[name], err = ns.Cookie(); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if w.record, err = OpenRecord(w.pins); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.record.Close() })
	w.attach()
	return w
}

func (w *levelWorld) attach() {
	w.Helper()
	var err error
	if w.levels, err = AttachLevels(w.handset, w.pins, w.record); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		if err := w.levels.Release(); err != nil {
			w.Error(err)
		}
	})
}

// subgroup makes a cgroup below the handset's.
func (w *levelWorld) subgroup(name string) {
	w.Helper()
	dir := filepath.Join(w.handset, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		var err error
		for range 100 {
			if err = os.Remove(dir); err == nil {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		w.Error(err)
	})
}

// enter moves the test's own process into a cgroup of the handset until the test ends.
func (w *levelWorld) enter(name string) {
	w.Helper()
	join := func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			w.Error(err)
		}
	}
	was := filepath.Dir(w.handset)
	join(filepath.Join(w.handset, name))
	w.Cleanup(func() { join(was) })
}

// cable connects a device of ns to the far side: 10.0.N.11 to 10.0.N.1, fd00:N::11 to
// fd00:N::1.
func (w *levelWorld) cable(ns *link.NS, name string, n int) {
	w.Helper()
	near, far := net.HardwareAddr{2, 0, 0, 0, byte(n), 11}, net.HardwareAddr{2, 0, 0, 0, byte(n), 1}
	in(w.T, ns, func() error {
		return link.AddVeth(link.Port{Name: name, MAC: near}, link.Port{Name: name, MAC: far, NS: w.far})
	})
	end := func(ns *link.NS, own, peer int, mac net.HardwareAddr) {
		in(w.T, ns, func() error {
			for _, step := range []func() error{
				func() error { return link.Sysctl("net.ipv6.conf."+name+".accept_dad", "0") },
				func() error { return link.SetUp(name) },
				func() error { return link.AddAddr(name, prefix4(n, own)) },
				func() error { return link.AddAddr(name, prefix6(n, own)) },
				func() error { return link.AddNeighbour(name, prefix4(n, peer).Addr(), mac) },
				func() error { return link.AddNeighbour(name, prefix6(n, peer).Addr(), mac) },
			} {
				if err := step(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	end(ns, 11, 1, far)
	end(w.far, 1, 11, near)
	in(w.T, ns, func() (err error) { w.devices[name], err = link.Index(name); return err })
}

func prefix4(n, host int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(n), byte(host)}), 24)
}

func prefix6(n, host int) netip.Prefix {
	return netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("fd00:%d::%d", n, host)), 64)
}

func in(t *testing.T, ns *link.NS, fn func() error) {
	t.Helper()
	if err := ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// table is that of a policy with three levels: notes and voiced are at mid, games at
// low, and tunneld has the gateway.
func (w *levelWorld) table() egress.LevelTable {
	var t egress.LevelTable
	for i, name := range levelNets {
		t.Networks = append(t.Networks, egress.LevelNetwork{Name: name, Netns: w.cookies["red"], Ifindex: w.devices[name],
			Prefixes: []netip.Prefix{prefix4(i+1, 0).Masked(), prefix6(i+1, 0).Masked()}})
	}
	t.Networks = append(t.Networks, egress.LevelNetwork{Name: "black", Netns: w.cookies["black"],
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.9.1/32"), netip.MustParsePrefix("fd00:9::1/128")}})
	row := func(name, cg, ns string, send, receive uint32) {
		t.Rows = append(t.Rows, egress.LevelRow{Name: name, Cgroup: cgroupID(w.T, filepath.Join(w.handset, cg)), Netns: w.cookies[ns], Send: send, Receive: receive})
	}
	row("notes", "apps/notes", "red", 0b0110, 0b0011)
	row("games", "apps/games", "red", 0b0111, 0b0001)
	row("voiced", "voiced", "red", 0b0110, 0b0011)
	row("tunneld", "tunneld", "black", 0b1000, 0b1000)
	return t
}

func (w *levelWorld) swap(t egress.LevelTable) {
	w.Helper()
	if err := w.levels.Swap(t); err != nil {
		w.Fatal(err)
	}
}

// talk starts a talker in a cgroup of the handset.
func (w *levelWorld) talk(ns *link.NS, cg string) *talker {
	w.Helper()
	return talk(w.T, ns, filepath.Join(w.handset, cg))
}

// refused tells how often a hook has refused for a reason.
func (w *levelWorld) refused(h egress.LevelHook, r egress.LevelReason) uint64 {
	w.Helper()
	c, err := w.levels.Counters()
	if err != nil {
		w.Fatal(err)
	}
	return c[h][r]
}

func TestLevelsTellTheAppAtOnce(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the rows that say ok")
	w := newLevelWorld(t)
	notes := w.talk(w.red, "apps/notes")
	if got := notes.do("socket udp4"); got != "EPERM" {
		t.Errorf("a socket without a table: %s", got)
	}
	w.swap(w.table())
	for _, c := range []struct{ kind, call, to, want string }{
		{"udp4", "sendto", "10.0.2.1:9", "ok"},
		{"udp4", "connect", "10.0.2.1:9", "ok"},
		{"udp4", "sendto", "10.0.3.1:9", "ok"}, // up
		{"udp4", "sendto", "10.0.1.1:9", "EPERM"},
		{"udp4", "connect", "10.0.1.1:9", "EPERM"},
		{"udp4", "sendto", "198.51.100.7:9", "EPERM"},
		{"udp4", "connect", "198.51.100.7:9", "EPERM"},
		{"udp4", "sendto", "224.0.0.251:5353", "EPERM"},
		{"udp4", "sendto", "255.255.255.255:9", "EPERM"},
		{"udp4", "sendto", "0.0.0.0:9", "EPERM"},
		{"udp6", "sendto", "[fd00:2::1]:9", "ok"},
		{"udp6", "connect", "[fd00:2::1]:9", "ok"},
		{"udp6", "sendto", "[fd00:1::1]:9", "EPERM"},
		{"udp6", "connect", "[fd00:1::1]:9", "EPERM"},
		{"udp6", "sendto", "[ff02::1]:9", "EPERM"},
		{"udp6", "sendto", "[::]:9", "EPERM"},
		// IPv4 in an IPv6 socket is IPv4.
		{"udp6", "sendto", "[::ffff:10.0.2.1]:9", "ok"},
		{"udp6", "connect", "[::ffff:10.0.2.1]:9", "ok"},
		{"udp6", "sendto", "[::ffff:10.0.1.1]:9", "EPERM"},
		{"udp6", "connect", "[::ffff:10.0.1.1]:9", "EPERM"},
		{"udp6", "sendto", "[::ffff:198.51.100.7]:9", "EPERM"},
		{"tcp4", "connect", "10.0.2.1:9", "ECONNREFUSED"}, // the far end answered
		{"tcp4", "connect", "10.0.1.1:9", "EPERM"},
		{"tcp6", "connect", "[fd00:2::1]:9", "ECONNREFUSED"},
		{"tcp6", "connect", "[fd00:1::1]:9", "EPERM"},
		{"tcp6", "connect", "[::ffff:10.0.2.1]:9", "ECONNREFUSED"},
		{"tcp6", "connect", "[::ffff:10.0.1.1]:9", "EPERM"},
	} {
		notes.must("socket %s", c.kind)
		if got := notes.do("%s %s", c.call, c.to); got != c.want {
			t.Errorf("%s %s %s: %s, want %s", c.kind, c.call, c.to, got, c.want)
		}
	}
	d := all(t, w.record, 0)
	if len(d.Samples) == 0 {
		t.Fatal("nothing of this is recorded")
	}
	id := cgroupID(t, filepath.Join(w.handset, "apps/notes"))
	for _, s := range d.Samples {
		if s.Program != egress.ProgramLevels || s.Cgroup != id {
			t.Errorf("recorded: %v, want cgroup %d", s, id)
		}
	}
}

func TestLevelsKindsOfSockets(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "UDP and TCP")
	w := newLevelWorld(t)
	table := w.table()
	table.Rows[2].Raw = true
	w.swap(table)
	notes, voiced, shell := w.talk(w.red, "apps/notes"), w.talk(w.red, "voiced"), w.talk(w.red, "shell")
	strayed, tunneld := w.talk(w.black, "apps/notes"), w.talk(w.black, "tunneld")
	for _, c := range []struct {
		who        string
		k          *talker
		kind, want string
	}{
		{"notes", notes, "udp4", "ok"}, {"notes", notes, "tcp6", "ok"}, {"notes", notes, "unix", "ok"}, {"notes", notes, "netlink", "ok"},
		{"notes", notes, "raw4", "EPERM"}, {"notes", notes, "raw6", "EPERM"}, {"notes", notes, "udplite", "EPERM"}, {"notes", notes, "mptcp", "EPERM"},
		{"voiced with raw", voiced, "raw4", "ok"}, {"voiced with raw", voiced, "raw6", "ok"},
		{"the shell", shell, "udp4", "EPERM"}, {"the shell", shell, "tcp6", "EPERM"}, {"the shell", shell, "unix", "ok"},
		{"notes in black", strayed, "udp4", "EPERM"}, {"tunneld", tunneld, "udp6", "ok"}, {"tunneld", tunneld, "raw4", "EPERM"},
	} {
		if got := c.k.do("socket %s", c.kind); got != c.want {
			t.Errorf("%s, %s: %s, want %s", c.who, c.kind, got, c.want)
		}
	}
	if w.refused(egress.HookSocket, egress.LevelNamespace) != 1 {
		t.Error("no socket was refused for its namespace")
	}
	w.swap(table.Closed())
	if got := notes.do("socket udp4"); got != "ok" {
		t.Errorf("a socket under a closed table: %s", got)
	}
	if got := notes.do("sendto 10.0.2.1:9"); got != "EPERM" {
		t.Errorf("a datagram under a closed table: %s", got)
	}
}

// TestLevelsPacketsOfEverySocket: what connect and sendmsg do not see. The packet hook
// is the last word.
func TestLevelsPacketsOfEverySocket(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "each socket sends before the swap")
	w := newLevelWorld(t)
	table := w.table()
	table.Rows[0].Raw = true
	w.swap(table)
	connected, tcp, raw, moved := w.talk(w.red, "apps/notes"), w.talk(w.red, "apps/notes"), w.talk(w.red, "apps/notes"), w.talk(w.red, "apps/notes")
	worker, server := w.talk(w.red, "apps/notes/worker"), talk(t, w.far, filepath.Dir(w.handset))

	connected.must("socket udp6")
	connected.must("connect [::ffff:10.0.2.1]:9")
	connected.must("send")
	raw.must("socket raw4")
	raw.must("header 10.0.2.1:9")
	if got := raw.do("header 10.0.1.1:9"); got != "EPERM" {
		t.Errorf("a raw datagram downwards: %s", got)
	}
	server.must("socket tcp4")
	server.must("bind 10.0.2.1:7000")
	server.must("listen")
	tcp.must("socket tcp4")
	tcp.must("connect 10.0.2.1:7000")
	server.must("accept")
	tcp.must("send")
	server.must("receive")

	// A cgroup below an app's is the app.
	worker.must("socket udp4")
	worker.must("sendto 10.0.2.1:9")
	if got := worker.do("sendto 10.0.1.1:9"); got != "EPERM" {
		t.Errorf("a worker of notes downwards: %s", got)
	}

	// A process that moves keeps its socket's maker: both must be allowed.
	moved.must("socket udp4")
	moved.must("connect 10.0.2.1:9")
	moved.must("join %s", filepath.Join(w.handset, "apps/games"))
	if got := moved.do("sendto 10.0.1.1:9"); got != "EPERM" {
		t.Errorf("games by a socket of notes, downwards: %s", got)
	}
	moved.must("send")
	moved.must("join %s", filepath.Join(w.handset, "shell"))
	if got := moved.do("sendto 10.0.2.1:9"); got != "EPERM" {
		t.Errorf("the shell by a socket of notes: %s", got)
	}

	// The table changes under sockets that are connected.
	out := w.refused(egress.HookPacketOut, egress.LevelSend)
	table.Rows[0].Send = 0b1000 >> 1 // upwards only
	w.swap(table)
	if got := connected.do("send"); got != "EPERM" {
		t.Errorf("a socket that was connected before: %s", got)
	}
	if got := raw.do("header 10.0.2.1:9"); got != "EPERM" {
		t.Errorf("a raw socket made before: %s", got)
	}
	tcp.must("send") // the kernel takes the bytes and sends none
	if got := server.do("receive"); got != "EAGAIN" {
		t.Errorf("the far end of TCP after the swap: %s", got)
	}
	if n := w.refused(egress.HookPacketOut, egress.LevelSend) - out; n < 3 {
		t.Errorf("%d packets were refused", n)
	}
}

// TestLevelsReceive: nothing comes in from above.
func TestLevelsReceive(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the rows that say ok")
	w := newLevelWorld(t)
	w.swap(w.table())
	far := talk(t, w.far, filepath.Dir(w.handset))
	for _, c := range []struct {
		app, kind, own, from, to, want string
	}{
		{"apps/notes", "udp4", "0.0.0.0:7000", "10.0.1.1:70", "10.0.1.11:7000", "ok"}, // from below
		{"apps/notes", "udp4", "0.0.0.0:7000", "10.0.2.1:70", "10.0.2.11:7000", "ok"},
		{"apps/notes", "udp4", "0.0.0.0:7000", "10.0.3.1:70", "10.0.3.11:7000", "EAGAIN"}, // from above
		{"apps/games", "udp4", "0.0.0.0:7000", "10.0.2.1:70", "10.0.2.11:7000", "EAGAIN"},
		{"apps/notes", "udp6", "[::]:7000", "[fd00:2::1]:70", "[fd00:2::11]:7000", "ok"},
		{"apps/notes", "udp6", "[::]:7000", "[fd00:3::1]:70", "[fd00:3::11]:7000", "EAGAIN"},
		{"apps/notes", "udp6", "[::]:7000", "10.0.3.1:70", "10.0.3.11:7000", "EAGAIN"}, // IPv4 to an IPv6 socket
		{"apps/notes", "udp6", "[::]:7000", "10.0.2.1:70", "10.0.2.11:7000", "ok"},
	} {
		app := w.talk(w.red, c.app)
		app.must("socket %s", c.kind)
		app.must("bind %s", c.own)
		kind := "udp4"
		if c.from[0] == '[' {
			kind = "udp6"
		}
		far.must("socket %s", kind)
		far.must("bind %s", c.from)
		far.must("sendto %s", c.to)
		if got := app.do("receive"); got != c.want {
			t.Errorf("%s %s: %s, want %s", c.app, c.to, got, c.want)
		}
		app.must("socket unix")
	}
	// A caller from above gets no answer at all: its SYN is not heard.
	app := w.talk(w.red, "apps/notes")
	app.must("socket tcp4")
	app.must("bind 10.0.3.11:7000")
	app.must("listen")
	far.must("socket tcp4")
	if got := far.do("connect 10.0.3.11:7000"); got != "EINPROGRESS" && got != "EAGAIN" {
		t.Errorf("a caller from above: %s", got)
	}
}

// TestLevelsDeviceAndBlack: a network is its device too, and black is tunneld's.
func TestLevelsDeviceAndBlack(t *testing.T) {
	w := newLevelWorld(t)
	w.swap(w.table())
	tunneld := w.talk(w.black, "tunneld")
	for to, want := range map[string]string{"10.0.9.1:51820": "ok", "10.0.9.2:51820": "EPERM", "10.0.2.1:9": "EPERM", "198.51.100.7:53": "EPERM"} {
		tunneld.must("socket udp4")
		if got := tunneld.do("sendto %s", to); got != want {
			t.Errorf("tunneld to %s: %s, want %s", to, got, want)
		}
	}
	// The route to mid leads through low's device.
	in(t, w.red, func() error {
		return link.AddRoute(link.Route{To: netip.MustParsePrefix("10.0.2.1/32"), Device: "low", Via: prefix4(1, 1).Addr()})
	})
	notes := w.talk(w.red, "apps/notes")
	notes.must("socket udp4")
	if got := notes.do("sendto 10.0.2.1:9"); got != "EPERM" || w.refused(egress.HookPacketOut, egress.LevelDevice) == 0 {
		t.Errorf("mid by low's device: %s", got)
	}
}

// TestLevelsLoopback: on lo a process talks to itself alone.
func TestLevelsLoopback(t *testing.T) {
	w := newLevelWorld(t)
	w.swap(w.table())
	notes, worker, games := w.talk(w.red, "apps/notes"), w.talk(w.red, "apps/notes/worker"), w.talk(w.red, "apps/games")
	for _, c := range []struct {
		name, own, to string
		from          *talker
		want          string
	}{
		{"itself", "127.0.0.1:7001", "127.0.0.1:7001", worker, "ok"},
		{"itself, IPv6", "[::1]:7001", "[::1]:7001", worker, "ok"},
		{"another app", "127.0.0.1:7001", "127.0.0.1:7001", games, "EAGAIN"},
		{"another app, IPv6", "[::1]:7001", "[::1]:7001", games, "EAGAIN"},
		{"its own address", "10.0.2.11:7001", "10.0.2.11:7001", worker, "ok"},
	} {
		kind := "udp4"
		if c.own[0] == '[' {
			kind = "udp6"
		}
		notes.must("socket %s", kind)
		notes.must("bind %s", c.own)
		c.from.must("socket %s", kind)
		c.from.must("mark") // a mark of its own does not help
		c.from.must("sendto %s", c.to)
		if got := notes.do("receive"); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		notes.must("socket unix")
	}
	// TCP: the answers of the kernel itself belong to the sockets.
	notes.must("socket tcp4")
	notes.must("bind 127.0.0.1:7002")
	notes.must("listen")
	worker.must("socket tcp4")
	worker.must("connect 127.0.0.1:7002")
	worker.must("send")
	notes.must("accept")
	notes.must("receive")
}
