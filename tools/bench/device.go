package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/vpn/egress"
	"rempart/vpn/enforce"
)

// deviceSamples is how many new devices get their layers.
const deviceSamples = 20

// deviceSample is two new devices: one that gets floor and gate alone, and one that gets every layer, as init plugs in a modem
// that appears while the phone runs. Times are since the device was there.
type deviceSample struct {
	FloorMS float64 `json:"floor_ms"`
	GateMS  float64 `json:"gate_ms"` // attached in front of the floor, and read back
	AllMS   float64 `json:"all_ms"`  // closed in every layer, read back, known to the guard
	Spans   []span  `json:"spans"`   // of the second device; the last is what follows when all is as it should be
	Load    string  `json:"load"`
}

// newDevices times the layers of a new device.
func newDevices(ctx context.Context, _ options, r *result) error {
	return someDevices(ctx, r, deviceSamples)
}

func someDevices(ctx context.Context, r *result, count int) (err error) {
	r.Settings["device"] = "a new veth, down; by this process with the library that egressd and init use, what egressd does with egressd's capabilities; the phone runs already, so its own programs are known"
	pins, unmount, err := bpffs()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	phone, err := newPlugged(pins)
	defer func() { err = errors.Join(err, phone.close()) }()
	if err != nil {
		return err
	}
	r.Settings["guard"] = phone.guarded
	var samples []deviceSample
	var gate, all []float64
	var spans [][]span
	for i := range count + 1 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s := deviceSample{Load: loadAverage()}
		if err := errors.Join(s.floorAndGate(pins), phone.plug(&s, fmt.Sprintf("usb%d", i))); err != nil {
			return err
		}
		if i == 0 {
			continue // this process learns what its own programs look like, as init did at the start
		}
		samples, gate, all, spans = append(samples, s), append(gate, s.GateMS), append(all, s.AllMS), append(spans, s.Spans)
	}
	r.Raw = samples
	r.Breakdown = parts(spans)
	r.add("floor and gate on a new device", "ms", gate, bound{Of: p95, Limit: 20})
	r.add("all layers on a new device", "ms", all, bound{Of: p95, Limit: 150})
	return nil
}

// floorAndGate puts both on a device and reads them back.
func (s *deviceSample) floorAndGate(pins string) error {
	black, err := link.Create("")
	if err != nil {
		return err
	}
	defer black.Close()
	return black.Do(func() (err error) {
		if err := link.AddVeth(link.Port{Name: "wwan0"}, link.Port{Name: "far0"}); err != nil {
			return err
		}
		index, err := link.Index("wwan0")
		if err != nil {
			return err
		}
		began := time.Now()
		since := func() float64 { return float64(time.Since(began)) / float64(time.Millisecond) }
		if err := enforce.AttachFloor(index); err != nil {
			return err
		}
		s.FloorMS = since()
		g, err := attachAsEgressd(black, index, pins)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, enforce.Sever(index), g.Release(), unpin(pins)) }()
		report, err := enforce.ReadBack(index, egress.DenyAll(), egress.LinkFacts{})
		s.GateMS = since()
		return errors.Join(err, report.Err())
	})
}

// attachAsEgressd has the gate attached by a thread that can do what egressd can.
func attachAsEgressd(black *link.NS, index int, pins string) (g *enforce.Gate, err error) {
	err = black.Do(func() (err error) {
		if err := asEgressd(); err != nil {
			return err
		}
		g, err = enforce.Attach(index, pins)
		return err
	})
	return g, err
}

// unpin removes the pins of a device that goes: the next one may have its number.
func unpin(pins string) (err error) {
	entries, err := os.ReadDir(pins)
	for _, e := range entries {
		err = errors.Join(err, os.Remove(filepath.Join(pins, e.Name())))
	}
	return err
}

// bpffs makes a folder for pins on a file system of its own.
func bpffs() (pins string, unmount func() error, err error) {
	dir, err := os.MkdirTemp("", "rempart-bench-pins-")
	if err != nil {
		return "", nil, fmt.Errorf("cannot make a folder for pins: %w", err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		return "", nil, errors.Join(fmt.Errorf("cannot mount a BPF file system: %w", err), os.Remove(dir))
	}
	unmount = func() error { return errors.Join(unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir)) }
	pins = filepath.Join(dir, "pins") // the folder above has files of the kernel's own
	if err := os.Mkdir(pins, 0o700); err != nil {
		return "", nil, errors.Join(fmt.Errorf("cannot make a folder for pins: %w", err), unmount())
	}
	return pins, unmount, nil
}

// asEgressd leaves the calling thread, which ends soon, egressd's capabilities: with these alone the kernel looks longer at
// a program and puts barriers into it that it leaves out for root.
func asEgressd() error {
	caps := uint64(1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_BPF)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for i := range data {
		word := uint32(caps >> (32 * i))
		data[i] = unix.CapUserData{Effective: word, Permitted: word}
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("cannot give capabilities up: %w", err)
	}
	return nil
}
