package main

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/enforce"
)

// withModem is a phone that knows a modem usb1 and has one radio; change is what it is told when the modem appears.
func withModem(t *testing.T) (p *phone, change link.Change) {
	t.Helper()
	p = withRadio(t)
	p.report.Devices[0].Up = false
	p.radios = []radio{{name: "wwan0"}, {name: "usb1", later: true, v4: netip.MustParsePrefix("192.0.2.9/24"), v6: netip.MustParsePrefix("2001:db8:2::9/64"),
		via4: netip.MustParseAddr("192.0.2.1"), via6: netip.MustParseAddr("2001:db8:2::1"), viaMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}
	if p.backstop == nil {
		p.behind(t)
	}
	return p, p.appear(t, "usb1")
}

// appear makes a device where new hardware is born.
func (p *phone) appear(t *testing.T, name string) link.Change {
	t.Helper()
	c := link.Change{Place: "init", NS: p.own, Name: name}
	err := p.own.Do(func() (err error) {
		if err := link.AddVeth(link.Port{Name: name}, link.Port{Name: "far-" + name}); err != nil {
			return err
		}
		c.Index, err = link.Index(name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// deviceIn tells whether a device is in a namespace, and up.
func deviceIn(t *testing.T, ns *link.NS, name string) (there, up bool) {
	t.Helper()
	err := ns.Do(func() error {
		list, err := link.List()
		for _, d := range list {
			if d.Name == name {
				there, up = true, d.Up
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return there, up
}

// TestKnownModemIsClosedInBlack: it comes to black under a floor, and down, even where somebody had brought it up.
func TestKnownModemIsClosedInBlack(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "TestUnknownDeviceStaysWhereItWasBorn")
	p, c := withModem(t)
	if err := p.own.Do(func() error { return link.SetUp("usb1") }); err != nil {
		t.Fatal(err)
	}
	again := make(chan string, 8)
	p.deviceChanged(t.Context(), c, again)
	if there, up := deviceIn(t, p.black, "usb1"); !there || up {
		t.Fatalf("in black %v, up %v", there, up)
	}
	if n := len(p.report.Devices); n != 2 || p.report.Devices[1].Name != "usb1" || p.report.Devices[1].Up || !p.report.Closed {
		t.Fatalf("%d devices: %+v", n, p.report)
	}
	index := p.report.Devices[1].Index
	if err := p.blackDo(func() error { return enforce.FloorInForce(index) }); err != nil {
		t.Error(err)
	}
	if err := p.readBackstop(); err != nil {
		t.Error(err)
	}
	// What was said before it moved is said again: nothing happens.
	p.deviceChanged(t.Context(), c, again)
	if len(p.report.Devices) != 2 {
		t.Error("it is there twice")
	}
}

// TestUnknownDeviceStaysWhereItWasBorn, under a floor and down.
func TestUnknownDeviceStaysWhereItWasBorn(t *testing.T) {
	p, _ := withModem(t)
	for _, name := range []string{"usb2", "wwan0"} { // the second has the name of a radio that is there
		c := p.appear(t, name)
		if err := p.own.Do(func() error { return link.SetUp(name) }); err != nil {
			t.Fatal(err)
		}
		p.deviceChanged(t.Context(), c, make(chan string, 8))
		if there, up := deviceIn(t, p.own, name); !there || up {
			t.Errorf("%s: in init's namespace %v, up %v", name, there, up)
		}
		if err := p.own.Do(func() error { return enforce.FloorInForce(c.Index) }); err != nil {
			t.Error(err)
		}
	}
	if len(p.report.Devices) != 1 {
		t.Errorf("%+v", p.report.Devices)
	}
}

// TestUnknownDeviceMovedIntoBlackStaysDown: the kernel takes down what changes its namespace; init lays a floor under it and
// takes it down again when somebody brings it up there. It is nobody's radio: it has no table, and the others keep theirs.
func TestUnknownDeviceMovedIntoBlackStaysDown(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the device up in black, before init hears of it")
	p, _ := withModem(t)
	p.appear(t, "eth0")
	if err := p.own.Do(func() error { return errors.Join(link.SetUp("eth0"), link.MoveTo("eth0", p.black)) }); err != nil {
		t.Fatal(err)
	}
	if there, up := deviceIn(t, p.black, "eth0"); !there || up {
		t.Fatalf("in black %v, up %v", there, up)
	}
	c := link.Change{Place: "black", NS: p.black, Name: "eth0"}
	for range 2 {
		if err := p.blackDo(func() (err error) { c.Index, err = link.Index("eth0"); return errors.Join(err, link.SetUp("eth0")) }); err != nil {
			t.Fatal(err)
		}
		if _, up := deviceIn(t, p.black, "eth0"); !up {
			t.Fatal("twin: it does not come up")
		}
		p.deviceChanged(t.Context(), c, make(chan string, 8))
		if _, up := deviceIn(t, p.black, "eth0"); up {
			t.Error("it is up in black")
		}
		if err := p.blackDo(func() error { return enforce.FloorInForce(c.Index) }); err != nil {
			t.Error(err)
		}
	}
	if err := p.readBackstop(); err != nil || len(p.report.Devices) != 1 {
		t.Errorf("%d devices, %v", len(p.report.Devices), err)
	}
}

// TestUnpluggedModemIsForgotten: what comes back is a new device, which has no gate until it is gated. One that somebody makes
// in black under its name and number is nobody's.
func TestUnpluggedModemIsForgotten(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "TestKnownModemIsClosedInBlack")
	p, c := withModem(t)
	again := make(chan string, 8)
	p.deviceChanged(t.Context(), c, again)
	index := p.report.Devices[1].Index
	if err := p.blackDo(func() error { return link.Remove("usb1") }); err != nil {
		t.Fatal(err)
	}
	p.deviceChanged(t.Context(), link.Change{Place: "black", NS: p.black, Name: "usb1", Index: index, Gone: true}, again)
	if len(p.report.Devices) != 1 || p.report.Devices[0].Name != "wwan0" {
		t.Fatalf("%+v", p.report.Devices)
	}
	if err := p.readBackstop(); err != nil {
		t.Error(err)
	}
	err := p.blackDo(func() error {
		return errors.Join(link.AddVeth(link.Port{Name: "usb1"}, link.Port{Name: "x"}), link.SetUp("usb1"))
	})
	if err != nil {
		t.Fatal(err)
	}
	made := link.Change{Place: "black", NS: p.black, Name: "usb1"}
	if err := p.blackDo(func() (err error) { made.Index, err = link.Index("usb1"); return err }); err != nil {
		t.Fatal(err)
	}
	p.deviceChanged(t.Context(), made, again)
	if _, up := deviceIn(t, p.black, "usb1"); up || len(p.report.Devices) != 1 {
		t.Errorf("a device that was made in black: up %v, %+v", up, p.report.Devices)
	}
	if err := p.blackDo(func() error { return link.Remove("usb1") }); err != nil {
		t.Fatal(err)
	}
	p.deviceChanged(t.Context(), p.appear(t, "usb1"), again)
	if there, up := deviceIn(t, p.black, "usb1"); !there || up || len(p.report.Devices) != 2 {
		t.Errorf("plugged in again: in black %v, up %v, %+v", there, up, p.report.Devices)
	}
}

// TestOnlySoManyRadios: the bound holds for those that come later too.
func TestOnlySoManyRadios(t *testing.T) {
	p, c := withModem(t)
	for len(p.report.Devices) < maxRadios {
		p.report.Devices = append(p.report.Devices, p.report.Devices[0])
	}
	p.deviceChanged(t.Context(), c, make(chan string, 8))
	if there, _ := deviceIn(t, p.black, "usb1"); there {
		t.Error("one radio too many")
	}
}
