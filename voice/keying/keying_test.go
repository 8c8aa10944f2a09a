package keying

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"testing"
	"testing/synctest"
	"time"

	"rempart/internal/proof"
	"rempart/keystore/client/identity"
	"rempart/voice/media"
)

// connected is a TCP connection over loopback, both ends.
func connected(t testing.TB) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// outcome is what one side got.
type outcome struct {
	r   *Result
	err error
}

// both runs the two sides against each other.
func both(t testing.TB, dial, accept Params) (caller, callee outcome) {
	t.Helper()
	cc, sc := connected(t)
	done := make(chan outcome)
	go func() {
		r, err := Accept(t.Context(), sc, accept)
		if err != nil {
			sc.Close() // as a call that fails does
		}
		done <- outcome{r, err}
	}()
	r, err := Dial(t.Context(), cc, dial)
	if err != nil {
		cc.Close()
	}
	return outcome{r, err}, <-done
}

func TestTwoHandsetsAgree(t *testing.T) {
	proof.SFR(t, "FTP_ITC.1/MEDIA", "TestRefusals")
	a := newAuthority(t)
	dial, accept := parties(t, a)
	x, y := both(t, dial, accept)
	if x.err != nil || y.err != nil {
		t.Fatal(x.err, y.err)
	}
	if !bytes.Equal(x.r.SendKey.Reveal(), y.r.ReceiveKey.Reveal()) || !bytes.Equal(x.r.ReceiveKey.Reveal(), y.r.SendKey.Reveal()) {
		t.Error("the two sides have different keys")
	}
	if bytes.Equal(x.r.SendKey.Reveal(), x.r.ReceiveKey.Reveal()) {
		t.Error("one key serves both directions")
	}
	if x.r.SendKey.Len() != media.KeySize+media.SaltSize {
		t.Errorf("a key of %d bytes is not what SRTP takes", x.r.SendKey.Len())
	}
	if x.r.SendSSRC != y.r.ReceiveSSRC || x.r.ReceiveSSRC != y.r.SendSSRC || x.r.SendSSRC == 0 || x.r.SendSSRC == x.r.ReceiveSSRC {
		t.Errorf("sources %x %x and %x %x", x.r.SendSSRC, x.r.ReceiveSSRC, y.r.SendSSRC, y.r.ReceiveSSRC)
	}
	if x.r.SAS != y.r.SAS || !regexp.MustCompile(`^[`+alphabet+`]{4}$`).MatchString(x.r.SAS) {
		t.Errorf("short authentication strings %q and %q", x.r.SAS, y.r.SAS)
	}
	if x.r.Peer.Name != "b" || y.r.Peer.Name != "a" || x.r.Level != "restricted" || y.r.Level != "restricted" {
		t.Errorf("peers %s and %s, levels %s and %s", x.r.Peer.Name, y.r.Peer.Name, x.r.Level, y.r.Level)
	}
	if x.r.PeerCertificate != sha256.Sum256(accept.Certificate.Certificate[0]) {
		t.Error("the digest of the peer's certificate is not that")
	}
	again, _ := both(t, dial, accept)
	if again.err != nil || bytes.Equal(again.r.SendKey.Reveal(), x.r.SendKey.Reveal()) {
		t.Errorf("two calls have one key (%v)", again.err)
	}
	x.r.Wipe()
	if x.r.SendKey.Len() != 0 || x.r.ReceiveKey.Len() != 0 {
		t.Error("wiped keys are still there")
	}
	if s := fmt.Sprintf("%+v", *y.r); bytes.Contains([]byte(s), y.r.SendKey.Reveal()) {
		t.Error("a result prints its keys")
	}
}

func TestRefusals(t *testing.T) {
	ours, foreign := newAuthority(t), newAuthority(t)
	refuse := errors.New("the networks of the two are different")
	for _, tc := range []struct {
		name           string
		change         func(dial, accept *Params)
		caller, callee error
	}{
		{"callee of another authority", func(d, a *Params) {
			a.Certificate, a.Roots = foreign.issue(t, "b", "restricted", time.Hour), trusting(ours, foreign)
		}, ErrNotOurAuthority, ErrPeerRefused},
		{"caller of another authority", func(d, a *Params) {
			d.Certificate, d.Roots = foreign.issue(t, "a", "secret", time.Hour), trusting(ours, foreign)
		}, ErrPeerRefused, ErrNotOurAuthority},
		{"callee's certificate has expired", func(d, a *Params) {
			a.Certificate = ours.issue(t, "b", "restricted", 10*time.Minute)
			d.Now = func() time.Time { return time.Now().Add(20 * time.Minute) }
		}, ErrNotOurAuthority, ErrPeerRefused},
		{"callee is somebody else", func(d, a *Params) {
			a.Certificate, a.Local = ours.issue(t, "c", "secret", time.Hour), uri("c")
		}, ErrNotDialledName, ErrPeerRefused},
		{"caller is somebody else", func(d, a *Params) {
			d.Certificate, d.Local = ours.issue(t, "c", "secret", time.Hour), uri("c")
		}, ErrPeerRefused, ErrNotDialledName},
		{"callee answers with the caller's own certificate", func(d, a *Params) {
			a.Certificate, a.Local, a.DialledName = d.Certificate, uri("a"), uri("b")
		}, ErrNotDialledName, ErrPeerRefused},
		{"caller has no level for it", func(d, a *Params) {
			d.Level = func(_, _ identity.Identity) (string, error) { return "", refuse }
		}, refuse, ErrLevel},
		{"callee has no level for it", func(d, a *Params) {
			a.Level = func(_, _ identity.Identity) (string, error) { return "", refuse }
		}, ErrLevel, refuse},
		{"the rule returns no level and no reason", func(d, a *Params) {
			a.Level = func(_, _ identity.Identity) (string, error) { return "", nil }
		}, ErrLevel, ErrLevel},
		{"they compute different levels", func(d, a *Params) {
			a.Level = func(_, _ identity.Identity) (string, error) { return "public", nil }
		}, ErrLevel, ErrLevel},
		{"they mean different calls", func(d, a *Params) { a.CallID = "another@10.77.0.12" }, ErrOtherCall, ErrOtherCall},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dial, accept := parties(t, ours)
			tc.change(&dial, &accept)
			x, y := both(t, dial, accept)
			if !errors.Is(x.err, tc.caller) || x.r != nil {
				t.Errorf("caller: %v, want %v", x.err, tc.caller)
			}
			if !errors.Is(y.err, tc.callee) || y.r != nil {
				t.Errorf("callee: %v, want %v", y.err, tc.callee)
			}
		})
	}
}

func TestOwnParameters(t *testing.T) {
	a, foreign := newAuthority(t), newAuthority(t)
	for name, change := range map[string]func(*Params){
		"no Call-ID":                      func(p *Params) { p.CallID = "" },
		"long Call-ID":                    func(p *Params) { p.CallID = string(make([]byte, 257)) },
		"no own name":                     func(p *Params) { p.Local = "" },
		"no dialled name":                 func(p *Params) { p.DialledName = "" },
		"own name dialled":                func(p *Params) { p.DialledName = p.Local },
		"no authority":                    func(p *Params) { p.Roots = nil },
		"no rule":                         func(p *Params) { p.Level = nil },
		"no certificate":                  func(p *Params) { p.Certificate = tls.Certificate{} },
		"own certificate of nobody's":     func(p *Params) { p.Certificate = foreign.issue(t, "a", "secret", time.Hour) },
		"own certificate of another name": func(p *Params) { p.Local = uri("z") },
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := parties(t, a)
			change(&p)
			conn, other := net.Pipe()
			defer other.Close()
			defer conn.Close()
			// Nothing is read from the other end: a byte that was sent would be waited for.
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if r, err := Dial(ctx, conn, p); err == nil || r != nil || errors.Is(err, ErrTooSlow) {
				t.Errorf("dialling: %v", err)
			}
		})
	}
}

// rawPeer runs a plain crypto/tls peer on the other end of an agreement.
func rawPeer(t testing.TB, as role, p Params, config *tls.Config) error {
	t.Helper()
	cc, sc := connected(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn := tls.Client(sc, config)
		if as == caller {
			conn = tls.Server(sc, config)
		}
		if conn.Handshake() == nil {
			_, _ = io.Copy(io.Discard, conn)
		}
		sc.Close()
	}()
	_, err := agree(t.Context(), cc, p, as)
	cc.Close()
	<-done
	return err
}

func TestOtherHandshakesAreRefused(t *testing.T) {
	a := newAuthority(t)
	dial, accept := parties(t, a)
	config := func(p Params, change func(*tls.Config)) *tls.Config {
		c := &tls.Config{Certificates: []tls.Certificate{p.Certificate}, InsecureSkipVerify: true, ClientAuth: tls.RequireAnyClientCert,
			NextProtos: []string{protocol}, MinVersion: tls.VersionTLS12}
		change(c)
		return c
	}
	for _, tc := range []struct {
		name   string
		change func(*tls.Config)
		as     role
		want   error
	}{
		{"callee with X25519 only", func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }, caller, ErrWrongGroup},
		{"caller with X25519 only", func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }, callee, ErrWrongGroup},
		{"caller with P-256 only", func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP256} }, callee, ErrWrongGroup},
		{"callee with TLS 1.2 only", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, caller, ErrPeerRefused},
		{"callee without a certificate for a caller", func(c *tls.Config) { c.ClientAuth = tls.NoClientCert }, caller, ErrPeerRefused},
		{"caller without a certificate", func(c *tls.Config) { c.Certificates = nil }, callee, nil},
		{"caller with another protocol", func(c *tls.Config) { c.NextProtos = []string{"h2"} }, callee, nil},
		{"caller with no protocol", func(c *tls.Config) { c.NextProtos = nil }, callee, ErrProtocol},
		{"callee with no protocol", func(c *tls.Config) { c.NextProtos = nil }, caller, ErrProtocol},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mine, theirs := dial, accept
			if tc.as == callee {
				mine, theirs = accept, dial
			}
			mine.Timeout = 500 * time.Millisecond
			err := rawPeer(t, tc.as, mine, config(theirs, tc.change))
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) && !errors.Is(err, ErrTooSlow) {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
}

func TestCheckState(t *testing.T) {
	good := tls.ConnectionState{Version: tls.VersionTLS13, CurveID: group, NegotiatedProtocol: protocol}
	if err := checkState(good); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*tls.ConnectionState)
		want   error
	}{
		"TLS 1.2":     {func(s *tls.ConnectionState) { s.Version = tls.VersionTLS12 }, ErrProtocol},
		"X25519":      {func(s *tls.ConnectionState) { s.CurveID = tls.X25519 }, ErrWrongGroup},
		"no group":    {func(s *tls.ConnectionState) { s.CurveID = 0 }, ErrWrongGroup},
		"resumed":     {func(s *tls.ConnectionState) { s.DidResume = true }, ErrProtocol},
		"other ALPN":  {func(s *tls.ConnectionState) { s.NegotiatedProtocol = "h2" }, ErrProtocol},
		"absent ALPN": {func(s *tls.ConnectionState) { s.NegotiatedProtocol = "" }, ErrProtocol},
	} {
		s := good
		tc.change(&s)
		if err := checkState(s); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
}

// tickets is a session cache that counts what is put into it.
type tickets struct{ n int }

func (c *tickets) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (c *tickets) Put(string, *tls.ClientSessionState)        { c.n++ }

func TestNoTicketIsIssued(t *testing.T) {
	dial, accept := parties(t, newAuthority(t))
	cache := &tickets{}
	cc, sc := connected(t)
	done := make(chan error)
	go func() { _, err := Accept(t.Context(), sc, accept); done <- err }()
	conn := tls.Client(cc, &tls.Config{Certificates: []tls.Certificate{dial.Certificate}, InsecureSkipVerify: true, ServerName: "b",
		NextProtos: []string{protocol}, ClientSessionCache: cache})
	// Reading the callee's first message processes whatever came before it.
	if _, err := conn.Read(make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if cache.n != 0 {
		t.Errorf("%d session tickets were issued", cache.n)
	}
	if state := conn.ConnectionState(); state.CurveID != group || state.Version != tls.VersionTLS13 {
		t.Errorf("negotiated %v, %s", state.CurveID, tls.VersionName(state.Version))
	}
	cc.Close()
	if err := <-done; !errors.Is(err, ErrPeerRefused) {
		t.Errorf("after the caller hung up: %v", err)
	}
}

func TestDeadlineAndCancel(t *testing.T) {
	a := newAuthority(t)
	dial, accept := parties(t, a)
	for name, tc := range map[string]struct {
		side   func(context.Context, net.Conn, Params) (*Result, error)
		params Params
	}{"caller": {Dial, dial}, "callee": {Accept, accept}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// The certificates were issued in real time, the bubble has its own.
				now := time.Now()
				p := tc.params
				p.Now = func() time.Time { return realNow.Add(time.Since(now)) }
				conn, other := net.Pipe()
				go discard(other)
				start := time.Now()
				_, err := tc.side(t.Context(), conn, p)
				if !errors.Is(err, ErrTooSlow) || time.Since(start) != DefaultTimeout {
					t.Errorf("a silent peer: %v after %v", err, time.Since(start))
				}
				conn.Close()
				other.Close()

				conn, other = net.Pipe()
				go discard(other)
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(time.Second, cancel)
				start = time.Now()
				_, err = tc.side(ctx, conn, p)
				if !errors.Is(err, context.Canceled) || errors.Is(err, ErrTooSlow) || time.Since(start) != time.Second {
					t.Errorf("a cancelled call: %v after %v", err, time.Since(start))
				}
				conn.Close()
				other.Close()
			})
		})
	}
}

// realNow is when the tests began, outside every bubble.
var realNow = time.Now()

func TestManInTheMiddleIsSeen(t *testing.T) {
	// The attacker has certificates of the authority for both names, and runs the protocol honestly with both. Neither side can
	// notice by itself: the strings and the keys differ.
	a := newAuthority(t)
	dial, accept := parties(t, a)
	asB, asA := accept, dial
	asB.Certificate, asA.Certificate = a.issue(t, "b", "restricted", time.Hour), a.issue(t, "a", "secret", time.Hour)
	left, leftM := both(t, dial, asB)
	rightM, right := both(t, asA, accept)
	if err := errors.Join(left.err, leftM.err, rightM.err, right.err); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(left.r.SendKey.Reveal(), right.r.ReceiveKey.Reveal()) {
		t.Error("two connections have one key")
	}
	if left.r.SAS == right.r.SAS { // 2^-20 by chance
		t.Errorf("both sides read %q", left.r.SAS)
	}
	if left.r.SAS != leftM.r.SAS || right.r.SAS != rightM.r.SAS {
		t.Error("one connection has two strings")
	}
}

func TestReasonKeepsLocalErrors(t *testing.T) {
	for _, err := range []error{os.ErrDeadlineExceeded, io.EOF, &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}} {
		if got := reason(err); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
}

// discard reads what comes and says nothing.
func discard(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }
