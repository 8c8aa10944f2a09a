package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFaultsOfABundleAreOnTheLinesOfTheFile: four lines of header stand before
// the document, and an editor counts them.
func TestFaultsOfABundleAreOnTheLinesOfTheFile(t *testing.T) {
	dir := t.TempDir()
	document := "{\n  \"version\": 1,\n  \"serial\": 99\n}\n"
	bundle := "rempart-policy 1\nkey " + strings.Repeat("00", 32) + "\nsignature AAAA\n\n" + document
	for name, c := range map[string]struct{ content, line string }{
		"bare": {document, ":3: serial: is 99"}, "bundle": {bundle, ":7: serial: is 99"}} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(c.content), 0o644); err != nil {
			t.Fatal(err)
		}
		code, _, errs := do("check", path)
		if code != 1 || !strings.Contains(errs, path+c.line) {
			t.Errorf("%s: %d, %s; want %s", name, code, errs, path+c.line)
		}
		lines := strings.Split(c.content, "\n")
		if !strings.Contains(lines[map[string]int{"bare": 3, "bundle": 7}[name]-1], "serial") {
			t.Errorf("%s: the serial is on another line of the test itself", name)
		}
	}
}

// TestExplainSaysWhatIsRefusedAndWhy: the sentences follow the rule, not the
// order of the document.
func TestExplainSaysWhatIsRefusedAndWhy(t *testing.T) {
	dir := vendor(t, "handset")
	path := filepath.Join(dir, "policy.json")
	document, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	more := `"apps": [
    {"name": "news", "reads": "public", "writes": "public"},
    {"name": "vault", "reads": "secret", "writes": "secret"},`
	if err := os.WriteFile(path, []byte(strings.Replace(string(document), `"apps": [`, more, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	code, out, errs := do("explain", path)
	if code != 0 {
		t.Fatal(errs)
	}
	for _, want := range []string{
		"news may send to wg0: news reads up to public and writes public, and wg0 is accredited for restricted.",
		"news may not receive from wg0: news may read up to public, and wg0 carries restricted.",
		"vault may not send to wg0: vault may read secret, and wg0 is accredited for restricted only.",
		"vault may receive from wg0: vault may read up to secret, and wg0 carries restricted.",
		"Any other app has no network",
		"The first unlock under it revokes every serial below 7",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("explain does not say %q:\n%s", want, out)
		}
	}
	for _, never := range []string{"CONFIDENTIAL", "approved by", "NIAP", "ANSSI", "%!"} {
		if strings.Contains(out, never) {
			t.Errorf("explain says %q", never)
		}
	}
}

// TestNothingSecretIsPrinted: no command prints a private key, whatever goes
// wrong.
func TestNothingSecretIsPrinted(t *testing.T) {
	dir := vendor(t, "handset")
	key := filepath.Join(dir, "policy")
	text, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) < 3 {
		t.Fatalf("the key file has %d lines", len(lines))
	}
	secret := lines[1]
	for _, args := range [][]string{
		{"check", key}, {"explain", key}, {"init", "-policy-key", key}, {"init", "-authority", key},
		{"sign", "-key", key, "-in", key, "-out", filepath.Join(dir, "out")},
		{"approve", "-key", key, "-image", filepath.Join(dir, "img"), "-out", filepath.Join(dir, "out")},
	} {
		code, out, errs := do(args...)
		if code == 0 {
			t.Errorf("%v was taken", args)
		}
		if strings.Contains(out+errs, secret) || strings.Contains(out+errs, "BEGIN PRIVATE KEY") {
			t.Errorf("%v printed the private key:\n%s%s", args, out, errs)
		}
	}
}
