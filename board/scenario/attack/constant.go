package attack

import (
	"context"
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

// runConstant sends a datagram and a crafted frame every millisecond until it
// is stopped, so that no gap of a restarting daemon is too short to be met.
// Every payload is the marker and a counter. Sockets that are refused or lost
// are opened again: what was refused a moment ago may be possible now.
func runConstant(ctx context.Context, j Job, t *tally) {
	ctx, stop := context.WithTimeout(ctx, j.span())
	defer stop()
	udp, raw := -1, -1
	var to *unix.SockaddrLinklayer
	defer func() {
		for _, fd := range []int{udp, raw} {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	}()
	clock := time.NewTicker(time.Millisecond)
	defer clock.Stop()
	t.started()
	for n := uint32(0); ; n++ {
		payload := binary.BigEndian.AppendUint32(j.Marker[:len(j.Marker):len(j.Marker)], n)
		if udp < 0 {
			udp, _ = open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
		}
		if udp >= 0 {
			t.did("udp send", unix.Sendto(udp, payload, unix.MSG_DONTWAIT, sockaddr(j.Target, j.port(9), 0)))
		}
		if raw < 0 && !j.NoPacket {
			raw, to, _ = openPacket(t, j.Device, j.Family)
		}
		if raw >= 0 {
			p := ipPacket(j.Family, j.Source, j.Target, j.sourcePort(), j.port(9), payload)
			f := ethernet(j.NextHop, nil, j.Family, p)
			if !t.did("AF_PACKET send", unix.Sendto(raw, f, unix.MSG_DONTWAIT, to)) {
				unix.Close(raw)
				raw = -1
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-clock.C:
		}
	}
}
