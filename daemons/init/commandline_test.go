package main

import (
	"strings"
	"testing"
)

const goodRadio = "radio=wwan0,203.0.113.11/24,2001:db8:113::11/64,203.0.113.254,2001:db8:113::fe,02:00:00:00:00:fe"

func TestCommandLine(t *testing.T) {
	radios, err := parseCommandLine([]string{"quiet", goodRadio, "root=/dev/vda", strings.Replace(goodRadio, "wwan0", "wlan0", 1)})
	if err != nil {
		t.Fatal(err)
	}
	if len(radios) != 2 || radios[0].name != "wwan0" || radios[1].name != "wlan0" || radios[0].v4.String() != "203.0.113.11/24" || radios[0].via6.String() != "2001:db8:113::fe" || radios[0].viaMAC.String() != "02:00:00:00:00:fe" {
		t.Errorf("read %+v", radios)
	}
	if radios, err := parseCommandLine([]string{"quiet"}); err != nil || radios != nil {
		t.Errorf("no radio: %v, %v", radios, err)
	}
}

func TestCommandLineRefuses(t *testing.T) {
	for name, edit := range map[string][2]string{
		"field missing":          {",203.0.113.254", ""},
		"field too many":         {"wwan0", "wwan0,x"},
		"families swapped":       {"203.0.113.11/24", "2001:db8::1/64"},
		"v4 as v6":               {"2001:db8:113::11/64", "203.0.113.11/24"},
		"mapped address":         {"2001:db8:113::fe", "::ffff:203.0.113.1"},
		"zone":                   {"2001:db8:113::fe", "fe80::1%wwan0"},
		"multicast next hop":     {"203.0.113.254", "224.0.0.1"},
		"loopback":               {"203.0.113.254", "127.0.0.1"},
		"unspecified":            {"203.0.113.11/24", "0.0.0.0/0"},
		"no prefix length":       {"203.0.113.11/24", "203.0.113.11"},
		"not an Ethernet":        {"02:00:00:00:00:fe", "02:00:00:00:00:fe:00:00"},
		"path in the name":       {"wwan0", "../x"},
		"name of dots":           {"wwan0", ".."},
		"name too long":          {"wwan0", "wwan0123456789abc"},
		"empty name":             {"wwan0", ""},
		"line break in the name": {"wwan0", "a\nb"},
	} {
		word := strings.Replace(goodRadio, edit[0], edit[1], 1)
		if radios, err := parseCommandLine([]string{word}); err == nil || radios != nil || !strings.Contains(err.Error(), "cannot read the radio") {
			t.Errorf("%s: %v, %v", name, radios, err)
		}
	}
	if _, err := parseCommandLine([]string{goodRadio, goodRadio}); err == nil {
		t.Error("one device named twice was accepted")
	}
	var many []string
	for i := range maxRadios + 1 {
		many = append(many, strings.Replace(goodRadio, "wwan0", "wwan"+string(rune('a'+i)), 1))
	}
	if _, err := parseCommandLine(many); err == nil {
		t.Errorf("more than %d radios were accepted", maxRadios)
	}
}

func TestCommandLineLeases(t *testing.T) {
	radios, err := parseCommandLine([]string{"radio=wwan0,dhcp", "radio=wlan0,dhcp,02:00:00:00:00:0b"})
	if err != nil || len(radios) != 2 || !radios[0].dhcp || radios[0].mac != nil || !radios[1].dhcp || radios[1].mac.String() != "02:00:00:00:00:0b" || radios[1].v4.IsValid() {
		t.Errorf("%+v, %v", radios, err)
	}
	for _, word := range []string{"radio=wwan0,DHCP", "radio=wwan0,dhcp,", "radio=wwan0,dhcp,03:00:00:00:00:0b", "radio=wwan0,dhcp,00:00:00:00:00:00",
		"radio=wwan0,dhcp,02:00:00:00:00:0b,x", "radio=,dhcp", "radio=wwan0,static"} {
		if radios, err := parseCommandLine([]string{word}); err == nil {
			t.Errorf("%s: %+v", word, radios)
		}
	}
}

func TestModemMayComeLater(t *testing.T) {
	modem := strings.Replace(strings.Replace(goodRadio, "radio=", "modem=", 1), "wwan0", "usb1", 1)
	radios, err := parseCommandLine([]string{goodRadio, modem})
	if err != nil || len(radios) != 2 || radios[0].later || !radios[1].later || radios[1].name != "usb1" || radios[1].v4 != radios[0].v4 {
		t.Errorf("%+v, %v", radios, err)
	}
	for name, words := range map[string][]string{"a name twice": {goodRadio, strings.Replace(goodRadio, "radio=", "modem=", 1)}, "a lease": {"modem=usb1,dhcp"}, "no fields": {"modem="}} {
		if radios, err := parseCommandLine(words); err == nil {
			t.Errorf("%s: %+v", name, radios)
		}
	}
}

func FuzzCommandLine(f *testing.F) {
	f.Add(goodRadio)
	f.Add("radio=,,,,,")
	f.Fuzz(func(t *testing.T, word string) {
		radios, err := parseCommandLine([]string{word})
		if err != nil && radios != nil {
			t.Fatal("value and error together")
		}
		for _, r := range radios {
			again := "radio=" + strings.Join([]string{r.name, r.v4.String(), r.v6.String(), r.via4.String(), r.via6.String(), r.viaMAC.String()}, ",")
			back, err := parseCommandLine([]string{again})
			if err != nil || len(back) != 1 || back[0].v4 != r.v4 || back[0].viaMAC.String() != r.viaMAC.String() {
				t.Fatalf("%q does not read back: %v", again, err)
			}
		}
	})
}
