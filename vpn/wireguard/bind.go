package wireguard

import (
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// bind is wireguard-go's own socket pair with differences. It is no
// *conn.StdNetBind, so wireguard-go opens no netlink socket to follow routes
// (the sandbox has none; a stale source address is dropped at the next
// handshake). And it counts what tells an idle tunnel from a dead one.
//
// Each Open starts with new sockets and new buffers: StdNetBind (as of
// 2026-05-22) keeps address buffers in a pool and, once one has held an IPv4
// address, copies only four bytes of the next IPv6 address into it.
type bind struct {
	now    atomic.Pointer[conn.Bind]
	data   atomic.Uint64         // data packets sent, keepalives left out
	failed atomic.Pointer[error] // the last failed send since the last sample
}

func newBind() *bind {
	b := &bind{}
	b.renew()
	return b
}

func (b *bind) renew() conn.Bind {
	std := conn.NewStdNetBind()
	b.now.Store(&std)
	return std
}

// Open makes new sockets on port, or on one of the kernel's choice.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) { return b.renew().Open(port) }

// Send counts and sends. The packets belong to the caller.
func (b *bind) Send(packets [][]byte, to conn.Endpoint) error {
	for _, p := range packets {
		// A keepalive is a data message with nothing in it (whitepaper §5.4.6).
		if len(p) > device.MessageKeepaliveSize && p[0] == device.MessageTransportType {
			b.data.Add(1)
		}
	}
	err := (*b.now.Load()).Send(packets, to)
	if err != nil {
		b.failed.Store(&err)
	}
	return err
}

// Close closes the sockets.
func (b *bind) Close() error { return (*b.now.Load()).Close() }

// SetMark is not used: the gate knows the tunnel by its cgroup.
func (b *bind) SetMark(mark uint32) error { return (*b.now.Load()).SetMark(mark) }

// ParseEndpoint reads an address and port.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	return (*b.now.Load()).ParseEndpoint(s)
}

// BatchSize is how many packets one call carries at most.
func (b *bind) BatchSize() int { return (*b.now.Load()).BatchSize() }

// inherited is a TUN device of another network namespace, of which only the
// descriptor is here.
type inherited struct {
	tun.Device
	mtu int
}

// MTU is told, not asked: the ioctl would look for the device in this process's
// own namespace.
func (d inherited) MTU() (int, error) { return d.mtu, nil }
