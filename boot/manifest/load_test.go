package manifest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLoadFrom(t *testing.T) {
	w := newWorld(t)
	write := func(dir, name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	if _, _, err := LoadFrom(dir); !errors.Is(err, ErrMissing) {
		t.Errorf("an empty folder: %v, want %v", err, ErrMissing)
	}
	write(dir, AnchorFile, []byte(publicPEM(t, w.policy)))
	if _, _, err := LoadFrom(dir); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), filepath.Join(dir, PolicyFile)) {
		t.Errorf("no policy: %v, want %v and its path", err, ErrMissing)
	}
	bundle := w.bundle(t, w.document(t))
	write(dir, PolicyFile, bundle)
	p, read, err := LoadFrom(dir)
	if err != nil || p.Name != "example" || !bytes.Equal(read, bundle) {
		t.Fatalf("LoadFrom = %v, %d bytes, %v", p, len(read), err)
	}
	if _, err := LoadApproval(dir, p); !errors.Is(err, ErrMissing) {
		t.Errorf("no approval: %v, want %v", err, ErrMissing)
	}
	write(dir, ApprovalFile, marshal(t, approval(t, w.image)))
	if _, err := LoadApproval(dir, p); err != nil {
		t.Errorf("approval: %v", err)
	}
	next := *p
	next.Serial++
	if _, err := LoadApproval(dir, &next); !errors.Is(err, ErrInvalid) {
		t.Errorf("an approval of another serial: %v, want %v", err, ErrInvalid)
	}
	write(dir, ApprovalFile, marshal(t, approval(t, w.policy)))
	if _, err := LoadApproval(dir, p); !errors.Is(err, ErrWrongKey) {
		t.Errorf("an approval by the policy's key: %v, want %v", err, ErrWrongKey)
	}
	write(dir, PolicyFile, bytes.Repeat([]byte("x"), MaxBundle+1))
	if _, _, err := LoadFrom(dir); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a large policy: %v, want %v", err, ErrTooLarge)
	}
	write(dir, PolicyFile, bundle)
	write(dir, AnchorFile, []byte("-----BEGIN"))
	if _, _, err := LoadFrom(dir); !errors.Is(err, ErrGarbled) {
		t.Errorf("a garbled anchor: %v, want %v", err, ErrGarbled)
	}
	if err := os.Remove(filepath.Join(dir, PolicyFile)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, PolicyFile), 0o755); err != nil {
		t.Fatal(err)
	}
	write(dir, AnchorFile, []byte(publicPEM(t, w.policy)))
	if _, _, err := LoadFrom(dir); Reason(err) == "" {
		t.Errorf("a folder for a policy: %v has no reason", err)
	}
}
