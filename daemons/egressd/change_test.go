package main

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/sock"
	"rempart/vpn/egress"
	"rempart/vpn/egress/ask"
)

// A question is answered while programs are loaded, and so is a refusal; another change waits.
func TestStatusIsToldDuringALoad(t *testing.T) {
	e := newEngine(t.TempDir(), "", nil)
	fromInit, fromVoiced := sock.Peer{PID: 1, UID: uidInit, Cgroup: cgroupInit}, sock.Peer{PID: 2, UID: 904, Cgroup: "/voiced"}
	ask := func(peer sock.Peer, op egress.Op) <-chan egress.Status {
		answer := make(chan egress.Status, 1)
		go func() { answer <- e.do(peer, egress.Request{Op: op}) }()
		return answer
	}
	e.change.Lock() // as who loads
	for name, answer := range map[string]<-chan egress.Status{"status": ask(fromVoiced, egress.OpStatus), "refusal": ask(fromVoiced, egress.OpClose)} {
		select {
		case s := <-answer:
			if (s.Err != "") != (name == "refusal") || s.Admitted != "" || s.Digest != egress.DenyAll().Digest() {
				t.Errorf("%s: %+v", name, s)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s: it waits", name)
		}
	}
	change := ask(fromInit, egress.OpClose)
	select {
	case <-change:
		t.Error("two changes at once")
	case <-time.After(50 * time.Millisecond):
	}
	e.change.Unlock()
	if s := <-change; s.Err != "" || s.Changes != 1 {
		t.Errorf("the change after the other: %+v", s)
	}
}

// hold is a tunneld that closes and admits by itself, and then waits for its connection to end.
func hold(c *ask.Client, gateway string) (egress.Status, error) {
	ctx := context.Background()
	for range 2 {
		if _, err := c.CloseGate(ctx); err != nil {
			return egress.Status{}, err
		}
		if _, err := c.Admit(ctx, gateway); err != nil {
			return egress.Status{}, err
		}
		if err := c.Ended(); err != nil {
			return egress.Status{}, fmt.Errorf("after its own change: %w", err)
		}
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if err := c.Ended(); err != nil {
			return egress.Status{}, err
		}
	}
	return egress.Status{}, errors.New("its connection lasts")
}

// What tunneld had admitted and another takes away ends its connection, and no one else's.
func TestInsideTakenAway(t *testing.T) {
	h := inside(t)
	ctx := t.Context()
	p := h.start()
	defer h.stop(p, unix.SIGTERM)
	init := h.dial()
	if _, err := init.Attach(ctx, h.ifindex); err != nil {
		t.Fatal(err)
	}
	for name, act := range map[string]func() error{
		"closed":   func() error { _, err := init.CloseGate(ctx); return err },
		"table":    func() error { _, err := init.Table(ctx, h.table().For("two")); return err },
		"attached": func() error { _, err := init.Attach(ctx, h.ifindex); return err },
	} {
		if _, err := init.Table(ctx, h.table()); err != nil {
			t.Fatal(err)
		}
		before, err := init.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		told := make(chan string, 1)
		go func() { told <- h.as(903, "/tunneld", "hold", "one") }()
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			s, err := init.Status(ctx)
			if err != nil || time.Now().After(end) {
				t.Fatalf("%s: %+v, %v", name, s, err)
			}
			if s.Admitted == "one" && s.Changes == before.Changes+4 {
				break
			}
		}
		if err := act(); err != nil {
			t.Fatal(err)
		}
		if got := <-told; got != "egressd has ended the connection" {
			t.Errorf("%s: %s", name, got)
		}
		h.inForce(egress.DenyAll())
		if err := init.Ended(); err != nil {
			t.Errorf("%s: init: %v", name, err)
		}
	}
}

// Answers that are given while the policy is swapped all the time tell of a policy that is in force: deny-all or the whole row.
func TestInsideStatusAmongSwaps(t *testing.T) {
	h := inside(t)
	ctx := t.Context()
	p := h.start()
	defer h.stop(p, unix.SIGTERM)
	init, loading := h.dial(), h.dial()
	if _, err := init.Attach(ctx, h.ifindex); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		for range 10 {
			if _, err := loading.Attach(ctx, h.ifindex); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	answers, longest := 0, time.Duration(0)
	var last uint64
	for {
		at := time.Now()
		s, err := init.Status(ctx)
		longest = max(longest, time.Since(at))
		if err != nil || s.Changes < last || s.Admitted != "" || s.Digest != egress.DenyAll().Digest() {
			t.Fatalf("%+v, %v", s, err)
		}
		last = s.Changes
		answers++
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d answers during 10 attachments, the longest after %s", answers, longest)
			if answers < 20 {
				t.Errorf("%d answers during 10 attachments: the status waits for the loads", answers)
			}
			h.inForce(egress.DenyAll())
			return
		default:
		}
	}
}
