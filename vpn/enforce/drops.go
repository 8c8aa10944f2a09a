package enforce

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"

	"rempart/internal/bpf"
	"rempart/vpn/egress"
)

// recordMaps are the maps of the drop record, by the name that programs know them by.
var recordMaps = []string{bpf.LevelMapDropRecord, bpf.LevelMapDropHead, bpf.LevelMapDropState}

// Record is the drop record: one for all programs of a handset, made once, pinned, and
// written by programs alone. Its methods may be called concurrently.
type Record struct {
	maps map[string]*ebpf.Map
}

// recordShapes are the record's maps as they were compiled, read once: every device asks.
var recordShapes = sync.OnceValues(func() (map[string]*ebpf.MapSpec, error) {
	spec, err := bpf.LoadLevel()
	if err != nil {
		return nil, fmt.Errorf("cannot read the object of the level hooks: %w", err)
	}
	shapes := map[string]*ebpf.MapSpec{}
	for _, name := range recordMaps {
		shapes[name] = spec.Maps[name]
	}
	return shapes, nil
})

// OpenRecord takes over the drop record that is pinned in pinDir, or makes and pins a
// new one. No process can write it, also not the one that made it.
func OpenRecord(pinDir string) (*Record, error) {
	r := &Record{maps: map[string]*ebpf.Map{}}
	shapes, err := recordShapes()
	if err != nil {
		return nil, err
	}
	for _, name := range recordMaps {
		m, err := openShared(filepath.Join(pinDir, name), shapes[name].Copy())
		if err != nil {
			return nil, errors.Join(fmt.Errorf("cannot open the drop record: %w", err), r.Close())
		}
		r.maps[name] = m
	}
	return r, nil
}

// openShared opens a pinned map of that shape, or makes, closes to processes and pins one.
func openShared(path string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		if err := spec.Compatible(m); err != nil {
			return nil, errors.Join(fmt.Errorf("pin %s: %w", path, err), m.Close())
		}
		return m, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot open pin %s: %w", path, err)
	}
	if m, err = ebpf.NewMap(spec); err != nil {
		return nil, fmt.Errorf("cannot make map %s: %w", spec.Name, err)
	}
	// A frozen map is still the programs' to write.
	if err := m.Freeze(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot close map %s to processes: %w", spec.Name, err), m.Close())
	}
	if err := pinObject(m, path); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// into adds the record's maps to those that a loaded instance is to share.
func (r *Record) into(replacements map[string]*ebpf.Map) map[string]*ebpf.Map {
	for name, m := range r.maps {
		replacements[name] = m
	}
	return replacements
}

// Close lets go of the maps; the pins hold them.
func (r *Record) Close() error {
	var errs []error
	for _, m := range r.maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// Read returns the samples behind number since, the oldest first, at most
// [egress.MaxSamples]. A number that the record has not reached is one of an earlier
// record, so it reads from the start.
func (r *Record) Read(since uint64) (egress.Drops, error) {
	d, err := r.read(since)
	if err != nil {
		return egress.Drops{}, fmt.Errorf("cannot read the drop record: %w", err)
	}
	return d, nil
}

func (r *Record) read(since uint64) (d egress.Drops, err error) {
	if d.LeftOut, err = r.leftOut(); err != nil {
		return d, err
	}
	var head uint64
	if err := r.maps[bpf.LevelMapDropHead].Lookup(uint32(0), &head); err != nil {
		return d, err
	}
	if since > head {
		since = 0
	}
	d.Next = since
	if head-d.Next > egress.RecordSamples {
		d.Next = head - egress.RecordSamples
	}
	d.Missed = d.Next - since
	for d.Next < head && len(d.Samples) < egress.MaxSamples {
		d.Next++
		s, ok, err := r.sample(d.Next)
		if err != nil {
			return d, err
		}
		if !ok {
			d.Missed++
			continue
		}
		d.Samples = append(d.Samples, s)
	}
	return d, nil
}

// sample reads sample number seq; false if it is being written or overwritten.
func (r *Record) sample(seq uint64) (egress.Sample, bool, error) {
	index := uint32((seq - 1) % egress.RecordSamples)
	return twice(seq, func() (b []byte, err error) {
		err = r.maps[bpf.LevelMapDropRecord].Lookup(index, &b)
		return b, err
	})
}

// twice reads sample number seq from its place. A copy is not atomic. A writer takes the
// number off the place before it writes and puts another on afterwards, and no number
// comes twice: if it is the same in two copies, nothing wrote during the first.
func twice(seq uint64, read func() ([]byte, error)) (egress.Sample, bool, error) {
	first, err := read()
	if err != nil {
		return egress.Sample{}, false, err
	}
	second, err := read()
	if err != nil {
		return egress.Sample{}, false, err
	}
	if len(first) != egress.SampleSize || binary.LittleEndian.Uint64(first) != seq || !bytes.Equal(first, second) {
		return egress.Sample{}, false, nil
	}
	s, err := egress.ParseSample(first)
	return s, err == nil, err
}

// leftOut adds up what the programs counted and did not record.
func (r *Record) leftOut() (n uint64, err error) {
	type limit struct{ Second, Seen, LeftOut uint64 }
	m := r.maps[bpf.LevelMapDropState]
	for i := range m.MaxEntries() {
		var perCPU []limit
		if err := m.Lookup(i, &perCPU); err != nil {
			return 0, err
		}
		for _, l := range perCPU {
			n += l.LeftOut
		}
	}
	return n, nil
}
