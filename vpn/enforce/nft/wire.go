package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// field is one netlink attribute; kind without the flag bits.
type field struct {
	kind uint16
	data []byte
}

const attrHeader = 4

// attr encodes one attribute. The nested flag is never set: nf_tables neither needs it
// nor sends it, so that what is sent and what is read are the same bytes.
func attr(kind uint16, parts ...[]byte) []byte {
	n := attrHeader
	for _, p := range parts {
		n += len(p)
	}
	b := make([]byte, attrHeader, n+3)
	binary.NativeEndian.PutUint16(b, uint16(n))
	binary.NativeEndian.PutUint16(b[2:], kind)
	for _, p := range parts {
		b = append(b, p...)
	}
	return append(b, make([]byte, -n&3)...)
}

func text(kind uint16, s string) []byte { return attr(kind, []byte(s), []byte{0}) }

// number is a 32-bit value in network order, as nf_tables wants all of its own.
func number(kind uint16, v uint32) []byte { return attr(kind, binary.BigEndian.AppendUint32(nil, v)) }

// fields takes attributes apart; an error if they are not whole.
func fields(b []byte) ([]field, error) {
	var all []field
	for len(b) > 0 {
		if len(b) < attrHeader {
			return nil, fmt.Errorf("attribute of %d bytes", len(b))
		}
		n := int(binary.NativeEndian.Uint16(b))
		if n < attrHeader || n > len(b) {
			return nil, fmt.Errorf("attribute says %d of %d bytes", n, len(b))
		}
		all = append(all, field{binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER), b[attrHeader:n]})
		b = b[min((n+3)&^3, len(b)):]
	}
	return all, nil
}

// find returns the data of the first attribute of a kind, nil if there is none.
func find(all []field, kind uint16) []byte {
	for _, f := range all {
		if f.kind == kind {
			return f.data
		}
	}
	return nil
}

// str is a text attribute without the byte that ends it.
func str(b []byte) string {
	if n := len(b); n > 0 && b[n-1] == 0 {
		b = b[:n-1]
	}
	return string(b)
}

// message is one request or one answer: attributes behind struct nfgenmsg.
type message struct {
	kind   uint16 // NFT_MSG_…
	flags  uint16 // NLM_F_… beside request and acknowledge
	family uint8
	attrs  []byte
	what   string // in words, for an error
}

// conn is a netlink socket that nfnetlink answers. Not for several goroutines at once.
type conn struct {
	fd   int
	port uint32
	seq  uint32
}

// ErrMissing says that this kernel has no such layer.
var ErrMissing = errors.New("the kernel has no nf_tables with owned netdev tables")

// dial opens a socket in the calling thread's network namespace.
func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open a netlink socket: %w", err)
	}
	c := &conn{fd: fd}
	err = func() error {
		// Answers carry no copy of the request.
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		self, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		c.port = self.(*unix.SockaddrNetlink).Pid
		return nil
	}()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot set a netlink socket up: %w", err), c.close())
	}
	return c, nil
}

func (c *conn) close() error { return unix.Close(c.fd) }

// encode writes one netlink message: header, struct nfgenmsg, attributes.
func (c *conn) encode(b []byte, kind, flags uint16, family uint8, resource uint16, attrs []byte) []byte {
	c.seq++
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+4+len(attrs)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, c.seq)
	b = binary.NativeEndian.AppendUint32(b, c.port)
	b = append(b, family, unix.NFNETLINK_V0)
	b = binary.BigEndian.AppendUint16(b, resource)
	return append(b, attrs...)
}

func nftType(kind uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | kind }

// errChanged says that nf_tables changed while it was being listed.
var errChanged = errors.New("nf_tables changed meanwhile")

// kernel is where netlink requests go: a new one for each, since Sendto writes into it.
func kernel() *unix.SockaddrNetlink { return &unix.SockaddrNetlink{Family: unix.AF_NETLINK} }

// batch has the kernel carry out all messages, or none. The kernel has answered when
// sendto returns: nothing is waited for.
func (c *conn) batch(messages []message) error {
	b := c.encode(nil, unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	first := c.seq + 1
	for _, m := range messages {
		b = c.encode(b, nftType(m.kind), m.flags|unix.NLM_F_ACK, m.family, 0, m.attrs)
	}
	last := c.seq
	b = c.encode(b, unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	if err := unix.Sendto(c.fd, b, 0, kernel()); err != nil {
		return fmt.Errorf("cannot send: %w", err)
	}
	answered, failure := false, error(nil)
	for {
		all, err := c.receive()
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			return err
		}
		for _, m := range all {
			if m.Header.Type != unix.NLMSG_ERROR || len(m.Data) < 4 {
				continue
			}
			errno := unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
			answered = answered || m.Header.Seq == last
			if errno == 0 || failure != nil {
				continue
			}
			what := "the whole"
			if m.Header.Seq >= first && m.Header.Seq <= last {
				what = messages[m.Header.Seq-first].what
			}
			failure = fmt.Errorf("%s: %w", what, errno)
		}
	}
	if failure == nil && !answered {
		return errors.New("the kernel did not answer")
	}
	return failure
}

// dump asks for all objects of a kind, of every family.
func (c *conn) dump(kind uint16, family uint8, attrs []byte) ([]message, error) {
	if err := unix.Sendto(c.fd, c.encode(nil, nftType(kind), unix.NLM_F_DUMP, family, 0, attrs), 0, kernel()); err != nil {
		return nil, fmt.Errorf("cannot ask: %w", err)
	}
	return c.answers()
}

// generation is the number of changes that nf_tables has seen.
func (c *conn) generation() (uint32, error) {
	if err := unix.Sendto(c.fd, c.encode(nil, nftType(unix.NFT_MSG_GETGEN), unix.NLM_F_ACK, unix.AF_UNSPEC, 0, nil), 0, kernel()); err != nil {
		return 0, fmt.Errorf("cannot ask: %w", err)
	}
	all, err := c.answers()
	if err != nil {
		return 0, err
	}
	for _, m := range all {
		f, err := fields(m.attrs)
		if id := find(f, unix.NFTA_GEN_ID); err == nil && len(id) == 4 {
			return binary.BigEndian.Uint32(id), nil
		}
	}
	return 0, errors.New("the kernel does not tell its generation")
}

// answers reads until the answer to the last request is complete.
func (c *conn) answers() ([]message, error) {
	var out []message
	for {
		all, err := c.receive()
		if err != nil {
			return nil, fmt.Errorf("cannot read the answer: %w", err)
		}
		for _, m := range all {
			if m.Header.Seq != c.seq {
				continue
			}
			if m.Header.Flags&unix.NLM_F_DUMP_INTR != 0 {
				return nil, errChanged
			}
			switch {
			case m.Header.Type == unix.NLMSG_DONE || m.Header.Type == unix.NLMSG_ERROR:
				if len(m.Data) >= 4 {
					if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data))); errno != 0 {
						return nil, errno
					}
				}
				return out, nil
			case m.Header.Type>>8 == unix.NFNL_SUBSYS_NFTABLES && len(m.Data) >= 4:
				out = append(out, message{kind: m.Header.Type & 0xff, family: m.Data[0], attrs: m.Data[4:]})
			}
		}
	}
}

// receive reads one datagram of the kernel's. What another process sends here is passed over.
func (c *conn) receive() ([]netlinkMessage, error) {
	buf := make([]byte, 64<<10)
	for {
		n, _, flags, from, err := unix.Recvmsg(c.fd, buf, nil, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
			continue
		}
		if flags&unix.MSG_TRUNC != 0 {
			return nil, errors.New("an answer was cut off")
		}
		return split(buf[:n])
	}
}

// netlinkMessage is one message of a datagram.
type netlinkMessage struct {
	Header unix.NlMsghdr
	Data   []byte
}

func split(b []byte) ([]netlinkMessage, error) {
	var all []netlinkMessage
	for len(b) >= unix.NLMSG_HDRLEN {
		h := unix.NlMsghdr{Len: binary.NativeEndian.Uint32(b), Type: binary.NativeEndian.Uint16(b[4:]),
			Flags: binary.NativeEndian.Uint16(b[6:]), Seq: binary.NativeEndian.Uint32(b[8:]), Pid: binary.NativeEndian.Uint32(b[12:])}
		if int(h.Len) < unix.NLMSG_HDRLEN || int(h.Len) > len(b) {
			return nil, fmt.Errorf("message says %d of %d bytes", h.Len, len(b))
		}
		all = append(all, netlinkMessage{h, b[unix.NLMSG_HDRLEN:h.Len]})
		b = b[min((int(h.Len)+3)&^3, len(b)):]
	}
	return all, nil
}
