package main

import (
	"net"
	"path/filepath"
	"testing"

	"rempart/boot/report"
	"rempart/internal/frame"
	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/egress"
	"rempart/vpn/egress/ask"
	"rempart/vpn/enforce"
)

// willing is a connection to an egressd that does whatever it is asked.
func willing(t *testing.T) *ask.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for {
			if _, err := frame.Read(c, egress.MaxRequest); err != nil {
				return
			}
			b, err := egress.MarshalStatus(egress.Status{Digest: egress.DenyAll().Digest()})
			if err != nil || frame.Write(c, b) != nil {
				return
			}
		}
	}()
	c, err := ask.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// selfNS is the namespace of the test.
func selfNS(t *testing.T) *link.NS {
	t.Helper()
	ns, err := link.Self()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// withRadio is a phone with one radio in black, up.
func withRadio(t *testing.T) *phone {
	t.Helper()
	proof.NeedRoot(t)
	p := newPhone(mono(), nil, nil, nil)
	p.root, p.gate, p.pulse = t.TempDir(), willing(t), willing(t)
	p.behind(t)
	err := p.blackDo(func() error {
		if err := link.AddVeth(link.Port{Name: "wwan0"}, link.Port{Name: "far0"}); err != nil {
			return err
		}
		i, err := link.Index("wwan0")
		p.report.Devices = []report.Device{{Name: "wwan0", Index: i, Up: true}}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// behind makes the phone's namespaces and closes them.
func (p *phone) behind(t *testing.T) {
	t.Helper()
	proof.NeedRoot(t)
	for _, at := range []**link.NS{&p.red, &p.black, &p.void, &p.own} {
		ns, err := link.Create("")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		*at = ns
	}
	if err := p.layBackstop(); err != nil {
		t.Fatal(err)
	}
}

func (p *phone) radioIsUp(t *testing.T) (up bool) {
	t.Helper()
	err := p.blackDo(func() error {
		devices, err := link.List()
		for _, d := range devices {
			up = up || d.Name == "wwan0" && d.Up
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return up
}

// A severed phone has the floor and nothing else: if that goes, the radios must.
func TestSeveredWithoutAFloorTakesTheRadiosDown(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "")
	for name, act := range map[string]func(*phone){
		"at the next look":  func(p *phone) { p.inspect() },
		"at the next close": func(p *phone) { p.close("another death") },
	} {
		p := withRadio(t)
		if err := p.blackDo(func() error { return enforce.AttachFloor(p.report.Devices[0].Index) }); err != nil {
			t.Fatal(err)
		}
		if err := p.blackDo(func() error { return link.SetUp("wwan0") }); err != nil {
			t.Fatal(err)
		}
		p.severed = true
		act(p)
		if !p.radioIsUp(t) || p.lost != "" {
			t.Fatalf("%s: with a floor the radio went down: %s", name, p.lost)
		}
		// The device is made again, without a floor.
		err := p.blackDo(func() error {
			if err := link.Remove("wwan0"); err != nil {
				return err
			}
			if err := link.AddVeth(link.Port{Name: "wwan0"}, link.Port{Name: "far0"}); err != nil {
				return err
			}
			i, err := link.Index("wwan0")
			p.report.Devices[0].Index = i
			if err != nil {
				return err
			}
			return link.SetUp("wwan0")
		})
		if err != nil {
			t.Fatal(err)
		}
		act(p)
		if d := p.report.Devices[0]; d.Floor || d.InForce {
			t.Errorf("%s: the report says %+v", name, d)
		}
		if p.radioIsUp(t) || p.lost == "" {
			t.Errorf("%s: the radio is up with neither gate nor floor", name)
		}
	}
}

// What took the radios down until a restart is not forgotten when some daemon has been started again.
func TestALostPhoneIsNotReleased(t *testing.T) {
	p := newPhone(mono(), nil, nil, nil)
	p.root, p.gate, p.pulse = t.TempDir(), willing(t), willing(t)
	p.behind(t)
	p.readHooks = func(string, egress.LevelTable, ...uint32) (enforce.LevelReport, error) {
		return enforce.LevelReport{}, nil
	}
	p.release(t.Context(), make(chan string, 1))
	if !p.report.Closed || p.report.Reason != "waiting for the watcher" {
		t.Fatalf("a phone without a watcher: closed %v: %s", p.report.Closed, p.report.Reason)
	}
	p.withWatcher(t).good = true
	p.release(t.Context(), make(chan string, 1))
	if p.report.Closed {
		t.Fatalf("the twin: a sound phone was not released: %s", p.report.Reason)
	}
	p.lose("the guard is gone")
	p.close("voiced died: killed by SIGKILL")
	p.release(t.Context(), make(chan string, 1))
	if !p.report.Closed || p.report.Reason != "the guard is gone" {
		t.Errorf("closed %v: %q", p.report.Closed, p.report.Reason)
	}
}
