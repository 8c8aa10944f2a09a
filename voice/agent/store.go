package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"rempart/internal/atomicfile"
	"rempart/internal/strictconf"
)

// Sealer encrypts what is kept on disk (keystore/client.Client).
type Sealer interface {
	Seal(ctx context.Context, purpose string, data []byte) ([]byte, error)
	Open(ctx context.Context, purpose string, sealed []byte) ([]byte, error)
}

// purpose separates this file from everything else that the keystore seals.
const purpose = "calls"

// Bounds of what is kept.
const (
	maxCalls   = 64
	maxKnown   = 128
	maxStored  = 120 << 10 // bytes of plaintext; the keystore takes 128 KiB
	sealedRoom = 4 << 10   // what sealing may add
)

// known is what is remembered of a peer.
type known struct {
	URI         string    `json:"uri"`
	Certificate string    `json:"certificate"` // SHA-256, hex
	First       time.Time `json:"first"`
	Last        time.Time `json:"last"`
	LastSAS     string    `json:"last_sas"`
	Calls       int       `json:"calls"`
}

// kept is the plaintext of the file. A version once written is readable for ever.
type kept struct {
	Version int      `json:"version"`
	Calls   []Record `json:"calls"` // oldest first
	Peers   []known  `json:"peers"` // least recently spoken to first
}

// store is the call log and the remembered peers.
type store struct {
	path   string
	sealer Sealer

	mu   sync.Mutex
	kept kept

	writing sync.Mutex // one writer at a time, and the newest content last
}

// openStore reads the file. One that is not there is empty; one that does not
// open is put aside under another name and reported, for a log that cannot be
// trusted must not stop calls, and must not be lost.
func openStore(ctx context.Context, path string, sealer Sealer) (*store, error) {
	s := &store{path: path, sealer: sealer, kept: kept{Version: 1}}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open the call log: %w", err)
	}
	defer f.Close()
	k, err := readStore(ctx, f, sealer)
	if err != nil {
		return s, errors.Join(fmt.Errorf("cannot read the call log, it starts anew: %w", err), os.Rename(path, path+".unreadable"))
	}
	s.kept = k
	return s, nil
}

func readStore(ctx context.Context, f *os.File, sealer Sealer) (kept, error) {
	st, err := f.Stat()
	if err != nil {
		return kept{}, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxStored+sealedRoom {
		return kept{}, fmt.Errorf("cannot use %d bytes", st.Size())
	}
	sealed := make([]byte, st.Size())
	if _, err := f.ReadAt(sealed, 0); err != nil && st.Size() > 0 {
		return kept{}, err
	}
	plain, err := sealer.Open(ctx, purpose, sealed)
	if err != nil {
		return kept{}, err
	}
	var k kept
	if err := strictconf.Decode(plain, maxStored, &k); err != nil {
		return kept{}, err
	}
	if k.Version != 1 {
		return kept{}, fmt.Errorf("cannot read version %d", k.Version)
	}
	return k, nil
}

// seen tells whether the peer was spoken to before with the same certificate.
func (s *store) seen(uri, certificate string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.kept.Peers {
		if p.URI == uri {
			return p.Certificate == certificate
		}
	}
	return false
}

// remember notes that keys were agreed with a peer.
func (s *store) remember(r Record, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := known{URI: r.PeerURI, First: now}
	for i, old := range s.kept.Peers {
		if old.URI == r.PeerURI {
			if old.Certificate == r.PeerCertificate {
				p = old
			}
			s.kept.Peers = append(s.kept.Peers[:i:i], s.kept.Peers[i+1:]...)
			break
		}
	}
	p.Certificate, p.Last, p.LastSAS, p.Calls = r.PeerCertificate, now, r.SAS, p.Calls+1
	s.kept.Peers = append(s.kept.Peers, p)
	if n := len(s.kept.Peers) - maxKnown; n > 0 {
		s.kept.Peers = s.kept.Peers[n:]
	}
}

// log appends a call that is over.
func (s *store) log(r Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept.Calls = append(s.kept.Calls, r)
	if n := len(s.kept.Calls) - maxCalls; n > 0 {
		s.kept.Calls = s.kept.Calls[n:]
	}
}

// find is a call of the log.
func (s *store) find(id string) (Record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.kept.Calls) - 1; i >= 0; i-- {
		if s.kept.Calls[i].ID == id {
			return s.kept.Calls[i], true
		}
	}
	return Record{}, false
}

// last is the newest call of the log.
func (s *store) last() (Record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept.Calls) == 0 {
		return Record{}, false
	}
	return s.kept.Calls[len(s.kept.Calls)-1], true
}

// save writes the file, dropping the oldest calls if it would be too long.
func (s *store) save(ctx context.Context) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	plain, err := json.Marshal(s.kept)
	for err == nil && len(plain) > maxStored && len(s.kept.Calls) > 0 {
		s.kept.Calls = s.kept.Calls[1:]
		plain, err = json.Marshal(s.kept)
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("cannot write the call log: %w", err)
	}
	sealed, err := s.sealer.Seal(ctx, purpose, plain)
	if err != nil {
		return fmt.Errorf("cannot seal the call log: %w", err)
	}
	if err := atomicfile.Write(s.path, sealed, 0o600); err != nil {
		return fmt.Errorf("cannot write the call log: %w", err)
	}
	return nil
}
