package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"rempart/boot/manifest"
	"rempart/internal/atomicfile"
	"rempart/internal/run"
	"rempart/internal/strictconf"
)

// headerLines is how many lines of a bundle stand before its document.
const headerLines = 4

// source is a document as a person gave it: bare, or inside a bundle.
type source struct {
	path     string
	document []byte
	bundle   *manifest.Envelope // nil for a bare document
}

// readSource reads a document or a bundle. A bundle's signature is not
// checked here: there is no key to check it by.
func readSource(path string) (source, error) {
	data, err := readFile(path, manifest.MaxBundle)
	if err != nil {
		return source{}, err
	}
	if !bytes.HasPrefix(data, []byte("rempart-policy ")) {
		return source{path: path, document: data}, nil
	}
	e, err := manifest.Parse(data)
	if err != nil {
		return source{}, fmt.Errorf("cannot read the bundle %s: %w", path, err)
	}
	return source{path, e.Document, e}, nil
}

// faults returns the faults of the document, one line of text each, with the
// line in the file.
func (s source) faults() []string {
	err := manifest.Check(s.document)
	if err == nil {
		return nil
	}
	var lines []string
	for _, fault := range manifest.Faults(err) {
		lines = append(lines, s.place(fault))
	}
	if len(lines) == 0 {
		lines = []string{fmt.Sprintf("%s: %v", s.path, err)}
	}
	return lines
}

func (s source) place(fault *strictconf.Error) string {
	if fault.Line == 0 {
		return fmt.Sprintf("%s: %s", s.path, fault.Msg)
	}
	line := fault.Line
	if s.bundle != nil {
		line += headerLines
	}
	return fmt.Sprintf("%s:%d: %s", s.path, line, fault.Msg)
}

// refuse is the error of a command that needs a document without faults.
func (s source) refuse() error {
	faults := s.faults()
	if len(faults) == 0 {
		return nil
	}
	return run.Hint(errors.New(strings.Join(faults, "\n"+program+": ")), "%s help document explains every field", program)
}

func check(args []string, stdout, stderr io.Writer) error {
	paths, err := parse(flags("check"), args, 1000)
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return run.Hint(errors.New("check needs a file"), "%s help check shows how to call it", program)
	}
	bad := false
	for _, path := range paths {
		s, err := readSource(path)
		if err != nil {
			fmt.Fprintf(stderr, "%s: %v\n", program, err)
			bad = true
			continue
		}
		faults := s.faults()
		for _, fault := range faults {
			fmt.Fprintln(stderr, fault)
		}
		switch {
		case len(faults) > 0:
			bad = true
		case s.bundle != nil:
			fmt.Fprintf(stdout, "%s: no faults (signed by key %x; the signature was not checked)\n", path, s.bundle.Key[:4])
		default:
			fmt.Fprintf(stdout, "%s: no faults\n", path)
		}
	}
	if bad {
		fmt.Fprintf(stderr, "hint: %s help document explains every field\n", program)
		return errSaid
	}
	return nil
}

func sign(args []string, stdout, _ io.Writer) error {
	flags := flags("sign")
	keyFile := flags.String("key", "", "private key of the policy role")
	in := flags.String("in", "", "document to sign")
	out := flags.String("out", "", "bundle to write")
	if _, err := parse(flags, args, 0, "key", "in", "out"); err != nil {
		return err
	}
	s, err := readSource(*in)
	if err != nil {
		return err
	}
	if s.bundle != nil {
		return run.Hint(fmt.Errorf("%s is signed already", *in), "sign the document (JSON), not the bundle")
	}
	if err := s.refuse(); err != nil {
		return err
	}
	key, err := readKey(*keyFile)
	if err != nil {
		return err
	}
	bundle, err := manifest.Sign(s.document, key)
	if err != nil {
		return err
	}
	// Read it back as a handset will, by the signer's own key.
	p, err := manifest.Open(bundle, publicOf(key))
	if err != nil {
		return err
	}
	keys, err := p.Keys.PolicyKeys()
	if err != nil {
		return err
	}
	if !listed(keys, &key.PublicKey) {
		return run.Hint(fmt.Errorf("%s is not one of the document's keys.policy", *keyFile), "sign with a key of the policy role, or add its .pub to keys.policy")
	}
	if err := atomicfile.Write(*out, bundle, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "signed %s as %s: policy %s, serial %d, role %s\n", *in, *out, p.Name, p.Serial, p.Role)
	return nil
}
