package manifest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"rempart/internal/proof"
)

func TestOpenReturnsWhatWasSigned(t *testing.T) {
	w := newWorld(t)
	p, err := Open(w.bundle(t, w.document(t)), []*ecdsa.PublicKey{&newKey(t).PublicKey, &w.policy.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	if p.Serial != 3 || p.Role != RoleHandset || p.Domain != "handsets.example" {
		t.Errorf("policy is %+v", p)
	}
	wantInner := []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")}
	if !reflect.DeepEqual(p.Networks[0].Inner, wantInner) {
		t.Errorf("inner is %v, want %v", p.Networks[0].Inner, wantInner)
	}
	g := p.Gateways[0]
	if g.TunnelKey != (Key32(bytes.Repeat([]byte{1}, 32))) || len(g.Addresses) != 2 || len(g.Inner) != 2 {
		t.Errorf("gateway is %+v", g)
	}
	if want := (Service{"tcp", 7371, PurposeAttestation}); len(g.Services) != 2 || g.Services[1] != want {
		t.Errorf("services are %+v, want the second to be %+v", g.Services, want)
	}
	if rank, ok := p.Level("restricted"); rank != 1 || !ok {
		t.Errorf("Level(restricted) = %d, %v", rank, ok)
	}
	if _, ok := p.Level("top"); ok {
		t.Error("Level knows a level that the policy has not")
	}
	if n, ok := p.Network("wg0"); !ok || n.Accredited != "restricted" {
		t.Errorf("Network(wg0) = %+v, %v", n, ok)
	}
	if _, ok := p.Network("wwan0"); ok {
		t.Error("Network knows a network that the policy has not")
	}
}

// TestMarshalledPolicyOpens shows that a program may write a policy by
// encoding the value, as the lab does.
func TestMarshalledPolicyOpens(t *testing.T) {
	w := newWorld(t)
	trusted := []*ecdsa.PublicKey{&w.policy.PublicKey}
	for _, role := range []string{RoleHandset, RoleGateway} {
		p, err := Open(w.bundle(t, w.document(t)), trusted)
		if err != nil {
			t.Fatal(err)
		}
		p.Role = role
		if role == RoleGateway {
			p.Gateways[0].TunnelKey = Key32{}
		}
		doc, err := json.MarshalIndent(p, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(doc), "tunnel_key") != (role == RoleHandset) {
			t.Errorf("role %s: a zero tunnel key is written, or a key is not:\n%s", role, doc)
		}
		again, err := Open(w.bundle(t, string(doc)), trusted)
		if err != nil {
			t.Fatalf("role %s: %v", role, err)
		}
		if !reflect.DeepEqual(p, again) {
			t.Errorf("role %s: %+v became %+v", role, p, again)
		}
	}
}

// faulty is a bundle with one fault, and the reason to refuse it.
type faulty struct {
	name   string
	bundle string
	want   error
}

func faultyBundles(t testing.TB, w *world) []faulty {
	t.Helper()
	doc := w.document(t)
	good := string(w.bundle(t, doc))
	lines := strings.SplitN(good, "\n", 4) // magic, key, signature, rest
	other := newKey(t)
	byOther, err := Sign([]byte(doc), other)
	if err != nil {
		t.Fatal(err)
	}
	id, err := KeyID(&w.policy.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	claimed := strings.Replace(string(byOther), strings.SplitN(string(byOther), "\n", 3)[1], "key "+hex.EncodeToString(id[:]), 1)
	unlabelled := sha256.Sum256([]byte(doc))
	sig, err := ecdsa.SignASN1(rand.Reader, w.policy, unlabelled[:])
	if err != nil {
		t.Fatal(err)
	}
	return []faulty{
		{"empty", "", ErrGarbled},
		{"noise", "\x7fELF\x02\x01\x01", ErrGarbled},
		{"a bare document", doc, ErrUnsigned},
		{"a bare document after space", "\n " + doc, ErrUnsigned},
		{"no key and no signature", "rempart-policy 1\n\n" + doc, ErrUnsigned},
		{"no signature", lines[0] + "\n" + lines[1] + "\n\n" + doc, ErrUnsigned},
		{"an empty signature", lines[0] + "\n" + lines[1] + "\nsignature \n\n" + doc, ErrUnsigned},
		{"a later format", strings.Replace(good, "rempart-policy 1", "rempart-policy 2", 1), ErrVersion},
		{"a format that is no number", strings.Replace(good, "rempart-policy 1", "rempart-policy one", 1), ErrGarbled},
		{"CRLF", strings.Replace(good, "\n", "\r\n", 3), ErrGarbled},
		{"a fourth line", strings.Replace(good, "\n\n", "\nmore\n\n", 1), ErrGarbled},
		{"an upper-case key", strings.Replace(good, lines[1], "key "+strings.ToUpper(lines[1][4:]), 1), ErrGarbled},
		{"a short key", strings.Replace(good, lines[1], lines[1][:40], 1), ErrGarbled},
		{"swapped lines", lines[0] + "\n" + lines[2] + "\n" + lines[1] + "\n" + lines[3], ErrGarbled},
		{"no base64", strings.Replace(good, lines[2], "signature !!!!", 1), ErrGarbled},
		{"a header without end", lines[0] + "\n" + lines[1] + "\n" + lines[2], ErrGarbled},
		{"a long header", strings.Replace(good, lines[2], "signature "+strings.Repeat("AAAA", 100), 1), ErrTooLarge},
		{"a document too long", lines[0] + "\n" + lines[1] + "\n" + lines[2] + "\n\n" + strings.Repeat(" ", MaxDocument+1), ErrTooLarge},
		{"far too long", strings.Repeat("x", MaxBundle+1), ErrTooLarge},
		{"another's signature", string(byOther), ErrWrongKey},
		{"another's signature in our name", claimed, ErrBadSignature},
		{"one changed byte", strings.Replace(good, `"serial": 3`, `"serial": 4`, 1), ErrBadSignature},
		{"one byte more", good + " ", ErrBadSignature},
		{"a signature over the bare document", string((&Envelope{Key: id, Signature: sig, Document: []byte(doc)}).Marshal()), ErrBadSignature},
		{"a signature that is no DER", strings.Replace(good, lines[2], "signature AAAA", 1), ErrBadSignature},
		{"signed noise", string(w.bundle(t, "not json")), ErrGarbled},
		{"a signed unknown field", string(w.bundle(t, strings.Replace(doc, `"serial": 3,`, `"serial": 3, "guards": [],`, 1))), ErrGarbled},
		{"a signed later version", string(w.bundle(t, `{"version": 2, "guards": []}`)), ErrVersion},
		{"a signed fault", string(w.bundle(t, strings.Replace(doc, `"serial": 3`, `"serial": 64`, 1))), ErrInvalid},
		{"signed nothing", string(w.bundle(t, "")), ErrGarbled},
		{"a signed null", string(w.bundle(t, "null")), ErrInvalid},
	}
}

func TestOpenRefuses(t *testing.T) {
	proof.SFR(t, "FPT_TST_EXT.1", "TestOpenReturnsWhatWasSigned")
	w := newWorld(t)
	good := w.bundle(t, w.document(t))
	cases := faultyBundles(t, w)
	for _, c := range cases {
		p, err := Open([]byte(c.bundle), []*ecdsa.PublicKey{&w.policy.PublicKey})
		if p != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, %v; want %v", c.name, p, err, c.want)
			continue
		}
		if got := Reason(err); got != c.want.Error() {
			t.Errorf("%s: reason %q, want %q", c.name, got, c.want)
		}
	}
	if _, err := Open(good, nil); !errors.Is(err, ErrWrongKey) {
		t.Errorf("with no trusted key: %v, want %v", err, ErrWrongKey)
	}
	if _, err := Open(good, []*ecdsa.PublicKey{nil}); !errors.Is(err, ErrWrongKey) {
		t.Errorf("with a nil trusted key: %v, want %v", err, ErrWrongKey)
	}
	if got := Reason(io.EOF); got != "" {
		t.Errorf("Reason(EOF) = %q", got)
	}
}

// lying returns a signature over something else.
type lying struct{ *ecdsa.PrivateKey }

func (l lying) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	other := sha256.Sum256(digest)
	return l.PrivateKey.Sign(r, other[:], opts)
}

func TestSignRefusesOtherKeysAndFalseSigners(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"P-384": p384, "Ed25519": ed, "a lying signer": lying{newKey(t)}} {
		if b, err := Sign([]byte("{}"), key); err == nil {
			t.Errorf("%s signed %q", name, b)
		}
		if a, err := Approve(RefBoot, map[int][32]byte{11: {}}, [32]byte{}, key); err == nil {
			t.Errorf("%s approved %v", name, a)
		}
	}
	if _, err := Sign(make([]byte, MaxDocument+1), newKey(t)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("oversized: %v, want %v", err, ErrTooLarge)
	}
}

func TestCheckFloor(t *testing.T) {
	proof.SFR(t, "FPT_TUD_EXT.5", "")
	for serial := -2; serial <= 66; serial++ {
		for bit := range 64 {
			err := CheckFloor(serial, 1<<bit)
			var want error
			switch {
			case serial < 1 || serial > 63:
				want = ErrInvalid
			case serial == bit:
				want = ErrRevoked
			}
			if !errors.Is(err, want) {
				t.Errorf("CheckFloor(%d, bit %d) = %v, want %v", serial, bit, err, want)
			}
		}
	}
	if err := CheckFloor(5, 0x1f); err != nil {
		t.Errorf("every older serial revoked: %v", err)
	}
}

func TestKey32(t *testing.T) {
	var k Key32
	for _, bad := range []string{"", "AQ==", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQF=",
		"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n"} {
		if err := k.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("read %q as %s", bad, k)
		}
	}
	if !k.IsZero() {
		t.Errorf("a failed read left %s", k)
	}
	const text = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
	if err := k.UnmarshalText([]byte(text)); err != nil || k.String() != text {
		t.Errorf("%s became %s, %v", text, k, err)
	}
}

func TestKeysOfARole(t *testing.T) {
	w := newWorld(t)
	p, err := Open(w.bundle(t, w.document(t)), []*ecdsa.PublicKey{&w.policy.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	image, err := p.Keys.ImageKeys()
	if err != nil || len(image) != 1 || !image[0].Equal(&w.image.PublicKey) {
		t.Errorf("image keys %v, %v", image, err)
	}
	policy, err := p.Keys.PolicyKeys()
	if err != nil || len(policy) != 1 || !policy[0].Equal(&w.policy.PublicKey) {
		t.Errorf("policy keys %v, %v", policy, err)
	}
	if _, err := p.Keys.Roots(); err != nil {
		t.Errorf("roots: %v", err)
	}
	if _, err := (Keys{Image: []string{"no"}}).ImageKeys(); err == nil {
		t.Error("read a key that is none")
	}
	if _, err := (Keys{Authority: []string{"no"}}).Roots(); err == nil {
		t.Error("read a root that is none")
	}
}

func TestParsePublicKeys(t *testing.T) {
	a, b := publicPEM(t, newKey(t)), publicPEM(t, newKey(t))
	if keys, err := ParsePublicKeys([]byte(a + b)); err != nil || len(keys) != 2 {
		t.Errorf("two keys gave %d, %v", len(keys), err)
	}
	for name, text := range map[string]string{"nothing": " \n", "a note before": "note\n" + a, "a note after": a + "note\n",
		"a note between": a + "note\n" + b, "a certificate": certificate(t, true),
		"headers": strings.Replace(a, "-----\n", "-----\nA: b\n\n", 1)} {
		if keys, err := ParsePublicKeys([]byte(text)); err == nil {
			t.Errorf("%s: read %d keys", name, len(keys))
		}
	}
}

// FuzzBundle: parsing is total, and a bundle has one spelling.
func FuzzBundle(f *testing.F) {
	w := newWorld(f)
	good := w.bundle(f, w.document(f))
	f.Add(good)
	f.Add([]byte("rempart-policy 1\n\n{}"))
	f.Add(bytes.Replace(good, []byte("\n"), []byte("\r\n"), 1))
	f.Add([]byte("rempart-policy 1\nkey 00\nsignature AA\n\n"))
	f.Fuzz(func(t *testing.T, bundle []byte) {
		e, err := Parse(bundle)
		if (e == nil) == (err == nil) {
			t.Fatalf("Parse gave %v and %v", e, err)
		}
		if err != nil {
			if Reason(err) == "" {
				t.Fatalf("no reason in %v", err)
			}
			return
		}
		if again := e.Marshal(); !bytes.Equal(again, bundle) {
			t.Fatalf("%q became %q", bundle, again)
		}
	})
}
