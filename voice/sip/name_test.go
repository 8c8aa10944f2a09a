package sip

import (
	"errors"
	"strings"
	"testing"

	gosip "github.com/emiago/sipgo/sip"

	"rempart/internal/proof"
)

// TestOneSpelling is the registration gate: the corpus of strings that two
// readers have understood differently, none of which is an address here.
func TestOneSpelling(t *testing.T) {
	proof.SFR(t, "FTP_ITC.1/CONTROL", "")
	for _, good := range []string{"sip:a@handsets.example", "sip:a-1@x.example", "sip:" + strings.Repeat("a", 32) + "@a.b.c"} {
		got, err := ParseAOR(good)
		if err != nil || string(got) != good {
			t.Errorf("%q: %q, %v", good, got, err)
		}
		uri := got.URI()
		if uri.String() != good {
			t.Errorf("%q is written %q", good, uri.String())
		}
	}
	bad := []string{
		"", "sip:", "sip:@", "a@handsets.example", "sips:a@handsets.example", "SIP:a@handsets.example",
		"sip:a", "sip:a@", "sip:@handsets.example", "sip:handsets.example",
		"sip:tester@protonmail.com@presidence@elysee.fr", "sip:a@evil.example@handsets.example",
		"sip:A@handsets.example", "sip:a@Handsets.example", "sip:a@handsets.example.", "sip:a@handsets..example",
		"sip:a@handsets.example:5061", "sip:a:pw@handsets.example", "sip:a@handsets.example;transport=tls",
		"sip:a@handsets.example?x=y", "sip:%61@handsets.example", "sip:a%40b@handsets.example", "sip:\"a\"@handsets.example",
		"sip:a b@handsets.example", "sip:a@handsets.example\r\nTo: x", "sip:a\x00@handsets.example", "sip:а@handsets.example",
		"sip:a@[::1]", "sip:a@10.77.0.1", "sip:-a@handsets.example", "sip:a-@handsets.example", "sip://a@handsets.example",
		"sip:" + strings.Repeat("a", 33) + "@handsets.example", "sip:a@" + strings.Repeat("a", 64) + ".example", "<sip:a@handsets.example>",
	}
	if len(bad) < 30 {
		t.Fatalf("the corpus has %d strings", len(bad))
	}
	for _, s := range bad {
		if got, err := ParseAOR(s); !errors.Is(err, ErrNotAOR) || got != "" {
			t.Errorf("%q was taken for %q", s, got)
		}
		// The same through the library's reader: it must not make an AOR of it
		// that differs from the string that came.
		var u gosip.Uri
		if gosip.ParseUri(s, &u) == nil {
			if got, err := AOROf(&u); err == nil && string(got) != strings.ToLower(s) {
				t.Errorf("%q became %q", s, got)
			}
		}
	}
}

func TestParts(t *testing.T) {
	a, err := NewAOR("a", "handsets.example")
	if err != nil || a.Name() != "a" || a.Domain() != "handsets.example" {
		t.Errorf("%q %q %q %v", a, a.Name(), a.Domain(), err)
	}
	if _, err := AOROf(nil); !errors.Is(err, ErrNotAOR) {
		t.Errorf("no URI: %v", err)
	}
}

func parseRequest(t *testing.T, text string) *gosip.Request {
	t.Helper()
	m, err := gosip.NewParser().ParseSIP([]byte(strings.ReplaceAll(text, "\n", "\r\n")))
	if err != nil {
		t.Fatal(err)
	}
	return m.(*gosip.Request)
}

func TestHeaders(t *testing.T) {
	const head = "INVITE sip:b@handsets.example SIP/2.0\nVia: SIP/2.0/TLS 10.77.0.11:1;branch=z9hG4bKx\n"
	const from, to, id, seq = "From: <sip:a@handsets.example>;tag=1\n", "To: <sip:b@handsets.example>\n", "Call-ID: x\n", "CSeq: 1 INVITE\n"
	r := parseRequest(t, head+from+to+id+seq+"\n")
	if f, err := From(r); err != nil || f != "sip:a@handsets.example" {
		t.Errorf("From: %q %v", f, err)
	}
	if f, err := To(r); err != nil || f != "sip:b@handsets.example" {
		t.Errorf("To: %q %v", f, err)
	}
	if c, err := CallID(r); err != nil || c != "x" {
		t.Errorf("Call-ID: %q %v", c, err)
	}
	c := CancelOf(r)
	if c.Method != gosip.CANCEL || c.CSeq().SeqNo != 1 || c.CSeq().MethodName != gosip.CANCEL || c.Via().Value() != r.Via().Value() {
		t.Errorf("CANCEL:\n%s", c)
	}
	for name, text := range map[string]string{
		"two From":     head + from + from + to + id + seq,
		"two To":       head + from + to + to + id + seq,
		"no From":      head + to + id + seq,
		"no Call-ID":   head + from + to + seq,
		"two Call-ID":  head + from + to + id + "Call-ID: y\n" + seq,
		"long Call-ID": head + from + to + "Call-ID: " + strings.Repeat("x", maxCallID+1) + "\n" + seq,
		"odd Call-ID":  head + from + to + "Call-ID: a b\n" + seq,
	} {
		r := parseRequest(t, text+"\n")
		_, ferr := From(r)
		_, terr := To(r)
		_, cerr := CallID(r)
		if ferr == nil && terr == nil && cerr == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestPhrases(t *testing.T) {
	for _, n := range []int{100, 180, 200, 400, 403, 404, 405, 408, 480, 481, 483, 486, 487, 488, 503, 603} {
		if strings.HasPrefix(Phrase(n), "Status") {
			t.Errorf("%d has no phrase", n)
		}
	}
	if Phrase(499) != "Status 499" {
		t.Error("an unknown status has a phrase")
	}
}
