package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"rempart/boot/manifest"
	"rempart/internal/run"
)

// maxKeyFile bounds a key file, in bytes.
const maxKeyFile = 16 << 10

func makeKey(args []string, stdout, _ io.Writer) error {
	flags := flags("key")
	out := flags.String("o", "", "file of the private key; FILE.pub is the public key's")
	if _, err := parse(flags, args, 0, "o"); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("cannot make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("cannot make a key: %w", err)
	}
	public, err := manifest.MarshalPublicKey(&key.PublicKey)
	if err != nil {
		return fmt.Errorf("cannot make a key: %w", err)
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := create(*out, private, 0o600); err != nil {
		return err
	}
	if err := create(*out+".pub", []byte(public), 0o644); err != nil {
		// Half a pair is no pair, and it was made just now.
		return errors.Join(err, os.Remove(*out))
	}
	id, err := manifest.KeyID(&key.PublicKey)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "key %x\nprivate %s\npublic %s\n", id, *out, *out+".pub")
	return nil
}

// create writes a file that must not be there: a key is never written over.
func create(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return run.Hint(fmt.Errorf("cannot write %s: it is there already", path), "a key is never written over: remove it, or give another name with -o")
	}
	if err != nil {
		return fmt.Errorf("cannot write the key: %w", err)
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("cannot write %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// readKey reads a private key. A file that others may read is refused: it is
// no longer only its owner's.
func readKey(path string) (*ecdsa.PrivateKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, run.Hint(fmt.Errorf("cannot read the key: %w", err), "%s key -o FILE makes one", program)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, run.Hint(fmt.Errorf("cannot use the key %s: others may read it (mode %04o)", path, info.Mode().Perm()), "chmod 600 %s, if no one else has read it", path)
	}
	data, err := readFile(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) != 0 {
		return nil, run.Hint(fmt.Errorf("cannot use the key %s: it is not one PEM block PRIVATE KEY", path), "give the private key, not the .pub; openssl pkcs8 -topk8 converts older forms")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("cannot use the key %s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, run.Hint(fmt.Errorf("cannot use the key %s: it is not ECDSA P-256", path), "%s key -o FILE makes one", program)
	}
	return key, nil
}

// readFile reads a file of at most max bytes.
func readFile(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the file: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("cannot read %s: it has more than %d bytes", path, max)
	}
	return data, nil
}

// listed reports whether key is one of a role's.
func listed(keys []*ecdsa.PublicKey, key *ecdsa.PublicKey) bool {
	for _, k := range keys {
		if k.Equal(key) {
			return true
		}
	}
	return false
}
