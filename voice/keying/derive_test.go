package keying

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

func TestContextBindsEveryField(t *testing.T) {
	base := someCall()
	seen := map[[32]byte]string{}
	keys := map[string]string{}
	add := func(name string, c call) {
		for _, d := range []direction{shared, callerToCallee, calleeToCaller} {
			ctx := c.context(d)
			if other, ok := seen[ctx]; ok {
				t.Errorf("%s and %s have one context", name, other)
			}
			seen[ctx] = name + " " + string(d)
		}
		r, err := derive(exporterOf(1), c, caller, make([]byte, 64))
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range [][]byte{r.SendKey.Reveal(), r.ReceiveKey.Reveal()} {
			if other, ok := keys[string(k)]; ok {
				t.Errorf("%s and %s have one key", name, other)
			}
			keys[string(k)] = name
		}
	}
	add("base", base)
	add("swapped", base.swapped())
	for name, change := range map[string]func(*call){
		"Call-ID":              func(c *call) { c.id += "x" },
		"caller as dialled":    func(c *call) { c.callerDialled += "x" },
		"caller as certified":  func(c *call) { c.callerCertified += "x" },
		"callee as dialled":    func(c *call) { c.calleeDialled += "x" },
		"callee as certified":  func(c *call) { c.calleeCertified += "x" },
		"caller's certificate": func(c *call) { c.callerCert[31] ^= 1 },
		"callee's certificate": func(c *call) { c.calleeCert[31] ^= 1 },
		"level":                func(c *call) { c.level = "secret" },
		// The same bytes, cut elsewhere: lengths are part of the input.
		"Call-ID moved into the caller": func(c *call) { c.callerDialled, c.id = c.id[3:]+c.callerDialled, c.id[:3] },
		"caller moved into certified": func(c *call) {
			c.callerCertified, c.callerDialled = c.callerDialled[5:]+c.callerCertified, c.callerDialled[:5]
		},
	} {
		c := base
		change(&c)
		add(name, c)
	}
	if base.swapped().swapped() != base {
		t.Error("swapping twice changes the call")
	}
}

func TestDeriveReportsTheExporter(t *testing.T) {
	broken := errors.New("no exporter")
	for _, label := range []string{labelSRTP, labelSSRC, labelSAS} {
		export := func(l string, context []byte, n int) ([]byte, error) {
			if l == label {
				return nil, broken
			}
			return make([]byte, n), nil
		}
		if r, err := derive(export, someCall(), caller, make([]byte, 64)); !errors.Is(err, broken) || r != nil {
			t.Errorf("%s: %v", label, err)
		}
	}
	// A synchronisation source of 0 would mean "not agreed".
	zero := func(_ string, _ []byte, n int) ([]byte, error) { return make([]byte, n), nil }
	if s, err := exportSSRC(zero, [32]byte{}); err != nil || s == 0 {
		t.Errorf("source %d, %v", s, err)
	}
}

func TestSASString(t *testing.T) {
	for s, want := range map[sas]string{0: "yyyy", 1: "yyyb", 31: "yyy9", 32: "yyby", 1<<SASBits - 1: "9999", 0b00001_00010_00011_00100: "bndr"} {
		if got := s.String(); got != want {
			t.Errorf("%d is %q, want %q", s, got, want)
		}
		if got := read(t, want); got != s {
			t.Errorf("%q is read as %d, want %d", want, got, s)
		}
	}
	// The bits are spread over all of the string: of 4096 strings, few are equal.
	seen := map[sas]bool{}
	var n [64]byte
	for i := range uint32(4096) {
		binary.BigEndian.PutUint32(n[:], i)
		s, err := sasOf(exporterOf(5), [32]byte{}, n[:])
		if err != nil || s >= 1<<SASBits {
			t.Fatal(s, err)
		}
		seen[s] = true
	}
	if len(seen) < 4060 { // 4088 are expected
		t.Errorf("%d different strings of 4096", len(seen))
	}
}

// read is the inverse of sas.String.
func read(t testing.TB, s string) sas {
	t.Helper()
	var out sas
	for _, c := range s {
		i := strings.IndexRune(alphabet, c)
		if i < 0 {
			t.Fatalf("%q is not in the alphabet", c)
		}
		out = out<<5 | sas(i)
	}
	return out
}
