package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"rempart/boot/manifest"
	"rempart/boot/manifest/load"
	"rempart/boot/predict"
	"rempart/internal/proof"
	"rempart/keystore/policy"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		program:       main,
		"mkauthority": makeAuthority,
	})
}

// makeAuthority is the command mkauthority FILE of the scripts.
func makeAuthority() {
	if err := writeAuthority(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// writeAuthority writes the certificate of a device authority; the real one
// is a process or a token of its own.
func writeAuthority(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0), BasicConstraintsValid: true, IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// minScripts keeps a lost folder from being taken for a pass.
const minScripts = 6

func TestScripts(t *testing.T) {
	const dir = "testdata/script"
	scripts, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil || len(scripts) < minScripts {
		t.Fatalf("found %d scripts in %s, %v; want %d at least", len(scripts), dir, err, minScripts)
	}
	testscript.Run(t, testscript.Params{Dir: dir, RequireExplicitExec: true})
}

// do runs a command and returns its exit code and both outputs.
func do(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = execute(args, &out, &errs)
	return code, out.String(), errs.String()
}

// vendor makes the keys and an image of a role in a new folder.
func vendor(t *testing.T, role string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must := func(args ...string) string {
		t.Helper()
		code, out, errs := do(args...)
		if code != 0 {
			t.Fatalf("%v: %s", args, errs)
		}
		return out
	}
	for _, name := range []string{"image", "policy"} {
		must("key", "-o", at(name))
	}
	if err := writeAuthority(at("authority.pem")); err != nil {
		t.Fatal(err)
	}
	document := must("init", "-role", role, "-image-key", at("image.pub"), "-policy-key", at("policy.pub"),
		"-authority", at("authority.pem"), "-tunnel-key", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "-serial", "7")
	for name, content := range map[string]string{"policy.json": document, "img/bin/init": "init", "img/bin/egressd": "egressd",
		"img/bin/keyd": "keyd", "img/bin/tunneld": "tunneld", "img/bin/watchd": "watchd", "img/bin/linkd": "linkd", "img/bin/voiced": "voiced", "img/bin/gatewayd": "gatewayd",
		"img/bin/rempart": "rempart", "img/etc/rempart/policy.pub": ""} {
		if err := os.MkdirAll(filepath.Dir(at(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at(name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	public, err := os.ReadFile(at("policy.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("img/etc/rempart/policy.pub"), public, 0o644); err != nil {
		t.Fatal(err)
	}
	must("sign", "-key", at("policy"), "-in", at("policy.json"), "-out", at("img/etc/rempart/policy"))
	return dir
}

// TestApprovalIsWhatTheKeystoreWillAskFor takes an approval apart as keyd and
// its TPM will: the digests are those of keystore/policy over the predicted
// values, and the signatures are over what PolicyAuthorize hashes.
func TestApprovalIsWhatTheKeystoreWillAskFor(t *testing.T) {
	proof.SFR(t, "FPT_TUD_EXT.2", "")
	for _, role := range []string{manifest.RoleHandset, manifest.RoleGateway} {
		dir := vendor(t, role)
		img := filepath.Join(dir, "img")
		out := filepath.Join(img, "etc/rempart/approval")
		if code, _, errs := do("approve", "-key", filepath.Join(dir, "image"), "-image", img, "-out", out); code != 0 {
			t.Fatal(errs)
		}
		p, _, err := load.Policy(filepath.Join(img, "etc/rempart"))
		if err != nil {
			t.Fatal(err)
		}
		a, err := load.Approval(filepath.Join(img, "etc/rempart"), p)
		if err != nil || a.Serial != 7 {
			t.Fatalf("%+v, %v", a, err)
		}
		values, err := predict.PCRs(predict.Image{Dir: img})
		if err != nil {
			t.Fatal(err)
		}
		for ref, selection := range map[string][]int{policy.RefBoot: {11, 13, 15}, policy.RefUser: {11, 13}} {
			approved, ok := a.For(ref)
			if !ok {
				t.Fatalf("%s: no approval %s", role, ref)
			}
			selected := map[int][32]byte{}
			for _, index := range selection {
				selected[index] = values[index]
			}
			want, err := policy.Inner(selected, 7)
			if err != nil || want != [32]byte(approved.Digest) || fmt.Sprint(approved.Values()) != fmt.Sprint(selected) {
				t.Errorf("%s %s: approved %s over %x, want %x over %x (%v)", role, ref, approved.Digest, approved.Values(), want, selected, err)
			}
			if approved.SignedHash() != policy.Approval(want, ref) {
				t.Errorf("%s %s: another hash was signed than the TPM verifies", role, ref)
			}
		}
		// The approval lies in the image that it approves, and a second run
		// still predicts the same.
		again, err := predict.PCRs(predict.Image{Dir: img})
		if err != nil || fmt.Sprint(again) != fmt.Sprint(values) {
			t.Errorf("%s: with its approval the image predicts %x, without %x (%v)", role, again, values, err)
		}
	}
}

// TestEveryCommandHelpsAndRefuses holds every command to the same manners: a
// help text, and one error line and one hint for a flag it does not know.
func TestEveryCommandHelpsAndRefuses(t *testing.T) {
	code, overview, _ := do("help")
	if code != 0 {
		t.Fatal("help fails")
	}
	for _, c := range commands() {
		if !strings.Contains(overview, c.about) {
			t.Errorf("help does not list %s", c.name)
		}
		for _, args := range [][]string{{"help", c.name}, {c.name, "-h"}, {c.name, "--help"}} {
			if code, out, errs := do(args...); code != 0 || !strings.Contains(out, "usage: rempart-policy "+c.name) || errs != "" {
				t.Errorf("%v: %d, %q, %q", args, code, out, errs)
			}
		}
		code, out, errs := do(c.name, "-nonsense")
		if lines := strings.Split(strings.TrimSpace(errs), "\n"); code != 1 || out != "" || len(lines) != 2 ||
			!strings.HasPrefix(lines[0], "rempart-policy: ") || !strings.HasPrefix(lines[1], "hint: ") {
			t.Errorf("%s -nonsense: %d, %q, %q", c.name, code, out, errs)
		}
	}
}

// TestDocumentHelpNamesEveryField keeps the words beside the document true.
func TestDocumentHelpNamesEveryField(t *testing.T) {
	_, document, _ := do("init", "-tunnel-key", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=")
	fields := 0
	for line := range strings.Lines(document) {
		name, _, ok := strings.Cut(strings.TrimSpace(line), `":`)
		if !ok {
			continue
		}
		fields++
		if name = strings.Trim(name, `"`); !strings.Contains(documentHelp, name) && name != "protocol" && name != "port" && name != "purpose" {
			t.Errorf("help document does not explain %s", name)
		}
	}
	if fields < 20 {
		t.Errorf("saw %d fields only", fields)
	}
}
