package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"rempart/internal/run"
	"rempart/keystore/client"
)

// maxChainFile bounds a certificate file, in bytes; maxChain its certificates.
const (
	maxChainFile = 64 << 10
	maxChain     = 4
)

// enrol makes keys and prints the request, or takes the certificate.
func enrol(ctx context.Context, args []string, e env) error {
	var name, pinFile, certificate string
	var again bool
	if _, err := parse("enrol", args, 0, func(f *flag.FlagSet) {
		f.StringVar(&name, "name", "", "")
		f.StringVar(&pinFile, "pin-file", "", "")
		f.StringVar(&certificate, "certificate", "", "")
		f.BoolVar(&again, "again", false, "")
	}); err != nil {
		return err
	}
	keyd := client.New(e.socket("keyd"))
	chosen := 0
	for _, b := range []bool{name != "", again, certificate != ""} {
		if b {
			chosen++
		}
	}
	if chosen != 1 {
		return run.Hint(fmt.Errorf("%w of enrol", errUsage), "give one of --name, --again and --certificate")
	}
	if certificate != "" {
		chain, err := readChain(e, certificate)
		if err != nil {
			return err
		}
		return explain("keyd", keyd.SetCertificate(ctx, chain))
	}
	var enrolment client.Enrolment
	if again {
		var err error
		if enrolment, err = keyd.Enrolment(ctx); err != nil {
			return explain("keyd", err)
		}
	} else {
		pin, err := readPIN(e, pinFile)
		if err != nil {
			return err
		}
		enrolment, err = keyd.Enrol(ctx, name, pin)
		pin.Wipe()
		if err != nil {
			return explain("keyd", err)
		}
	}
	return writeJSON(e.stdout, enrolment)
}

// readChain reads PEM certificates, leaf first.
func readChain(e env, file string) ([][]byte, error) {
	from := e.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("cannot read the certificate: %w", err)
		}
		defer f.Close()
		from = f
	}
	data, err := io.ReadAll(io.LimitReader(from, maxChainFile+1))
	if err != nil || len(data) > maxChainFile {
		return nil, fmt.Errorf("cannot read the certificate: %w", errors.Join(err, fmt.Errorf("at most %d bytes are read", maxChainFile)))
	}
	var chain [][]byte
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" || len(chain) == maxChain {
			return nil, fmt.Errorf("cannot use a %.32q in a certificate file: want 1 to %d certificates, leaf first", block.Type, maxChain)
		}
		chain, data = append(chain, block.Bytes), rest
	}
	if len(chain) == 0 {
		return nil, run.Hint(errors.New("cannot find a certificate in what was given"), "it must be PEM, leaf first")
	}
	return chain, nil
}

// unlock gives the PIN.
func unlock(ctx context.Context, args []string, e env) error {
	var pinFile string
	if _, err := parse("unlock", args, 0, func(f *flag.FlagSet) { f.StringVar(&pinFile, "pin-file", "", "") }); err != nil {
		return err
	}
	pin, err := readPIN(e, pinFile)
	if err != nil {
		return err
	}
	s, err := client.New(e.socket("keyd")).Unlock(ctx, pin)
	pin.Wipe()
	var wrong client.ErrWrongPIN
	var lockout client.ErrLockout
	switch {
	case errors.As(err, &wrong):
		return run.Hint(fmt.Errorf("cannot unlock: wrong PIN, the TPM takes %d more", wrong.TriesLeft), "after that it takes none for a while, not even the right one")
	case errors.As(err, &lockout):
		return run.Hint(fmt.Errorf("cannot unlock: the TPM is locked out"), "it takes one more PIN in %s; leave the handset on", lockout.For)
	case errors.Is(err, client.ErrNotProvisioned):
		return run.Hint(fmt.Errorf("cannot unlock: %w", err), "this handset has no keys yet: rempart enrol --name NAME")
	case err != nil:
		return explain("keyd", fmt.Errorf("cannot unlock: %w", err))
	}
	fmt.Fprintf(e.stdout, "keystore is %s\n", s.State)
	return nil
}

// writeJSON writes one line.
func writeJSON(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot write the answer: %w", err)
	}
	if _, err := w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("cannot write the answer: %w", err)
	}
	return nil
}
