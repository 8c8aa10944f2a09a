package extend

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"rempart/boot/measure"
	"rempart/keystore/internal/tpm"
	"rempart/keystore/internal/tpmtest"
	"rempart/keystore/policy"
)

// init's log takes the door as it is.
var _ measure.Extender = (*Door)(nil)

func open(t *testing.T, machine *tpmtest.TPM) (*Door, *tpm.Device) {
	t.Helper()
	stream := machine.On()
	fd, err := unix.Dup(int(stream.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	door, err := Open(stream)
	if err != nil {
		t.Fatal(err)
	}
	device, err := tpm.Open(os.NewFile(uintptr(fd), "tpm"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		door.Close()
		device.Close()
	})
	return door, device
}

func TestExtend(t *testing.T) {
	door, device := open(t, tpmtest.New(t))
	if err := door.Extend(11, [32]byte{}); err == nil {
		t.Error("extended before the start-up")
	}
	for range 2 { // a firmware may have done it
		if err := door.Startup(); err != nil {
			t.Fatal(err)
		}
	}
	var want [32]byte
	for _, word := range []string{"init", "root"} {
		digest := sha256.Sum256([]byte(word))
		if err := door.Extend(11, digest); err != nil {
			t.Fatal(err)
		}
		want = sha256.Sum256(append(want[:], digest[:]...))
	}
	values, err := device.PCRs(11, 13)
	if err != nil {
		t.Fatal(err)
	}
	if values[11] != want || values[13] != [32]byte{} {
		t.Errorf("pcr 11 is %x, want %x; pcr 13 is %x", values[11], want, values[13])
	}
	for _, pcr := range []int{-1, 24} {
		if err := door.Extend(pcr, want); err == nil {
			t.Errorf("extended pcr %d", pcr)
		}
	}
}

func TestFloor(t *testing.T) {
	door, device := open(t, tpmtest.New(t))
	if err := door.Startup(); err != nil {
		t.Fatal(err)
	}
	if bits, ok, err := door.Floor(); bits != 0 || ok || err != nil {
		t.Errorf("new tpm: %#x, %v, %v", bits, ok, err)
	}
	if _, err := device.CreateRoot(); err != nil {
		t.Fatal(err)
	}
	if err := device.DefineIndex(policy.FloorIndex); err != nil {
		t.Fatal(err)
	}
	if err := device.RaiseFloor(policy.FloorFor(4), nil); err != nil {
		t.Fatal(err)
	}
	if bits, ok, err := door.Floor(); bits != 0xf || !ok || err != nil {
		t.Errorf("floor: %#x, %v, %v", bits, ok, err)
	}
}

// TestDoorSendsNothingElse: the door's whole vocabulary, from the bus.
func TestDoorSendsNothingElse(t *testing.T) {
	door, _ := open(t, tpmtest.New(t))
	seen := map[string]bool{}
	door.device.Watch(func(command, _ []byte) { seen[string(command[6:10])] = true })
	if err := door.Startup(); err != nil {
		t.Fatal(err)
	}
	if err := door.Extend(13, [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := door.Floor(); err != nil {
		t.Fatal(err)
	}
	for code := range seen {
		known := false
		for _, allowed := range [][]byte{{0, 0, 1, 0x44}, {0, 0, 1, 0x82}, {0, 0, 1, 0x69}} { // Startup, PCR_Extend, NV_ReadPublic
			known = known || bytes.Equal([]byte(code), allowed)
		}
		if !known {
			t.Errorf("command %x", code)
		}
	}
}

func TestTPMGone(t *testing.T) {
	machine := tpmtest.New(t)
	door, _ := open(t, machine)
	if err := door.Startup(); err != nil {
		t.Fatal(err)
	}
	machine.Off()
	if err := door.Extend(13, [32]byte{}); !errors.Is(err, ErrTPMGone) {
		t.Errorf("extend: %v", err)
	}
	if _, _, err := door.Floor(); !errors.Is(err, ErrTPMGone) {
		t.Errorf("floor: %v", err)
	}
	if _, err := Open(nil); err == nil {
		t.Error("a door to nothing")
	}
}
