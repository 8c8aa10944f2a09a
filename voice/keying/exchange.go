package keying

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"

	"rempart/internal/frame"
	"rempart/internal/secret"
)

const (
	nonceSize = 32
	maxLevel  = 64 // bytes of a level's name
	maxFrame  = 1 + 2*32 + maxLevel
)

// kind is the first byte of a message.
type kind byte

const (
	kindReady kind = iota + 1
	kindCommit
	kindAnswer
	kindReveal
	kindDone
	kindAbort
)

// The reasons in an abort message. They are for the other person's display: the side that aborts knows more.
const (
	abortProtocol byte = iota
	abortLevel
	abortOtherCall
	abortCommitment
)

// message is one frame of the exchange. Which fields a kind has:
//
//	ready   kind, context, level
//	commit  kind, value (SHA-256 of nA), context, level
//	answer  kind, value (nB)
//	reveal  kind, value (nA)
//	done    kind
//	abort   kind, code
type message struct {
	kind    kind
	value   [nonceSize]byte
	context [32]byte
	level   string
	code    byte
}

func (m message) marshal() []byte {
	b := []byte{byte(m.kind)}
	switch m.kind {
	case kindReady:
		b = append(append(b, m.context[:]...), m.level...)
	case kindCommit:
		b = append(append(append(b, m.value[:]...), m.context[:]...), m.level...)
	case kindAnswer, kindReveal:
		b = append(b, m.value[:]...)
	case kindAbort:
		b = append(b, m.code)
	}
	return b
}

// parse is total and strict: for every b either an error or a message that marshals to b.
func parse(b []byte) (message, error) {
	if len(b) == 0 || len(b) > maxFrame {
		return message{}, fmt.Errorf("%w: a message of %d bytes", ErrProtocol, len(b))
	}
	m, rest := message{kind: kind(b[0])}, b[1:]
	fixed := func(into []byte) bool {
		if len(rest) < len(into) {
			return false
		}
		rest = rest[copy(into, rest):]
		return true
	}
	level := func() bool {
		m.level, rest = string(rest), nil
		return len(m.level) >= 1 && len(m.level) <= maxLevel
	}
	var code [1]byte
	ok := false
	switch m.kind {
	case kindReady:
		ok = fixed(m.context[:]) && level()
	case kindCommit:
		ok = fixed(m.value[:]) && fixed(m.context[:]) && level()
	case kindAnswer, kindReveal:
		ok = fixed(m.value[:])
	case kindDone:
		ok = true
	case kindAbort:
		ok = fixed(code[:])
		m.code = code[0]
	}
	if !ok || len(rest) != 0 {
		return message{}, fmt.Errorf("%w: a message of kind %d and %d bytes", ErrProtocol, b[0], len(b))
	}
	return m, nil
}

// exchange is one side's run of the protocol over a connection that is secure and whose peer is verified.
type exchange struct {
	as     role
	stream io.ReadWriter
	export exporter
	call   call
}

func (x *exchange) run() (*Result, error) {
	var nonces [2 * nonceSize]byte // nA ‖ nB
	var err error
	if x.as == caller {
		err = x.runCaller(&nonces)
	} else {
		err = x.runCallee(&nonces)
	}
	if err != nil {
		return nil, err
	}
	return derive(x.export, x.call, x.as, nonces[:])
}

func (x *exchange) runCaller(nonces *[2 * nonceSize]byte) error {
	ready, err := x.receive(kindReady)
	if err != nil {
		return err
	}
	if err := x.sameCall(ready); err != nil {
		return err
	}
	nA := nonces[:nonceSize]
	if _, err := rand.Read(nA); err != nil {
		return fmt.Errorf("cannot draw a random number: %w", err)
	}
	if err := x.send(message{
		kind: kindCommit, value: sha256.Sum256(nA), context: x.call.context(shared), level: x.call.level,
	}); err != nil {
		return err
	}
	answer, err := x.receive(kindAnswer)
	if err != nil {
		return err
	}
	copy(nonces[nonceSize:], answer.value[:])
	// Only now, when nB is fixed, does nA leave.
	if err := x.send(message{kind: kindReveal, value: [nonceSize]byte(nA)}); err != nil {
		return err
	}
	_, err = x.receive(kindDone)
	return err
}

func (x *exchange) runCallee(nonces *[2 * nonceSize]byte) error {
	if err := x.send(message{kind: kindReady, context: x.call.context(shared), level: x.call.level}); err != nil {
		return err
	}
	commit, err := x.receive(kindCommit)
	if err != nil {
		return err
	}
	if err := x.sameCall(commit); err != nil {
		return err
	}
	nB := nonces[nonceSize:]
	if _, err := rand.Read(nB); err != nil {
		return fmt.Errorf("cannot draw a random number: %w", err)
	}
	if err := x.send(message{kind: kindAnswer, value: [nonceSize]byte(nB)}); err != nil {
		return err
	}
	reveal, err := x.receive(kindReveal)
	if err != nil {
		return err
	}
	if got := sha256.Sum256(reveal.value[:]); subtle.ConstantTimeCompare(got[:], commit.value[:]) != 1 {
		x.abort(abortCommitment)
		return ErrCommitment
	}
	copy(nonces[:], reveal.value[:])
	return x.send(message{kind: kindDone})
}

// sameCall compares what the other side sees with what we see.
func (x *exchange) sameCall(m message) error {
	if m.level != x.call.level {
		x.abort(abortLevel)
		return fmt.Errorf("%w: ours is %q, the other party's is %q", ErrLevel, x.call.level, m.level)
	}
	if m.context != x.call.context(shared) {
		x.abort(abortOtherCall)
		return ErrOtherCall
	}
	return nil
}

func (x *exchange) send(m message) error {
	if err := frame.Write(x.stream, m.marshal()); err != nil {
		return fmt.Errorf("cannot send to the other party: %w", reason(err))
	}
	return nil
}

// receive returns the next message, which must be of the kind that is due.
func (x *exchange) receive(want kind) (message, error) {
	b, err := frame.Read(x.stream, maxFrame)
	switch {
	case errors.Is(err, frame.ErrTooLong):
		x.abort(abortProtocol)
		return message{}, fmt.Errorf("%w: %w", ErrProtocol, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return message{}, fmt.Errorf("%w: it hung up", ErrPeerRefused)
	case err != nil:
		return message{}, fmt.Errorf("cannot receive from the other party: %w", reason(err))
	}
	m, err := parse(b)
	if err != nil {
		x.abort(abortProtocol)
		return message{}, err
	}
	if m.kind == kindAbort {
		return message{}, aborted(m.code)
	}
	if m.kind != want {
		x.abort(abortProtocol)
		return message{}, fmt.Errorf("%w: message %d came where %d was due", ErrProtocol, m.kind, want)
	}
	return m, nil
}

// abort tells the other side why there will be no call. Whether it hears that changes nothing for this side.
func (x *exchange) abort(code byte) { _ = x.send(message{kind: kindAbort, code: code}) }

// aborted is the error for an abort that was received.
func aborted(code byte) error {
	switch code {
	case abortLevel:
		return fmt.Errorf("%w: the other party says so", ErrLevel)
	case abortOtherCall:
		return fmt.Errorf("%w: the other party says so", ErrOtherCall)
	case abortCommitment:
		return fmt.Errorf("%w: the other party says so", ErrCommitment)
	}
	return fmt.Errorf("%w: reason %d", ErrPeerRefused, code)
}

// derive makes the keys and the short authentication string from the exporter.
func derive(export exporter, c call, as role, nonces []byte) (*Result, error) {
	var keys [2]*secret.Bytes
	var ssrcs [2]uint32
	for i, d := range []direction{callerToCallee, calleeToCaller} {
		context := c.context(d)
		key, err := export(labelSRTP, context[:], KeySize)
		if err != nil {
			return nil, fmt.Errorf("cannot export a key: %w", err)
		}
		keys[i] = secret.New(key)
		if ssrcs[i], err = exportSSRC(export, context); err != nil {
			return nil, err
		}
	}
	sas, err := sasOf(export, c.context(shared), nonces)
	if err != nil {
		return nil, err
	}
	r := &Result{SendKey: keys[0], ReceiveKey: keys[1], SendSSRC: ssrcs[0], ReceiveSSRC: ssrcs[1], SAS: sas.String()}
	if as == callee {
		r.SendKey, r.ReceiveKey = r.ReceiveKey, r.SendKey
		r.SendSSRC, r.ReceiveSSRC = r.ReceiveSSRC, r.SendSSRC
	}
	return r, nil
}
