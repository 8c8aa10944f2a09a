package server

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"strings"
	"testing"

	"rempart/internal/sock"
	"rempart/keystore/client"
	"rempart/keystore/internal/tpmtest"
)

func TestForeignCertificatesAreRefused(t *testing.T) {
	p := newPhone(t, tpmtest.New(t))
	p.boot()
	shell := p.as("shell")
	if err := shell.SetCertificate(t.Context(), [][]byte{{0x30}}); !errors.Is(err, client.ErrNotProvisioned) {
		t.Errorf("before enrolment: %v", err)
	}
	e := p.enrol(goodPIN)
	if _, err := p.as("voiced").TLSCertificate(t.Context()); !errors.Is(err, client.ErrNotProvisioned) {
		t.Errorf("before a certificate: %v", err)
	}
	stranger := newPhone(t, tpmtest.New(t))
	for name, c := range map[string][][]byte{
		"other authority": stranger.certify(e, nil),
		"other key":       p.certify(e, func(c *x509.Certificate) { c.PublicKey = &otherKey(t).PublicKey }),
		"other name":      p.certify(e, func(c *x509.Certificate) { c.Subject.CommonName = "b" }),
		"other tunnel key": p.certify(e, func(c *x509.Certificate) {
			last := &c.ExtraExtensions[len(c.ExtraExtensions)-1]
			last.Value = bytes.Clone(last.Value)
			last.Value[5] ^= 1
		}),
		"none":    nil,
		"garbage": {{1, 2, 3}},
	} {
		if err := shell.SetCertificate(t.Context(), c); !errors.Is(err, client.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if p.status().Certificate {
		t.Error("a refused certificate was kept")
	}
}

func TestOnlyTheNamedCallersMay(t *testing.T) {
	p := enrolled(t)
	p.unlock(goodPIN)
	ctx := t.Context()
	asks := map[string]func(*client.Client) error{
		"enrol": func(c *client.Client) error { _, err := c.Enrol(ctx, "x", pin(goodPIN)); return err },
		"csr":   func(c *client.Client) error { _, err := c.Enrolment(ctx); return err },
		"certificate": func(c *client.Client) error {
			return c.SetCertificate(ctx, [][]byte{{1}})
		},
		"unlock":     func(c *client.Client) error { _, err := c.Unlock(ctx, pin(goodPIN)); return err },
		"tunnel key": func(c *client.Client) error { _, err := c.TunnelKey(ctx); return err },
		"sign": func(c *client.Client) error {
			key, _, err := c.Signer(ctx)
			if err != nil {
				return err
			}
			_, err = key.Sign(nil, make([]byte, 32), crypto.SHA256)
			return err
		},
		"seal": func(c *client.Client) error { _, err := c.Seal(ctx, "p", nil); return err },
		"open": func(c *client.Client) error { _, err := c.Open(ctx, "p", nil); return err },
	}
	may := map[string]string{"shell": "enrol csr certificate unlock", "tunneld": "tunnel key", "voiced": "sign seal open", "gatewayd": "sign"}
	peers := map[string]sock.Peer{"root in an app": {PID: 9, UID: 0, Cgroup: "/apps/mail"}, "tunneld's uid elsewhere": {PID: 9, UID: 903, Cgroup: "/shell"}}
	for name, c := range callers() {
		peers[name] = sock.Peer{PID: 9, UID: c.uid, Cgroup: c.cgroup}
	}
	for who, peer := range peers {
		c := p.from(peer)
		if _, err := c.Status(ctx); err != nil {
			t.Errorf("%s: status: %v", who, err)
		}
		for what, ask := range asks {
			err := ask(c)
			stranger := err != nil && strings.Contains(err.Error(), "does not do this for")
			if allowed := strings.Contains(may[who], what); allowed == stranger {
				t.Errorf("%s, %s: %v", who, what, err)
			}
		}
	}
	if !strings.Contains(p.log.String(), "event=keystore.access") {
		t.Error("refusals are not in the journal")
	}
}
