package e2e_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rempart/board/netns"
	"rempart/boot/manifest"
	"rempart/internal/proof"
)

// copyImage makes an image of its own of the handsets' one; the programs are the
// same files, and [replace] gives a copy.
func (w *world) copyImage(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if s := command(t, "", "cp", "-a", filepath.Join(w.state, "images", "handset"), dir); s.code != 0 {
		t.Fatal(s)
	}
	return dir
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// replace gives a file another content, nil for none.
func replace(t testing.TB, path string, data []byte) {
	t.Helper()
	st, err := os.Stat(path)
	if err == nil {
		err = os.Remove(path)
	}
	if err == nil && data != nil {
		err = os.WriteFile(path, data, st.Mode())
	}
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if os.IsNotExist(err) && data != nil {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// policyTool runs rempart-policy, which must work.
func (w *world) policyTool(t *testing.T, args ...string) {
	t.Helper()
	if s := command(t, "", filepath.Join(w.bin, "rempart-policy"), args...); s.code != 0 {
		t.Fatalf("rempart-policy %q: %s", args, s)
	}
}

// forced signs a document that rempart-policy would not sign.
func forced(t *testing.T, keyFile string, document []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(read(t, keyFile))
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	key := parsed.(*ecdsa.PrivateKey)
	id, err := manifest.KeyID(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(append([]byte("rempart policy v1\n"), document...))
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return (&manifest.Envelope{Key: id, Signature: signature, Document: document}).Marshal()
}

// badPolicies boots a handset with every kind of policy that must not be
// followed, captured from before power-on to after power-off.
func badPolicies(t *testing.T, w *world) {
	proof.SFR(t, "FPT_TUD_EXT.1", "TestMany")
	image := w.copyImage(t, "bad")
	file, anchor := filepath.Join(image, "etc/rempart/policy"), filepath.Join(image, "etc/rempart/policy.pub")
	good := read(t, file)
	header, document, _ := bytes.Cut(good, []byte("\n\n"))
	ours, other := filepath.Join(w.state, "keys", "policy"), filepath.Join(t.TempDir(), "other")
	w.policyTool(t, "key", "-o", other)
	edit := func(data []byte, old, new string) []byte {
		t.Helper()
		if !bytes.Contains(data, []byte(old)) {
			t.Fatalf("the policy has no %q", old)
		}
		return bytes.Replace(data, []byte(old), []byte(new), 1)
	}
	if _, err := w.Add(t.Context(), netns.Spec{Name: "bad", Role: "handset", Number: 99, Image: image}); err != nil {
		t.Fatal(err)
	}
	capture, err := w.Capture(t.Context(), filepath.Join(t.TempDir(), "bad.pcapng"))
	if err != nil {
		t.Fatal(err)
	}
	const missing = "\x00missing"
	for name, c := range map[string]struct {
		policy []byte
		reason string
	}{
		"missing":        {nil, "missing: no file /etc/rempart/policy"},
		"empty":          {[]byte{}, "cannot open the policy: garbled: the bundle is empty"},
		"garbled":        {[]byte("\x00\xffnonsense"), `cannot open the policy: garbled: the first line is not "rempart-policy 1"`},
		"oversized":      {append(bytes.Clone(good), make([]byte, 70<<10)...), "oversized: /etc/rempart/policy has more than"},
		"unsigned":       {document, "cannot open the policy: unsigned: a bare document, with no header"},
		"no signature":   {append([]byte(strings.Split(string(header), "signature")[0]), append([]byte("\n"), document...)...), "cannot open the policy: unsigned: the header has no signature"},
		"another key":    {forced(t, other, document), "cannot open the policy: signed by a key that is not trusted: "},
		"altered":        {edit(good, `"serial": 1`, `"serial": 2`), "cannot open the policy: wrongly signed"},
		"newer format":   {edit(good, "rempart-policy 1", "rempart-policy 2"), "cannot open the policy: unknown version: the bundle has format 2, this image reads 1"},
		"newer version":  {forced(t, ours, edit(document, `"version": 1`, `"version": 2`)), "cannot open the policy: unknown version: "},
		"unknown field":  {forced(t, ours, edit(document, `"serial": 1`, `"serial": 1, "leak": true`)), `cannot open the policy: garbled: line `},
		"without anchor": {[]byte(missing), "missing: no file /etc/rempart/policy.pub"},
		"header alone":   {[]byte("rempart-policy 1\nkey 00\nsignature AA==\n"), "cannot open the policy: garbled: no empty line after the header"},
	} {
		key := read(t, anchor)
		if string(c.policy) == missing {
			replace(t, anchor, nil)
			replace(t, file, good)
		} else {
			replace(t, file, c.policy)
		}
		if _, err := w.PowerOn(t.Context(), "bad"); err != nil {
			t.Fatal(err)
		}
		until(t, 10*time.Second, func() bool { return w.machine(t, "bad").State == netns.Off }, func() string { return name + ": it is on: " + w.console(t, "bad") })
		line := `init: cannot boot past step "policy": ` + c.reason
		until(t, time.Second, func() bool { return strings.Contains(w.console(t, "bad"), "\nhint: no link was brought up; ") },
			func() string { return name + ": no hint: " + w.console(t, "bad") })
		console := w.console(t, "bad")
		if !strings.Contains(console, "\n"+line) {
			t.Errorf("%s: the console has no line\n%s\n%s", name, line, console)
		}
		for _, never := range []string{"subject=keyd", "subject=radios outcome=success", "subject=tunneld", "gate.swap"} {
			if strings.Contains(console, never) {
				t.Errorf("%s: the console has %s:\n%s", name, never, console)
			}
		}
		replace(t, anchor, key)
	}
	result, err := capture.Stop()
	if err != nil || !result.Complete() {
		t.Errorf("the capture: %+v, %v", result, err)
	}
	seen := false
	for _, p := range result.Ports {
		if p.Port == "radio-bad" {
			seen = true
			if p.Frames != 0 {
				t.Errorf("%d frames left a handset without a policy", p.Frames)
			}
		}
	}
	if !seen {
		t.Error("the capture never had the handset's port")
	}
}
