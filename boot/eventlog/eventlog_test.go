package eventlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
)

func sample() []Event {
	return []Event{
		{PCR: 11, Type: TypeIPL, Digest: sha256.Sum256([]byte("init")), Data: []byte("init")},
		{PCR: 11, Type: TypeIPL, Digest: sha256.Sum256([]byte("root")), Data: []byte("root")},
		{PCR: 13, Type: TypeIPL, Digest: sha256.Sum256([]byte("egressd")), Data: []byte("egressd")},
		{PCR: 13, Type: TypeIPL, Digest: sha256.Sum256([]byte("policy"))},
	}
}

func marshal(t testing.TB, events []Event) []byte {
	t.Helper()
	b, err := Marshal(events)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWriterMarshalAndParseAgree(t *testing.T) {
	var out bytes.Buffer
	w := NewWriter(&out)
	for _, e := range sample() {
		if err := w.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(out.Bytes(), marshal(t, sample())) {
		t.Error("the writer and Marshal write different logs")
	}
	events, err := Parse(out.Bytes())
	if err != nil || !reflect.DeepEqual(events, sample()) {
		t.Errorf("read %v, %v", events, err)
	}
	if events, err := Parse(marshal(t, nil)); err != nil || len(events) != 0 {
		t.Errorf("a log without events gave %v, %v", events, err)
	}
}

func TestReplay(t *testing.T) {
	events := sample()
	values := Replay(events)
	// By hand, as a TPM does it.
	pcr := make([]byte, 32)
	for _, e := range events[:2] {
		h := sha256.Sum256(append(pcr, e.Digest[:]...))
		pcr = h[:]
	}
	if got := values[11]; !bytes.Equal(got[:], pcr) {
		t.Errorf("PCR 11 is %x, want %x", got, pcr)
	}
	if _, ok := values[15]; ok || len(values) != 2 {
		t.Errorf("values are %v, want PCR 11 and 13", values)
	}
	swapped := append([]Event{events[1], events[0]}, events[2:]...)
	if Replay(swapped)[11] == values[11] {
		t.Error("the order of the events makes no difference")
	}
}

// TestOnlyDigestsCount: types and data are not authenticated, so the replay
// must not depend on them.
func TestOnlyDigestsCount(t *testing.T) {
	lying := sample()
	for i := range lying {
		lying[i].Type, lying[i].Data = 0x80000001, []byte("EFI boot services application")
	}
	if !reflect.DeepEqual(Replay(lying), Replay(sample())) {
		t.Error("the replay depends on what no digest covers")
	}
}

func TestParseRefuses(t *testing.T) {
	good := marshal(t, sample())
	head := len(header())
	change := func(at int, to ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], to)
		return b
	}
	many := bytes.Clone(header())
	for range MaxEvents + 1 {
		many, _ = appendEvent(many, Event{PCR: 13, Type: TypeIPL})
	}
	cases := []struct {
		name, want string
		log        []byte
	}{
		{"nothing", "spec id event", nil},
		{"noise", "spec id event", []byte("Spec ID Event03")},
		{"half a header", "spec id event", good[:head-1]},
		{"a SHA-1 log", "spec id event", change(head-5, 4, 0)},
		{"another PCR in the header", "spec id event", change(0, 1)},
		{"a log too long", "at most", make([]byte, MaxLog+1)},
		{"too many events", "more than 256 events", many},
		{"PCR 24", "PCR 24", change(head, 24)},
		{"PCR 2^31", "PCR 2147483659", change(head+3, 0x80)},
		{"a second header", "second EV_NO_ACTION", change(head+4, TypeNoAction)},
		{"no digest", "0 digests", change(head+8, 0)},
		{"two digests", "2 digests", change(head+8, 2)},
		{"a SHA-1 digest", "algorithm 0x4", change(head+12, 4)},
		{"huge data", "at most 1024", change(head+46, 0xff, 0xff, 0xff, 0xff)},
		{"one byte more", "unexpected EOF", append(bytes.Clone(good), 0)},
	}
	for _, c := range cases {
		events, err := Parse(c.log)
		if err == nil || events != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, %v; want …%s…", c.name, events, err, c.want)
		}
	}
	// Cut anywhere but between events, a log is no log.
	whole := map[int]bool{head: true}
	for i := range sample() {
		whole[len(marshal(t, sample()[:i+1]))] = true
	}
	for n := range len(good) + 1 {
		_, err := Parse(good[:n])
		if (err == nil) != whole[n] {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

func TestWritersRefuse(t *testing.T) {
	for name, e := range map[string]Event{
		"PCR -1": {PCR: -1, Type: TypeIPL}, "PCR 24": {PCR: 24, Type: TypeIPL},
		"EV_NO_ACTION": {PCR: 0, Type: TypeNoAction}, "large data": {Type: TypeIPL, Data: make([]byte, MaxData+1)},
	} {
		if b, err := Marshal([]Event{e}); err == nil {
			t.Errorf("%s: wrote %x", name, b)
		}
		var out bytes.Buffer
		w := NewWriter(&out)
		if err := w.Append(e); err == nil || out.Len() != 0 {
			t.Errorf("%s: wrote %x, %v", name, out.Bytes(), err)
		}
		if err := w.Append(sample()[0]); err == nil || out.Len() != 0 {
			t.Errorf("%s: went on after an error and wrote %x", name, out.Bytes())
		}
	}
	if _, err := Marshal(make([]Event, MaxEvents+1)); err == nil {
		t.Error("wrote too many events")
	}
	large := make([]Event, 64)
	for i := range large {
		large[i] = Event{Type: TypeIPL, Data: make([]byte, MaxData)}
	}
	if _, err := Marshal(large); err == nil {
		t.Error("wrote a log too long to be read")
	}
	w := NewWriter(io.Discard)
	for i := range MaxEvents + 1 {
		if err := w.Append(Event{Type: TypeIPL}); (err == nil) != (i < MaxEvents) {
			t.Fatalf("event %d: %v", i, err)
		}
	}
}

// failing takes n bytes and then no more.
type failing struct{ n int }

var errFull = errors.New("no space left")

func (f *failing) Write(b []byte) (int, error) {
	if len(b) > f.n {
		return f.n, errFull
	}
	f.n -= len(b)
	return len(b), nil
}

func TestWriterStopsAtTheFirstFailure(t *testing.T) {
	w := NewWriter(&failing{len(marshal(t, sample()[:1]))})
	if err := w.Append(sample()[0]); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Append(Event{PCR: 13, Type: TypeIPL}); !errors.Is(err, errFull) {
			t.Errorf("got %v, want %v", err, errFull)
		}
	}
}

// FuzzParse: parsing is total and a log has one spelling.
func FuzzParse(f *testing.F) {
	f.Add(marshal(f, sample()))
	f.Add(header())
	f.Add(binary.LittleEndian.AppendUint32(header(), 13))
	f.Fuzz(func(t *testing.T, log []byte) {
		events, err := Parse(log)
		if err != nil {
			if events != nil {
				t.Fatalf("events %v and error %v", events, err)
			}
			return
		}
		if again, err := Marshal(events); err != nil || !bytes.Equal(again, log) {
			t.Fatalf("%x became %x, %v", log, again, err)
		}
	})
}
