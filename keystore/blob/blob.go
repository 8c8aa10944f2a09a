// Package blob is the format of the vault file: everything that keyd keeps of a
// provisioned TPM, none of it readable without that TPM, the approved image and
// the PIN. It is pure.
//
// A version once shipped is readable for ever: a new one gets a new number, and
// recorded files of the old ones stay in testdata.
//
// Version 1, integers big-endian:
//
//	"rempart vault\n"   14 bytes
//	version              2 bytes, 1
//	alive                8 bytes, value of the alive counter at provisioning
//	salt                32 bytes, of the PIN
//	name, image key, root, then public and private part of user, boot and
//	identity: each a 2-byte length and that many bytes
//	SHA-256             32 bytes, of everything before it
//
// The digest at the end tells a damaged file from a wrong PIN or image. It
// keeps nobody out: what a forger changes, the TPM refuses.
package blob

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// Reasons that a caller branches on.
var (
	// ErrVersion: the file is of a version that this code does not know.
	ErrVersion = errors.New("unknown version")
	// ErrDamaged: the file is not a vault file, or not as it was written.
	ErrDamaged = errors.New("damaged")
)

const (
	magic   = "rempart vault\n"
	version = 1

	// MaxName is the longest name in bytes.
	MaxName = 32
	// MaxPart is the longest of the other parts in bytes; a TPM's objects and a
	// P-256 key are far below it.
	MaxPart = 1024
	// MaxFile is the longest vault file in bytes.
	MaxFile = 16 << 10
)

// Object is a loadable TPM object: TPMT_PUBLIC and the encrypted private part.
type Object struct {
	Public, Private []byte
}

// File is the content of a vault file. Every byte string has at least one byte.
type File struct {
	Name     string   // whose it is
	Alive    uint64   // the alive counter's value that the policies demand
	Salt     [32]byte // of the PIN's auth value
	ImageKey []byte   // SubjectPublicKeyInfo, DER, of the key that approves images
	Root     []byte   // TPMT_PUBLIC of the storage root key, pinned
	User     Object   // sealed: the user secrets (see User)
	Boot     Object   // sealed: the tunnel key
	Identity Object   // the LDevID key
}

// parts are the variable parts in file order.
func (f *File) parts() []*[]byte {
	return []*[]byte{
		&f.ImageKey, &f.Root,
		&f.User.Public, &f.User.Private,
		&f.Boot.Public, &f.Boot.Private,
		&f.Identity.Public, &f.Identity.Private,
	}
}

// Marshal returns the file. A field out of bounds is an error.
func (f *File) Marshal() ([]byte, error) {
	if n := len(f.Name); n == 0 || n > MaxName {
		return nil, fmt.Errorf("cannot write the vault file: name of %d bytes, allowed are 1 to %d", n, MaxName)
	}
	data := []byte(magic)
	data = binary.BigEndian.AppendUint16(data, version)
	data = binary.BigEndian.AppendUint64(data, f.Alive)
	data = append(data, f.Salt[:]...)
	data = binary.BigEndian.AppendUint16(data, uint16(len(f.Name)))
	data = append(data, f.Name...)
	for i, part := range f.parts() {
		if n := len(*part); n == 0 || n > MaxPart {
			return nil, fmt.Errorf("cannot write the vault file: part %d has %d bytes, allowed are 1 to %d", i, n, MaxPart)
		}
		data = binary.BigEndian.AppendUint16(data, uint16(len(*part)))
		data = append(data, *part...)
	}
	sum := sha256.Sum256(data)
	return append(data, sum[:]...), nil
}

// Parse reads a vault file. It takes exactly what Marshal writes. Errors wrap
// ErrVersion or ErrDamaged.
func Parse(data []byte) (*File, error) {
	f, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("cannot read the vault file: %w", err)
	}
	return f, nil
}

func parse(data []byte) (*File, error) {
	if len(data) > MaxFile {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrDamaged, MaxFile)
	}
	r := reader{rest: data}
	if string(r.take(len(magic))) != magic {
		return nil, fmt.Errorf("%w: not a vault file", ErrDamaged)
	}
	v := r.take(2)
	if r.short {
		return nil, fmt.Errorf("%w: too short", ErrDamaged)
	}
	if v := binary.BigEndian.Uint16(v); v != version {
		return nil, fmt.Errorf("%w: %d, known is %d", ErrVersion, v, version)
	}
	f := &File{}
	if alive := r.take(8); alive != nil {
		f.Alive = binary.BigEndian.Uint64(alive)
	}
	copy(f.Salt[:], r.take(32))
	f.Name = string(r.part(MaxName))
	for _, part := range f.parts() {
		*part = append([]byte(nil), r.part(MaxPart)...)
	}
	covered := len(data) - len(r.rest)
	sum := r.take(sha256.Size)
	if r.short || len(r.rest) != 0 {
		return nil, fmt.Errorf("%w: lengths do not fit", ErrDamaged)
	}
	if sha256.Sum256(data[:covered]) != [sha256.Size]byte(sum) {
		return nil, fmt.Errorf("%w: digest does not fit", ErrDamaged)
	}
	return f, nil
}

// reader takes pieces from the front; short stays set once a piece was missing
// or out of bounds.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if r.short || n > len(r.rest) {
		r.short = true
		return nil
	}
	piece := r.rest[:n]
	r.rest = r.rest[n:]
	return piece
}

func (r *reader) part(most int) []byte {
	size := r.take(2)
	if r.short {
		return nil
	}
	n := int(binary.BigEndian.Uint16(size))
	if n == 0 || n > most {
		r.short = true
		return nil
	}
	return r.take(n)
}

// KeySize is the size in bytes of each secret inside the sealed objects.
const KeySize = 32

// User is what the sealed user object holds, in this order: 128 bytes, the most
// that a TPM seals in one.
type User struct {
	Storage  []byte // AES-256 key of what others store
	Identity []byte // auth value of the identity key
	Owner    []byte // the TPM's owner auth
	Lockout  []byte // the TPM's lockout auth
}

// Join returns the 128 bytes of the object.
func (u User) Join() ([]byte, error) {
	data := make([]byte, 0, 4*KeySize)
	for _, key := range [][]byte{u.Storage, u.Identity, u.Owner, u.Lockout} {
		if len(key) != KeySize {
			return nil, fmt.Errorf("cannot join user secrets: one has %d bytes, not %d", len(key), KeySize)
		}
		data = append(data, key...)
	}
	return data, nil
}

// SplitUser is Join's inverse. The result shares data's memory.
func SplitUser(data []byte) (User, error) {
	if len(data) != 4*KeySize {
		return User{}, fmt.Errorf("cannot split user secrets: %d bytes, not %d", len(data), 4*KeySize)
	}
	key := func(i int) []byte { return data[i*KeySize : (i+1)*KeySize : (i+1)*KeySize] }
	return User{Storage: key(0), Identity: key(1), Owner: key(2), Lockout: key(3)}, nil
}
