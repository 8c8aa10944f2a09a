package strictconf

import (
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

type doc struct {
	Version int                   `json:"version"`
	Name    string                `json:"name"`
	Apps    []app                 `json:"apps"`
	Addr    netip.Addr            `json:"addr"`
	Extra   map[string]app        `json:"extra"`
	Any     map[string]netip.Addr `json:"any"`
	Opt     *app                  `json:"opt"`
	Hidden  string                `json:"-"`
}

type app struct {
	Name  string `json:"name"`
	Reads string `json:"reads"`
}

func TestDecodeGood(t *testing.T) {
	in := `{"version": 1, "name": "x", "apps": [{"name":"a","reads":"r"}], "addr": "203.0.113.1",
 "extra": {"k": {"name": "b"}}, "any": {"gw": "::1"}, "opt": {"name": "c"}}`
	var d doc
	if err := Decode([]byte(in), 1000, &d); err != nil {
		t.Fatal(err)
	}
	if d.Apps[0].Reads != "r" || d.Addr != netip.MustParseAddr("203.0.113.1") || d.Opt.Name != "c" || d.Extra["k"].Name != "b" {
		t.Errorf("decoded %+v", d)
	}
}

func TestEveryFaultNamesItsLine(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"unknown field":        {"{\n \"version\": 1,\n \"nmae\": \"x\"\n}", "line 3: nmae: unknown field"},
		"unknown nested field": {"{\n \"apps\": [\n {\"name\":\"a\"},\n {\"nome\":\"a\"}]}", "line 4: apps[1].nome: unknown field"},
		"unknown in a map":     {`{"extra": {"k": {"who": 1}}}`, "line 1: extra.k.who: unknown field"},
		"wrong letter case":    {`{"Version": 1}`, "line 1: Version: unknown field"},
		"unnamed field":        {`{"Hidden": "x"}`, "line 1: Hidden: unknown field"},
		"duplicate":            {"{\"version\": 1,\n\"version\": 2}", "line 2: version: given twice"},
		"wrong type":           {"{\n\"version\": \"1\"}", "line 2: version: cannot use a string as int"},
		"trailing data":        {"{}\n{}", "data after the end"},
		"truncated":            {"{\"version\":", "ends too early"},
		"empty":                {"", "ends too early"},
		"garbage":              {"{\n\n\x00", "line 3: invalid character"},
		"oversize":             {`{"name":"` + strings.Repeat("x", 1000) + `"}`, "larger than 1000"},
		"deep":                 {strings.Repeat(`{"extra":`, 100), "nested more than"},
		"bad address":          {`{"addr": "1.2.3"}`, "IPv4 address too short"},
	} {
		err := Decode([]byte(c.in), 1000, &doc{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if _, ok := errors.AsType[*Error](err); !ok {
			t.Errorf("%s: no *Error in %v", name, err)
		}
	}
}

func TestAllFaultsAreListed(t *testing.T) {
	err := Decode([]byte("{\"a\":1,\n\"b\":2,\n\"version\":1,\"version\":1}"), 1000, &doc{})
	for _, want := range []string{"line 1: a:", "line 2: b:", "line 3: version: given twice"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("missing %q in %v", want, err)
		}
	}
}

func TestLines(t *testing.T) {
	at := Lines([]byte("{\n\"apps\": [\n{\"name\": \"a\"},\n{\"name\":\n\"b\"}]}"))
	for path, want := range map[string]int{"apps": 2, "apps[0].name": 3, "apps[1].name": 5, "none": 0} {
		if got := at(path); got != want {
			t.Errorf("line of %s = %d, want %d", path, got, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"apps":[{"name":"a"}],"addr":"::1"}`))
	f.Add([]byte(`{"version":1,"version":2}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		var d doc
		if err := Decode(in, 4096, &d); err != nil {
			return
		}
		out, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		var again doc
		if err := Decode(out, 1<<20, &again); err != nil || !reflect.DeepEqual(d, again) {
			t.Fatalf("parse→marshal→parse differs: %v\n%+v\n%+v", err, d, again)
		}
	})
}
