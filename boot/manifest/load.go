package manifest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// LoadFrom opens dir/policy by the keys in dir/policy.pub and returns the
// policy and the bundle's bytes as they were read, once, so that what was
// verified is what is used. The error wraps one of the reasons of this
// package.
func LoadFrom(dir string) (*Policy, []byte, error) {
	anchor, err := readBounded(filepath.Join(dir, AnchorFile), MaxAnchor)
	if err != nil {
		return nil, nil, err
	}
	bundle, err := readBounded(filepath.Join(dir, PolicyFile), MaxBundle)
	if err != nil {
		return nil, nil, err
	}
	p, err := OpenWith(anchor, bundle)
	if err != nil {
		return nil, nil, err
	}
	return p, bundle, nil
}

// LoadApproval reads dir/approval and verifies it by the policy's image keys.
func LoadApproval(dir string, p *Policy) (*Approval, error) {
	data, err := readBounded(filepath.Join(dir, ApprovalFile), MaxApproval)
	if err != nil {
		return nil, err
	}
	return p.OpenApproval(data)
}

// readBounded reads a file of at most max bytes; it never reads more than one
// byte over, whatever the file claims its size to be.
func readBounded(path string, max int) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: no file %s", ErrMissing, path)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: cannot open %s: %w", ErrMissing, path, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(max)+1))
	if err != nil {
		return nil, fmt.Errorf("%w: cannot read %s: %w", ErrMissing, path, err)
	}
	if len(data) > max {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrTooLarge, path, max)
	}
	return data, nil
}
