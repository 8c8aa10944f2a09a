package soak

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/scenario/attack"
)

// The places of the senders.
const (
	fromBlack   = "black"   // root in the handset's control group
	fromRed     = "red"     // likewise
	fromOutside = "outside" // root in black, not in the handset's control group: the guard does not see it
)

// sending is the order of one sender.
type sending struct {
	Place    string
	Marker   string // 32 hexadecimal digits
	Radio    string
	NextHop  string // Ethernet address
	Source   [2]netip.Addr
	Host     [2]netip.Addr // out on the internet; IPv4 first, as everywhere
	Gateway  [2]netip.Addr
	Inner    [2]netip.Addr // the gateway, inside the tunnel
	Port     uint16        // the tunnel's
	EveryUS  int
	Tunnel   string // the tunnel device in red
	TellMS   int
	InnerNth int // one round in so many also sends to the inner addresses
}

// tally is what a sender has done so far, one line of JSON.
type tally struct {
	Tried   int `json:"tried"`
	Refused int `json:"refused"` // by an errno; the others the kernel took and had to drop
}

// way is one socket and where it sends.
type way struct {
	fd   int
	to   unix.Sockaddr
	data []byte
	nth  int // sends in one round of so many; 0 is every round
	own  bool
}

// Send sends until ctx ends or the device is gone, every way of its place in each round.
func Send(ctx context.Context, order string, out io.Writer) error {
	var s sending
	if err := json.Unmarshal([]byte(order), &s); err != nil {
		return fmt.Errorf("cannot read the sender's order: %w", err)
	}
	marker, err := attack.ParseMarker(s.Marker)
	if err != nil {
		return err
	}
	ways, err := s.ways(marker)
	defer func() {
		for _, w := range ways {
			if w.own {
				_ = unix.Close(w.fd)
			}
		}
	}()
	if err != nil {
		return err
	}
	clock := time.NewTicker(time.Duration(s.EveryUS) * time.Microsecond)
	defer clock.Stop()
	var t tally
	told := time.Now()
	tell := json.NewEncoder(out)
	for round := 0; ; round++ {
		for _, w := range ways {
			if w.nth > 0 && round%w.nth != 0 {
				continue
			}
			t.Tried++
			switch err := unix.Sendto(w.fd, w.data, unix.MSG_DONTWAIT, w.to); {
			case errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV):
				return tell.Encode(t) // the radio is gone, and the handset with it
			case err != nil:
				t.Refused++
			}
		}
		if time.Since(told) > time.Duration(s.TellMS)*time.Millisecond {
			told = time.Now()
			if err := tell.Encode(t); err != nil {
				return err // nobody listens any more
			}
		}
		select {
		case <-ctx.Done():
			return tell.Encode(t)
		case <-clock.C:
		}
	}
}

// ways opens the sockets of the order's place.
func (s sending) ways(marker attack.Marker) (ways []way, err error) {
	for i, family := range []attack.Family{attack.IPv4, attack.IPv6} {
		var more []way
		switch s.Place {
		case fromBlack:
			more, err = s.black(i, family, marker)
		case fromRed:
			more, err = s.red(i, family, marker)
		case fromOutside:
			more, err = s.frames(i, family, marker)
		default:
			err = fmt.Errorf("cannot send from %q", s.Place)
		}
		ways = append(ways, more...)
		if err != nil {
			return ways, fmt.Errorf("cannot send from %s: %w", s.Place, err)
		}
	}
	return ways, nil
}

func (s sending) black(i int, family attack.Family, marker attack.Marker) ([]way, error) {
	udp, err := socket(family, "")
	if err != nil {
		return nil, err
	}
	ways := []way{
		{fd: udp, own: true, to: address(s.Host[i], 9), data: marker[:]},
		{fd: udp, to: address(s.Gateway[i], 9), data: marker[:]},
		{fd: udp, to: address(s.Gateway[i], s.Port), data: marker[:]}, // who sends it is all that is wrong with it
	}
	bound, err := socket(family, s.Radio)
	if err != nil {
		return ways, err
	}
	return append(ways, way{fd: bound, own: true, to: address(s.Host[i], 9), data: marker[:]}), nil
}

func (s sending) red(i int, family attack.Family, marker attack.Marker) ([]way, error) {
	udp, err := socket(family, "")
	if err != nil {
		return nil, err
	}
	ways := []way{
		{fd: udp, own: true, to: address(s.Host[i], 9), data: marker[:]},
		{fd: udp, to: address(s.Inner[i], 9), data: marker[:], nth: s.InnerNth},
	}
	bound, err := socket(family, s.Tunnel)
	if errors.Is(err, unix.ENODEV) {
		return ways, nil // the tunnel's device is not there yet
	}
	if err != nil {
		return ways, err
	}
	return append(ways, way{fd: bound, own: true, to: address(s.Host[i], 9), data: marker[:]}), nil
}

func (s sending) frames(i int, family attack.Family, marker attack.Marker) ([]way, error) {
	device, err := net.InterfaceByName(s.Radio)
	if err != nil {
		return nil, err
	}
	next, err := net.ParseMAC(s.NextHop)
	if err != nil {
		return nil, err
	}
	// Protocol 0: it receives nothing.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	kind := uint16(unix.ETH_P_IP)
	if family == attack.IPv6 {
		kind = unix.ETH_P_IPV6
	}
	to := &unix.SockaddrLinklayer{Ifindex: device.Index, Protocol: kind<<8 | kind>>8, Halen: 6}
	j := attack.Job{Family: family, Marker: marker, Source: s.Source[i], Target: s.Host[i], NextHop: next, Port: 9}
	copied := j
	copied.Target, copied.Port, copied.SourcePort = s.Gateway[i], s.Port, s.Port
	return []way{{fd: fd, own: true, to: to, data: j.Frame()}, {fd: fd, to: to, data: copied.Frame()}}, nil
}

// socket returns a UDP socket, bound to a device unless that is "".
func socket(family attack.Family, device string) (int, error) {
	domain := unix.AF_INET
	if family == attack.IPv6 {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if device == "" {
		return fd, nil
	}
	if err := unix.BindToDevice(fd, device); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("bind to %s: %w", device, err)
	}
	return fd, nil
}

func address(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
}
