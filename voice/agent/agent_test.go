package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"rempart/internal/proof"
	"rempart/voice/call"
	"rempart/voice/keying"
	"rempart/voice/media"
	"rempart/voice/sip"
)

func TestReasons(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("cannot do it: %w", err) }
	for _, row := range []struct {
		err  error
		want call.Event
	}{
		{&sip.Refusal{Status: 404}, call.Event{Kind: call.Refused, Reason: call.ReasonUnknownCallee}},
		{&sip.Refusal{Status: 480}, call.Event{Kind: call.Refused, Reason: call.ReasonNotRegistered}},
		{&sip.Refusal{Status: 486}, call.Event{Kind: call.Refused, Reason: call.ReasonBusy}},
		{&sip.Refusal{Status: 408}, call.Event{Kind: call.Refused, Reason: call.ReasonNoAnswer}},
		{&sip.Refusal{Status: 403}, call.Event{Kind: call.Refused, Reason: call.ReasonForbidden}},
		{&sip.Refusal{Status: 603}, call.Event{Kind: call.Refused, Reason: call.ReasonRefused}},
		{sip.ErrSession, call.Event{Kind: call.Refused, Reason: call.ReasonBadAnswer}},
		{sip.ErrNotRegistered, call.Event{Kind: call.Refused, Reason: call.ReasonNotReady}},
		{sip.ErrGatewayGone, call.Event{Kind: call.GatewayGone}},
		{errors.New("else"), call.Event{Kind: call.Refused, Reason: call.ReasonRefused}},
	} {
		if got := refusal(wrap(row.err)); got != row.want {
			t.Errorf("%v: %+v, want %+v", row.err, got, row.want)
		}
	}
	for err, want := range map[error]call.Reason{
		keying.ErrNotOurAuthority: call.ReasonAuthority, keying.ErrNotDialledName: call.ReasonPeerName, errInner: call.ReasonPeerName,
		keying.ErrLevel: call.ReasonLevel, keying.ErrWrongGroup: call.ReasonKeying, keying.ErrCommitment: call.ReasonKeying,
		context.DeadlineExceeded: call.ReasonKeying,
	} {
		if got := keyingFailure(wrap(err)); got.Kind != call.KeyingFailed || got.Reason != want {
			t.Errorf("%v: %+v, want %s", err, got, want)
		}
	}
	for reason, want := range map[call.Reason]int{call.ReasonBusy: 486, call.ReasonNoAnswer: 408, call.ReasonNotReady: 480, call.ReasonLocalHangup: 603} {
		if got := status(reason); got != want {
			t.Errorf("%s is answered with %d, want %d", reason, got, want)
		}
	}
}

func TestSizes(t *testing.T) {
	var r Record
	sounds(&r, media.Stats{Sent: 3, SentBytesMin: 88, SentBytesMax: 88})
	if r.BytesPerPacket != 88 || r.FramesSent != 3 {
		t.Errorf("%+v", r)
	}
	sounds(&r, media.Stats{SentBytesMin: 88, SentBytesMax: 89})
	if r.BytesPerPacket != -1 {
		t.Error("packets of two sizes are not seen")
	}
}

// seal is another text than the plain one, and notices edits; the AEAD is keyd's.
type seal struct{ fail error }

func (s seal) Seal(_ context.Context, purpose string, data []byte) ([]byte, error) {
	if s.fail != nil {
		return nil, s.fail
	}
	out := append([]byte(purpose), data...)
	for i := range out {
		out[i] ^= 0x5a
	}
	return out, nil
}

func (s seal) Open(_ context.Context, purpose string, sealed []byte) ([]byte, error) {
	out := bytes.Clone(sealed)
	for i := range out {
		out[i] ^= 0x5a
	}
	rest, ok := bytes.CutPrefix(out, []byte(purpose))
	if !ok {
		return nil, errors.New("cannot open")
	}
	return rest, nil
}

func TestStore(t *testing.T) {
	proof.SFR(t, "FDP_DAR_EXT.1", "")
	ctx, path, now := context.Background(), filepath.Join(t.TempDir(), "calls"), time.Now()
	s, err := openStore(ctx, path, seal{})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.last(); ok || s.seen("sip:b@x.example", "1") {
		t.Error("an empty store knows something")
	}
	r := Record{ID: "1", PeerURI: "sip:b@x.example", PeerCertificate: "cert-1", SAS: "abcd", State: "ended"}
	s.remember(r, now)
	s.log(r)
	if err := s.save(ctx); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil || bytes.Contains(raw, []byte("abcd")) || bytes.Contains(raw, []byte("sip:b")) {
		t.Errorf("the file shows what is in it: %v", err)
	}
	// Another boot.
	if s, err = openStore(ctx, path, seal{}); err != nil {
		t.Fatal(err)
	}
	if got, ok := s.find("1"); !ok || got.SAS != "abcd" || !s.seen(r.PeerURI, "cert-1") {
		t.Errorf("after a restart: %+v %v", got, ok)
	}
	// Another certificate of the same name is not the same peer.
	if s.seen(r.PeerURI, "cert-2") {
		t.Error("another certificate was seen before")
	}
	r.PeerCertificate = "cert-2"
	s.remember(r, now)
	if s.seen(r.PeerURI, "cert-1") || !s.seen(r.PeerURI, "cert-2") || s.kept.Peers[0].Calls != 1 {
		t.Errorf("after a new certificate: %+v", s.kept.Peers)
	}
	// Bounds: many calls, many peers, and long texts.
	for i := range 300 {
		r := Record{ID: fmt.Sprint(i), PeerURI: fmt.Sprintf("sip:p%d@x.example", i), Detail: string(bytes.Repeat([]byte("d"), 4000))}
		s.remember(r, now)
		s.log(r)
	}
	if len(s.kept.Calls) != maxCalls || len(s.kept.Peers) != maxKnown {
		t.Errorf("%d calls, %d peers", len(s.kept.Calls), len(s.kept.Peers))
	}
	if err := s.save(ctx); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() > maxStored+sealedRoom {
		t.Errorf("the file has %d bytes: %v", st.Size(), err)
	}
	if _, ok := s.find("299"); !ok {
		t.Error("the newest call was dropped")
	}
}

func TestStoreDamaged(t *testing.T) {
	ctx := context.Background()
	for name, content := range map[string][]byte{
		"edited": []byte("nonsense"), "empty": {}, "huge": make([]byte, maxStored+sealedRoom+1),
		"version": mustSeal(t, `{"version":2,"calls":null,"peers":null}`), "fields": mustSeal(t, `{"version":1,"calls":null,"peers":null,"more":1}`),
	} {
		path := filepath.Join(t.TempDir(), "calls")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openStore(ctx, path, seal{})
		if err == nil || s == nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if kept, err := os.ReadFile(path + ".unreadable"); err != nil || !bytes.Equal(kept, content) {
			t.Errorf("%s: what could not be read was lost: %v", name, err)
		}
		if err := s.save(ctx); err != nil {
			t.Errorf("%s: cannot go on: %v", name, err)
		}
	}
	s, err := openStore(ctx, filepath.Join(t.TempDir(), "calls"), seal{fail: errors.New("keyd is gone")})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.save(ctx); err == nil {
		t.Error("an unsealed log was saved")
	}
	if _, err := openStore(ctx, t.TempDir(), seal{}); err == nil {
		t.Error("a folder was taken for a log")
	}
}

func mustSeal(t *testing.T, plain string) []byte {
	t.Helper()
	b, err := seal{}.Seal(context.Background(), purpose, []byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
