package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rempart/boot/manifest"
	"rempart/boot/manifest/load"
	"rempart/boot/predict"
	"rempart/boot/stage"
	"rempart/internal/proof"
	"rempart/keystore/policy"
)

// desk is a software TPM with tpm2-tools, which share nothing with our code.
type desk struct {
	t   *testing.T
	dir string
	env []string
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	proof.Need(t, "swtpm", "tpm2_pcrextend", "tpm2_policyauthorize")
	// Not t.TempDir: a socket's path has 108 bytes at most.
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,path="+socket,
		"--ctrl", "type=unixio,path="+socket+".ctrl", "--flags", "not-need-init,startup-clear")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, server := os.Stat(socket)
		_, ctrl := os.Stat(socket + ".ctrl")
		if server == nil && ctrl == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("swtpm did not open its sockets within 10 s")
		}
	}
	return &desk{t, dir, append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+socket)}
}

func (d *desk) try(tool string, args ...string) error {
	cmd := exec.Command(tool, args...)
	cmd.Dir, cmd.Env = d.dir, d.env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %q: %w: %s", tool, args, err, out)
	}
	return nil
}

func (d *desk) do(tool string, args ...string) {
	d.t.Helper()
	if err := d.try(tool, args...); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) file(name string, content []byte) string {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.dir, name), content, 0o600); err != nil {
		d.t.Fatal(err)
	}
	return name
}

// satisfy runs the approved policy in a real session: PolicyPCR, PolicyNV,
// PolicyAuthorize with the ticket of the approval's signature.
func (d *desk) satisfy(approved manifest.Approved, serial int) error {
	d.t.Helper()
	operand := d.file("operand", binary.BigEndian.AppendUint64(nil, policy.SerialBit(serial)))
	inner := d.file("inner", approved.Digest[:])
	signature := []byte{0, 0x18, 0, 0x0b} // TPMT_SIGNATURE: ECDSA, SHA-256, then r and s with their sizes
	for _, half := range [][]byte{approved.Signature.R(), approved.Signature.S()} {
		signature = append(binary.BigEndian.AppendUint16(signature, uint16(len(half))), half...)
	}
	d.do("tpm2_verifysignature", "-c", "key.ctx", "-g", "sha256", "-m", d.file("message", append(approved.Digest[:], approved.Ref...)),
		"-s", d.file("signature", signature), "-t", "ticket")
	d.do("tpm2_flushcontext", "-t") // the tools leave what they load, and there are three slots
	d.do("tpm2_startauthsession", "--policy-session", "-S", "session")
	defer d.do("tpm2_flushcontext", "session")
	var list string
	for i, pcr := range approved.PCRs {
		list += fmt.Sprintf("%s%d", map[bool]string{true: "sha256:", false: ","}[i == 0], pcr.Index)
	}
	d.do("tpm2_policypcr", "-S", "session", "-l", list)
	if err := d.try("tpm2_policynv", "-S", "session", "-i", operand, "-C", "o", policy.FloorIndex.String(), "bc"); err != nil {
		return err
	}
	return d.try("tpm2_policyauthorize", "-S", "session", "-i", inner, "-q", fmt.Sprintf("%x", approved.Ref), "-n", "key.name", "-t", "ticket")
}

// The TPM's answers (TPM 2.0 Part 2 §6.6.3), as the tools print them.
const (
	otherPCRs = "0x1C4" // TPM_RC_VALUE of parameter 1, from PolicyAuthorize: the session is not at the approved digest
	revoked   = "0x126" // TPM_RC_POLICY, from PolicyNV: the bit is set
)

// refused wants err to be the TPM's refusal of that code, and not a tool that
// failed for another reason.
func refused(t *testing.T, what string, err error, code string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), code) {
		t.Errorf("%s: got %v, want the TPM to answer %s", what, err, code)
	}
}

// TestATPMTakesTheApproval plays a boot of the image on a software TPM by
// tpm2-tools alone and lets the TPM judge the approval, then changes one
// thing at a time.
func TestATPMTakesTheApproval(t *testing.T) {
	proof.SFR(t, "FPT_TUD_EXT.5", "")
	d := newDesk(t)
	dir := vendor(t, manifest.RoleHandset)
	img := filepath.Join(dir, "img")
	conf := filepath.Join(img, "etc/rempart")
	if code, _, errs := do("approve", "-key", filepath.Join(dir, "image"), "-image", img, "-out", filepath.Join(conf, "approval")); code != 0 {
		t.Fatal(errs)
	}
	p, _, err := load.Policy(conf)
	if err != nil {
		t.Fatal(err)
	}
	a, err := load.Approval(conf, p)
	if err != nil {
		t.Fatal(err)
	}
	boot, _ := a.For(manifest.RefBoot)
	user, _ := a.For(manifest.RefUser)

	keys, err := p.Keys.ImageKeys()
	if err != nil {
		t.Fatal(err)
	}
	area, err := policy.KeyPublic(keys[0])
	if err != nil {
		t.Fatal(err)
	}
	public := append(binary.BigEndian.AppendUint16(nil, uint16(len(area))), area...)
	d.do("tpm2_loadexternal", "-C", "o", "-u", d.file("key.pub", public), "-c", "key.ctx", "-n", "key.name")
	d.do("tpm2_flushcontext", "-t")
	d.do("tpm2_nvdefine", policy.FloorIndex.String(), "-C", "o", "-s", "8", "-g", "sha256", "-a", "nt=bits|ownerwrite|ownerread|authread|no_da")
	d.do("tpm2_nvsetbits", policy.FloorIndex.String(), "-C", "o", "-i", "0x1")

	refused(t, "before anything was measured", d.satisfy(boot, a.Serial), otherPCRs)
	events, err := predict.Events(predict.Image{Dir: img})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		d.do("tpm2_pcrextend", fmt.Sprintf("%d:sha256=%x", e.PCR, e.Digest))
	}
	for _, approved := range []manifest.Approved{boot, user} {
		if err := d.satisfy(approved, a.Serial); err != nil {
			t.Errorf("the TPM refuses %s: %v", approved.Ref, err)
		}
	}
	d.do("tpm2_pcrextend", fmt.Sprintf("%d:sha256=%064x", stage.PCRCap, 1))
	refused(t, "boot secrets after the cap", d.satisfy(boot, a.Serial), otherPCRs)
	if err := d.satisfy(user, a.Serial); err != nil {
		t.Errorf("the TPM refuses %s after the cap: %v", user.Ref, err)
	}

	d.do("tpm2_nvsetbits", policy.FloorIndex.String(), "-C", "o", "-i", fmt.Sprintf("%#x", policy.FloorFor(a.Serial)))
	if err := d.satisfy(user, a.Serial); err != nil {
		t.Errorf("the TPM refuses serial %d after every lower one was revoked: %v", a.Serial, err)
	}
	d.do("tpm2_nvsetbits", policy.FloorIndex.String(), "-C", "o", "-i", fmt.Sprintf("%#x", policy.SerialBit(a.Serial)))
	refused(t, "a revoked serial", d.satisfy(user, a.Serial), revoked)
	if err := manifest.CheckFloor(a.Serial, policy.FloorFor(a.Serial+1)); err == nil {
		t.Error("CheckFloor and the TPM disagree")
	}
}
