package call

import (
	"errors"
	"slices"
	"testing"
)

// wanted is the whole transition table, written out a second time by hand:
// whatever is not here must be refused.
var wanted = map[Direction]map[State]map[Kind]struct {
	next    State
	reason  Reason
	effects []Effect
}{
	Outgoing: {
		Dialling: {
			RingingSeen: {Ringing, "", nil},
			Answered:    {Keying, "", []Effect{StartKeying}},
			Refused:     {Failed, ReasonBusy, nil},
			Timeout:     {Failed, ReasonNoAnswer, []Effect{SendCancel}},
			LocalHangup: {Ended, ReasonCancelled, []Effect{SendCancel}},
			GatewayGone: {Failed, ReasonGatewayGone, nil},
		},
		Ringing: {
			RingingSeen: {Ringing, "", nil},
			Answered:    {Keying, "", []Effect{StartKeying}},
			Refused:     {Failed, ReasonBusy, nil},
			Timeout:     {Failed, ReasonNoAnswer, []Effect{SendCancel}},
			LocalHangup: {Ended, ReasonCancelled, []Effect{SendCancel}},
			GatewayGone: {Failed, ReasonGatewayGone, nil},
		},
		Keying: keyingTable, Active: activeTable,
	},
	Incoming: {
		Ringing: {
			Answered:     {Keying, "", []Effect{StartKeying, SendAnswer}},
			Refused:      {Failed, ReasonBusy, []Effect{SendRefusal}},
			Timeout:      {Failed, ReasonNoAnswer, []Effect{SendRefusal}},
			LocalHangup:  {Ended, ReasonLocalHangup, []Effect{SendRefusal}},
			RemoteHangup: {Ended, ReasonCancelled, nil},
			GatewayGone:  {Failed, ReasonGatewayGone, nil},
		},
		Keying: keyingTable, Active: activeTable,
	},
}

var keyingTable = map[Kind]struct {
	next    State
	reason  Reason
	effects []Effect
}{
	Keyed:        {Active, "", []Effect{OpenAudio}},
	KeyingFailed: {Failed, ReasonBusy, []Effect{SendBye}},
	Timeout:      {Failed, ReasonKeying, []Effect{SendBye}},
	LocalHangup:  {Ended, ReasonLocalHangup, []Effect{SendBye}},
	RemoteHangup: {Failed, ReasonPeerGaveUp, nil},
	GatewayGone:  {Failed, ReasonGatewayGone, nil},
}

var activeTable = map[Kind]struct {
	next    State
	reason  Reason
	effects []Effect
}{
	LocalHangup:  {Ended, ReasonLocalHangup, []Effect{CloseAudio, SendBye}},
	RemoteHangup: {Ended, ReasonRemoteHangup, []Effect{CloseAudio}},
	MediaLost:    {Failed, ReasonMediaLost, []Effect{CloseAudio, SendBye}},
	GatewayGone:  {Failed, ReasonGatewayGone, []Effect{CloseAudio}},
}

func TestAllPairs(t *testing.T) {
	pairs := 0
	for _, d := range Directions() {
		for _, s := range States() {
			for _, k := range Kinds() {
				pairs++
				m := &Machine{direction: d, state: s}
				effects, err := m.Step(Event{Kind: k, Reason: ReasonBusy})
				want, ok := wanted[d][s][k]
				switch {
				case s.Over():
					if !errors.Is(err, ErrOver) || m.State() != s {
						t.Errorf("%s %s %s: got %v, state %s; want ErrOver", d, s, k, err, m.State())
					}
				case !ok:
					var refused *RefusedTransition
					if !errors.As(err, &refused) || m.State() != s {
						t.Errorf("%s %s %s: got %v, state %s; want a refusal and no change", d, s, k, err, m.State())
					}
				case err != nil || m.State() != want.next || m.Reason() != want.reason || !slices.Equal(effects, want.effects):
					t.Errorf("%s %s %s: got %s %q %v %v, want %s %q %v", d, s, k,
						m.State(), m.Reason(), effects, err, want.next, want.reason, want.effects)
				}
			}
		}
	}
	if pairs != 2*6*10 {
		t.Errorf("walked %d pairs, want %d", pairs, 2*6*10)
	}
}

// TestAudioOnlyThroughKeys shows the room's promise on the table itself.
func TestAudioOnlyThroughKeys(t *testing.T) {
	for _, d := range Directions() {
		for _, s := range States() {
			for _, k := range Kinds() {
				next, _, effects, err := step(d, s, Event{Kind: k})
				if err != nil {
					continue
				}
				if next == Active && !(s == Keying && k == Keyed) {
					t.Errorf("%s: %s by %q reaches active without keys", d, s, k)
				}
				if slices.Contains(effects, OpenAudio) != (next == Active) {
					t.Errorf("%s: %s by %q opens audio in %s", d, s, k, next)
				}
				if s == Active && next != Active && (len(effects) == 0 || effects[0] != CloseAudio) {
					t.Errorf("%s: %s by %q leaves active without closing audio first", d, s, k)
				}
			}
		}
	}
}

func TestFirstStates(t *testing.T) {
	if s := New(Outgoing).State(); s != Dialling {
		t.Errorf("an outgoing call starts in %s", s)
	}
	if s := New(Incoming).State(); s != Ringing {
		t.Errorf("an incoming call starts in %s", s)
	}
}

func TestNamesAreComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range States() {
		seen[s.String()] = true
	}
	for _, k := range Kinds() {
		seen["k "+k.String()] = true
	}
	for e := StartKeying; e <= CloseAudio; e++ {
		seen["e "+e.String()] = true
	}
	if len(seen) != 6+10+7 {
		t.Errorf("got %d distinct names, want %d", len(seen), 6+10+7)
	}
	for name := range seen {
		if slices.Contains([]string{"", "k ", "e "}, name) {
			t.Error("a name is empty")
		}
	}
	if State(77).String() != "state(77)" || Kind(77).String() != "event(77)" || Effect(77).String() != "effect(77)" {
		t.Error("an unknown value does not say so")
	}
	for _, r := range []Reason{ReasonUnknownCallee, ReasonNotRegistered, ReasonBusy, ReasonNoAnswer, ReasonRefused,
		ReasonForbidden, ReasonAuthority, ReasonPeerName, ReasonLevel, ReasonKeying, ReasonPeerGaveUp, ReasonGatewayGone,
		ReasonMediaLost, ReasonBadAnswer, ReasonNotReady, ReasonLocalHangup, ReasonRemoteHangup, ReasonCancelled} {
		if r.Explain() == string(r) || r.Explain() == "" {
			t.Errorf("reason %q has no explanation", r)
		}
	}
}

func TestEmptyReasonsAreFilled(t *testing.T) {
	m := New(Outgoing)
	if _, err := m.Step(Event{Kind: Refused}); err != nil || m.Reason() != ReasonRefused {
		t.Errorf("got %q, %v", m.Reason(), err)
	}
	m = &Machine{direction: Outgoing, state: Keying}
	if _, err := m.Step(Event{Kind: KeyingFailed}); err != nil || m.Reason() != ReasonKeying {
		t.Errorf("got %q, %v", m.Reason(), err)
	}
}

// FuzzAnyStory plays any sequence of events and follows the audio door by the
// effects alone: it is open exactly in Active, and only ever after Keyed.
func FuzzAnyStory(f *testing.F) {
	f.Add(false, []byte{0, 1, 2, 5})
	f.Add(true, []byte{1, 2, 6})
	f.Add(true, []byte{2, 1, 3, 2, 2})
	f.Fuzz(func(t *testing.T, incoming bool, story []byte) {
		d := Outgoing
		if incoming {
			d = Incoming
		}
		m, open, keyed := New(d), false, false
		for _, b := range story {
			k := Kinds()[int(b)%len(Kinds())]
			was := m.State()
			effects, err := m.Step(Event{Kind: k})
			if err != nil {
				if m.State() != was {
					t.Fatalf("a refused %q changed %s to %s", k, was, m.State())
				}
				continue
			}
			keyed = keyed || k == Keyed
			for _, e := range effects {
				switch e {
				case OpenAudio:
					open = true
				case CloseAudio:
					open = false
				}
			}
			if open != m.State().AudioAllowed() {
				t.Fatalf("audio open=%v in %s after %q", open, m.State(), k)
			}
			if open && !keyed {
				t.Fatal("audio is open without keys")
			}
			if m.State().Over() != (m.Reason() != ReasonNone) {
				t.Fatalf("state %s with reason %q", m.State(), m.Reason())
			}
		}
	})
}
