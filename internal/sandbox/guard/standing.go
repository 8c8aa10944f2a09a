package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// maxHooks bounds the programs of either form.
const maxHooks = 16

// Standing is what an installed guard looks like by the kernel's ids. It is for a
// process that did not install it and holds none of its descriptors.
type Standing struct {
	form     Form
	cgroup   uint64
	handset  uint32 // map ids
	seen     uint32
	devices  uint32 // form Calls
	hooks    []standingHook
	admitted []device // form Calls
}

type standingHook struct {
	link   uint32
	kind   uint32 // ebpf.ProgramType
	judges bool
	name   string
	tag    string
	point  string
}

// Standing returns what the guard looks like now: also [Guard.Admit] changes it.
func (g *Guard) Standing() (Standing, error) {
	s := Standing{form: g.form, cgroup: g.cgroup}
	for name, id := range map[string]*uint32{"handset": &s.handset, "seen": &s.seen, "devices": &s.devices} {
		m, ok := g.programs.Maps[name]
		if !ok {
			continue
		}
		info, err := m.Info()
		if err != nil {
			return Standing{}, fmt.Errorf("cannot describe the guard: %w", err)
		}
		mid, ok := info.ID()
		if !ok {
			return Standing{}, errors.New("cannot describe the guard: the kernel tells no map ids")
		}
		*id = uint32(mid)
	}
	for _, h := range g.hooks {
		s.hooks = append(s.hooks, standingHook{uint32(h.id), uint32(h.program.Type()), h.judges, h.name, h.tag, h.point})
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	s.admitted = slices.Clone(g.admitted)
	return s, nil
}

// ReadBack is [Guard.ReadBack] without the pins, which only root can reach, and without
// devices that are admitted and not let through: those are closed, and for a moment
// right when they come and go.
func (s Standing) ReadBack() error { return notAsInstalled(s.differences("")) }

// Programs are the ids of the programs that the guard has at the handset's cgroup.
func (s Standing) Programs() ([]uint32, error) { return s.programs(false) }

// AllPrograms are the ids of all programs of the guard.
func (s Standing) AllPrograms() ([]uint32, error) { return s.programs(true) }

func (s Standing) programs(all bool) ([]uint32, error) {
	var ids []uint32
	for _, h := range s.hooks {
		l, err := link.NewFromID(link.ID(h.link))
		if err != nil {
			return nil, fmt.Errorf("cannot tell the guard's programs: link %d: %w", h.link, err)
		}
		info, err := l.Info()
		if err := errors.Join(err, l.Close()); err != nil {
			return nil, fmt.Errorf("cannot tell the guard's programs: link %d: %w", h.link, err)
		}
		if all || info.Cgroup() != nil {
			ids = append(ids, uint32(info.Program))
		}
	}
	return ids, nil
}

func (s Standing) differences(pinDir string) error {
	maps := map[uint32]*ebpf.Map{}
	for _, id := range []uint32{s.handset, s.seen, s.devices} {
		if id == 0 {
			continue
		}
		m, err := ebpf.NewMapFromID(ebpf.MapID(id))
		if err != nil {
			return fmt.Errorf("map %d: %w", id, err)
		}
		defer m.Close()
		maps[id] = m
	}
	var errs []error
	info, err := maps[s.handset].Info()
	if err != nil {
		return err
	}
	if !info.Frozen() {
		errs = append(errs, errors.New("the cgroup map is not frozen"))
	}
	for _, h := range s.hooks {
		if err := h.check(s); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", h.name, err))
		}
	}
	if s.form == LSM {
		return errors.Join(append(errs, aliveLSM(maps[s.seen], pinDir))...)
	}
	return errors.Join(append(errs, aliveCalls(maps[s.seen], pinDir), deviceDifference(maps[s.devices], s.admitted, pinDir != ""), survivors(maps[s.seen]))...)
}

func (h standingHook) check(s Standing) error {
	byID, err := link.NewFromID(link.ID(h.link))
	if err != nil {
		return fmt.Errorf("link %d: %w", h.link, err)
	}
	defer byID.Close()
	info, err := byID.Info()
	if err != nil {
		return err
	}
	p, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return fmt.Errorf("program %d: %w", info.Program, err)
	}
	defer p.Close()
	pi, err := p.Info()
	if err != nil {
		return err
	}
	var errs []error
	if pi.Tag != h.tag || pi.Type != ebpf.ProgramType(h.kind) {
		errs = append(errs, fmt.Errorf("link %d runs program %d %q with tag %s, not %s", h.link, info.Program, pi.Name, pi.Tag, h.tag))
	}
	if c := info.Cgroup(); c != nil && c.CgroupId != s.cgroup {
		errs = append(errs, fmt.Errorf("link %d is attached to cgroup %d, not %d", h.link, c.CgroupId, s.cgroup))
	}
	if r := info.RawTracepoint(); r != nil && r.Name != h.point {
		errs = append(errs, fmt.Errorf("link %d is attached to %s, not %s", h.link, r.Name, h.point))
	}
	if ids, ok := pi.MapIDs(); h.judges && (!ok || !slices.Contains(ids, ebpf.MapID(s.handset))) {
		errs = append(errs, errors.New("the program looks at another cgroup map"))
	}
	return errors.Join(errs...)
}

// The byte form of a Standing, all of one length.
const (
	textLen     = 24
	hookLen     = 4 + 4 + 1 + 3*textLen
	StandingLen = 1 + 8 + 3*4 + 1 + maxHooks*hookLen + 1 + MaxDevices*16
)

// Marshal returns s's byte form, [StandingLen] bytes. Numbers are big endian, texts
// end at their first zero byte, unused places are zero.
func (s Standing) Marshal() ([]byte, error) {
	if len(s.hooks) > maxHooks || len(s.admitted) > MaxDevices {
		return nil, fmt.Errorf("cannot marshal a guard of %d hooks and %d devices", len(s.hooks), len(s.admitted))
	}
	b := make([]byte, 0, StandingLen)
	b = append(b, flag(s.form == LSM))
	b = binary.BigEndian.AppendUint64(b, s.cgroup)
	for _, id := range []uint32{s.handset, s.seen, s.devices} {
		b = binary.BigEndian.AppendUint32(b, id)
	}
	b = append(b, byte(len(s.hooks)))
	for i := range maxHooks {
		var h standingHook
		if i < len(s.hooks) {
			h = s.hooks[i]
		}
		b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, h.link), h.kind)
		b = append(b, flag(h.judges))
		for _, text := range []string{h.name, h.tag, h.point} {
			if len(text) >= textLen {
				return nil, fmt.Errorf("cannot marshal a guard: %q is longer than %d bytes", text, textLen-1)
			}
			b = append(append(b, text...), make([]byte, textLen-len(text))...)
		}
	}
	b = append(b, byte(len(s.admitted)))
	for i := range MaxDevices {
		var d device
		if i < len(s.admitted) {
			d = s.admitted[i]
		}
		b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, d.Netns), d.Index)
	}
	return b, nil
}

// ParseStanding reads a byte form; it accepts only what [Standing.Marshal] writes.
func ParseStanding(b []byte) (Standing, error) {
	if len(b) != StandingLen {
		return Standing{}, fmt.Errorf("cannot parse a guard: %d bytes, not %d", len(b), StandingLen)
	}
	rest := b
	take := func(n int) []byte {
		out := rest[:n]
		rest = rest[n:]
		return out
	}
	u32 := func() uint32 { return binary.BigEndian.Uint32(take(4)) }
	s := Standing{form: Calls}
	if take(1)[0] == 1 {
		s.form = LSM
	}
	s.cgroup = binary.BigEndian.Uint64(take(8))
	s.handset, s.seen, s.devices = u32(), u32(), u32()
	n := int(take(1)[0])
	for i := range maxHooks {
		h := standingHook{link: u32(), kind: u32(), judges: take(1)[0] == 1}
		h.name, h.tag, h.point = unix.ByteSliceToString(take(textLen)), unix.ByteSliceToString(take(textLen)), unix.ByteSliceToString(take(textLen))
		if i < n {
			s.hooks = append(s.hooks, h)
		}
	}
	n = int(take(1)[0])
	for i := range MaxDevices {
		d := device{binary.BigEndian.Uint64(take(8)), binary.BigEndian.Uint64(take(8))}
		if i < n {
			s.admitted = append(s.admitted, d)
		}
	}
	// One form for one guard: whatever else the bytes said is not in s, and would be missing here.
	if again, err := s.Marshal(); err != nil || !slices.Equal(again, b) {
		return Standing{}, errors.New("cannot parse a guard: not the one byte form")
	}
	if s.handset == 0 || s.seen == 0 || len(s.hooks) == 0 || (s.form == Calls) != (s.devices != 0) {
		return Standing{}, errors.New("cannot parse a guard: a part is missing")
	}
	return s, nil
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}
