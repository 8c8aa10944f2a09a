package policy_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"rempart/internal/proof"
	"rempart/keystore/internal/tpmtest"
	"rempart/keystore/policy"
)

// tools runs tpm2-tools, the independent implementation, in a folder.
type tools struct {
	t    *testing.T
	dir  string
	tcti string
}

func (x tools) run(name string, args ...string) []byte {
	x.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = x.dir
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+x.tcti)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		x.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, errs.String())
	}
	return out
}

func (x tools) file(name string, data []byte) string {
	x.t.Helper()
	if err := os.WriteFile(filepath.Join(x.dir, name), data, 0o600); err != nil {
		x.t.Fatal(err)
	}
	return name
}

func (x tools) digest(name string) []byte {
	x.t.Helper()
	data, err := os.ReadFile(filepath.Join(x.dir, name))
	if err != nil {
		x.t.Fatal(err)
	}
	return data
}

func be(v uint64) []byte {
	b := make([]byte, 8)
	for i := range b {
		b[7-i] = byte(v >> (8 * i))
	}
	return b
}

func TestDigestsEqualThoseOfTPM2Tools(t *testing.T) {
	proof.Need(t, "tpm2_startup", "tpm2_nvdefine", "tpm2_nvsetbits", "tpm2_policynv", "tpm2_policyauthorize")
	x := tools{t: t, dir: t.TempDir(), tcti: tpmtest.New(t).Listen()}
	alive, floor := policy.AliveIndex.String(), policy.FloorIndex.String()
	const attributes = "ownerwrite|ownerread|authread|no_da|nt="

	x.run("tpm2_startup", "-c")
	x.run("tpm2_nvdefine", alive, "-C", "o", "-s", "8", "-a", attributes+"counter")
	x.run("tpm2_nvincrement", alive, "-C", "o")
	x.run("tpm2_nvdefine", floor, "-C", "o", "-s", "8", "-a", attributes+"bits")
	x.run("tpm2_nvsetbits", floor, "-C", "o", "-i", "1")
	for _, index := range []policy.Index{policy.AliveIndex, policy.FloorIndex} {
		name := policy.IndexName(index)
		if out := x.run("tpm2_nvreadpublic", index.String()); !strings.Contains(strings.ToLower(string(out)), hex.EncodeToString(name[:])) {
			t.Errorf("name of %v is not %x:\n%s", index, name, out)
		}
	}

	x.run("tpm2_pcrextend", "13:sha256="+strings.Repeat("ab", 32))
	read := x.run("tpm2_pcrread", "sha256:11,13", "-o", "pcrs")
	values := x.digest("pcrs")
	if len(values) != 64 {
		t.Fatalf("%d bytes of PCRs:\n%s", len(values), read)
	}
	pcrs := map[int][32]byte{11: [32]byte(values[:32]), 13: [32]byte(values[32:])}

	x.run("tpm2_startauthsession", "-S", "trial")
	x.run("tpm2_policypcr", "-S", "trial", "-l", "sha256:11,13")
	x.run("tpm2_policynv", "-S", "trial", "-C", floor, "-i", x.file("bit", be(1<<9)), floor, "bc", "-L", "inner")
	x.run("tpm2_flushcontext", "trial")
	inner, err := policy.Inner(pcrs, 9)
	if err != nil || !bytes.Equal(x.digest("inner"), inner[:]) {
		t.Errorf("inner: tools %x, ours %x, %v", x.digest("inner"), inner, err)
	}

	image, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	name, err := policy.KeyName(&image.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	counter := x.run("tpm2_nvread", alive, "-C", "o")
	value := uint64(0)
	for _, b := range counter {
		value = value<<8 | uint64(b)
	}
	for _, ref := range []string{policy.RefBoot, policy.RefUser} {
		x.run("tpm2_startauthsession", "-S", "trial")
		x.run("tpm2_policyauthorize", "-S", "trial", "-i", "inner", "-q", x.file("ref", []byte(ref)), "-n", x.file("name", name[:]))
		x.run("tpm2_policyauthvalue", "-S", "trial")
		x.run("tpm2_policynv", "-S", "trial", "-C", alive, "-i", x.file("counter", counter), alive, "eq", "-L", "outer")
		x.run("tpm2_flushcontext", "trial")
		if outer := policy.Outer(name, ref, value); !bytes.Equal(x.digest("outer"), outer[:]) {
			t.Errorf("outer of %s: tools %x, ours %x", ref, x.digest("outer"), outer)
		}
	}
}
