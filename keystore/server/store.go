package server

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"rempart/internal/atomicfile"
	"rempart/internal/strictconf"
	"rempart/keystore/blob"
	"rempart/keystore/client"
)

// store is keyd's folder. Each file is written whole or not at all.
//
//	enrolment    what the device authority was given (public)
//	vault        blob.File: the last file that provisioning writes
//	certificate  the identity certificate and its issuers, PEM (public)
type store struct {
	dir string
}

const (
	maxEnrolment   = 32 << 10
	maxCertificate = 64 << 10
)

func (st store) path(name string) string { return filepath.Join(st.dir, name) }

// read returns a file of at most most bytes, or nil if it is not there.
func (st store) read(name string, most int) ([]byte, error) {
	f, err := os.Open(st.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the keystore's %s: %w", name, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the keystore's %s: %w", name, err)
	}
	if len(data) > most {
		return nil, fmt.Errorf("cannot read the keystore's %s: %w: more than %d bytes", name, blob.ErrDamaged, most)
	}
	return data, nil
}

// readVault returns the vault file, or nil if there is none.
func (st store) readVault() (*blob.File, error) {
	data, err := st.read("vault", blob.MaxFile)
	if err != nil || data == nil {
		return nil, err
	}
	return blob.Parse(data)
}

func (st store) writeVault(f *blob.File) error {
	data, err := f.Marshal()
	if err != nil {
		return err
	}
	return atomicfile.Write(st.path("vault"), data, 0o600)
}

// removeVault removes the vault file, if there is one.
func (st store) removeVault() error {
	err := os.Remove(st.path("vault"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the keystore's vault: %w", err)
	}
	return nil
}

// readEnrolment returns what the device authority was given.
func (st store) readEnrolment() (client.Enrolment, error) {
	var e client.Enrolment
	data, err := st.read("enrolment", maxEnrolment)
	if err != nil {
		return e, err
	}
	if data == nil {
		return e, fmt.Errorf("cannot read the enrolment: %w", fs.ErrNotExist)
	}
	if err := strictconf.Decode(data, maxEnrolment, &e); err != nil {
		return e, fmt.Errorf("cannot read the enrolment: %w", err)
	}
	return e, nil
}

func (st store) writeEnrolment(e client.Enrolment) error {
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("cannot write the enrolment: %w", err)
	}
	return atomicfile.Write(st.path("enrolment"), data, 0o600)
}

// readChain returns the certificate chain, DER, leaf first; fs.ErrNotExist
// before there is one.
func (st store) readChain() ([][]byte, error) {
	data, err := st.read("certificate", maxCertificate)
	if err != nil {
		return nil, err
	}
	if data == nil {
		return nil, fmt.Errorf("cannot read the certificate: %w", fs.ErrNotExist)
	}
	var chain [][]byte
	for rest := data; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, fmt.Errorf("cannot read the certificate: %w: %w", blob.ErrDamaged, err)
		}
		chain = append(chain, block.Bytes)
	}
	if len(chain) == 0 {
		return nil, fmt.Errorf("cannot read the certificate: %w", blob.ErrDamaged)
	}
	return chain, nil
}

func (st store) writeChain(chain [][]byte) error {
	var text []byte
	for _, der := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return atomicfile.Write(st.path("certificate"), text, 0o600)
}
