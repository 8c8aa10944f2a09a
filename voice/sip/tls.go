package sip

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"rempart/keystore/client/identity"
)

// ClientTLS is how a handset speaks to its gateway: TLS 1.3 only, its LDevID,
// and a server that chains to the authority of the signed policy, is the DNS
// name of the domain and is certified as "sip:<domain>" (RFC 5922 §7). now is
// read at each handshake.
func ClientTLS(cert tls.Certificate, roots *x509.CertPool, domain string, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{cert},
		RootCAs:                roots,
		ServerName:             domain,
		Time:                   now,
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := PeerIdentity(cs, roots, now())
			if err != nil {
				return err
			}
			if id.URI != "sip:"+domain {
				return fmt.Errorf("cannot accept %q as the gateway of %q", id.URI, domain)
			}
			return nil
		},
	}
}

// ServerTLS is how the gateway speaks to handsets: TLS 1.3 only, and nobody
// without a certificate of the policy's authority. Every handshake is a full
// one, so that every connection proves its key.
func ServerTLS(cert tls.Certificate, roots *x509.CertPool, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{cert},
		ClientAuth:             tls.RequireAnyClientCert,
		Time:                   now,
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := PeerIdentity(cs, roots, now())
			return err
		},
	}
}

// PeerIdentity is the certified identity of the other end of a connection.
func PeerIdentity(cs tls.ConnectionState, roots *x509.CertPool, now time.Time) (identity.Identity, error) {
	chain := make([][]byte, 0, len(cs.PeerCertificates))
	for _, c := range cs.PeerCertificates {
		chain = append(chain, c.Raw)
	}
	id, _, err := identity.Verify(chain, roots, now)
	if err != nil {
		return identity.Identity{}, fmt.Errorf("cannot accept the peer's certificate: %w", err)
	}
	return id, nil
}
