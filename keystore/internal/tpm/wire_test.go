package tpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"rempart/internal/secret"
	"rempart/keystore/internal/tpmtest"
)

// pair returns a Wire and the other end of its stream.
func pair(t *testing.T) (*Wire, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	w, err := NewWire(os.NewFile(uintptr(fds[0]), "ours"))
	if err != nil {
		t.Fatal(err)
	}
	other := os.NewFile(uintptr(fds[1]), "theirs")
	t.Cleanup(func() {
		w.Close()
		other.Close()
	})
	return w, other
}

func message(code uint32, body ...byte) []byte {
	m := []byte{0x80, 0x01}
	m = binary.BigEndian.AppendUint32(m, uint32(headerSize+len(body)))
	m = binary.BigEndian.AppendUint32(m, code)
	return append(m, body...)
}

// answer gives one scripted response to each command that comes.
func answer(t *testing.T, other *os.File, responses ...[][]byte) {
	t.Helper()
	go func() {
		buf := make([]byte, maxMessage)
		for _, pieces := range responses {
			if _, err := other.Read(buf); err != nil {
				return
			}
			for _, piece := range pieces {
				other.Write(piece)
				time.Sleep(2 * time.Millisecond)
			}
		}
	}()
}

func TestWireReadsOneResponse(t *testing.T) {
	w, other := pair(t)
	good := message(0, 1, 2, 3, 4)
	answer(t, other, [][]byte{good}, [][]byte{good[:3], good[3:11], good[11:]})
	for range 2 { // whole, then in pieces
		got, err := w.Send(message(0x17b))
		if err != nil || !bytes.Equal(got, good) {
			t.Errorf("%x, %v", got, err)
		}
	}
	if err := w.Check(); err != nil {
		t.Errorf("check: %v", err)
	}
}

func TestWireSendsAgainWhenTheTPMIsBusy(t *testing.T) {
	w, other := pair(t)
	good := message(0)
	answer(t, other, [][]byte{message(0x922)}, [][]byte{message(0x920)}, [][]byte{message(0x90a)}, [][]byte{good})
	sent := 0
	w.Watch(func(_, _ []byte) { sent++ })
	if got, err := w.Send(message(0x17b)); err != nil || !bytes.Equal(got, good) || sent != 4 {
		t.Errorf("%x, %v after %d sends", got, err, sent)
	}
}

func TestWireBreaksForGood(t *testing.T) {
	oversize := message(0)
	binary.BigEndian.PutUint32(oversize[2:], maxMessage+1)
	undersize := message(0)
	binary.BigEndian.PutUint32(undersize[2:], headerSize-1)
	for name, response := range map[string][]byte{
		"oversize": oversize, "undersize": undersize, "two at once": append(message(0), message(0)...),
	} {
		w, other := pair(t)
		answer(t, other, [][]byte{response}, [][]byte{message(0)})
		for range 2 { // the second time although a good response would come
			if got, err := w.Send(message(0x17b)); !errors.Is(err, ErrTPMGone) || got != nil {
				t.Errorf("%s: %x, %v", name, got, err)
			}
		}
	}

	w, other := pair(t)
	other.Write(message(0)[:7])
	other.Close()
	if _, err := w.Send(message(0x17b)); !errors.Is(err, ErrTPMGone) {
		t.Errorf("cut off: %v", err)
	}

	w, _ = pair(t)
	w.timeout = 20 * time.Millisecond
	if _, err := w.Send(message(0x17b)); !errors.Is(err, ErrTPMGone) {
		t.Errorf("silence: %v", err)
	}

	w, _ = pair(t)
	if _, err := w.Send(make([]byte, maxMessage+1)); !errors.Is(err, ErrTPMGone) {
		t.Errorf("command too large: %v", err)
	}

	w, other = pair(t)
	other.Close()
	if err := w.Check(); !errors.Is(err, ErrTPMGone) {
		t.Errorf("check: %v", err)
	}

	if _, err := NewWire(nil); err == nil {
		t.Error("a wire of nothing")
	}
}

// TestBusWithoutASessionShowsTheSecret is the twin of the server's bus test:
// the recorder would see what is not encrypted.
func TestBusWithoutASessionShowsTheSecret(t *testing.T) {
	d, _ := powerOn(t)
	var bus []byte
	d.Watch(func(command, response []byte) { bus = append(append(bus, command...), response...) })
	canary := []byte("a canary in a mine")
	if _, err := d.Seal(secret.New(bytes.Clone(canary)), NewAuth(), [32]byte{}); err != nil {
		t.Fatal(err)
	}
	if len(bus) == 0 || bytes.Contains(bus, canary) {
		t.Errorf("the bus shows the canary in %d bytes", len(bus))
	}
	_, err := tpm2.Create{
		ParentHandle: d.root(tpm2.PasswordAuth(nil)),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: canary}),
		}},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true},
		}),
	}.Execute(d.wire)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(bus, canary) {
		t.Error("the recorder does not see a plain secret")
	}
}

// TestRawCommandsTrustNoForgedAnswer: a bus that answers success in the TPM's
// place has no session key.
func TestRawCommandsTrustNoForgedAnswer(t *testing.T) {
	d, _ := powerOn(t)
	err := d.withSession(hmacKind, nil, plain, func(s tpm2.Session) error {
		forged := append([]byte{0x80, 0x02}, be32(10+4+2+16+1+2+32)...)
		forged = append(forged, make([]byte, 4+4)...)
		forged = append(append(forged, 0, 16), make([]byte, 16)...)
		forged = append(append(forged, 1, 0, 32), make([]byte, 32)...)
		for n := headerSize; n < len(forged); n++ {
			if err := checkRaw(tpm2.TPMCCNVSetBits, s, nil, forged[:n]); err == nil {
				t.Errorf("took %d bytes of an answer", n)
			}
		}
		if err := checkRaw(tpm2.TPMCCNVSetBits, s, nil, append(forged, 0)); err == nil {
			t.Error("took an answer with a byte too much")
		}
		return checkRaw(tpm2.TPMCCNVSetBits, s, nil, forged)
	})
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("cannot trust")) {
		t.Errorf("forged answer: %v", err)
	}
}

// BenchmarkSign is one signature through the kept session, policy included.
func BenchmarkSign(b *testing.B) {
	machine := tpmtest.New(b)
	d, err := Open(machine.On())
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	key, proof := benchKey(b, d)
	var digest [32]byte
	for b.Loop() {
		if _, err := key.Sign(proof, digest); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzCheckRaw(f *testing.F) {
	f.Add(message(0))
	f.Add(append([]byte{0x80, 2}, message(0, make([]byte, 57)...)[2:]...))
	f.Fuzz(func(t *testing.T, response []byte) {
		if len(response) < headerSize {
			return // the wire gives no such thing
		}
		s := tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize)
		if err := checkRaw(tpm2.TPMCCNVSetBits, s, nil, response); err == nil {
			t.Fatal("an answer without the session's key was taken")
		}
	})
}
