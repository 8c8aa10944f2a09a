package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/gateway/registrar"
	"rempart/internal/journal"
	"rempart/internal/proof"
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

// log is a journal's writer that a test can read while it is written.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// world is a gateway on its inner address with the names a to e enrolled.
type world struct {
	t         *testing.T
	authority *voicetest.Authority
	table     *registrar.Table
	gateway   netip.AddrPort
	log       *log
	stop      context.CancelFunc
	ended     chan error
}

func newWorld(t *testing.T) *world {
	t.Helper()
	voicetest.Need(t)
	w := &world{t: t, authority: voicetest.NewAuthority(t), table: registrar.New(64, clock), log: &log{}, ended: make(chan error, 1)}
	cert := w.authority.Gateway(t, "restricted")
	p, err := New(Config{
		Domain: voicetest.Domain, Roots: w.authority.Roots,
		Credentials: func(context.Context) (tls.Certificate, error) { return cert, nil },
		Known:       func(a sip.AOR) bool { return len(a.Name()) == 1 && a.Name() <= "e" && a.Domain() == voicetest.Domain },
		Table:       w.table, Journal: journal.New(w.log, "gatewayd"), Now: time.Now, Answer: 3 * time.Second, Unheard: 500 * time.Millisecond,
	})
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
	go func() { w.ended <- p.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-w.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("proxy ended with %v", err)
		}
	})
	return w
}

func aor(name string) sip.AOR { return sip.AOR("sip:" + name + "@" + voicetest.Domain) }

func session(n int, keying uint16) sip.Session {
	return sip.Session{ID: 7, Addr: voicetest.HandsetAddr(n), RTP: 5004, Keying: keying}
}

// agent is a running user agent of the n-th handset; it waits for its registration.
func (w *world) agent(n int, name string, incoming func(*sip.Incoming)) *sip.Agent {
	w.t.Helper()
	if incoming == nil {
		incoming = func(in *sip.Incoming) { in.Refuse(603) }
	}
	cert := w.authority.Handset(w.t, name, "restricted", voicetest.HandsetAddr(n))
	timing := sip.DefaultTiming()
	timing.Ping = 50 * time.Millisecond
	a, err := sip.NewAgent(sip.Config{Self: aor(name), Gateway: w.gateway, Local: voicetest.HandsetAddr(n),
		Credentials: func(context.Context) (tls.Certificate, error) { return cert, nil },
		Roots:       w.authority.Roots, Incoming: incoming, Now: time.Now, Clock: clock, Timing: timing})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	w.t.Cleanup(func() { cancel(); <-ended })
	await(w.t, "registration of "+name, func() bool { return a.Status().State == "registered" })
	return a
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited 5 s for %s", what)
}

// ended is how a dialog ended.
func ended(t *testing.T, d *sip.Dialog) error {
	t.Helper()
	select {
	case <-d.Done():
		return d.Err()
	case <-time.After(5 * time.Second):
		return errors.New("it did not end")
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestCallByName(t *testing.T) {
	proof.SFR(t, "FTP_ITC.1/CONTROL", "TestForeignCertificates")
	w := newWorld(t)
	got := make(chan *sip.Dialog, 1)
	rang := make(chan struct{}, 2)
	w.agent(2, "b", func(in *sip.Incoming) {
		if in.From != aor("a") || in.Offer != session(1, 0) || in.CallID != "call-1" {
			t.Errorf("incoming %+v", in)
		}
		in.Ring()
		// The library may deliver a 180 and a 200 that follow each other closely
		// in the other order, and then drops the 180.
		<-rang
		d, err := in.Answer(session(2, 5063))
		if err != nil {
			t.Error(err)
		}
		got <- d
	})
	a := w.agent(1, "a", nil)
	d, err := a.Invite(within(t), aor("b"), "call-1", session(1, 0), func() { rang <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	callee := <-got
	if d.Remote != session(2, 5063) || callee.Remote != session(1, 0) || callee.Peer != aor("a") || d.Peer != aor("b") {
		t.Errorf("caller %+v, callee %+v", d, callee)
	}
	// The callee hangs up; the caller hears of it.
	if err := callee.Bye(within(t)); err != nil {
		t.Errorf("callee's BYE: %v", err)
	}
	if err := ended(t, d); !errors.Is(err, sip.ErrHungUp) {
		t.Errorf("caller's dialog ended with %v", err)
	}
	// And the other way round, in a second call.
	rang <- struct{}{}
	d, err = a.Invite(within(t), aor("b"), "call-1", session(1, 0), nil)
	if err != nil {
		t.Fatal(err)
	}
	callee = <-got
	if err := d.Bye(within(t)); err != nil {
		t.Errorf("caller's BYE: %v", err)
	}
	if err := ended(t, callee); !errors.Is(err, sip.ErrHungUp) {
		t.Errorf("callee's dialog ended with %v", err)
	}
	if l := w.table.List(); len(l) != 2 || l[0].AOR != aor("a") || l[1].AOR != aor("b") {
		t.Errorf("registered: %+v", l)
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	w.agent(2, "b", func(in *sip.Incoming) { in.Refuse(486) })
	a := w.agent(1, "a", nil)
	for callee, want := range map[string]int{"b": 486, "c": 480, "zz": 404} {
		_, err := a.Invite(within(t), aor(callee), "r-"+callee, session(1, 0), nil)
		var refusal *sip.Refusal
		if !errors.As(err, &refusal) || refusal.Status != want {
			t.Errorf("calling %s: %v, want %d", callee, err, want)
		}
	}
	if !strings.Contains(w.log.String(), "event=gateway.call subject=sip:a@handsets.example outcome=refused status=486") {
		t.Errorf("no journal line of the busy call:\n%s", w.log)
	}
}

func TestNoAnswerAndCancel(t *testing.T) {
	w := newWorld(t)
	cancelled := make(chan struct{}, 2)
	w.agent(2, "b", func(in *sip.Incoming) {
		in.Ring()
		<-in.Cancelled()
		if _, err := in.Answer(session(2, 5063)); !errors.Is(err, sip.ErrCancelled) {
			t.Errorf("answered a cancelled call: %v", err)
		}
		cancelled <- struct{}{}
	})
	a := w.agent(1, "a", nil)
	// The caller gives up.
	ctx, cancel := context.WithCancel(context.Background())
	_, err := a.Invite(ctx, aor("b"), "c-1", session(1, 0), cancel)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled call: %v", err)
	}
	<-cancelled
	// The gateway gives up after its own limit.
	_, err = a.Invite(within(t), aor("b"), "c-2", session(1, 0), nil)
	var refusal *sip.Refusal
	if !errors.As(err, &refusal) || refusal.Status != 408 {
		t.Errorf("a call nobody answers: %v, want 408", err)
	}
	<-cancelled
}

func TestCalleeGoesAway(t *testing.T) {
	w := newWorld(t)
	got := make(chan *sip.Dialog, 1)
	ctx, stop := context.WithCancel(context.Background())
	cert := w.authority.Handset(t, "b", "restricted", voicetest.HandsetAddr(2))
	b, err := sip.NewAgent(sip.Config{Self: aor("b"), Gateway: w.gateway, Local: voicetest.HandsetAddr(2),
		Credentials: func(context.Context) (tls.Certificate, error) { return cert, nil },
		Roots:       w.authority.Roots, Now: time.Now, Clock: clock, Timing: sip.DefaultTiming(),
		Incoming: func(in *sip.Incoming) {
			d, err := in.Answer(session(2, 5063))
			if err != nil {
				t.Error(err)
			}
			got <- d
		}})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- b.Run(ctx) }()
	await(t, "registration of b", func() bool { return b.Status().State == "registered" })
	a := w.agent(1, "a", nil)
	if _, err := a.Invite(within(t), aor("b"), "g-1", session(1, 0), nil); err != nil {
		t.Fatal(err)
	}
	callee := <-got
	stop()
	<-over
	if err := ended(t, callee); !errors.Is(err, sip.ErrGatewayGone) {
		t.Errorf("the callee's dialog ended with %v", err)
	}
	await(t, "the binding to go", func() bool { _, ok := w.table.Lookup(aor("b")); return !ok })
	_, err = a.Invite(within(t), aor("b"), "g-2", session(1, 0), nil)
	var refusal *sip.Refusal
	if !errors.As(err, &refusal) || refusal.Status != 480 {
		t.Errorf("calling a handset that is gone: %v, want 480", err)
	}
}

// TestCalleeIsSilent calls a handset that was switched off: its connection is open as far as TCP knows, and nothing answers.
func TestCalleeIsSilent(t *testing.T) {
	w := newWorld(t)
	b, err := w.raw(w.authority.Handset(t, "b", "restricted", voicetest.HandsetAddr(2)), voicetest.HandsetAddr(2))
	if err != nil {
		t.Fatal(err)
	}
	register := message("REGISTER", "sip:"+voicetest.Domain, "<"+string(aor("b"))+">", "<"+string(aor("b"))+">", "Expires: 60\n")
	if line := ask(t, b, register); !strings.Contains(line, "200") {
		t.Fatalf("registration: %s", line)
	}
	a := w.agent(1, "a", nil)
	start := time.Now()
	_, err = a.Invite(within(t), aor("b"), "s-1", session(1, 0), nil)
	var refusal *sip.Refusal
	if took := time.Since(start); !errors.As(err, &refusal) || refusal.Status != 480 || took > time.Second {
		t.Errorf("calling a silent handset: %v after %s, want 480 at once", err, took)
	}
}

func TestGatewayGoneEndsCallsAndComesBack(t *testing.T) {
	w := newWorld(t)
	w.agent(2, "b", func(in *sip.Incoming) { in.Answer(session(2, 5063)) })
	a := w.agent(1, "a", nil)
	d, err := a.Invite(within(t), aor("b"), "x-1", session(1, 0), nil)
	if err != nil {
		t.Fatal(err)
	}
	w.stop()
	if err := ended(t, d); !errors.Is(err, sip.ErrGatewayGone) {
		t.Errorf("the dialog ended with %v", err)
	}
	await(t, "the loss to show", func() bool { s := a.Status(); return s.State == "unregistered" && s.Reason != "" && s.Failures > 0 })
	if _, err := a.Invite(within(t), aor("b"), "x-2", session(1, 0), nil); !errors.Is(err, sip.ErrNotRegistered) {
		t.Errorf("a call without gateway: %v", err)
	}
}

// raw is a TLS connection with a chosen certificate, for what our own user
// agent would never send.
func (w *world) raw(cert tls.Certificate, local netip.Addr) (*tls.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: local.AsSlice()}, Timeout: 3 * time.Second}
	c, err := d.Dial("tcp", w.gateway.String())
	if err != nil {
		return nil, err
	}
	tc := tls.Client(c, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, RootCAs: w.authority.Roots, ServerName: voicetest.Domain})
	tc.SetDeadline(time.Now().Add(5 * time.Second))
	w.t.Cleanup(func() { tc.Close() })
	return tc, tc.Handshake()
}

func ask(t *testing.T, c *tls.Conn, message string) string {
	t.Helper()
	if _, err := io.WriteString(c, strings.ReplaceAll(message, "\n", "\r\n")); err != nil {
		return "write: " + err.Error()
	}
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	if err != nil {
		return "read: " + err.Error()
	}
	line, _, _ := strings.Cut(string(buf[:n]), "\r\n")
	return line
}

func message(method, uri, from, to, extra string) string {
	return method + " " + uri + " SIP/2.0\nVia: SIP/2.0/TLS 10.77.0.13:5061;branch=z9hG4bK" + strings.Repeat("x", 8) + method + "\n" +
		"From: " + from + ";tag=1\nTo: " + to + "\nCall-ID: forged\nCSeq: 1 " + method + "\nMax-Forwards: 70\n" + extra + "Content-Length: 0\n\n"
}

// TestForged sends, over a connection certified for c, what only others may say.
func TestForged(t *testing.T) {
	proof.SFR(t, "FTP_ITC.1/CONTROL", "TestCallByName")
	w := newWorld(t)
	called := make(chan *sip.Incoming, 16)
	w.agent(2, "b", func(in *sip.Incoming) { called <- in; in.Refuse(603) })
	cert := w.authority.Handset(t, "c", "restricted", voicetest.HandsetAddr(3))
	const me, b, dom = "<sip:c@handsets.example>", "<sip:b@handsets.example>", "sip:handsets.example"
	for _, row := range []struct{ name, message, want string }{
		{"own name", message("REGISTER", dom, me, me, ""), "200"},
		{"register another", message("REGISTER", dom, me, b, ""), "403"},
		{"register from another", message("REGISTER", dom, b, b, ""), "403"},
		{"register in upper case", message("REGISTER", dom, "<sip:C@handsets.example>", me, ""), "403"},
		{"register with a port", message("REGISTER", dom, "<sip:c@handsets.example:5061>", me, ""), "403"},
		{"register with two at signs", message("REGISTER", dom, "<sip:c@handsets.example@evil.example>", me, ""), "403"},
		{"register with a password", message("REGISTER", dom, "<sip:c:x@handsets.example>", me, ""), "403"},
		{"register as sips", message("REGISTER", dom, "<sips:c@handsets.example>", me, ""), "403"},
		{"register in another domain", message("REGISTER", "sip:evil.example", me, me, ""), "404"},
		{"two From headers", message("REGISTER", dom, me, me, "From: "+b+";tag=2\n"), "403"},
		{"call as another", message("INVITE", "sip:b@handsets.example", "<sip:a@handsets.example>", b, ""), "403"},
		{"call with another in To", message("INVITE", "sip:b@handsets.example", me, "<sip:a@handsets.example>", ""), "400"},
		{"call an address with parameters", message("INVITE", "sip:b@handsets.example;maddr=1.2.3.4", me, b, ""), "404"},
		{"bye as another", message("BYE", "sip:b@handsets.example", "<sip:a@handsets.example>", b, ""), "403"},
		{"cancel of nothing", message("CANCEL", "sip:b@handsets.example", me, b, ""), "481"},
		{"a method we have not", message("MESSAGE", "sip:b@handsets.example", me, b, ""), "405"},
		{"a hidden hop", message("INVITE", "sip:b@handsets.example", me, b, "Via: SIP/2.0/TLS 10.77.0.14:5061;branch=z9hG4bKy\n"), "400"},
		{"no hop left", strings.Replace(message("INVITE", "sip:b@handsets.example", me, b, ""), "Max-Forwards: 70", "Max-Forwards: 0", 1), "483"},
	} {
		c, err := w.raw(cert, voicetest.HandsetAddr(3))
		if err != nil {
			t.Fatal(err)
		}
		if line := ask(t, c, row.message); !strings.HasPrefix(line, "SIP/2.0 "+row.want) {
			t.Errorf("%s: got %q, want %s", row.name, line, row.want)
		}
		c.Close()
		await(t, "the connection to leave the table", func() bool { _, ok := w.table.Lookup(aor("c")); return !ok })
	}
	select {
	case in := <-called:
		t.Errorf("a forged call reached its callee: %+v", in)
	default:
	}
	if got, _ := w.table.Lookup(aor("b")); strings.HasPrefix(got.Source, "10.77.0.13") {
		t.Error("b's registration was taken over")
	}
	if n := strings.Count(w.log.String(), "event=gateway.forged-identity"); n < 8 {
		t.Errorf("%d forgeries in the journal, want 8 or more", n)
	}
}

// TestForeignCertificates shows who gets no connection at all.
func TestForeignCertificates(t *testing.T) {
	proof.SFR(t, "FIA_X509_EXT.2", "TestCallByName")
	w := newWorld(t)
	other := voicetest.NewAuthority(t)
	for name, cert := range map[string]tls.Certificate{
		"another authority": other.Handset(t, "a", "restricted", voicetest.HandsetAddr(1)),
		"no certificate":    {},
		"another's address": w.authority.Handset(t, "a", "restricted", voicetest.HandsetAddr(2)),
		"the gateway's own": w.authority.Gateway(t, "restricted"),
	} {
		c, err := w.raw(cert, voicetest.HandsetAddr(1))
		if err == nil { // TLS 1.3 clients learn of the refusal at the first read
			line := ask(t, c, message("REGISTER", "sip:handsets.example", "<sip:a@handsets.example>", "<sip:a@handsets.example>", ""))
			if strings.HasPrefix(line, "SIP/2.0") {
				t.Errorf("%s: was answered %q", name, line)
			}
		}
	}
	if l := w.table.List(); len(l) != 0 {
		t.Errorf("registered: %+v", l)
	}
	if n := strings.Count(w.log.String(), "event=gateway.connection"); n != 4 || strings.Contains(w.log.String(), "outcome=success") {
		t.Errorf("journal:\n%s", w.log)
	}
	// And a gateway of another authority gets no handset.
	cert := w.authority.Handset(t, "a", "restricted", voicetest.HandsetAddr(1))
	a, err := sip.NewAgent(sip.Config{Self: aor("a"), Gateway: w.gateway, Local: voicetest.HandsetAddr(1), Roots: other.Roots,
		Credentials: func(context.Context) (tls.Certificate, error) { return cert, nil },
		Incoming:    func(*sip.Incoming) {}, Now: time.Now, Clock: clock, Timing: sip.DefaultTiming()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	a.Run(ctx)
	if s := a.Status(); s.State == "registered" || s.Failures == 0 {
		t.Errorf("status %+v", s)
	}
}

// TestFlood opens more connections of one name than it may have: the newest are
// served, as of a handset that was switched off again and again.
func TestFlood(t *testing.T) {
	w := newWorld(t)
	cert := w.authority.Handset(t, "a", "restricted", voicetest.HandsetAddr(1))
	reg := message("REGISTER", "sip:handsets.example", "<sip:a@handsets.example>", "<sip:a@handsets.example>", "")
	asked := 0
	served := func(c *tls.Conn) bool { // each time another transaction: the same one again would be answered where it came from first
		asked++
		return strings.HasPrefix(ask(t, c, strings.Replace(reg, "xxxxxxxx", fmt.Sprintf("flood%03d", asked), 1)), "SIP/2.0 200")
	}
	var open []*tls.Conn
	for i := range maxPerPeer + 3 {
		c, err := w.raw(cert, voicetest.HandsetAddr(1))
		if err != nil {
			t.Fatal(err)
		}
		if !served(c) {
			t.Fatalf("connection %d is not served", i+1)
		}
		open = append(open, c)
	}
	for i, c := range open {
		if is := served(c); is != (i >= 3) {
			t.Errorf("connection %d is served: %v", i+1, is)
		}
	}
	// An endless message ends its connection, not the gateway.
	c, err := w.raw(w.authority.Handset(t, "b", "restricted", voicetest.HandsetAddr(2)), voicetest.HandsetAddr(2))
	if err != nil {
		t.Fatal(err)
	}
	if line := ask(t, c, "REGISTER sip:handsets.example SIP/2.0\nX: "+strings.Repeat("a", 2*sip.MaxMessage)); strings.HasPrefix(line, "SIP/2.0") {
		t.Errorf("an endless message was answered %q", line)
	}
	w.agent(3, "c", nil)
}
