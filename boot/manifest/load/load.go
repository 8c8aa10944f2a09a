// Package load reads the signed documents of an image from its folder. It
// stands apart from package manifest so that the parsers of hostile input,
// and the rules over what they return, reach no file system.
package load

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"rempart/boot/manifest"
)

// Policy opens dir/policy by the keys in dir/policy.pub and returns the policy
// and the bundle's bytes as they were read, once, so that what was verified
// is what is used. The error wraps one of package manifest's reasons.
func Policy(dir string) (*manifest.Policy, []byte, error) {
	anchor, err := read(filepath.Join(dir, manifest.AnchorFile), manifest.MaxAnchor)
	if err != nil {
		return nil, nil, err
	}
	bundle, err := read(filepath.Join(dir, manifest.PolicyFile), manifest.MaxBundle)
	if err != nil {
		return nil, nil, err
	}
	p, err := manifest.OpenWith(anchor, bundle)
	if err != nil {
		return nil, nil, err
	}
	return p, bundle, nil
}

// Approval reads dir/approval and verifies it for the policy
// ([manifest.Policy.OpenApproval]).
func Approval(dir string, p *manifest.Policy) (*manifest.Approval, error) {
	data, err := read(filepath.Join(dir, manifest.ApprovalFile), manifest.MaxApproval)
	if err != nil {
		return nil, err
	}
	return p.OpenApproval(data)
}

// read reads a file of at most max bytes; it never reads more than one byte
// over, whatever the file claims its size to be.
func read(path string, max int) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: no file %s", manifest.ErrMissing, path)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: cannot open %s: %w", manifest.ErrMissing, path, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(max)+1))
	if err != nil {
		return nil, fmt.Errorf("%w: cannot read %s: %w", manifest.ErrMissing, path, err)
	}
	if len(data) > max {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", manifest.ErrTooLarge, path, max)
	}
	return data, nil
}
