package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/netip"
	"time"

	"rempart/internal/secret"
	"rempart/keystore/client"
	"rempart/keystore/client/identity"
)

// credentials are what the tunnel needs of the keystore.
type credentials struct {
	key    *secret.Bytes // taken by the device, which wipes it
	public [32]byte      // the tunnel key that the certificate vouches for
	inner  []netip.Addr
}

// keyd fetches credentials over its socket.
type keyd struct {
	client *client.Client
	roots  *x509.CertPool
}

// Fetch waits for the vault to open, however long that takes, and returns the
// tunnel key and who this device is. The certificate is verified before the key
// is asked for.
func (k *keyd) Fetch(ctx context.Context) (credentials, error) {
	if err := k.client.WaitOpen(ctx); err != nil {
		return credentials{}, err
	}
	chain, err := k.client.Certificate(ctx)
	if err != nil {
		return credentials{}, fmt.Errorf("cannot get the certificate: %w", err)
	}
	id, _, err := identity.Verify(chain, k.roots, time.Now())
	if err != nil {
		return credentials{}, err
	}
	key, err := k.client.TunnelKey(ctx)
	if err != nil {
		return credentials{}, fmt.Errorf("cannot get the tunnel key: %w", err)
	}
	return credentials{key: key, public: id.TunnelKey, inner: id.Inner}, nil
}
