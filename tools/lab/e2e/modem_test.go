package e2e_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rempart/board/netns"
	"rempart/internal/link"
	"rempart/internal/proof"
)

// modem plugs a modem in that the command line names, unplugs it and plugs it in again, under one capture of the whole
// internet. The tunnel moves to it and back; nothing else leaves by it. One that nobody named stays where it was born.
func modem(t *testing.T, w *world) {
	proof.SFR(t, "FDP_IFC_EXT.1", "leak row: a new device in init's namespace, brought up at once")
	proof.Need(t, "tcpdump")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m := w.machine(t, "a")
	usb := netns.ModemOf("a", m.Number)
	file := filepath.Join(t.TempDir(), "modem.pcapng")
	capture, err := w.Capture(ctx, file)
	if err != nil {
		t.Fatal(err)
	}
	present := func(want bool) func(seen) bool {
		return func(s seen) bool {
			if !ready(s) {
				return false
			}
			for _, d := range s.Boot.Devices {
				if d.Name == usb.Device {
					return want && d.Up && d.Floor && d.InForce
				}
			}
			return !want
		}
	}
	for range 2 {
		at := time.Now()
		if err := w.HotPlug(ctx, "a", usb.Device); err != nil {
			t.Fatal(err)
		}
		w.await(t, "a", "on its modem", 20*time.Second, present(true))
		t.Logf("on the modem after %s", time.Since(at).Round(time.Millisecond))
		w.talks(t, "a", "b")
		at = time.Now()
		if err := w.Unplug(ctx, "a", usb.Device); err != nil {
			t.Fatal(err)
		}
		w.await(t, "a", "on its radio again", 20*time.Second, present(false))
		t.Logf("on the radio again after %s", time.Since(at).Round(time.Millisecond))
	}
	if err := w.HotPlug(ctx, "a", "usb2"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	own, err := link.Open(m.Paths.Own)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	err = own.Do(func() error {
		list, err := link.List()
		for _, d := range list {
			if d.Name == "usb2" && d.Up {
				t.Error("a device that nobody named is up")
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Unplug(ctx, "a", "usb2"); err != nil {
		t.Fatal(err)
	}
	w.talks(t, "a", "b")
	if result, err := capture.Stop(); err != nil || !result.Complete() {
		t.Fatalf("the capture is not whole: %+v, %v", result, err)
	}
	frames := func(filter string) int {
		t.Helper()
		s := command(t, "", "tcpdump", "-n", "-r", file, filter)
		if s.code != 0 {
			t.Fatal(s)
		}
		return strings.Count(s.out, "\n")
	}
	from := "ether src " + usb.MAC
	gateway := w.machine(t, "gateway").Radio
	tunnel := "udp dst port 51820 and (dst host " + gateway.V4.Addr().String() + " or dst host " + gateway.V6.Addr().String() + ")"
	if n := frames(from + " and " + tunnel); n < 20 {
		t.Errorf("%d frames of the tunnel left by the modem", n)
	}
	if n := frames(from + " and not (" + tunnel + ")"); n != 0 {
		t.Errorf("%d other frames left by the modem", n)
	}
}
