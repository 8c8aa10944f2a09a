package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/vpn/egress"
	"rempart/vpn/enforce"
	"rempart/vpn/enforce/nft"
	"rempart/vpn/enforce/xfrm"
)

// deviceSamples is how many new devices get their layers.
const deviceSamples = 20

// deviceSample is one new device. Times are since it was there, down.
type deviceSample struct {
	FloorMS float64 `json:"floor_ms"`
	GateMS  float64 `json:"gate_ms"` // attached in front of the floor, and read back
	AllMS   float64 `json:"all_ms"`  // nft closed and released, the IPsec default, each read back
	Load    string  `json:"load"`
}

// newDevices times the layers of a new device, each in a namespace of its own, as a modem that appears while the phone runs.
func newDevices(ctx context.Context, _ options, r *result) (err error) {
	r.Settings["device"] = "a new veth, down, in a new namespace; by root, with the library that egressd and init use; the move between namespaces is not in it"
	pins, unmount, err := bpffs()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	var samples []deviceSample
	var gate, all []float64
	for range deviceSamples {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s, err := newDevice(pins)
		if err != nil {
			return err
		}
		samples, gate, all = append(samples, s), append(gate, s.GateMS), append(all, s.AllMS)
	}
	r.Raw = samples
	r.add("floor and gate on a new device", "ms", gate, bound{Of: p95, Limit: 20})
	r.add("all layers on a new device", "ms", all, bound{Of: p95, Limit: 150})
	return nil
}

// newDevice makes a device and puts every layer on it.
func newDevice(pins string) (s deviceSample, err error) {
	s.Load = loadAverage()
	black, err := link.Create("")
	if err != nil {
		return s, err
	}
	defer black.Close()
	err = black.Do(func() (err error) {
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
		g, err := enforce.Attach(index, pins)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, enforce.Sever(index), g.Release(), unpin(pins)) }()
		report, err := enforce.ReadBack(index, egress.DenyAll(), egress.LinkFacts{})
		if err := errors.Join(err, report.Err()); err != nil {
			return err
		}
		s.GateMS = since()
		owner, err := nft.Open()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, owner.Close()) }()
		policy := egress.Policy{Classes: []egress.Class{{Gateway: "gateway", Addr: netip.MustParseAddr("203.0.113.1"), Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 1}}}
		for _, table := range []nft.Table{nft.Closed("wwan0"), nft.Released("wwan0", policy, 903)} {
			if err := errors.Join(owner.Put(table), nft.ReadBack(owner.Port(), table)); err != nil {
				return err
			}
		}
		classes := xfrm.Classes(policy)
		if err := errors.Join(xfrm.Put(classes), xfrm.ReadBack(classes)); err != nil {
			return err
		}
		s.AllMS = since()
		return nil
	})
	return s, err
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
