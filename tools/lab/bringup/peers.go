package bringup

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"rempart/internal/atomicfile"
	"rempart/keystore/client/identity"
)

// certified reads back who the authority said a machine is.
func (l *lab) certified(name string) (identity.Identity, error) {
	data, err := os.ReadFile(l.certificateFile(name))
	if err != nil {
		return identity.Identity{}, fmt.Errorf("cannot read the certificate of %s: %w", name, err)
	}
	var chain [][]byte
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		chain = append(chain, block.Bytes)
	}
	root, err := x509.ParseCertificate(l.in.authority.Root())
	if err != nil {
		return identity.Identity{}, fmt.Errorf("cannot read the authority's root: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	id, _, err := identity.Verify(chain, roots, time.Now())
	if err != nil {
		return identity.Identity{}, fmt.Errorf("cannot use the certificate of %s: %w", name, err)
	}
	return id, nil
}

// introduce puts a handset's certificate into the gateway's enrolment folder,
// where gatewayd looks for it.
func (l *lab) introduce(ctx context.Context, name string) error {
	gateway, err := l.w.Machine(ctx, GatewayName)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(l.certificateFile(name))
	if err != nil {
		return fmt.Errorf("cannot introduce %s to the gateway: %w", name, err)
	}
	dir := filepath.Join(gateway.Paths.State, "gatewayd", "peers")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot introduce %s to the gateway: %w", name, err)
	}
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chown(d, uidGatewayd, uidGatewayd); err != nil {
			return fmt.Errorf("cannot introduce %s to the gateway: %w", name, err)
		}
	}
	file := filepath.Join(dir, name+".pem")
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, data) {
		return nil
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot introduce %s to the gateway: %w", name, err)
	}
	if err := atomicfile.Write(file, data, 0o644); err != nil {
		return fmt.Errorf("cannot introduce %s to the gateway: %w", name, err)
	}
	l.say("gateway: told of %s", name)
	return nil
}
