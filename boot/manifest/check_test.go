package manifest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestCheckAcceptsTheExample(t *testing.T) {
	w := newWorld(t)
	if err := Check([]byte(w.document(t))); err != nil {
		t.Fatal(err)
	}
}

// TestCheckNamesEachFault changes one thing of a good document at a time and
// wants exactly that fault, on its line.
func TestCheckNamesEachFault(t *testing.T) {
	w := newWorld(t)
	doc := w.document(t)
	image, policy := quote(t, publicPEM(t, w.image)), quote(t, publicPEM(t, w.policy))
	long := strings.Repeat("a", 33)
	cases := []struct {
		old, new string
		line     int
		want     string
	}{
		{`"serial": 3`, `"serial": 0`, 3, "serial: is 0, want 1 to 63"},
		{`"serial": 3`, `"serial": 64`, 3, "serial: is 64"},
		{`  "serial": 3,` + "\n", "", 1, "serial: is 0"},
		{`"role": "handset"`, `"role": "phone"`, 4, `role: is "phone"`},
		{`"name": "example"`, `"name": ""`, 5, "name: \"\" is missing"},
		{`"name": "example"`, `"name": "Example"`, 5, "does not begin with a lower-case letter"},
		{`"name": "example"`, `"name": "ex/ample"`, 5, "more than lower-case letters"},
		{`"name": "example"`, `"name": "example-"`, 5, "more than lower-case letters"},
		{`"name": "example"`, `"name": "` + long + `"`, 5, "longer than 32 bytes"},
		{"handsets.example", "Handsets.example", 6, "not lower-case ASCII labels"},
		{"handsets.example", "hаndsets.example", 6, "not lower-case ASCII labels"}, // a Cyrillic а
		{"handsets.example", "handsets.example.", 6, "not lower-case ASCII labels"},
		{"handsets.example", "handsets..example", 6, "not lower-case ASCII labels"},
		{"handsets.example", "a@handsets.example", 6, "not lower-case ASCII labels"},
		{"handsets.example", "example", 6, "one label"},
		{"handsets.example", "xn--bcher-kva.example", 6, "another script"},
		{"handsets.example", "203.0.113.1", 6, "is an address"},
		{"handsets.example", "handsets.1example", 6, "begins with a digit"},
		{"handsets.example", strings.Repeat("a", 64) + ".example", 6, "label of more than 63"},
		{"handsets.example", strings.Repeat("a.", 126) + "aa", 6, "longer than 253"},
		{`"handsets.example"`, `""`, 6, "domain: is missing"},
		{`["public", "restricted", "secret"]`, `["public", "restricted", "public"]`, 7, `levels[2]: "public" is given twice`},
		{`["public", "restricted", "secret"]`, `["public", "restricted", "SECRET"]`, 7, "levels[2]"},
		{`{"name": "voiced", "reads": "restricted"`, `{"name": "voiced", "reads": "cosmic"`, 9, `apps[0].reads: level "cosmic" is not in levels`},
		{`{"name": "voiced", "reads": "restricted"`, `{"name": "voiced", "reads": "secret"`, 9, "writing down needs a guard"},
		{`{"name": "voiced", "reads": "restricted"`, `{"name": "voiced"`, 9, "apps[0].reads: is missing"},
		{`"name": "mail"`, `"name": "voiced"`, 10, `apps[1].name: "voiced" is given twice`},
		{`"name": "mail"`, `"name": "../init"`, 10, "apps[1].name"},
		{`"name": "wg0"`, `"name": "averylongdevice0"`, 13, "longer than 15 bytes"},
		{`"accredited": "restricted"`, `"accredited": "none"`, 13, `level "none" is not in levels`},
		{`"inner": ["10.77.0.0/16", "fd77::/64"]`, `"inner": ["10.77.0.0/16", "10.0.0.0/8"]`, 14, "10.0.0.0/8 overlaps 10.77.0.0/16"},
		{`"inner": ["10.77.0.0/16", "fd77::/64"]`, `"inner": ["10.77.0.0/16", "fd77::/64", "nonsense"]`, 14, "not an address prefix"},
		{`"inner": ["10.77.0.0/16", "fd77::/64"]`, `"inner": ["10.77.0.0/16", "fd77::/64", "10.78.0.1/16"]`, 14, "want 10.78.0.0/16"},
		{`"inner": ["10.77.0.0/16", "fd77::/64"]`, `"inner": ["10.77.0.0/16", "fd77::/64", "fe80::/64"]`, 14, "not a unicast network"},
		{`"inner": ["10.77.0.0/16", "fd77::/64"]`, `"inner": ["10.77.0.0/16", "fd77::/64", "FD78::/64"]`, 14, "want fd78::/64"},
		{`["203.0.113.1", "2001:db8:113::1"]`, `["203.0.113.1", "2001:db8:113::1", "here"]`, 18, "not an IP address"},
		{`["203.0.113.1", "2001:db8:113::1"]`, `["203.0.113.1", "203.0.113.1"]`, 18, "given twice"},
		{`["203.0.113.1", "2001:db8:113::1"]`, `["224.0.0.1"]`, 18, "not a unicast address"},
		{`["203.0.113.1", "2001:db8:113::1"]`, `["127.0.0.1"]`, 18, "not a unicast address"},
		{`["203.0.113.1", "2001:db8:113::1"]`, `["0.1.2.3"]`, 18, "not a unicast address"},
		{`["203.0.113.1", "2001:db8:113::1"]`, `["255.255.255.255"]`, 18, "not a unicast address"},
		{`["203.0.113.1", "2001:db8:113::1"]`, `["169.254.1.1"]`, 18, "not a unicast address"},
		{`["203.0.113.1", "2001:db8:113::1"]`, `["::1"]`, 18, "not a unicast address"},
		{`["203.0.113.1", "2001:db8:113::1"]`, `["ff02::1"]`, 18, "not a unicast address"},
		{`["203.0.113.1", "2001:db8:113::1"]`, `["::ffff:203.0.113.1"]`, 18, "IPv4 inside IPv6"},
		{`["203.0.113.1", "2001:db8:113::1"]`, `["fe80::1%eth0"]`, 18, "has a zone"},
		{`["203.0.113.1", "2001:db8:113::1"]`, `["2001:DB8:113::1"]`, 18, "want 2001:db8:113::1"},
		{`["203.0.113.1", "2001:db8:113::1"]`, `["10.77.5.5"]`, 18, "lies inside network wg0"},
		{`["203.0.113.1", "2001:db8:113::1"]`, `[]`, 18, "addresses: is missing or empty"},
		{`"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="`, `"short"`, 19, "not a WireGuard public key"},
		{`"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="`, `"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="`, 19, "all zeros"},
		{`     "tunnel_key": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",` + "\n", "", 17, "tunnel_key: is missing"},
		{`["10.77.0.1", "fd77::1"]`, `["10.99.0.1", "fd77::1"]`, 20, "lies in none of the networks"},
		{`"port": 51820`, `"port": 0`, 22, "port: is 0"},
		{`"port": 51820`, `"port": 65536`, 22, "port: is 65536"},
		{`"purpose": "tunnel"`, `"purpose": "web"`, 22, `purpose: is "web"`},
		{`"purpose": "tunnel"`, `"purpose": "ike"`, 21, "has 0 services of purpose"},
		{`"protocol": "udp"`, `"protocol": "tcp"`, 22, "but tunnel is carried by udp"},
		{`"protocol": "udp"`, `"protocol": "sctp"`, 22, `want "udp" or "tcp"`},
		{`"protocol": "tcp", "port": 7371, "purpose": "attestation"`, `"protocol": "udp", "port": 51820, "purpose": "ike"`, 23, "given twice"},
		{`"image": [` + image + `]`, `"image": []`, 27, "keys.image: is missing or empty"},
		{`"image": [` + image + `]`, `"image": ["no"]`, 27, "want a PEM block"},
		{`"image": [` + image + `]`, `"image": [` + policy + `]`, 28, "the same key as keys.image[0]"},
		{`"authority": [`, `"authority": [` + quote(t, certificate(t, false)) + `, `, 29, "not an authority's"},
		{`"authority": [`, `"authority": ["", `, 29, "want a PEM block"},
		{`"gateway": [`, `"gateway": [` + quote(t, certificate(t, true)) + `, `, 30, "found \"CERTIFICATE\""},
		{`"serial": 3`, `"serial": "3"`, 3, "serial"},
		{`"serial": 3`, `"serial": 3, "guards": []`, 3, "guards: unknown field"},
		{`"serial": 3`, `"serial": 3, "serial": 4`, 3, "serial: given twice"},
		{`"serial": 3`, `"Serial": 3`, 3, "Serial: unknown field"},
	}
	for _, c := range cases {
		t.Run(c.want, func(t *testing.T) {
			if !strings.Contains(doc, c.old) {
				t.Fatalf("the example has no %q", c.old)
			}
			changed := strings.Replace(doc, c.old, c.new, 1)
			err := Check([]byte(changed))
			if err == nil {
				t.Fatal("accepted")
			}
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrGarbled) {
				t.Errorf("%v wraps no reason", err)
			}
			for _, f := range Faults(err) {
				if f.Line == c.line && strings.Contains(f.Msg, c.want) {
					return
				}
			}
			t.Errorf("got %v\nwant line %d: …%s…", err, c.line, c.want)
		})
	}
}

func TestCheckFindsEveryFaultInOneRound(t *testing.T) {
	w := newWorld(t)
	doc := w.document(t)
	for _, r := range [][2]string{{`"serial": 3`, `"serial": 99, "new": 1`}, {`"handset"`, `"phone"`}, {"51820", "0"}, {"10.77.0.1", "10.99.0.1"}} {
		doc = strings.Replace(doc, r[0], r[1], 1)
	}
	faults := Faults(Check([]byte(doc)))
	var got []string
	for _, f := range faults {
		got = append(got, fmt.Sprint(f.Line))
	}
	if want := "3 3 4 20 22"; strings.Join(got, " ") != want {
		t.Errorf("faults on lines %v, want %s: %v", got, want, faults)
	}
}

func TestCheckBoundsLists(t *testing.T) {
	w := newWorld(t)
	doc := w.document(t)
	for _, r := range [][2]string{
		{`"levels": [`, `"levels": [` + repeat(17, `"l%d"`) + `,`},
		{`"apps": [`, `"apps": [` + repeat(64, `{"name": "a%d", "reads": "public", "writes": "public"}`) + `,`},
		{`"services": [`, `"services": [` + repeat(8, `{"protocol": "tcp", "port": %d, "purpose": "attestation"}`) + `,`},
		{`"addresses": [`, `"addresses": [` + repeat(4, `"198.51.100.%d"`) + `,`},
		{`"inner": ["10.77.0.0/16"`, `"inner": [` + repeat(8, `"10.1.%d.0/24"`) + `,"10.77.0.0/16"`},
		{`"networks": [`, `"networks": [` + repeat(4, `{"name": "wg1%d", "accredited": "public", "inner": ["172.16.%[1]d.0/24"]}`) + `,`},
	} {
		if !strings.Contains(doc, r[0]) {
			t.Fatalf("the example has no %q", r[0])
		}
		err := Check([]byte(strings.Replace(doc, r[0], r[1], 1)))
		if err == nil || !strings.Contains(err.Error(), "at most") {
			t.Errorf("%s too long: %v", r[0], err)
		}
	}
	if err := Check(make([]byte, MaxDocument+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("oversized: %v", err)
	}
}

func repeat(n int, format string) string {
	var parts []string
	for i := range n {
		parts = append(parts, fmt.Sprintf(format, i+1))
	}
	return strings.Join(parts, ",")
}

func TestRoleGatewayIsItself(t *testing.T) {
	w := newWorld(t)
	doc := strings.Replace(w.document(t), `"handset"`, `"gateway"`, 1)
	if err := Check([]byte(doc)); err != nil {
		t.Errorf("with its key: %v", err)
	}
	keyless := strings.Replace(doc, `     "tunnel_key": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",`+"\n", "", 1)
	if err := Check([]byte(keyless)); err != nil {
		t.Errorf("without its key, which is in its TPM: %v", err)
	}
	second := strings.Replace(doc, `"gateways": [`, `"gateways": [
    {"name": "other", "addresses": ["203.0.113.2"], "inner": ["10.77.0.2"],
     "services": [{"protocol": "udp", "port": 51820, "purpose": "tunnel"}]},`, 1)
	if err := Check([]byte(second)); err == nil || !strings.Contains(err.Error(), "want one in role gateway") {
		t.Errorf("two entries: %v", err)
	}
	if err := Check([]byte(strings.Replace(second, `"gateway"`, `"handset"`, 1))); err == nil || !strings.Contains(err.Error(), "tunnel_key: is missing") {
		t.Errorf("a handset and a gateway without key: %v", err)
	}
}

// FuzzCheck: a document is read or refused with faults that have lines, never
// both, and what is read stays readable when it is written again.
func FuzzCheck(f *testing.F) {
	w := newWorld(f)
	doc := w.document(f)
	f.Add([]byte(doc))
	f.Add([]byte(strings.Replace(doc, "wg0", "", 1)))
	f.Add([]byte(`{"version": 1, "gateways": [{}], "networks": [null], "apps": null}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		p, err := readDocument(doc)
		if (p == nil) == (err == nil) {
			t.Fatalf("got %v and %v", p, err)
		}
		if err != nil && Reason(err) == "" {
			t.Fatalf("no reason in %v", err)
		}
		for _, fault := range Faults(err) {
			if fault.Line < 0 || fault.Line > 1+strings.Count(string(doc), "\n") {
				t.Fatalf("fault %v has a line outside the document", fault)
			}
		}
	})
}
