package keying

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rempart/internal/frame"
	"rempart/internal/proof"
)

// exporterOf stands for the exporter of one TLS connection: a PRF under a secret that both its ends know, and an attacker who
// is one of them.
func exporterOf(secret uint64) exporter {
	return func(label string, context []byte, length int) ([]byte, error) {
		var out []byte
		for i := byte(0); len(out) < length; i++ {
			h := hmac.New(sha256.New, binary.BigEndian.AppendUint64(nil, secret))
			h.Write([]byte(label))
			h.Write(context)
			h.Write([]byte{i})
			out = h.Sum(out)
		}
		return out[:length], nil
	}
}

func someCall() call {
	return call{
		id: "7f3a", callerDialled: uri("a"), callerCertified: uri("a"), calleeDialled: uri("b"), calleeCertified: uri("b"),
		callerCert: [32]byte{1}, calleeCert: [32]byte{2}, level: "restricted",
	}
}

// side starts one side of an exchange on a pipe and returns the other end, for a test to play the peer.
func side(as role, secret uint64, c call) (*attacker, func() (*Result, error)) {
	mine, theirs := net.Pipe()
	_ = mine.SetDeadline(time.Now().Add(DefaultTimeout))
	x := exchange{as: as, stream: mine, export: exporterOf(secret), call: c}
	done := make(chan struct{})
	var r *Result
	var err error
	go func() {
		defer close(done)
		defer mine.Close()
		r, err = x.run()
	}()
	return &attacker{theirs, c}, func() (*Result, error) {
		<-done
		theirs.Close()
		return r, err
	}
}

// attacker is the end of a pipe that a test plays.
type attacker struct {
	net.Conn
	call call
}

func (a *attacker) send(m message) error {
	if m.kind == kindReady || m.kind == kindCommit {
		if m.level == "" {
			m.level = a.call.level
		}
		if m.context == [32]byte{} {
			m.context = a.call.context(shared)
		}
	}
	return frame.Write(a, m.marshal())
}

func (a *attacker) receive() (message, error) {
	b, err := frame.Read(a, maxFrame)
	if err != nil {
		return message{}, err
	}
	return parse(b)
}

func TestExchangeOverAPipe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left, right := net.Pipe()
		results := make(chan *Result, 2)
		for as, stream := range map[role]net.Conn{caller: left, callee: right} {
			go func() {
				r, err := (&exchange{as: as, stream: stream, export: exporterOf(1), call: someCall()}).run()
				if err != nil {
					t.Error(err)
				}
				results <- r
			}()
		}
		x, y := <-results, <-results
		if x == nil || y == nil || x.SAS != y.SAS || !bytes.Equal(x.SendKey.Reveal(), y.ReceiveKey.Reveal()) {
			t.Errorf("%+v and %+v", x, y)
		}
	})
}

// sasAfter is what a party shows at the end of an exchange.
func sasAfter(t testing.TB, secret uint64, c call, nA, nB [32]byte) sas {
	t.Helper()
	s, err := sasOf(exporterOf(secret), c.context(shared), append(nA[:], nB[:]...))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sameForEar compares the first 8 of the 20 bits, so that a few hundred runs show a probability.
func sameForEar(a, b sas) bool { return a>>(SASBits-8) == b>>(SASBits-8) }

// grindTries is how many numbers the attacker tries for each choice: far more than he needs to match 8 bits.
const grindTries = 1 << 12

// grind looks for an nB with which a caller who holds nA shows want.
func grind(t testing.TB, rng *rand.Rand, secret uint64, c call, nA [32]byte, want sas) [32]byte {
	t.Helper()
	var nB [32]byte
	for range grindTries {
		binary.BigEndian.PutUint64(nB[:], rng.Uint64())
		if sameForEar(sasAfter(t, secret, c, nA, nB), want) {
			break
		}
	}
	return nB
}

// TestLateManInTheMiddleGuesses plays the attacker of DESIGN.md: two valid certificates, hence both exporters, and he chooses
// each of his shares as late as the protocol lets him. The one he can choose late is his nB towards a: he knows
// everything then but nA, and grinds over a guess of it.
func TestLateManInTheMiddleGuesses(t *testing.T) {
	proof.SFR(t, "FTP_ITC.1/MEDIA", "TestWithoutCommitmentHeWins")
	const runs = 1024
	matches := 0
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(20, 26))
		toA, toB := someCall(), someCall()
		toA.calleeCert, toB.callerCert = [32]byte{3}, [32]byte{4} // his own certificates for the two names
		for run := range uint64(runs) {
			a, resultA := side(caller, 2*run, toA)
			b, resultB := side(callee, 2*run+1, toB)
			must(t, a.send(message{kind: kindReady}))
			commitA := expect(t, a, kindCommit)
			expect(t, b, kindReady)
			nA2 := [32]byte{byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())}
			must(t, b.send(message{kind: kindCommit, value: sha256.Sum256(nA2[:])}))
			nB := expect(t, b, kindAnswer).value
			shownByB := sasAfter(t, 2*run+1, toB, nA2, nB)

			// Late: everything that can be known is known. The guess of nA is as good as any.
			nB2 := grind(t, rng, 2*run, toA, commitA.value, shownByB)
			must(t, a.send(message{kind: kindAnswer, value: nB2}))
			expect(t, a, kindReveal)
			must(t, a.send(message{kind: kindDone}))
			must(t, b.send(message{kind: kindReveal, value: nA2}))
			expect(t, b, kindDone)
			ra, errA := resultA()
			rb, errB := resultB()
			must(t, errors.Join(errA, errB))
			if rb.SAS != shownByB.String() {
				t.Fatalf("b shows %q, the attacker computed %q", rb.SAS, shownByB)
			}
			if sameForEar(read(t, ra.SAS), read(t, rb.SAS)) {
				matches++
			}
		}
	})
	// Chance is 1024 / 256 = 4; 20 or more happen once in 10^8 test runs.
	if matches >= 20 {
		t.Errorf("he matched 8 bits in %d of %d calls; chance is %d", matches, runs, runs/256)
	}
	t.Logf("he matched 8 bits in %d of %d calls; chance is %d", matches, runs, runs/256)
}

// TestWithoutCommitmentHeWins is the control: the same attacker against the same derivation, where the caller sends nA openly
// before nB is chosen.
func TestWithoutCommitmentHeWins(t *testing.T) {
	const runs = 64
	matches := 0
	rng := rand.New(rand.NewPCG(20, 27))
	toA, toB := someCall(), someCall()
	toA.calleeCert, toB.callerCert = [32]byte{3}, [32]byte{4}
	for run := range uint64(runs) {
		var nA, nA2, nB [32]byte
		binary.BigEndian.PutUint64(nA[:], rng.Uint64()) // a's, sent in the clear
		binary.BigEndian.PutUint64(nA2[:], rng.Uint64())
		binary.BigEndian.PutUint64(nB[:], rng.Uint64()) // b's answer to nA2
		shownByB := sasAfter(t, 2*run+1, toB, nA2, nB)
		nB2 := grind(t, rng, 2*run, toA, nA, shownByB)
		if sameForEar(sasAfter(t, 2*run, toA, nA, nB2), shownByB) {
			matches++
		}
	}
	if matches != runs {
		t.Errorf("he won %d of %d calls without a commitment: the test above proves nothing", matches, runs)
	}
}

// TestAttackerOutOfTurn: every way to see the other's number before one's own is fixed ends the call without keys.
func TestAttackerOutOfTurn(t *testing.T) {
	for _, tc := range []struct {
		name string
		as   role // the honest side
		play func(t *testing.T, a *attacker)
		want error
	}{
		{"caller reveals another number", callee, func(t *testing.T, a *attacker) {
			expect(t, a, kindReady)
			must(t, a.send(message{kind: kindCommit, value: sha256.Sum256([]byte("first choice"))}))
			expect(t, a, kindAnswer)
			must(t, a.send(message{kind: kindReveal, value: [32]byte{7}}))
			if m := expect(t, a, kindAbort); m.code != abortCommitment {
				t.Errorf("abort with reason %d", m.code)
			}
		}, ErrCommitment},
		{"caller commits to nothing and waits for nB", callee, func(t *testing.T, a *attacker) {
			expect(t, a, kindReady)
			if m, err := a.receive(); err == nil {
				t.Errorf("the callee sent message %d before the commitment", m.kind)
			}
		}, os.ErrDeadlineExceeded},
		{"caller never reveals", callee, func(t *testing.T, a *attacker) {
			expect(t, a, kindReady)
			must(t, a.send(message{kind: kindCommit}))
			expect(t, a, kindAnswer)
			_, _ = a.receive()
		}, os.ErrDeadlineExceeded},
		{"callee waits for nA before it answers", caller, func(t *testing.T, a *attacker) {
			must(t, a.send(message{kind: kindReady}))
			expect(t, a, kindCommit)
			if m, err := a.receive(); err == nil {
				t.Errorf("the caller sent message %d before the answer", m.kind)
			}
		}, os.ErrDeadlineExceeded},
		{"callee answers twice", caller, func(t *testing.T, a *attacker) {
			must(t, a.send(message{kind: kindReady}))
			expect(t, a, kindCommit)
			must(t, a.send(message{kind: kindAnswer}))
			expect(t, a, kindReveal)
			must(t, a.send(message{kind: kindAnswer, value: [32]byte{1}}))
			expect(t, a, kindAbort)
		}, ErrProtocol},
		{"callee hangs up after the reveal", caller, func(t *testing.T, a *attacker) {
			must(t, a.send(message{kind: kindReady}))
			expect(t, a, kindCommit)
			must(t, a.send(message{kind: kindAnswer}))
			expect(t, a, kindReveal)
			a.Close()
		}, ErrPeerRefused},
		{"callee with another level", caller, func(t *testing.T, a *attacker) {
			must(t, a.send(message{kind: kindReady, level: "public"}))
			expect(t, a, kindAbort)
		}, ErrLevel},
		{"callee with another call", caller, func(t *testing.T, a *attacker) {
			must(t, a.send(message{kind: kindReady, context: [32]byte{1}}))
			expect(t, a, kindAbort)
		}, ErrOtherCall},
		{"a message longer than any", callee, func(t *testing.T, a *attacker) {
			expect(t, a, kindReady)
			// What aborts does not read on, so the pipe may refuse the rest of the message.
			go func() { _ = frame.Write(a, make([]byte, maxFrame+1)) }()
			_, _ = a.receive()
		}, ErrProtocol},
		{"an empty message", callee, func(t *testing.T, a *attacker) {
			expect(t, a, kindReady)
			must(t, frame.Write(a, nil))
			expect(t, a, kindAbort)
		}, ErrProtocol},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, result := side(tc.as, 1, someCall())
				tc.play(t, a)
				if r, err := result(); !errors.Is(err, tc.want) || r != nil {
					t.Errorf("%v, want %v", err, tc.want)
				}
			})
		})
	}
}

// TestEveryKindInEveryPlace walks all (place, message) pairs.
func TestEveryKindInEveryPlace(t *testing.T) {
	nA := [32]byte{9}
	good := map[kind]message{
		kindReady:  {kind: kindReady},
		kindCommit: {kind: kindCommit, value: sha256.Sum256(nA[:])},
		kindAnswer: {kind: kindAnswer, value: [32]byte{8}},
		kindReveal: {kind: kindReveal, value: nA},
		kindDone:   {kind: kindDone},
		kindAbort:  {kind: kindAbort, code: abortProtocol},
	}
	// What the honest side sends and awaits, in order.
	type turn struct {
		sends bool
		kind  kind
	}
	places := map[role][]turn{
		caller: {{false, kindReady}, {true, kindCommit}, {false, kindAnswer}, {true, kindReveal}, {false, kindDone}},
		callee: {{true, kindReady}, {false, kindCommit}, {true, kindAnswer}, {false, kindReveal}, {true, kindDone}},
	}
	for as, script := range places {
		for place, want := range script {
			if want.sends {
				continue
			}
			for given := range good {
				synctest.Test(t, func(t *testing.T) {
					a, result := side(as, 1, someCall())
					for _, turn := range script[:place] {
						if turn.sends {
							expect(t, a, turn.kind)
						} else {
							must(t, a.send(good[turn.kind]))
						}
					}
					must(t, a.send(good[given]))
					go func() { _, _ = io.Copy(io.Discard, a) }()
					if given == want.kind { // the run ends well, or for lack of the next message
						synctest.Wait()
						a.Close()
						_, err := result()
						if errors.Is(err, ErrProtocol) {
							t.Errorf("side %d, place %d: message %d was refused: %v", as, place, given, err)
						}
						return
					}
					_, err := result()
					switch {
					case given == kindAbort && !errors.Is(err, ErrPeerRefused):
						t.Errorf("side %d, place %d: an abort gave %v", as, place, err)
					case given != kindAbort && !errors.Is(err, ErrProtocol):
						t.Errorf("side %d, place %d: message %d gave %v", as, place, given, err)
					}
				})
			}
		}
	}
}

func TestAbortReasons(t *testing.T) {
	for code, want := range map[byte]error{
		abortProtocol: ErrPeerRefused, abortLevel: ErrLevel, abortOtherCall: ErrOtherCall, abortCommitment: ErrCommitment, 200: ErrPeerRefused,
	} {
		if err := aborted(code); !errors.Is(err, want) {
			t.Errorf("code %d is %v, want %v", code, err, want)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func expect(t testing.TB, a *attacker, want kind) message {
	t.Helper()
	m, err := a.receive()
	if err != nil || m.kind != want {
		t.Fatalf("got message %d, %v; want %d", m.kind, err, want)
	}
	return m
}

// FuzzParse: value or error, never both; what parses marshals to the same bytes.
func FuzzParse(f *testing.F) {
	for _, m := range []message{
		{kind: kindReady, level: "restricted"}, {kind: kindCommit, level: "secret", value: [32]byte{1}}, {kind: kindAnswer}, {kind: kindReveal},
		{kind: kindDone}, {kind: kindAbort, code: abortLevel}, {kind: kindReady}, {kind: 99},
		{kind: kindCommit, level: strings.Repeat("x", maxLevel)}, {kind: kindReady, level: strings.Repeat("x", maxLevel+1)},
	} {
		f.Add(m.marshal())
	}
	f.Add([]byte{})
	f.Add(append(message{kind: kindDone}.marshal(), 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			if m != (message{}) || !errors.Is(err, ErrProtocol) {
				t.Fatalf("both a value and an error: %+v, %v", m, err)
			}
			return
		}
		if !bytes.Equal(m.marshal(), b) {
			t.Fatalf("%x parses to %+v and marshals to %x", b, m, m.marshal())
		}
	})
}
