package guard

import (
	"bytes"
	"reflect"
	"testing"
)

// handedOver is a standing as another process gets it.
func handedOver(t *testing.T, s Standing) Standing {
	t.Helper()
	b, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseStanding(b)
	if err != nil || !reflect.DeepEqual(got, s) {
		t.Fatalf("parsed %+v, %v; want %+v", got, err, s)
	}
	return got
}

func sampleStanding() Standing {
	return Standing{form: Calls, cgroup: 1 << 40, handset: 1, seen: 2, devices: 3,
		hooks:    []standingHook{{4, 5, true, "calls_enter", "0123456789abcdef", "sys_enter"}, {6, 7, false, "calls_device", "f", ""}},
		admitted: []device{{1 << 63, 2}, {3, 4}}}
}

func TestStandingRoundTrip(t *testing.T) {
	handedOver(t, sampleStanding())
	lsm := sampleStanding()
	lsm.form, lsm.devices, lsm.admitted = LSM, 0, nil
	handedOver(t, lsm)
	long := sampleStanding()
	long.hooks[0].name = "a name that does not fit in there"
	if _, err := long.Marshal(); err == nil {
		t.Error("a name that does not fit was cut")
	}
	many := sampleStanding()
	many.admitted = make([]device, MaxDevices+1)
	if _, err := many.Marshal(); err == nil {
		t.Error("too many devices were cut")
	}
}

func TestParseStandingRefuses(t *testing.T) {
	good, err := sampleStanding().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	const hooks = 1 + 8 + 3*4
	for name, b := range map[string][]byte{
		"short": good[1:], "long": append(bytes.Clone(good), 0), "an unknown form": change(0, 2), "no map": change(hooks-9, 0),
		"no hooks": change(hooks, 0), "more hooks than places": change(hooks, maxHooks+1), "a hook behind the last": change(hooks, 1),
		"a device behind the last": change(StandingLen-1-MaxDevices*16, 1), "LSM with devices": change(0, 1),
		"text behind its end": change(hooks+1+9+textLen-1, 'x'),
	} {
		if s, err := ParseStanding(b); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

func FuzzParseStanding(f *testing.F) {
	b, err := sampleStanding().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := ParseStanding(in)
		if err != nil {
			return
		}
		if again, err := s.Marshal(); err != nil || !bytes.Equal(again, in) {
			t.Fatalf("another form: %v", err)
		}
	})
}
