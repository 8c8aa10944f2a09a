package blob

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var record = flag.Bool("record", false, "write testdata/v1.vault anew (only ever for a version that never shipped)")

// sample is the content of testdata/v1.vault.
func sample() *File {
	fill := func(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }
	return &File{
		Name:     "a",
		Alive:    7,
		Salt:     sha256.Sum256([]byte("salt")),
		ImageKey: fill(91, 1),
		Root:     fill(90, 2),
		User:     Object{fill(46, 3), fill(222, 4)},
		Boot:     Object{fill(46, 5), fill(126, 6)},
		Identity: Object{fill(120, 7), fill(158, 8)},
	}
}

func TestRecordedVersion1IsReadableForEver(t *testing.T) {
	path := filepath.Join("testdata", "v1.vault")
	if *record {
		data, err := sample().Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(f, sample()) {
		t.Errorf("read %+v", f)
	}
}

func TestMarshalRefusesOutOfBounds(t *testing.T) {
	for name, spoil := range map[string]func(*File){
		"no name":       func(f *File) { f.Name = "" },
		"long name":     func(f *File) { f.Name = strings.Repeat("n", MaxName+1) },
		"no root":       func(f *File) { f.Root = nil },
		"long private":  func(f *File) { f.Boot.Private = make([]byte, MaxPart+1) },
		"no public key": func(f *File) { f.Identity.Public = []byte{} },
	} {
		f := sample()
		spoil(f)
		if _, err := f.Marshal(); err == nil {
			t.Errorf("%s: written", name)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good, err := sample().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		spoiled := bytes.Clone(good)
		spoiled[i] ^= 0x01
		f, err := Parse(spoiled)
		if err == nil || f != nil {
			t.Fatalf("byte %d flipped: accepted", i)
		}
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
			t.Errorf("byte %d flipped: %v", i, err)
		}
		if _, err := Parse(good[:i]); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
	if _, err := Parse(append(bytes.Clone(good), 0)); !errors.Is(err, ErrDamaged) {
		t.Errorf("a byte too much: %v", err)
	}
	if _, err := Parse(make([]byte, MaxFile+1)); !errors.Is(err, ErrDamaged) {
		t.Errorf("too large: %v", err)
	}
	newer := bytes.Clone(good)
	binary.BigEndian.PutUint16(newer[len(magic):], 2)
	if _, err := Parse(newer); !errors.Is(err, ErrVersion) {
		t.Errorf("version 2: %v, want ErrVersion", err)
	}
}

func TestUserSecretsSplit(t *testing.T) {
	fill := func(b byte) []byte { return bytes.Repeat([]byte{b}, KeySize) }
	u := User{fill(1), fill(2), fill(3), fill(4)}
	data, err := u.Join()
	if err != nil || len(data) != 128 {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	again, err := SplitUser(data)
	if err != nil || !reflect.DeepEqual(u, again) {
		t.Errorf("%v, %v", again, err)
	}
	if _, err := SplitUser(data[:127]); err == nil {
		t.Error("127 bytes split")
	}
	u.Owner = u.Owner[:31]
	if _, err := u.Join(); err == nil {
		t.Error("short secret joined")
	}
}

func FuzzParse(f *testing.F) {
	good, err := sample().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:20])
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse(data)
		if err != nil {
			if file != nil {
				t.Fatal("value and error")
			}
			// Reach past the digest: mend it and try again.
			if len(data) < sha256.Size {
				return
			}
			body := data[:len(data)-sha256.Size]
			sum := sha256.Sum256(body)
			data = append(bytes.Clone(body), sum[:]...)
			if file, err = Parse(data); err != nil {
				return
			}
		}
		again, err := file.Marshal()
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("parse then marshal is another file: %v", err)
		}
	})
}
