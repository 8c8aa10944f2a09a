package sip

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestSessionRoundTrip(t *testing.T) {
	for _, s := range []Session{
		{ID: 1, Addr: netip.MustParseAddr("10.77.0.11"), RTP: 5004},
		{ID: 1<<64 - 1, Addr: netip.MustParseAddr("10.77.0.12"), RTP: 65535, Keying: 5063},
		{Addr: netip.MustParseAddr("fd77::12"), RTP: 5004, Keying: 1},
	} {
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		got, err := ParseSession(s.Marshal())
		if err != nil || got != s {
			t.Errorf("%+v came back as %+v, %v", s, got, err)
		}
		if len(s.Marshal()) > MaxSDP {
			t.Errorf("%d bytes", len(s.Marshal()))
		}
	}
}

func TestSessionRefusals(t *testing.T) {
	good := string(Session{ID: 7, Addr: netip.MustParseAddr("10.77.0.11"), RTP: 5004, Keying: 5063}.Marshal())
	change := func(from, to string) string {
		out := strings.Replace(good, from, to, 1)
		if out == good {
			t.Fatalf("%q is not in the description", from)
		}
		return out
	}
	for name, text := range map[string]string{
		"empty":              "",
		"plain line ends":    strings.ReplaceAll(good, "\r\n", "\n"),
		"cut short":          good[:len(good)-2],
		"one more line":      good + "a=recvonly\r\n",
		"a key in it":        good + "a=crypto:1 AEAD_AES_256_GCM inline:x\r\n",
		"unprotected":        change("RTP/SAVP", "RTP/AVP"),
		"another address":    change("c=IN IP4 10.77.0.11", "c=IN IP4 10.77.0.12"),
		"another codec":      change("opus", "PCMU"),
		"a variable rate":    change("a=ptime:20", "a=ptime:40"),
		"port zero":          change("audio 5004", "audio 0"),
		"port too large":     change("audio 5004", "audio 70000"),
		"port with a sign":   change("audio 5004", "audio +5004"),
		"port with zeros":    change("audio 5004", "audio 05004"),
		"no such address":    strings.ReplaceAll(good, "10.77.0.11", "10.77.0.999"),
		"a name":             strings.ReplaceAll(good, "10.77.0.11", "evil.example"),
		"multicast":          strings.ReplaceAll(good, "10.77.0.11", "224.0.0.1"),
		"unspecified":        strings.ReplaceAll(good, "10.77.0.11", "0.0.0.0"),
		"mapped":             strings.ReplaceAll(strings.ReplaceAll(good, "10.77.0.11", "::ffff:10.77.0.11"), "IP4", "IP6"),
		"zone":               strings.ReplaceAll(strings.ReplaceAll(good, "10.77.0.11", "fe80::1%lo"), "IP4", "IP6"),
		"wrong family":       strings.ReplaceAll(good, "IP4", "IP6"),
		"keying port of RTP": change("keying:5063", "keying:5004"),
		"keying port zero":   change("keying:5063", "keying:0"),
		"too long":           good + strings.Repeat("a", MaxSDP),
	} {
		if got, err := ParseSession([]byte(text)); !errors.Is(err, ErrSession) || got != (Session{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// FuzzSession: what parses marshals to the very bytes, and is usable.
func FuzzSession(f *testing.F) {
	f.Add(Session{ID: 7, Addr: netip.MustParseAddr("10.77.0.11"), RTP: 5004, Keying: 5063}.Marshal())
	f.Add(Session{ID: 7, Addr: netip.MustParseAddr("fd77::1"), RTP: 5004}.Marshal())
	f.Add([]byte("v=0\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSession(b)
		if err != nil {
			if s != (Session{}) {
				t.Fatal("an error and a value")
			}
			return
		}
		if !bytes.Equal(s.Marshal(), b) || s.Check() != nil {
			t.Fatalf("%q parses to %+v", b, s)
		}
	})
}

// FuzzAOR: what parses is its own spelling, through the library too.
func FuzzAOR(f *testing.F) {
	f.Add("sip:a@handsets.example")
	f.Add("sip:a@b@c.example")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAOR(s)
		if err != nil {
			return
		}
		u := a.URI()
		if again, err := AOROf(&u); string(a) != s || err != nil || again != a {
			t.Fatalf("%q is %q, then %q (%v)", s, a, again, err)
		}
	})
}
