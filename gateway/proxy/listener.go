package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"rempart/internal/journal"
	"rempart/voice/sip"
)

// Bounds of the connection table.
const (
	maxConnections = 512              // all together
	maxHandshaking = 64               // not yet proven who they are
	maxPerPeer     = 4                // of one certified name; one more ends the oldest
	handshakeLimit = 5 * time.Second  // TCP accept to verified certificate
	idleLimit      = 45 * time.Second // handsets ping every 10 s
	writeLimit     = 5 * time.Second
)

// errInner is the refusal of a certificate used from somebody else's address.
var errInner = errors.New("cannot accept a certificate from an inner address that it does not carry")

// listener turns TCP connections into identified ones: the library sees a
// connection only after its certificate has been verified and it stands in the
// table. It is a net.Listener.
type listener struct {
	p     *Proxy
	raw   []net.Listener // one per inner address
	ready chan net.Conn
	ended chan struct{}
	once  sync.Once
	slots chan struct{}

	mu    sync.Mutex
	count uint64           // of connections so far
	conns map[string]entry // by remote address
}

// entry is one connection of the table.
type entry struct {
	aor    sip.AOR
	number uint64 // in the order of their coming
	conn   net.Conn
}

func newListener(p *Proxy, raw []net.Listener) *listener {
	return &listener{p: p, raw: raw, ready: make(chan net.Conn), ended: make(chan struct{}),
		slots: make(chan struct{}, maxHandshaking), conns: map[string]entry{}}
}

// run accepts from one raw listener until it is closed.
func (l *listener) run(ctx context.Context, raw net.Listener) error {
	defer l.Close()
	for {
		c, err := raw.Accept()
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil { // out of descriptors and the like: pause, keep serving
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(50 * time.Millisecond):
				continue
			}
		}
		select {
		case l.slots <- struct{}{}:
			go func() {
				defer func() { <-l.slots }()
				l.identify(ctx, c)
			}()
		default:
			c.Close()
		}
	}
}

// identify proves who opened c and hands it to the library.
func (l *listener) identify(ctx context.Context, c net.Conn) {
	source := c.RemoteAddr().String()
	tc, aor, err := l.handshake(ctx, c)
	known := &identified{Conn: tc}
	known.leave = func() { l.leave(source, known) }
	if err == nil {
		err = l.admit(source, aor, known)
	}
	if err != nil {
		l.p.cfg.Journal.Event(eventConnection, source, journal.Refused, "reason", err.Error())
		c.Close()
		return
	}
	l.p.cfg.Journal.Event(eventConnection, string(aor), journal.Success, "source", source)
	select {
	case l.ready <- known:
	case <-l.ended:
		known.Close()
	}
}

func (l *listener) handshake(ctx context.Context, c net.Conn) (*tls.Conn, sip.AOR, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	cert, err := l.p.cfg.Credentials(ctx)
	if err != nil {
		return nil, "", fmt.Errorf("cannot use the gateway's certificate: %w", err)
	}
	tc := tls.Server(c, sip.ServerTLS(cert, l.p.cfg.Roots, l.p.cfg.Now))
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, "", err
	}
	id, err := sip.PeerIdentity(tc.ConnectionState(), l.p.cfg.Roots, l.p.cfg.Now())
	if err != nil {
		return nil, "", err
	}
	aor, err := sip.ParseAOR(id.URI)
	if err != nil || aor.Domain() != l.p.cfg.Domain {
		return nil, "", fmt.Errorf("cannot accept %q as a handset of %s", id.URI, l.p.cfg.Domain)
	}
	// The tunnel binds inner addresses to tunnel keys; this binds the
	// certificate to both.
	from, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil || !slices.Contains(id.Inner, from.Addr().Unmap()) {
		return nil, "", errInner
	}
	return tc, aor, nil
}

// admit puts a connection into the table. A name that has its number of connections loses the oldest: a handset that was
// switched off leaves one behind that nobody ends, since red answers no segment of a connection that it does not know.
func (l *listener) admit(source string, aor sip.AOR, c net.Conn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	same, first := 0, ""
	for from, other := range l.conns {
		if other.aor != aor {
			continue
		}
		if same++; first == "" || other.number < l.conns[first].number {
			first = from
		}
	}
	switch {
	case same >= maxPerPeer:
		// The end of a TLS connection may wait for its peer.
		go l.conns[first].conn.Close()
		delete(l.conns, first)
	case len(l.conns) >= maxConnections:
		return fmt.Errorf("cannot take another connection: %d are open", len(l.conns))
	}
	l.count++
	l.conns[source] = entry{aor, l.count, c}
	return nil
}

func (l *listener) leave(source string, c net.Conn) {
	l.mu.Lock()
	if l.conns[source].conn == c {
		delete(l.conns, source)
	}
	l.mu.Unlock()
	l.p.cfg.Table.Drop(source)
}

// sender is the certified party a message came from.
func (l *listener) sender(source string) (sip.AOR, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.conns[source]
	return e.aor, ok
}

// Accept gives the library the next identified connection.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ready:
		return c, nil
	case <-l.ended:
		return nil, net.ErrClosed
	}
}

// Addr is the first address listened on.
func (l *listener) Addr() net.Addr { return l.raw[0].Addr() }

// Close ends the listener; open connections are the library's to close.
func (l *listener) Close() error {
	var errs []error
	l.once.Do(func() {
		close(l.ended)
		for _, raw := range l.raw {
			errs = append(errs, raw.Close())
		}
	})
	return errors.Join(errs...)
}

// identified is a connection that leaves the table when it ends.
type identified struct {
	net.Conn
	leave func()
	once  sync.Once
}

// Close ends the connection; nothing is reached down it any more.
func (c *identified) Close() error {
	c.once.Do(c.leave)
	return c.Conn.Close()
}

// Read notices the end before the library does.
func (c *identified) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.once.Do(c.leave)
	}
	return n, err
}
