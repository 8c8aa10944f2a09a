package keying

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"rempart/internal/secret"
	"rempart/keystore/client/identity"
)

const (
	// KeySize is the length of one direction's key, in bytes: a master key of 32 and a master salt of 12 for
	// AEAD_AES_256_GCM (RFC 7714 §12).
	KeySize = 32 + 12
	// DefaultTimeout bounds the whole agreement unless Params says otherwise.
	DefaultTimeout = 5 * time.Second

	maxName = 256 // bytes of a Call-ID or a name
)

// The reasons for which a call fails here. No key exists after any of them.
var (
	// ErrNotOurAuthority: the other party's certificate is not of the device authority, or is malformed.
	ErrNotOurAuthority = errors.New("the other party's certificate is not of our authority")
	// ErrNotDialledName: the certificate is good and names somebody else.
	ErrNotDialledName = errors.New("the other party is not the one that was dialled")
	// ErrWrongGroup: the key exchange would not have been X25519MLKEM768.
	ErrWrongGroup = errors.New("the other party does not agree keys with X25519MLKEM768")
	// ErrCommitment: the caller's number is not the one it committed to: somebody tries to choose the short
	// authentication string.
	ErrCommitment = errors.New("the caller did not keep its commitment")
	// ErrLevel: there is no level for this call, or the two sides see different ones.
	ErrLevel = errors.New("no level is agreed for the call")
	// ErrOtherCall: the two sides do not mean the same call, names or certificates.
	ErrOtherCall = errors.New("the two parties do not see the same call")
	// ErrPeerRefused: the other side ended the agreement without saying why.
	ErrPeerRefused = errors.New("the other party refused")
	// ErrTooSlow: the agreement was not finished in time.
	ErrTooSlow = errors.New("the other party did not answer in time")
	// ErrProtocol: the other side sent what the protocol does not have.
	ErrProtocol = errors.New("the other party does not follow the protocol")
)

// Params is what one side knows about the call. All fields without a default are required.
type Params struct {
	// CallID is the Call-ID of the SIP dialogue, at most 256 bytes.
	CallID string
	// Local is this side's own SIP URI, as the other side dialled it or was told: "sip:a@handsets.example".
	Local string
	// DialledName is the other side's SIP URI: the one dialled, or on the callee's side the one that calls.
	DialledName string
	// Certificate is this side's LDevID chain and key (keystore/client.TLSCertificate).
	Certificate tls.Certificate
	// Roots is the device authority.
	Roots *x509.CertPool
	// Level returns the level of a call between the two, or the reason why there is none (vpn/levels).
	Level func(local, peer identity.Identity) (string, error)
	// Now is the time certificates are checked at; nil is time.Now.
	Now func() time.Time
	// Timeout bounds the whole agreement; 0 is DefaultTimeout.
	Timeout time.Duration
}

// Result is what the two sides have in common after an agreement.
type Result struct {
	// SendKey and ReceiveKey are KeySize bytes: master key, master salt. The holder wipes them.
	SendKey, ReceiveKey *secret.Bytes
	// SendSSRC and ReceiveSSRC are the synchronisation sources of the two directions, never 0.
	SendSSRC, ReceiveSSRC uint32
	// SAS is the short authentication string: four characters that both parties read to each other.
	SAS string
	// Peer is who the other side's certificate says it is.
	Peer identity.Identity
	// PeerCertificate is the SHA-256 digest of that certificate.
	PeerCertificate [32]byte
	// Level is the level of the call.
	Level string
}

// Wipe overwrites the keys.
func (r *Result) Wipe() {
	r.SendKey.Wipe()
	r.ReceiveKey.Wipe()
}

// Dial agrees keys as the caller over conn, which must be fresh. When it returns nothing more can be sent over conn, which stays
// the caller's to close. An error is one of this package's, ctx's, or the connection's.
func Dial(ctx context.Context, conn net.Conn, p Params) (*Result, error) {
	r, err := agree(ctx, conn, p, caller)
	if err != nil {
		return nil, fmt.Errorf("cannot agree keys with %s: %w", p.DialledName, err)
	}
	return r, nil
}

// Accept is Dial for the callee.
func Accept(ctx context.Context, conn net.Conn, p Params) (*Result, error) {
	r, err := agree(ctx, conn, p, callee)
	if err != nil {
		return nil, fmt.Errorf("cannot agree keys with %s: %w", p.DialledName, err)
	}
	return r, nil
}

// role is which side of a call this is.
type role int

const (
	caller role = iota
	callee
)

func (p *Params) check() error {
	for what, s := range map[string]string{"a Call-ID": p.CallID, "an own name": p.Local, "a dialled name": p.DialledName} {
		if s == "" || len(s) > maxName {
			return fmt.Errorf("cannot agree keys without %s of 1 to %d bytes", what, maxName)
		}
	}
	switch {
	case p.Roots == nil:
		return errors.New("cannot agree keys without a device authority")
	case p.Level == nil:
		return errors.New("cannot agree keys without a rule for levels")
	case p.Local == p.DialledName:
		return fmt.Errorf("%w: it is ourselves", ErrNotDialledName)
	}
	if p.Now == nil {
		p.Now = time.Now
	}
	if p.Timeout <= 0 {
		p.Timeout = DefaultTimeout
	}
	return nil
}

func agree(ctx context.Context, conn net.Conn, p Params, as role) (*Result, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	local, _, err := identity.Verify(p.Certificate.Certificate, p.Roots, p.Now())
	if err != nil {
		return nil, fmt.Errorf("cannot use our own certificate: %w", err)
	}
	if local.URI != p.Local {
		return nil, fmt.Errorf("cannot use our own certificate: it is for %s, not for %s", local.URI, p.Local)
	}
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	release := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer release()

	r, err := handshakeAndExchange(ctx, conn, p, as, local)
	if err != nil {
		// Whose deadline it was makes no difference to a person who waits; a cancelled call is not a slow peer.
		switch {
		case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil:
			return nil, fmt.Errorf("%w: %w", ErrTooSlow, err)
		case ctx.Err() != nil:
			return nil, errors.Join(ctx.Err(), err)
		}
		return nil, err
	}
	return r, nil
}

func handshakeAndExchange(ctx context.Context, conn net.Conn, p Params, as role, local identity.Identity) (*Result, error) {
	peer := &peer{}
	secured, err := secure(ctx, conn, p, as, peer)
	if err != nil {
		return nil, err
	}
	state := secured.ConnectionState()
	if err := checkState(state); err != nil {
		return nil, err
	}
	x := exchange{
		as: as, stream: secured,
		export: state.ExportKeyingMaterial,
		call: call{
			id:            p.CallID,
			callerDialled: p.Local, callerCertified: local.URI, callerCert: sha256.Sum256(p.Certificate.Certificate[0]),
			calleeDialled: p.DialledName, calleeCertified: peer.identity.URI, calleeCert: peer.digest,
		},
	}
	if as == callee {
		x.call = x.call.swapped()
	}
	if peer.digest == sha256.Sum256(p.Certificate.Certificate[0]) {
		return nil, fmt.Errorf("%w: it has our own certificate", ErrNotDialledName)
	}
	level, err := p.Level(local, peer.identity)
	if err == nil && (level == "" || len(level) > maxLevel) {
		err = fmt.Errorf("a level of %d bytes", len(level))
	}
	if err != nil {
		x.abort(abortLevel)
		return nil, fmt.Errorf("%w: %w", ErrLevel, err)
	}
	x.call.level = level
	r, err := x.run()
	if err != nil {
		return nil, err
	}
	r.Peer, r.PeerCertificate, r.Level = peer.identity, peer.digest, level
	return r, nil
}
