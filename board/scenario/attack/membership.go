package attack

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// reportWait is how long a group is kept: the kernel reports a join from a timer,
// and again within a second (RFC 3810, section 9.11), and a device that has just
// come up carries nothing for up to another.
const reportWait = 2200 * time.Millisecond

// runMembership joins a group whose address comes from the marker. What leaves is
// the kernel's own report, which no process has sent.
func runMembership(ctx context.Context, j Job, t *tally) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	index, err := deviceIndex(fd, j.Device)
	if err != nil {
		t.refused("look for "+j.Device, err)
		return
	}
	if j.Family == IPv6 {
		m := &unix.IPv6Mreq{Multiaddr: group6(j.Marker), Interface: uint32(index)}
		err = unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, m)
	} else {
		m := &unix.IPMreqn{Multiaddr: group4(j.Marker), Ifindex: int32(index)}
		err = unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, m)
	}
	if t.did("join on "+j.Device, err) {
		select {
		case <-ctx.Done():
		case <-time.After(reportWait):
		}
	}
}

// group4 is a group of the organisation's own (RFC 2365), group6 one of the site's.
func group4(m Marker) [4]byte { return [4]byte{239, m[0], m[1], m[2]} }

func group6(m Marker) (g [16]byte) {
	g[0], g[1] = 0xff, 0x15 // transient, site-local
	copy(g[2:], m[:])
	return g
}

// Traces returns what stands for the marker in the frames of a kind that cannot
// carry the marker itself; nil for all others.
func Traces(k Kind, f Family, m Marker) [][]byte {
	if k != Membership {
		return nil
	}
	// A group record of IGMPv3 (RFC 3376, section 4.2.12) or MLDv2 (RFC 3810,
	// section 5.2.12): the type, no auxiliary data, no sources, the group.
	var traces [][]byte
	for _, kind := range []byte{3, 4} { // change to include, to exclude: left, joined
		record := []byte{kind, 0, 0, 0}
		if f == IPv6 {
			g := group6(m)
			record = append(record, g[:]...)
		} else {
			g := group4(m)
			record = append(record, g[:]...)
		}
		traces = append(traces, record)
	}
	return traces
}

// runBroadcast needs neither a route nor a neighbour. IPv6 has no broadcast: there
// it is all nodes of the link.
func runBroadcast(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	if err := unix.BindToDevice(fd, j.Device); err != nil {
		t.refused("bind to "+j.Device, err)
		return
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
		t.refused("SO_BROADCAST", err)
		return
	}
	index, _ := deviceIndex(fd, j.Device) // without one the send says so
	datagrams(t, fd, sockaddr(everyone(j.Family), j.port(67), index), j.Marker[:], j.count(), "broadcast on "+j.Device)
}
