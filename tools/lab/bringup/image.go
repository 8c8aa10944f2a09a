package bringup

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"rempart/board/netns"
	"rempart/boot/manifest"
	"rempart/boot/stage"
	"rempart/internal/atomicfile"
	"rempart/tools/lab/authority"
)

// integrator holds the keys of a lab and makes its images.
type integrator struct {
	state     string
	bin       string
	spare     bool
	authority *authority.Authority
}

func (in *integrator) key(name string) string { return filepath.Join(in.state, "keys", name) }

// tool runs rempart-policy and returns its standard output.
func (in *integrator) tool(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(in.bin, "rempart-policy"), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("rempart-policy %s: %w: %s", args[0], err, strings.TrimSpace(errs.String()))
	}
	return out.Bytes(), nil
}

// openIntegrator makes the lab's keys the first time and reads them later.
func openIntegrator(ctx context.Context, o Options) (*integrator, bool, error) {
	in := &integrator{state: o.State, bin: o.Bin, spare: o.Spare}
	if err := os.MkdirAll(filepath.Join(o.State, "keys"), 0o700); err != nil {
		return nil, false, fmt.Errorf("cannot keep the lab's keys: %w", err)
	}
	fresh := false
	for _, name := range []string{"image", "policy"} {
		if _, err := os.Stat(in.key(name)); errors.Is(err, fs.ErrNotExist) {
			fresh = true
			if _, err := in.tool(ctx, "key", "-o", in.key(name)); err != nil {
				return nil, false, err
			}
		}
	}
	if _, err := os.Stat(in.key("authority.pem")); errors.Is(err, fs.ErrNotExist) {
		fresh = true
		if err := in.found(); err != nil {
			return nil, false, err
		}
	}
	return in, fresh, in.readAuthority()
}

// found founds the lab's authority.
func (in *integrator) found() error {
	key, root, err := authority.NewRoot("Rempart lab authority", time.Now(), 10)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("cannot keep the authority's key: %w", err)
	}
	// The certificate last: it is what tells that both are there.
	return errors.Join(
		atomicfile.Write(in.key("authority"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600),
		atomicfile.Write(in.key("authority.pem"), certificatePEM(root), 0o644))
}

// readAuthority reads the lab's authority.
func (in *integrator) readAuthority() error {
	key, err := readPEM(in.key("authority"), "PRIVATE KEY")
	if err != nil {
		return err
	}
	root, err := readPEM(in.key("authority.pem"), "CERTIFICATE")
	if err != nil {
		return err
	}
	private, err := x509.ParsePKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("cannot read the authority's key: %w", err)
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return fmt.Errorf("cannot use the authority's key: a %T does not sign", private)
	}
	in.authority, err = authority.New(root, signer)
	return err
}

func certificatePEM(chain ...[]byte) []byte {
	var out []byte
	for _, der := range chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

func readPEM(path, kind string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the lab's keys: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("cannot read %s: it has no %s", path, strings.ToLower(kind))
	}
	return block.Bytes, nil
}

// document writes the policy of a role as an integrator would: the tool's
// example, the lab's keys by flags, and an edit.
func (in *integrator) document(ctx context.Context, role string, tunnelKey []byte) ([]byte, error) {
	args := []string{"init", "-role", role, "-image-key", in.key("image.pub"), "-policy-key", in.key("policy.pub"), "-authority", in.key("authority.pem")}
	if tunnelKey != nil {
		args = append(args, "-tunnel-key", base64.StdEncoding.EncodeToString(tunnelKey))
	}
	text, err := in.tool(ctx, args...)
	if err != nil {
		return nil, err
	}
	var doc map[string]any
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("cannot edit the policy: %w", err)
	}
	doc["name"] = "lab-" + role
	if apps, ok := doc["apps"].([]any); ok && role == stage.Handset {
		// Two apps of the person's own: one of the tunnel's level, one below.
		doc["apps"] = append(apps,
			map[string]any{"name": "notes", "reads": Level, "writes": Level},
			map[string]any{"name": "games", "reads": "public", "writes": "public"})
	}
	if apps, ok := doc["apps"].([]any); ok && role == stage.Gateway {
		// For measurements: who answers a handset must be an app too.
		doc["apps"] = append(apps, map[string]any{"name": "measure", "reads": Level, "writes": Level})
	}
	if gateways, ok := doc["gateways"].([]any); ok && in.spare && role == stage.Handset {
		doc["gateways"] = append(gateways, spare(gateways[0], tunnelKey))
	}
	text, err = json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("cannot edit the policy: %w", err)
	}
	return append(text, '\n'), nil
}

// spare is a gateway like the first, at an address where nobody is, with a key that nobody has.
func spare(first any, tunnelKey []byte) any {
	like, _ := first.(map[string]any) // as the tool writes it
	g := maps.Clone(like)
	radio := netns.RadioOf(SpareName, SpareNumber)
	var inner []string
	for _, a := range Inner(SpareNumber) {
		inner = append(inner, a.String())
	}
	key := sha256.Sum256(tunnelKey)
	g["name"], g["tunnel_key"] = SpareName, base64.StdEncoding.EncodeToString(key[:])
	g["addresses"], g["inner"] = []string{radio.V4.Addr().String(), radio.V6.Addr().String()}, inner
	return g
}

// folder is where the image of a role is.
func (in *integrator) folder(role string) string { return filepath.Join(in.state, "images", role) }

// image makes the image folder of a role, or brings it up to date: programs
// are copied anew, the policy is signed anew only if it says something else.
// It returns the folder and whether anything that is measured changed.
func (in *integrator) image(ctx context.Context, role string, tunnelKey []byte) (dir string, changed bool, err error) {
	dir = in.folder(role)
	for _, d := range []string{"bin", "dev", "etc/rempart", "proc", "run", "state", "sys"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return "", false, fmt.Errorf("cannot make image %s: %w", dir, err)
		}
	}
	names, err := programs(role)
	if err != nil {
		return "", false, err
	}
	for _, name := range names {
		copied, err := update(filepath.Join(in.bin, name), filepath.Join(dir, "bin", name), 0o755)
		if err != nil {
			return "", false, fmt.Errorf("cannot make image %s: %w", dir, err)
		}
		changed = changed || copied
	}
	document, err := in.document(ctx, role, tunnelKey)
	if err != nil {
		return "", false, err
	}
	conf := filepath.Join(dir, "etc", "rempart")
	anchored, err := update(in.key("policy.pub"), filepath.Join(conf, manifest.AnchorFile), 0o644)
	if err != nil {
		return "", false, fmt.Errorf("cannot make image %s: %w", dir, err)
	}
	bundle := filepath.Join(conf, manifest.PolicyFile)
	if old, err := os.ReadFile(bundle); anchored || err != nil || !bytes.HasSuffix(old, document) {
		changed = true
		source := filepath.Join(in.state, "images", role+"-policy.json")
		if err := atomicfile.Write(source, document, 0o644); err != nil {
			return "", false, err
		}
		if _, err := in.tool(ctx, "sign", "-key", in.key("policy"), "-in", source, "-out", bundle); err != nil {
			return "", false, err
		}
	}
	approval := filepath.Join(conf, manifest.ApprovalFile)
	if _, err := os.Stat(approval); changed || err != nil {
		changed = true
		if _, err := in.tool(ctx, "approve", "-key", in.key("image"), "-image", dir, "-out", approval); err != nil {
			return "", false, err
		}
	}
	return dir, changed, nil
}

// update copies a file if its content differs, and tells whether it did. A
// program that runs keeps its old file.
func update(from, to string, mode fs.FileMode) (bool, error) {
	data, err := os.ReadFile(from)
	if err != nil {
		return false, err
	}
	if same(to, data) {
		return false, nil
	}
	return true, atomicfile.Write(to, data, mode)
}

// same tells whether a file has exactly that content.
func same(path string, data []byte) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() != int64(len(data)) {
		return false
	}
	old, err := io.ReadAll(f)
	return err == nil && bytes.Equal(old, data)
}
