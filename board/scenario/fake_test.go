package scenario

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
)

// fakeBoard is a world in which a marker comes out exactly when no layer that
// the fault leaves standing stops the sender. It tests the runner's logic only;
// the promise itself is tested on real boards.
type fakeBoard struct {
	stripped []Layer
	fault    fault

	mu      sync.Mutex
	ng      *pcapgo.NgWriter
	out     *os.File
	dead    bool
	plugged chan struct{}
	tunnel  uint64
	drops   uint64
	frames  int         // on the link so far
	pending [][]byte    // come out at the next event
	shared  *sync.Mutex // guards log and twins, which a board and its twins share
	log     *[]string
	twins   *int
}

// fault is what is wrong with the world.
type fault struct {
	leak       attack.Kind // this kind comes out of the real handset
	late       bool        // ... and only after its row
	deadTwin   bool        // nothing ever comes out of a twin
	noTwin     bool
	deaf       bool // the capture shows nothing
	stray      bool // a strange frame that no sender sent
	mute       bool // senders give no result
	stuck      bool // the handset never recovers
	noCounters bool
}

func newFake(f fault) *fakeBoard {
	return &fakeBoard{fault: f, shared: &sync.Mutex{}, log: &[]string{}, twins: new(int), plugged: make(chan struct{})}
}

func fakeSite() Site {
	a := netip.MustParseAddr
	return Site{Radio: "wwan0", NextHop: net.HardwareAddr{2, 0, 0, 0, 0, 0xfe}, Source4: a("203.0.113.11"), Source6: a("2001:db8:113::11"),
		Host4: a("198.51.100.7"), Host6: a("2001:db8:51::7"), Resolver4: a("198.51.100.53"), Resolver6: a("2001:db8:51::53"),
		Gateway4: a("203.0.113.1"), Gateway6: a("2001:db8:113::1"), TunnelPort: 51820, Inner4: a("10.77.0.1"), Inner6: a("fd77::1"),
		Daemons: []string{"egressd", "tunneld"},
		Rules: watch.Rules{Handsets: []netip.Addr{a("203.0.113.11"), a("2001:db8:113::11")},
			Classes: []watch.Class{{Name: "tunnel", Gateway: a("203.0.113.1"), Protocol: 17, Port: 51820, WireGuard: true}}}}
}

func (b *fakeBoard) Site() Site { return fakeSite() }

func (b *fakeBoard) note(s string) {
	b.shared.Lock()
	defer b.shared.Unlock()
	*b.log = append(*b.log, s)
}

func (b *fakeBoard) Capture(context.Context) (io.ReadCloser, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.out = w
	b.ng, err = pcapgo.NewNgWriterInterface(w, pcapgo.NgInterface{Name: "air", LinkType: layers.LinkTypeEthernet}, pcapgo.DefaultNgWriterOptions)
	if err != nil {
		return nil, err
	}
	if err := b.ng.Flush(); err != nil {
		return nil, err
	}
	go b.keepalive()
	return &fakeCapture{r, b}, nil
}

type fakeCapture struct {
	io.Reader
	b *fakeBoard
}

func (c *fakeCapture) Close() error { return c.b.out.Close() }

// air puts a frame to a host on the link.
func (b *fakeBoard) air(payload []byte) { b.frame(net.IP{198, 51, 100, 7}, 9, payload) }

// keepalive puts a frame of the admitted class on the link: a WireGuard data message without data.
func (b *fakeBoard) keepalive() {
	b.frame(net.IP{203, 0, 113, 1}, 51820, append([]byte{4, 0, 0, 0}, make([]byte, 28)...))
}

func (b *fakeBoard) frame(to net.IP, port layers.UDPPort, payload []byte) {
	if b.fault.deaf {
		return
	}
	eth := &layers.Ethernet{SrcMAC: make([]byte, 6), DstMAC: make([]byte, 6), EthernetType: layers.EthernetTypeIPv4}
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 1, Protocol: layers.IPProtocolUDP, SrcIP: net.IP{203, 0, 113, 11}, DstIP: to}
	udp := &layers.UDP{SrcPort: 1, DstPort: port}
	udp.SetNetworkLayerForChecksum(ip)
	buf := gopacket.NewSerializeBuffer()
	gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, udp, gopacket.Payload(payload))
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ng.WritePacket(gopacket.CaptureInfo{Timestamp: time.Unix(1, 0), CaptureLength: len(buf.Bytes()), Length: len(buf.Bytes())}, buf.Bytes())
	b.ng.Flush()
	b.frames++
}

func (b *fakeBoard) Settle(context.Context) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fault.deaf {
		return 1, nil // the counters say that a frame has left
	}
	return b.frames, nil
}

func (b *fakeBoard) Counters(context.Context) (Counters, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fault.noCounters || b.dead {
		return Counters{}, errors.New("the handset is down")
	}
	return Counters{Drops: map[string]uint64{"wrong-cgroup": b.drops, "short": 7}, Tunnelled: b.tunnel}, nil
}

func (b *fakeBoard) Start(ctx context.Context, c Command) (Process, error) {
	j, err := attack.Parse(c.Argv[2:])
	if err != nil || c.Argv[0] != "/desk/rempart-lab" || c.Argv[1] != "attack" {
		return nil, errors.Join(err, errors.New("not the sender"))
	}
	p := &fakeProcess{lines: make(chan attack.Result, 4), stop: make(chan struct{})}
	go b.send(c.Where, j, p)
	return p, nil
}

func (b *fakeBoard) free(where Where, j attack.Job) bool {
	if b.stripped == nil {
		return j.Kind == b.fault.leak
	}
	if b.fault.deadTwin {
		return false
	}
	need := stops(where, j.Kind)
	if where == Init {
		need = []Layer{Newborn, Floor, Guard}
	}
	return !slices.ContainsFunc(need, func(l Layer) bool { return !slices.Contains(b.stripped, l) })
}

func (b *fakeBoard) send(where Where, j attack.Job, p *fakeProcess) {
	defer close(p.lines)
	r := attack.Result{Kind: j.Kind, Family: j.Family}
	if j.Kind == attack.Constant || j.Kind == attack.Hotplug {
		s := r
		s.Started = true
		p.lines <- s
	}
	if j.Kind == attack.Hotplug {
		<-b.plugged
	}
	if b.free(where, j) {
		if b.fault.late && b.stripped == nil {
			b.mu.Lock()
			b.pending = append(b.pending, j.Marker[:])
			b.mu.Unlock()
		} else {
			b.air(j.Marker[:])
		}
		r.Sent = 1
	} else if where == Red && (j.Target == fakeSite().Inner4 || j.Target == fakeSite().Inner6) {
		b.mu.Lock()
		b.tunnel += 3
		b.mu.Unlock()
		r.Sent = 3
	} else if where == Red || slices.Contains(crafted, j.Kind) || where == Init {
		r.Errno = "EPERM"
	} else {
		b.mu.Lock()
		b.drops += 3
		b.mu.Unlock()
		r.Sent = 3
	}
	if j.Kind == attack.Constant {
		<-p.stop
	}
	b.mu.Lock()
	dead := b.dead
	b.mu.Unlock()
	if !b.fault.mute && !dead {
		p.lines <- r
	}
}

type fakeProcess struct {
	lines chan attack.Result
	stop  chan struct{}
	once  sync.Once
}

func (p *fakeProcess) Line(ctx context.Context) ([]byte, error) {
	select {
	case r, ok := <-p.lines:
		if !ok {
			return nil, io.EOF
		}
		return marshal(r), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *fakeProcess) Stop() error  { p.once.Do(func() { close(p.stop) }); return nil }
func (p *fakeProcess) Close() error { return p.Stop() }

func (b *fakeBoard) WaitUp(ctx context.Context) error {
	if b.fault.stuck {
		<-ctx.Done()
		return ctx.Err()
	}
	b.note("up")
	return nil
}

func (b *fakeBoard) KillDaemon(_ context.Context, name string) error {
	b.note("kill " + name)
	b.mu.Lock()
	late := b.pending
	b.mu.Unlock()
	for _, m := range late {
		b.air(m)
	}
	if b.fault.stray && b.stripped == nil {
		b.air([]byte("nobody's frame"))
	}
	return nil
}

func (b *fakeBoard) KillInit(context.Context) error {
	b.note("kill init")
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dead = true
	return nil
}

func (b *fakeBoard) Restart(context.Context) error {
	b.note("restart")
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dead = false
	return nil
}

func (b *fakeBoard) HotPlug(context.Context, string) error {
	close(b.plugged)
	b.note("plug")
	return nil
}

func (b *fakeBoard) Unplug(context.Context, string) error {
	b.plugged = make(chan struct{})
	b.note("unplug")
	return nil
}

func (b *fakeBoard) Twin(_ context.Context, stripped []Layer) (Twin, error) {
	if b.fault.noTwin {
		return nil, errors.New("no room for a twin")
	}
	b.shared.Lock()
	*b.twins++
	b.shared.Unlock()
	f := b.fault
	f.leak, f.stray = "", false
	return &fakeBoard{stripped: stripped, fault: f, shared: b.shared, log: b.log, twins: b.twins, plugged: make(chan struct{})}, nil
}

func (b *fakeBoard) Close() error {
	b.shared.Lock()
	defer b.shared.Unlock()
	*b.twins--
	return nil
}

func run(t *testing.T, f fault, change func(*Runner)) (*LeakReport, *fakeBoard) {
	t.Helper()
	b := newFake(f)
	r := &Runner{Board: b, Sender: []string{"/desk/rempart-lab", "attack"}, RowTimeout: 2 * time.Second}
	if change != nil {
		change(r)
	}
	report, err := r.LeakTest(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return report, b
}
