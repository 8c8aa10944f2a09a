package main

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/internal/proof"
)

// A new device gets every layer, each read back, and nothing of it stays.
func TestDeviceGetsEveryLayer(t *testing.T) {
	proof.NeedRoot(t)
	own, err := ownCgroupDir()
	if err != nil {
		t.Fatal(err)
	}
	r := &result{Name: "device", Settings: map[string]string{}}
	if err := someDevices(t.Context(), r, 2); err != nil {
		t.Fatal(err)
	}
	samples, ok := r.Raw.([]deviceSample)
	if !ok || len(samples) != 2 || len(r.Figures) != 2 || r.Settings["guard"] == "" {
		t.Fatalf("%d samples, figures %+v, settings %v", len(samples), r.Figures, r.Settings)
	}
	for _, s := range samples {
		if s.FloorMS <= 0 || s.GateMS <= s.FloorMS || s.AllMS <= 0 {
			t.Errorf("a sample is %+v", s)
		}
		at, last := int64(0), len(s.Spans)-1
		for _, p := range s.Spans {
			if p.FromNS != at || p.ToNS <= p.FromNS {
				t.Errorf("%s is from %d to %d, the one before it ended at %d", p.What, p.FromNS, p.ToNS, at)
			}
			at = p.ToNS
		}
		if last < 1 || float64(s.Spans[last].FromNS)/1e6 != s.AllMS {
			t.Errorf("closed in all layers after %f ms: %+v", s.AllMS, s.Spans)
		}
	}
	if len(r.Breakdown) != len(samples[0].Spans) || r.Breakdown[0].N != 2 {
		t.Errorf("%+v", r.Breakdown)
	}
	nothingStays(t, own)
	t.Logf("%+v", r.Figures)
}

// What loads programs as egressd does can do no more than that, and only its own thread is so.
func TestAsEgressdIsThatThreadAlone(t *testing.T) {
	proof.NeedRoot(t)
	ns, err := link.Create("")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	err = ns.Do(func() error {
		if err := errors.Join(asEgressd(), link.AddVeth(link.Port{Name: "a"}, link.Port{Name: "b"})); err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err == nil {
			t.Error("a packet socket was opened")
			return unix.Close(fd)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		t.Errorf("another thread lost its rights: %v", err)
		return
	}
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
}
