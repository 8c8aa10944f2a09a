// Package ask is the client of egressd.sock: init asks for the table and the
// gate, tunneld to admit a gateway, both to close.
package ask

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/frame"
	"rempart/vpn/egress"
)

// Timeout bounds one request when its context has no earlier deadline. A swap
// takes some milliseconds.
const Timeout = 5 * time.Second

// RefusedError is egressd's own answer to a request that it did not do.
type RefusedError struct {
	Op   egress.Op
	Text string
}

func (e *RefusedError) Error() string { return fmt.Sprintf("cannot %v: egressd: %s", e.Op, e.Text) }

// Client is a connection to egressd; its methods may be called concurrently. After
// an error that is no [*RefusedError] it is of no more use: dial again.
type Client struct {
	mu  sync.Mutex
	c   net.Conn
	bad error // why no question is asked any more
}

// Dial connects to the socket at path.
func Dial(path string) (*Client, error) {
	c, err := net.DialTimeout("unix", path, Timeout)
	if err != nil {
		return nil, fmt.Errorf("cannot reach egressd: %w", err)
	}
	return &Client{c: c}, nil
}

// Close ends the connection; the gate stays as it is. To deny all, use [Client.CloseGate].
func (c *Client) Close() error {
	if err := c.c.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil // a question that failed has closed it
}

// Ended tells whether egressd has ended the connection, as by its own end, or said what it was not asked. Nil: it has not. It
// asks the kernel, not egressd, which is not woken.
func (c *Client) Ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bad != nil {
		return c.bad
	}
	raw, err := c.c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return err
	}
	n := 0
	var rerr error
	err = raw.Control(func(fd uintptr) {
		n, _, rerr = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	})
	switch {
	case err != nil:
		return err
	case errors.Is(rerr, unix.EAGAIN) || errors.Is(rerr, unix.EINTR):
		return nil
	case rerr != nil:
		return fmt.Errorf("the connection to egressd is of no use: %w", rerr)
	case n == 0:
		return errors.New("egressd has ended the connection")
	}
	return errors.New("egressd says what it was not asked")
}

// Table tells egressd the classes of every gateway (init). What is admitted stays
// admitted only if the table has it unchanged: an empty table closes the gate and
// keeps it closed.
func (c *Client) Table(ctx context.Context, table egress.Policy) (egress.Status, error) {
	return c.do(ctx, egress.Request{Op: egress.OpTable, Table: table})
}

// Attach puts the gate on the device with this index of egressd's own network
// namespace (init). All devices are deny-all afterwards.
func (c *Client) Attach(ctx context.Context, ifindex int) (egress.Status, error) {
	return c.do(ctx, egress.Request{Op: egress.OpAttach, Ifindex: ifindex})
}

// Link tells the facts of the link of a device that has the gate (init): what of the link-layer minimum it admits. What is
// admitted otherwise stays.
func (c *Client) Link(ctx context.Context, ifindex int, facts egress.LinkFacts) (egress.Status, error) {
	return c.do(ctx, egress.Request{Op: egress.OpLink, Ifindex: ifindex, Link: facts})
}

// Admit admits the classes of one gateway and no other's (tunneld).
func (c *Client) Admit(ctx context.Context, gateway string) (egress.Status, error) {
	return c.do(ctx, egress.Request{Op: egress.OpAdmit, Gateway: gateway})
}

// CloseGate denies all (init, tunneld).
func (c *Client) CloseGate(ctx context.Context) (egress.Status, error) {
	return c.do(ctx, egress.Request{Op: egress.OpClose})
}

// Status reads the gate's state and counters (any daemon).
func (c *Client) Status(ctx context.Context) (egress.Status, error) {
	return c.do(ctx, egress.Request{Op: egress.OpStatus})
}

// Levels puts a level table in force (init).
func (c *Client) Levels(ctx context.Context, table egress.LevelTable) (egress.Status, error) {
	return c.do(ctx, egress.Request{Op: egress.OpLevels, Levels: table})
}

// Drops reads the drop record behind number since (any daemon).
func (c *Client) Drops(ctx context.Context, since uint64) (egress.Drops, error) {
	var drops egress.Drops
	var refused string
	r := egress.Request{Op: egress.OpDrops, Since: since}
	err := c.exchange(ctx, r, func(reply []byte) (err error) { drops, refused, err = egress.ParseDrops(reply); return err })
	if err != nil {
		return egress.Drops{}, err
	}
	if refused != "" {
		return egress.Drops{}, &RefusedError{r.Op, refused}
	}
	return drops, nil
}

func (c *Client) do(ctx context.Context, r egress.Request) (egress.Status, error) {
	var s egress.Status
	err := c.exchange(ctx, r, func(reply []byte) (err error) { s, err = egress.ParseStatus(reply); return err })
	if err != nil {
		return egress.Status{}, err
	}
	if s.Err != "" {
		return s, &RefusedError{r.Op, s.Err}
	}
	return s, nil
}

// exchange asks and hands the answer to parse.
func (c *Client) exchange(ctx context.Context, r egress.Request, parse func([]byte) error) error {
	if err := c.send(ctx, r, parse); err != nil {
		return fmt.Errorf("cannot ask egressd to %v: %w", r.Op, err)
	}
	return nil
}

func (c *Client) send(ctx context.Context, r egress.Request, parse func([]byte) error) error {
	b, err := egress.MarshalRequest(r)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bad != nil {
		return fmt.Errorf("the connection is not used any more: %w", c.bad)
	}
	reply, err := c.talk(ctx, b)
	if err == nil {
		err = parse(reply)
	}
	if err != nil {
		// An answer that comes late would be taken for that of the next question.
		c.bad = err
		_ = c.c.Close()
	}
	return err
}

// talk sends one request and reads its answer. Needs mu.
func (c *Client) talk(ctx context.Context, b []byte) ([]byte, error) {
	deadline := time.Now().Add(Timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	// A cancelled context ends the wait at once.
	stop := context.AfterFunc(ctx, func() { _ = c.c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := frame.Write(c.c, b); err != nil {
		return nil, errors.Join(err, ctx.Err())
	}
	reply, err := frame.Read(c.c, egress.MaxReply)
	if err != nil {
		return nil, errors.Join(err, ctx.Err())
	}
	return reply, nil
}
