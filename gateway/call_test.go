package gateway_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/gateway/proxy"
	"rempart/gateway/registrar"
	"rempart/internal/proof"
	"rempart/keystore/client/identity"
	"rempart/voice/agent"
	"rempart/voice/call"
	"rempart/voice/port"
	"rempart/voice/sip"
	"rempart/voice/voicetest"
)

func TestMain(m *testing.M) { voicetest.Main(m) }

func clock() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// box is a stand-in for the TPM's storage key: real AEAD is keyd's and tested
// there; here it must only be another text than the plain one, and notice edits.
type box struct{}

func (box) Seal(_ context.Context, purpose string, data []byte) ([]byte, error) {
	out := []byte(purpose + "|")
	for _, b := range data {
		out = append(out, b^0xa5)
	}
	return out, nil
}

func (box) Open(_ context.Context, purpose string, sealed []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(sealed, []byte(purpose+"|"))
	if !ok {
		return nil, errors.New("cannot open")
	}
	out := make([]byte, len(rest))
	for i, b := range rest {
		out[i] = b ^ 0xa5
	}
	return out, nil
}

type world struct {
	t         *testing.T
	authority *voicetest.Authority
	gateway   netip.AddrPort
	stop      context.CancelFunc
}

func newWorld(t *testing.T) *world {
	t.Helper()
	voicetest.Need(t)
	w := &world{t: t, authority: voicetest.NewAuthority(t)}
	cert := w.authority.Gateway(t, "secret")
	p, err := proxy.New(proxy.Config{Domain: voicetest.Domain, Roots: w.authority.Roots,
		Credentials: func(context.Context) (tls.Certificate, error) { return cert, nil },
		Known:       func(a sip.AOR) bool { return len(a.Name()) == 1 },
		Table:       registrar.New(16, clock), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", netip.AddrPortFrom(voicetest.GatewayAddr(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	w.gateway = netip.MustParseAddrPort(ln.Addr().String())
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	over := make(chan struct{})
	go func() { defer close(over); p.Serve(ctx, ln) }()
	t.Cleanup(func() { cancel(); <-over })
	return w
}

// phone is one handset: its agent and the folder that is its sound card.
type phone struct {
	*agent.Agent
	dir  string
	stop func()
}

type option func(*agent.Config)

func (w *world) phone(n int, name string, options ...option) *phone {
	w.t.Helper()
	cert := w.authority.Handset(w.t, name, "restricted", voicetest.HandsetAddr(n))
	dir := w.t.TempDir()
	limits := agent.DefaultLimits()
	limits.Answer = 500 * time.Millisecond
	cfg := agent.Config{
		Self: sip.AOR("sip:" + name + "@" + voicetest.Domain), Inner: voicetest.HandsetAddr(n), Gateway: w.gateway, Roots: w.authority.Roots,
		Credentials: func(context.Context) (tls.Certificate, error) { return cert, nil },
		Level: func(local, peer identity.Identity) (string, error) {
			if local.Level != peer.Level {
				return "", fmt.Errorf("no level for %s and %s", local.Level, peer.Level)
			}
			return local.Level, nil
		},
		Sealer: box{}, StateFile: filepath.Join(dir, "calls"), Devices: agent.WAVDevices(dir), Check: agent.CheckWAV(dir),
		AutoAnswer: true, RTP: port.Sound, Keying: port.Keying, Limits: limits, Timing: sip.DefaultTiming(), Now: time.Now, Clock: clock}
	for _, o := range options {
		o(&cfg)
	}
	a, err := agent.New(context.Background(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() { defer close(over); a.Run(ctx) }()
	p := &phone{Agent: a, dir: dir, stop: func() { cancel(); <-over }}
	w.t.Cleanup(p.stop)
	await(w.t, "registration of "+name, func() bool { return a.Status().Registration.State == "registered" })
	return p
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(8 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited 8 s for %s", what)
}

// active waits until a call is heard.
func (p *phone) active(t *testing.T, id string) {
	t.Helper()
	for deadline := time.Now().Add(8 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		r, err := p.Record(id)
		if err != nil || r.Over() || time.Now().After(deadline) {
			t.Fatalf("waited for sound: %v %+v", err, r)
		}
		if r.FirstAudioNS != 0 && r.FramesReceived > 20 {
			return
		}
	}
}

// over waits for the end of a call and returns its record.
func (p *phone) over(t *testing.T, id string) agent.Record {
	t.Helper()
	var r agent.Record
	await(t, "the call's end", func() bool {
		var err error
		r, err = p.Record(id)
		return err == nil && r.Over()
	})
	return r
}

// quiet checks that no sound device was opened.
func (p *phone) quiet(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(p.dir, "speaker.wav")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the speaker was opened: %v", err)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "stamps.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the devices were opened: %v", err)
	}
}

// speech is a WAV file of a second of tone, 48 kHz mono 16 bit.
func speech(t *testing.T, path string, rate uint32) {
	t.Helper()
	var b bytes.Buffer
	const n = 48000
	b.WriteString("RIFF")
	binary.Write(&b, binary.LittleEndian, uint32(36+2*n))
	b.WriteString("WAVEfmt ")
	for _, v := range []any{uint32(16), uint16(1), uint16(1), rate, rate * 2, uint16(2), uint16(16)} {
		binary.Write(&b, binary.LittleEndian, v)
	}
	b.WriteString("data")
	binary.Write(&b, binary.LittleEndian, uint32(2*n))
	for i := range n {
		binary.Write(&b, binary.LittleEndian, int16(8000*math.Sin(2*math.Pi*440*float64(i)/48000)))
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSecureCall(t *testing.T) {
	proof.SFR(t, "FTP_ITC.1/MEDIA", "TestNoAudioOnFailure")
	proof.SFR(t, "FCO_VOC_EXT.1", "")
	w := newWorld(t)
	a, b := w.phone(1, "a"), w.phone(2, "b")
	speech(t, filepath.Join(a.dir, "mic.wav"), 48000)
	var first agent.Record
	for n, seen := range []bool{false, true} {
		id, err := a.Dial("B")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Dial("c"); !errors.Is(err, agent.ErrBusy) {
			t.Errorf("a second call: %v", err)
		}
		a.active(t, id)
		callee := b.Status().Current
		if callee == nil {
			t.Fatal("the callee is in no call")
		}
		b.active(t, callee.ID)
		if err := a.Hangup(id); err != nil {
			t.Fatal(err)
		}
		ra, rb := a.over(t, id), b.over(t, callee.ID)
		if ra.State != "ended" || ra.Reason != string(call.ReasonLocalHangup) || rb.State != "ended" || rb.Reason != string(call.ReasonRemoteHangup) {
			t.Errorf("ends: %s %s, %s %s (%s, %s)", ra.State, ra.Reason, rb.State, rb.Reason, ra.Detail, rb.Detail)
		}
		if ra.SAS == "" || ra.SAS != rb.SAS || ra.Level != "restricted" || rb.Level != "restricted" || ra.CallID != rb.CallID {
			t.Errorf("the two sides differ: %+v and %+v", ra, rb)
		}
		if ra.PeerSeenBefore != seen || rb.PeerSeenBefore != seen {
			t.Errorf("call %d: seen before %v, %v", n, ra.PeerSeenBefore, rb.PeerSeenBefore)
		}
		for _, r := range []agent.Record{ra, rb} {
			if r.BytesPerPacket != 88 || r.FramesBad != 0 || r.FramesSent < 20 {
				t.Errorf("sound: %+v", r)
			}
		}
		t.Logf("dial to first decoded audio: %d ms", (ra.FirstAudioNS-ra.DialNS)/1e6)
		if ra.FirstAudioNS-ra.DialNS > time.Second.Nanoseconds() && !raceEnabled {
			t.Errorf("dial to first audio took %d ms", (ra.FirstAudioNS-ra.DialNS)/1e6)
		}
		if n == 0 {
			first = ra
		} else if first.SAS == ra.SAS && first.CallID == ra.CallID {
			t.Error("two calls are one")
		}
	}
	b.stop()
	kept, err := os.ReadFile(filepath.Join(b.dir, "calls"))
	if err != nil || bytes.Contains(kept, []byte(first.SAS)) || bytes.Contains(kept, []byte("sip:a")) {
		t.Errorf("the call log shows what it should not, or is not there: %v", err)
	}
}

// TestNoAudioOnFailure walks the ways a call comes to nothing.
func TestNoAudioOnFailure(t *testing.T) {
	proof.SFR(t, "FDP_IFF.1", "TestSecureCall")
	w := newWorld(t)
	a := w.phone(1, "a")
	level := func(c *agent.Config) {
		c.Level = func(identity.Identity, identity.Identity) (string, error) { return "", errors.New("none") }
	}
	// Who is called, how that handset differs, and what the caller is told.
	for _, row := range []struct {
		callee string
		n      int
		with   option
		want   call.Reason
	}{
		{"zz", 0, nil, call.ReasonUnknownCallee},
		{"d", 0, nil, call.ReasonNotRegistered},
		{"b", 2, func(c *agent.Config) { c.AutoAnswer = false }, call.ReasonNoAnswer},
		{"b", 2, level, call.ReasonLevel},
	} {
		t.Run(string(row.want), func(t *testing.T) {
			var b *phone
			if row.n != 0 {
				b = (&world{t: t, authority: w.authority, gateway: w.gateway}).phone(row.n, row.callee, row.with)
			}
			await(t, "the line", func() bool { return a.Status().Current == nil })
			id, err := a.Dial(row.callee)
			if err != nil {
				t.Fatal(err)
			}
			r := a.over(t, id)
			if r.State != "failed" || r.Reason != string(row.want) || r.Explanation == "" {
				t.Errorf("got %s %q (%s), want %q", r.State, r.Reason, r.Detail, row.want)
			}
			if r.Started != 0 || r.FramesSent != 0 || r.SAS != "" {
				t.Errorf("a failed call has sound: %+v", r)
			}
			a.quiet(t)
			if b != nil {
				await(t, "the callee's end", func() bool { return b.Status().Current == nil })
				b.quiet(t)
			}
		})
	}
}

// TestRoguePeer calls a handset whose signalling is honest and whose keys are
// somebody else's: what a thief of a registration would have.
func TestRoguePeer(t *testing.T) {
	proof.SFR(t, "FIA_X509_EXT.2", "TestSecureCall")
	w := newWorld(t)
	other := voicetest.NewAuthority(t)
	a := w.phone(1, "a")
	for want, cert := range map[call.Reason]tls.Certificate{
		call.ReasonPeerName:  w.authority.Handset(t, "c", "restricted", voicetest.HandsetAddr(2)),
		call.ReasonAuthority: other.Handset(t, "b", "restricted", voicetest.HandsetAddr(2)),
		call.ReasonKeying:    {}, // no TLS at all
	} {
		t.Run(string(want), func(t *testing.T) {
			ln, err := net.Listen("tcp", netip.AddrPortFrom(voicetest.HandsetAddr(2), 0).String())
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go func() {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				if cert.Certificate == nil {
					fmt.Fprint(c, "SSH-2.0-keys\r\n")
					return
				}
				tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"rempart-keying/1"}})
				tc.Handshake()
			}()
			port := netip.MustParseAddrPort(ln.Addr().String()).Port()
			honest := w.authority.Handset(t, "b", "restricted", voicetest.HandsetAddr(2))
			rogue, err := sip.NewAgent(sip.Config{Self: "sip:b@" + voicetest.Domain, Gateway: w.gateway, Local: voicetest.HandsetAddr(2), Roots: w.authority.Roots,
				Credentials: func(context.Context) (tls.Certificate, error) { return honest, nil },
				Now:         time.Now, Clock: clock, Timing: sip.DefaultTiming(),
				Incoming: func(in *sip.Incoming) {
					in.Answer(sip.Session{ID: 1, Addr: voicetest.HandsetAddr(2), RTP: 5004, Keying: port})
				}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			over := make(chan struct{})
			go func() { defer close(over); rogue.Run(ctx) }()
			defer func() { cancel(); <-over }()
			await(t, "the rogue's registration", func() bool { return rogue.Status().State == "registered" })
			id, err := a.Dial("b")
			if err != nil {
				t.Fatal(err)
			}
			r := a.over(t, id)
			if r.State != "failed" || r.Reason != string(want) || r.Started != 0 || r.SAS != "" {
				t.Errorf("got %s %q (%s), want %q and no sound", r.State, r.Reason, r.Detail, want)
			}
			a.quiet(t)
		})
	}
}

func TestBusy(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.phone(1, "a"), w.phone(2, "b"), w.phone(3, "c")
	id, err := a.Dial("b")
	if err != nil {
		t.Fatal(err)
	}
	a.active(t, id)
	second, err := c.Dial("b")
	if err != nil {
		t.Fatal(err)
	}
	if r := c.over(t, second); r.Reason != string(call.ReasonBusy) {
		t.Errorf("the second caller got %q (%s)", r.Reason, r.Detail)
	}
	c.quiet(t)
	if r, err := a.Record(id); err != nil || r.State != "active" {
		t.Errorf("the first call is %s: %v", r.State, err)
	}
	// The callee is switched off: the caller's audio closes.
	b.stop()
	if r := a.over(t, id); r.Reason != string(call.ReasonRemoteHangup) {
		t.Errorf("the first call ended with %q (%s)", r.Reason, r.Detail)
	}
}

func TestGatewayGone(t *testing.T) {
	w := newWorld(t)
	a := w.phone(1, "a")
	w.phone(2, "b")
	id, err := a.Dial("b")
	if err != nil {
		t.Fatal(err)
	}
	a.active(t, id)
	w.stop()
	if r := a.over(t, id); r.State != "failed" || r.Reason != string(call.ReasonGatewayGone) {
		t.Errorf("the call is %s %q", r.State, r.Reason)
	}
	await(t, "the loss to show", func() bool { return a.Status().Registration.State != "registered" })
	if id, err = a.Dial("b"); err != nil {
		t.Fatal(err)
	}
	if r := a.over(t, id); r.Reason != string(call.ReasonNotReady) {
		t.Errorf("a call without gateway failed with %q", r.Reason)
	}
}

func TestBadMicrophone(t *testing.T) {
	w := newWorld(t)
	a := w.phone(1, "a")
	speech(t, filepath.Join(a.dir, "mic.wav"), 44100)
	if _, err := a.Dial("b"); err == nil || !strings.Contains(err.Error(), "48") {
		t.Errorf("a microphone of 44.1 kHz: %v", err)
	}
	for _, name := range []string{"", "a", "b@c", "sip:b@evil.example", "b;x=1", strings.Repeat("b", 80)} {
		if _, err := a.Dial(name); !errors.Is(err, agent.ErrCallee) {
			t.Errorf("calling %q: %v", name, err)
		}
	}
	if err := a.Hangup("nothing"); !errors.Is(err, agent.ErrNoCall) {
		t.Errorf("hanging up nothing: %v", err)
	}
	if _, err := a.Record("nothing"); !errors.Is(err, agent.ErrNoCall) {
		t.Errorf("a record of nothing: %v", err)
	}
}
