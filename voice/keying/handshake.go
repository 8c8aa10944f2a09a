package keying

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"

	"rempart/keystore/client/identity"
)

// protocol is the application protocol (ALPN, RFC 7301) of the agreement and its version.
const protocol = "rempart-keying/1"

// group is the one key exchange: ML-KEM-768 with X25519.
const group = tls.X25519MLKEM768

// peer is what the handshake learns about the other side.
type peer struct {
	identity identity.Identity
	digest   [32]byte
}

// verifier returns the check that both ends run on the other's certificate before any of their own data leaves. It is the whole
// of the verification: crypto/tls's own is for web servers' names, which handsets do not have.
func verifier(p Params, into *peer) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		chain := make([][]byte, len(state.PeerCertificates))
		for i, c := range state.PeerCertificates {
			chain[i] = c.Raw
		}
		if len(chain) == 0 {
			return fmt.Errorf("%w: it has none", ErrNotOurAuthority)
		}
		id, leaf, err := identity.Verify(chain, p.Roots, p.Now())
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNotOurAuthority, err)
		}
		if id.URI != p.DialledName {
			return fmt.Errorf("%w: it is %s", ErrNotDialledName, id.URI)
		}
		into.identity, into.digest = id, sha256.Sum256(leaf.Raw)
		return nil
	}
}

// secure runs the TLS handshake.
func secure(ctx context.Context, conn net.Conn, p Params, as role, into *peer) (*tls.Conn, error) {
	config := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		MaxVersion:             tls.VersionTLS13,
		CurvePreferences:       []tls.CurveID{group},
		Certificates:           []tls.Certificate{p.Certificate},
		NextProtos:             []string{protocol},
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true, // VerifyConnection is the verification, on both sides and on every connection
		VerifyConnection:       verifier(p, into),
		Time:                   p.Now,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if !slices.Contains(hello.SupportedCurves, group) {
				return nil, ErrWrongGroup
			}
			return nil, nil
		},
	}
	secured := tls.Client(conn, config)
	if as == callee {
		secured = tls.Server(conn, config)
	}
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, reason(err)
	}
	return secured, nil
}

// checkState holds what was negotiated against what was asked for, so that a default that changes in crypto/tls is an error here.
func checkState(state tls.ConnectionState) error {
	switch {
	case state.Version != tls.VersionTLS13:
		return fmt.Errorf("%w: %s", ErrProtocol, tls.VersionName(state.Version))
	case state.CurveID != group:
		return fmt.Errorf("%w: it was %v", ErrWrongGroup, state.CurveID)
	case state.DidResume:
		return fmt.Errorf("%w: a resumed connection", ErrProtocol)
	case state.NegotiatedProtocol != protocol:
		return fmt.Errorf("%w: application protocol %q", ErrProtocol, state.NegotiatedProtocol)
	}
	return nil
}

// handshakeFailure is the alert of a TLS 1.3 server that shares no group with a client (RFC 8446 §4.1.1). Nothing else that we
// offer leaves a choice.
const handshakeFailure = tls.AlertError(40)

// reason makes an alert of the other side one of our errors.
func reason(err error) error {
	var remote *net.OpError
	if !errors.As(err, &remote) || remote.Op != "remote error" {
		return err
	}
	// crypto/tls does not export the type of an alert that came over TCP; its text is that of tls.AlertError.
	if remote.Err.Error() == handshakeFailure.Error() {
		return fmt.Errorf("%w: %w", ErrWrongGroup, err)
	}
	return fmt.Errorf("%w: %w", ErrPeerRefused, err)
}
