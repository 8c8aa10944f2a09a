package matrix

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

	"rempart/board/scenario"
	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
)

// fake is a world in which a marker comes out exactly when no layer that is left holds the sender back. It tests the runner's
// logic only; the promise itself is tested on real boards.
type fake struct {
	name  string
	fault fault
	kept  []scenario.Layer // nil: whole

	mu     sync.Mutex
	ng     *pcapgo.NgWriter
	out    *os.File
	frames int
	tunnel uint64
	log    []string
}

// fault is what is wrong with the world.
type fault struct {
	leak      func(Row) bool // these come out of the whole handset
	deaf      bool           // nothing comes out of a twin
	lacks     string         // this sender's kind is unknown to the kernel
	stuck     State          // cannot be entered
	lost      State          // takes its radios down in it
	mute      bool           // senders give no result
	stray     State          // somebody's frame in this state
	holdsAll  bool           // a layer alone holds everything
	noPackets bool           // the capture shows nothing
}

func fakeSite() scenario.Site {
	a := netip.MustParseAddr
	return scenario.Site{Radio: "wwan0", NextHop: net.HardwareAddr{2, 0, 0, 0, 0, 0xfe}, Source4: a("203.0.113.11"), Source6: a("2001:db8:113::11"),
		Host4: a("198.51.100.7"), Host6: a("2001:db8:51::7"), Resolver4: a("198.51.100.53"), Resolver6: a("2001:db8:51::53"),
		Gateway4: a("203.0.113.1"), Gateway6: a("2001:db8:113::1"), TunnelPort: 51820, Inner4: a("10.77.0.1"), Inner6: a("fd77::1"), Daemons: daemons,
		Rules: watch.Rules{Handsets: []netip.Addr{a("203.0.113.11"), a("2001:db8:113::11")},
			Classes: []watch.Class{{Name: "tunnel", Gateway: a("203.0.113.1"), Protocol: 17, Port: 51820, WireGuard: true}}}}
}

func (f *fake) Name() string                             { return f.name }
func (f *fake) Site() scenario.Site                      { return fakeSite() }
func (f *fake) File() string                             { return f.name + ".pcapng" }
func (f *fake) Layers() []scenario.Layer                 { return scenario.AllLayers() }
func (f *fake) note(s string)                            { f.mu.Lock(); f.log = append(f.log, s); f.mu.Unlock() }
func (f *fake) Plug(_ context.Context, d string) error   { f.note("plug " + d); return nil }
func (f *fake) Unplug(_ context.Context, d string) error { f.note("unplug " + d); return nil }

func (f *fake) Capture(context.Context) (io.ReadCloser, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	f.out = w
	f.ng, err = pcapgo.NewNgWriterInterface(w, pcapgo.NgInterface{Name: "air", LinkType: layers.LinkTypeEthernet}, pcapgo.DefaultNgWriterOptions)
	if err != nil {
		return nil, err
	}
	return &fakeCapture{r, f}, f.ng.Flush()
}

type fakeCapture struct {
	io.Reader
	f *fake
}

func (c *fakeCapture) Close() error { return c.f.out.Close() }

func (f *fake) Settle(context.Context) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault.noPackets {
		return 1, nil // the counters say that a frame has left
	}
	return f.frames, nil
}

// air puts a frame on the link.
func (f *fake) air(payload []byte) {
	eth := &layers.Ethernet{SrcMAC: make([]byte, 6), DstMAC: make([]byte, 6), EthernetType: layers.EthernetTypeIPv4}
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 1, Protocol: layers.IPProtocolUDP, SrcIP: net.IP{203, 0, 113, 11}, DstIP: net.IP{198, 51, 100, 7}}
	udp := &layers.UDP{SrcPort: 1, DstPort: 9}
	udp.SetNetworkLayerForChecksum(ip)
	buf := gopacket.NewSerializeBuffer()
	gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, udp, gopacket.Payload(payload))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ng.WritePacket(gopacket.CaptureInfo{Timestamp: time.Unix(1, 0), CaptureLength: len(buf.Bytes()), Length: len(buf.Bytes())}, buf.Bytes())
	f.ng.Flush()
	f.frames++
}

func (f *fake) Enter(_ context.Context, s State) error {
	f.kept = nil
	f.note("enter " + string(s))
	if s == f.fault.stuck {
		return errors.New("it does not come that far")
	}
	return nil
}

func (f *fake) Happen(_ context.Context, s State) error {
	f.note("happen " + string(s))
	if s == f.fault.lost {
		return ErrLost
	}
	return nil
}

func (f *fake) Leave(_ context.Context, s State) error {
	f.note("leave " + string(s))
	if s == f.fault.stray {
		f.air([]byte("nobody's frame"))
	}
	return nil
}

func (f *fake) Tunnelled(context.Context) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tunnel, nil
}

// bareFake is a fake that can be stripped.
type bareFake struct{ *fake }

func (f bareFake) Strip(_ context.Context, kept []scenario.Layer) error {
	f.kept = append([]scenario.Layer{}, kept...)
	return nil
}

func (f *fake) Start(_ context.Context, c Crowd) (scenario.Process, error) {
	p := &fakeProcess{lines: make(chan attack.Line, len(c.Jobs)+1), stop: make(chan struct{})}
	go f.send(c, p)
	return p, nil
}

// rowOf finds a row like the job, of any state: the fake knows senders by what they were told.
func rowOf(c Crowd, j attack.Job) Row {
	for _, s := range Senders() {
		r := Row{State: Connected, Sender: s.Name, Family: j.Family, Place: c.Place, As: c.As, Device: Radio}
		if j.User && r.As == Root {
			r.As = User
		}
		for _, d := range []Device{Radio, Tunnel, Unknown} {
			r.Device = d
			want, err := r.job(fakeSite(), j.Marker)
			want.For = j.For
			if err == nil && slices.Equal(want.Args(), j.Args()) && Excluded(r) == "" {
				return r
			}
		}
	}
	return Row{}
}

func (f *fake) send(c Crowd, p *fakeProcess) {
	defer close(p.lines)
	type end struct {
		marker string
		r      attack.Result
	}
	var ends []end
	for _, j := range c.Jobs {
		row := rowOf(c, j)
		r := attack.Result{Kind: j.Kind, Family: j.Family}
		free := f.kept == nil && f.fault.leak != nil && f.fault.leak(row)
		if f.kept != nil {
			free = !f.fault.deaf && !slices.ContainsFunc(f.kept, func(l scenario.Layer) bool { return f.fault.holdsAll || Applies(l, row) && Holds(l, row) })
		}
		switch {
		case row.Sender == f.fault.lacks && row.Sender != "":
			r.Errno = "EPROTONOSUPPORT"
		case free:
			payload := j.Marker[:]
			if t := attack.Traces(j.Kind, j.Family, j.Marker); t != nil {
				payload = t[0]
			}
			f.air(payload)
			r.Sent = 1
		case c.Place == Red:
			f.mu.Lock()
			f.tunnel += 3
			f.mu.Unlock()
			r.Sent = 3
		default:
			r.Errno = "EPERM"
		}
		ends = append(ends, end{j.Marker.String(), r})
	}
	p.lines <- attack.Line{Ready: true}
	if c.Jobs[0].For > 0 && c.Jobs[0].Kind != attack.Hotplug {
		<-p.stop
	}
	if f.fault.mute {
		return
	}
	for _, e := range ends {
		p.lines <- attack.Line{Marker: e.marker, Result: &e.r}
	}
}

type fakeProcess struct {
	lines chan attack.Line
	stop  chan struct{}
	once  sync.Once
}

func (p *fakeProcess) Line(ctx context.Context) ([]byte, error) {
	select {
	case l, ok := <-p.lines:
		if !ok {
			return nil, io.EOF
		}
		return marshal(l), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *fakeProcess) Stop() error  { p.once.Do(func() { close(p.stop) }); return nil }
func (p *fakeProcess) Close() error { return p.Stop() }

// run runs rows on a faulty handset and twin.
func run(t *testing.T, handset, twin fault, change func(*Run)) (*Report, *fake) {
	t.Helper()
	rows, _ := All(daemons)
	b := &fake{name: "handset", fault: handset}
	m := &Run{Board: b, Twin: bareFake{&fake{name: "twin", fault: twin}}, Rows: Pairwise(rows, 1)}
	if change != nil {
		change(m)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := m.Matrix(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return r, b
}
