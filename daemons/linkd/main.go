package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/journal"
	"rempart/internal/run"
	"rempart/internal/sandbox"
	"rempart/internal/sock"
	"rempart/internal/wish"
	"rempart/vpn/lease"
)

const initSocket = "/run/rempart/init.sock"

func main() {
	run.Main("linkd", func(ctx context.Context, j *journal.Journal) error {
		if err := sandbox.Enter(sandbox.Profile{Name: "linkd", NoIP: true}); err != nil {
			return err
		}
		radios, err := handed(os.Args[1:])
		if err != nil {
			return err
		}
		var all sync.WaitGroup
		for _, r := range radios {
			r.journal = j
			r.wish = func(ctx context.Context, l wish.Lease) error { return wish.SendLease(ctx, initSocket, l) }
			all.Go(func() { r.serve(ctx) })
		}
		all.Wait()
		return run.ErrStopped
	})
}

// handed takes over the sockets of the radios that init names, each as DEVICE,MAC.
func handed(args []string) ([]*radio, error) {
	var radios []*radio
	for _, a := range args {
		name, text, _ := strings.Cut(a, ",")
		mac, err := net.ParseMAC(text)
		if err != nil || len(mac) != 6 {
			return nil, fmt.Errorf("cannot serve radio %q: it has no Ethernet address", a)
		}
		dhcp, err := sock.Inherited("dhcp-" + name)
		if err != nil {
			return nil, err
		}
		nd, err := sock.Inherited("nd-" + name)
		if err != nil {
			return nil, err
		}
		heard := make(chan message, 16)
		// The sockets are blocking: a reader sleeps in the kernel. It ends with the process.
		go receive(int(dhcp.Fd()), heard, readReply([6]byte(mac)))
		go receive(int(nd.Fd()), heard, readAdvertisement)
		radios = append(radios, &radio{
			device: name, client: lease.Client{MAC: [6]byte(mac)}, host: lease.Host{MAC: [6]byte(mac)}, heard: heard,
			send4: func(b []byte) error {
				return unix.Sendto(int(dhcp.Fd()), b, 0, &unix.SockaddrInet4{Port: 67, Addr: [4]byte{255, 255, 255, 255}})
			},
			send6: func(b []byte) error {
				return unix.Sendto(int(nd.Fd()), b, 0, &unix.SockaddrInet6{Addr: netip.MustParseAddr("ff02::2").As16()})
			},
			random: func(b []byte) { _, _ = rand.Read(b) }, // crypto/rand ends the process where it has none
		})
	}
	return radios, nil
}

// receive hands on what parse understood, or why it did not.
func receive(fd int, heard chan<- message, parse func([]byte, unix.Sockaddr) (any, error)) {
	b := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			// A device that goes down says so; there is nothing to read until it is back.
			time.Sleep(10 * time.Millisecond)
			continue
		}
		what, err := parse(b[:n], from)
		heard <- message{what, err}
	}
}

func readReply(mac [6]byte) func([]byte, unix.Sockaddr) (any, error) {
	return func(b []byte, _ unix.Sockaddr) (any, error) { return lease.ParseReply(b, mac) }
}

func readAdvertisement(b []byte, from unix.Sockaddr) (any, error) {
	a, ok := from.(*unix.SockaddrInet6)
	if !ok {
		return nil, fmt.Errorf("cannot read a router advertisement: it came from a %T", from)
	}
	return lease.ParseAdvertisement(b, netip.AddrFrom16(a.Addr))
}
