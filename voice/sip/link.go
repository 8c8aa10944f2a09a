package sip

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/emiago/sipgo"
	gosip "github.com/emiago/sipgo/sip"
)

// MaxMessage bounds one SIP message, in bytes.
const MaxMessage = 8 << 10

// errNoDial is what the library meets where it would resolve or dial.
var errNoDial = errors.New("this network is reached over the connections that exist, never by name or by dialling")

// Limits are the time limits of a SIP/TLS connection.
type Limits struct {
	// Idle is how long a connection may deliver nothing before it is dead.
	Idle time.Duration
	// Write is how long one message may take to be written.
	Write time.Duration
}

// NewUserAgent is a sipgo user agent with this network's limits: bounded
// messages, TLS connections with time limits, no DNS, no dialling, and pending
// transactions that end with their connection.
func NewUserAgent(domain string, l Limits) (*sipgo.UserAgent, error) {
	parser := gosip.NewParser()
	parser.MaxMessageLength = MaxMessage
	quiet := slog.New(slog.DiscardHandler)
	refuse := func(string, string, syscall.RawConn) error { return errNoDial }
	return sipgo.NewUA(
		sipgo.WithUserAgent("rempart"),
		sipgo.WithUserAgentHostname(domain),
		sipgo.WithUserAgentParser(parser),
		sipgo.WithUserAgentDNSResolver(&net.Resolver{PreferGo: true, StrictErrors: true,
			Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errNoDial }}),
		sipgo.WithUserAgentTransportLayerOptions(
			gosip.WithTransportLayerLogger(quiet),
			gosip.WithTransportLayerTransports(gosip.TransportsConfig{TLS: &gosip.TransportTLS{
				TransportTCP: &gosip.TransportTCP{
					ReadTimeout:  l.Idle,
					WriteTimeout: l.Write,
					DialerCreate: func(net.Addr) net.Dialer { return net.Dialer{Control: refuse} },
				}}})),
		sipgo.WithUserAgentTransactionLayerOptions(
			gosip.WithTransactionLayerLogger(quiet),
			// Late answers of calls that were given up; nothing waits for them.
			gosip.WithTransactionLayerUnhandledResponseHandler(func(*gosip.Response) {}),
			gosip.WithTransactionLayerTerminateOnConnClose()),
	)
}

// SilenceLibrary turns off the library's own log, which would write what peers
// send to the console. A daemon calls it first; what matters is in the journal.
func SilenceLibrary() { gosip.SetDefaultLogger(slog.New(slog.DiscardHandler)) }

// watched is a connection that says when it is closed, by either side.
type watched struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (w *watched) Close() error {
	err := w.Conn.Close()
	w.once.Do(func() { close(w.closed) })
	return err
}

// Read also notices the end: the library closes after a failed read, and the
// link should know at once.
func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if err != nil {
		w.once.Do(func() { close(w.closed) })
	}
	return n, err
}

// handover is a net.Listener that hands the library one connection that this
// side dialled: the library then reads requests from it as a server and writes
// requests to it as a client.
type handover struct {
	conn  net.Conn
	given chan struct{} // closed when the library has put the connection in its pool
	ended chan struct{}
	calls int
	once  sync.Once
}

func newHandover(c net.Conn) *handover {
	return &handover{conn: c, given: make(chan struct{}), ended: make(chan struct{})}
}

// Accept is called by one goroutine of the library: its second call means that
// the first connection has been taken in.
func (h *handover) Accept() (net.Conn, error) {
	h.calls++
	if h.calls == 1 {
		return h.conn, nil
	}
	if h.calls == 2 {
		close(h.given)
	}
	<-h.ended
	return nil, net.ErrClosed
}

func (h *handover) Addr() net.Addr { return h.conn.LocalAddr() }

func (h *handover) Close() error {
	h.once.Do(func() { close(h.ended) })
	return nil
}
