package main

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/journal"
	"rempart/internal/wish"
	"rempart/vpn/lease"
)

// bench is a radio under the test's hand: what it sent, what it wished for, and what init says.
type bench struct {
	*radio
	sent   [2]int
	wishes []wish.Lease
	answer error
	log    bytes.Buffer
}

func newBench() *bench {
	b := &bench{}
	b.radio = &radio{
		device: "wwan0", client: lease.Client{MAC: [6]byte{2, 0, 0, 0, 0, 11}}, heard: make(chan message, 4),
		send4: func([]byte) error { b.sent[0]++; return nil }, send6: func([]byte) error { b.sent[1]++; return nil },
		random: func(p []byte) { copy(p, []byte{4, 3, 2, 1}) },
		wish:   func(_ context.Context, l wish.Lease) error { b.wishes = append(b.wishes, l); return b.answer },
	}
	b.journal = journal.New(&b.log, "linkd")
	return b
}

func (b *bench) reply(kind lease.Kind) message {
	return message{what: lease.Reply{Kind: kind, XID: [4]byte{4, 3, 2, 1}, Address: netip.MustParseAddr("203.0.113.77"),
		Router: netip.MustParseAddr("203.0.113.254"), Server: netip.MustParseAddr("203.0.113.1"), Lease: time.Hour}}
}

// lease4 leads the radio to a lease.
func (b *bench) lease4(ctx context.Context) {
	b.step(ctx, 0)
	b.take(0, b.reply(lease.Offer))
	b.step(ctx, 0)
	b.take(0, b.reply(lease.ACK))
	b.step(ctx, 0)
}

func TestLeaseBecomesAWish(t *testing.T) {
	b := newBench()
	b.lease4(t.Context())
	want := wish.Lease{Device: "wwan0", Address: netip.MustParseAddr("203.0.113.77"), Router: netip.MustParseAddr("203.0.113.254"), For: time.Hour}
	if b.sent != [2]int{2, 1} || len(b.wishes) != 1 || b.wishes[0] != want {
		t.Fatalf("sent %v, wished %+v", b.sent, b.wishes)
	}
	b.step(t.Context(), time.Second)
	if len(b.wishes) != 1 {
		t.Errorf("wished again: %+v", b.wishes)
	}
	// A NAK to the renewal takes the address back at once.
	b.step(t.Context(), 31*time.Minute)
	b.take(31*time.Minute, b.reply(lease.NAK))
	b.step(t.Context(), 31*time.Minute)
	if len(b.wishes) != 2 || b.wishes[1] != (wish.Lease{Device: "wwan0"}) {
		t.Errorf("after a NAK: %+v", b.wishes)
	}
}

func TestAdvertisementBecomesAWish(t *testing.T) {
	b := newBench()
	b.step(t.Context(), 0)
	b.take(0, message{what: lease.Advertisement{Router: netip.MustParseAddr("fe80::fe"), Lifetime: time.Hour, Prefix: netip.MustParsePrefix("2001:db8:113::/64"), Valid: 2 * time.Hour}})
	b.step(t.Context(), 0)
	want := wish.Lease{Device: "wwan0", Six: true, Address: netip.MustParseAddr("2001:db8:113:0:403:201::"), Router: netip.MustParseAddr("fe80::fe"), For: time.Hour}
	if len(b.wishes) != 1 || b.wishes[0] != want {
		t.Fatalf("wished %+v, want %+v", b.wishes, want)
	}
	for now := time.Minute; now < 61*time.Minute; now += time.Minute {
		b.step(t.Context(), now)
	}
	if len(b.wishes) != 2 || b.wishes[1] != (wish.Lease{Device: "wwan0", Six: true}) {
		t.Errorf("after its time: %+v", b.wishes)
	}
}

// An init that does not answer is asked again; one that refuses three times means it, and the lease is given up.
func TestRefusedWish(t *testing.T) {
	b := newBench()
	b.answer = errors.New("no one listens")
	b.lease4(t.Context())
	for now := time.Second; now <= 10*time.Second; now += time.Second {
		b.step(t.Context(), now)
	}
	if len(b.wishes) != 11 || b.client.Held() == (lease.Held{}) {
		t.Fatalf("%d wishes, holds %+v", len(b.wishes), b.client.Held())
	}
	b.answer, b.wishes = &wish.RefusedError{Text: "it is a gateway's"}, nil
	for now := 11 * time.Second; now <= 20*time.Second; now += time.Second {
		b.step(t.Context(), now)
	}
	if len(b.wishes) != wishRefused || b.client.Held() != (lease.Held{}) {
		t.Fatalf("%d wishes, holds %+v", len(b.wishes), b.client.Held())
	}
	if !strings.Contains(b.log.String(), "gateway") {
		t.Errorf("the journal does not say why:\n%s", &b.log)
	}
}

// A message that could not leave is tried again soon, and said once.
func TestUnsent(t *testing.T) {
	b := newBench()
	shut := true
	b.send4 = func([]byte) error {
		b.sent[0]++
		if shut {
			return errors.New("operation not permitted")
		}
		return nil
	}
	for now := time.Duration(0); now < 10*time.Second; now += 50 * time.Millisecond {
		shut = now < 5*time.Second
		b.step(t.Context(), now)
	}
	// Four a second while shut, then at 5, 7 and 9 or later with growing pauses.
	if b.sent[0] < 18 || b.sent[0] > 24 {
		t.Errorf("%d tries", b.sent[0])
	}
	if n := strings.Count(b.log.String(), "operation not permitted"); n < 1 || n > 3 {
		t.Errorf("said %d times:\n%s", n, &b.log)
	}
}

func TestServe(t *testing.T) {
	b := newBench()
	ctx, cancel := context.WithCancel(t.Context())
	granted := make(chan struct{})
	b.wish = func(context.Context, wish.Lease) error { close(granted); return nil }
	done := make(chan struct{})
	go func() { b.serve(ctx); close(done) }()
	b.heard <- message{err: errors.New("rubbish")}
	b.heard <- b.reply(lease.Offer)
	b.heard <- b.reply(lease.ACK)
	select {
	case <-granted:
	case <-time.After(10 * time.Second):
		t.Fatal("no wish")
	}
	cancel()
	<-done
}

func TestHandedRefuses(t *testing.T) {
	for _, args := range [][]string{{"wwan0"}, {"wwan0,02:00:00:00:00"}, {"wwan0,02:00:00:00:00:0b"}} {
		if r, err := handed(args); err == nil {
			t.Errorf("%v: %v", args, r)
		}
	}
}

// What came is read by the parser of its socket; an advertisement needs a sender.
func TestReceive(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	end := os.NewFile(uintptr(pair[0]), "")
	defer end.Close()
	heard := make(chan message, 1)
	go receive(pair[1], heard, readReply([6]byte{}))
	if _, err := end.Write([]byte("no reply")); err != nil {
		t.Fatal(err)
	}
	if m := <-heard; m.err == nil {
		t.Errorf("%+v", m)
	}
	if _, err := readAdvertisement(make([]byte, 16), &unix.SockaddrInet4{}); err == nil {
		t.Error("an advertisement over IPv4")
	}
	advertisement := append([]byte{134, 0, 0, 0, 64, 0, 7, 8}, make([]byte, 8)...)
	a, err := readAdvertisement(advertisement, &unix.SockaddrInet6{Addr: netip.MustParseAddr("fe80::fe").As16()})
	if err != nil || a.(lease.Advertisement).Router != netip.MustParseAddr("fe80::fe") {
		t.Errorf("%+v, %v", a, err)
	}
}
