package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"rempart/internal/journal"
	"rempart/internal/run"
	"rempart/internal/secret"
	"rempart/internal/sock/httpsock"
	"rempart/keystore/blob"
	"rempart/keystore/client"
	"rempart/keystore/internal/tpm"
	"rempart/keystore/policy"
	"rempart/keystore/vault"
)

// Config is what keyd was given. All fields are required but Journal, which may
// be nil.
type Config struct {
	TPM     *os.File // the inherited stream; New takes ownership
	State   string   // folder that survives restarts and is keyd's alone
	Image   string   // folder of policy, policy.pub and approval
	Journal *journal.Journal
}

// Server is the keystore. Make it with New, run it with Serve.
type Server struct {
	device  *tpm.Device
	store   store
	image   image
	journal *journal.Journal

	// turn is held by the one request that works with the TPM or with what it
	// opened. A channel, so that a waiter can give up when its client does.
	turn chan struct{}
	file *blob.File // nil while empty; under turn
	held *held      // nil while locked; under turn

	mu      sync.Mutex
	state   vault.State // under mu
	status  client.Status
	lockout time.Time // when the lockout facts in status were read

	broken chan struct{} // closed when the TPM is gone or a step failed that must not
	cause  error         // why; set before broken is closed
}

// held is what the PIN opened.
type held struct {
	tunnel   *secret.Bytes // X25519 private key
	storage  *secret.Bytes // AES-256 key
	identity *secret.Bytes // auth value of the identity key
	proof    *tpm.Proof    // approval of the user class, verified
	key      *tpm.SigningKey
}

func (h *held) wipe() {
	if h == nil {
		return
	}
	h.tunnel.Wipe()
	h.storage.Wipe()
	h.identity.Wipe()
}

// lockoutAge is how old the lockout facts in a status may be.
const lockoutAge = time.Second

// watchStep is how often the TPM's stream is looked at between requests.
const watchStep = 250 * time.Millisecond

// New takes the TPM over, reads the vault file and the image's approval, and
// finds out which state the vault is in. An error means that there is no TPM to
// work with, or that the state folder cannot be read. A vault that will not
// open is not an error: its state says why.
func New(cfg Config) (*Server, error) {
	device, err := tpm.Open(cfg.TPM)
	if err != nil {
		return nil, err
	}
	s := &Server{
		device:  device,
		store:   store{dir: cfg.State},
		image:   loadImage(cfg.Image),
		journal: cfg.Journal,
		turn:    make(chan struct{}, 1),
		state:   vault.Empty,
		broken:  make(chan struct{}),
	}
	if err := s.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot start the keystore: %w", err), device.Close())
	}
	return s, nil
}

func (s *Server) start() error {
	if err := s.device.FlushAll(); err != nil {
		return err
	}
	file, err := s.store.readVault()
	switch {
	case errors.Is(err, blob.ErrDamaged) || errors.Is(err, blob.ErrVersion):
		// Never made anew over a vault that may still be saved.
		s.enter(vault.Broken, err.Error())
	case err != nil:
		return err
	case file == nil:
		reason := "not enrolled"
		if s.image.err != nil {
			reason += "; " + s.image.err.Error()
		}
		s.publish(vault.Empty, reason)
	default:
		if err := s.adopt(file); err != nil {
			return err
		}
	}
	s.journal.Event(eventStart, "keyd", journal.Success, "state", s.state.String(), "reason", s.status.Reason)
	return nil
}

// adopt takes a vault file found at the start.
func (s *Server) adopt(file *blob.File) error {
	s.file = file
	if err := s.device.Pin(file.Root); err != nil {
		if errors.Is(err, tpm.ErrTPMGone) {
			return err
		}
		s.enter(vault.Broken, err.Error())
		return nil
	}
	floor, fault, err := s.fault()
	if err != nil {
		return err
	}
	reason := "waiting for the pin"
	if fault != nil {
		reason = fault.Error()
	}
	s.enter(vault.Provisioned, reason)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Name = file.Name
	s.status.Floor = policy.Lowest(floor)
	_, err = s.store.readChain()
	s.status.Certificate = err == nil
	return s.readLockout()
}

// fault reads the floor and says why this boot opens nothing. err means that
// the TPM could not be asked.
func (s *Server) fault() (floor uint64, fault, err error) {
	floor, ok, err := s.device.ReadIndex(policy.FloorIndex)
	switch {
	case errors.Is(err, tpm.ErrTPMGone):
		return 0, nil, err
	case err != nil:
		return 0, err, nil
	case !ok:
		return 0, errors.New("the tpm has lost its rollback floor"), nil
	}
	fault = s.image.fault(s.device, floor)
	if errors.Is(fault, tpm.ErrTPMGone) {
		return 0, nil, fault
	}
	return floor, fault, nil
}

// publish makes state known with its reason.
func (s *Server) publish(state vault.State, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = state
	s.status.State = client.State(state.String())
	s.status.Reason = reason
	s.status.Serial = s.image.serial
	s.status.Since = time.Now().UTC()
}

// enter changes the state by an event. One that the machine does not know here
// is a fault of this program: the vault fails closed.
func (s *Server) enter(event vault.Event, reason string) {
	s.mu.Lock()
	next, err := vault.Next(s.state, event)
	s.mu.Unlock()
	if err != nil {
		next, reason = vault.Failed, err.Error()
	}
	s.publish(next, reason)
}

// readLockout refreshes the lockout facts. Needs mu, and the TPM to itself.
func (s *Server) readLockout() error {
	l, err := s.device.Lockout()
	if err != nil {
		return err
	}
	s.lockout = time.Now()
	s.status.TriesLeft = l.TriesLeft()
	s.status.LockoutSeconds = 0
	if l.Out {
		s.status.LockoutSeconds = int(l.Interval / time.Second)
	}
	return nil
}

// take waits for the turn, or for ctx to end. release gives it back.
func (s *Server) take(ctx context.Context) (release func(), refusal *httpsock.Error) {
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }, nil
	case <-ctx.Done():
		return nil, &httpsock.Error{Status: client.StatusTPMGone, Message: "the keystore is busy"}
	}
}

// breakDown is the end: the TPM is gone, or a step failed after which secrets
// must not be used. It wipes what is held, and Serve returns err. Needs the turn.
func (s *Server) breakDown(err error) {
	s.held.wipe()
	s.held = nil
	s.enter(vault.Broken, err.Error())
	s.journal.Event(eventFailed, "keyd", journal.Failure, "reason", err.Error())
	select {
	case <-s.broken:
	default:
		s.cause = err
		close(s.broken)
	}
}

// Serve answers requests on ln until ctx ends, then shuts the TPM down cleanly
// and returns run.ErrStopped. It returns another error when the keystore cannot
// go on: the process must end then, so that init closes the phone.
func (s *Server) Serve(ctx context.Context, ln *net.UnixListener) error {
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-s.broken:
			// The request that found out gets its answer first.
			cancel(s.cause)
		case <-inner.Done():
		}
	}()
	go s.watch(inner)
	err := httpsock.Serve(inner, ln, s.Handler())
	if !errors.Is(err, run.ErrStopped) {
		return errors.Join(err, s.stop())
	}
	select {
	case <-s.broken:
		if errors.Is(s.cause, tpm.ErrTPMGone) {
			return errors.Join(s.cause, s.device.Close())
		}
		return errors.Join(s.cause, s.stop())
	default:
	}
	if stopErr := s.stop(); stopErr != nil {
		return stopErr
	}
	return run.ErrStopped
}

// watch looks for the end of the TPM's stream while nobody asks for anything.
func (s *Server) watch(ctx context.Context) {
	tick := time.NewTicker(watchStep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		release, refusal := s.take(ctx)
		if refusal != nil {
			return
		}
		err := s.device.Check()
		if err != nil {
			s.breakDown(err)
		}
		release()
		if err != nil {
			return
		}
	}
}

// stop wipes what is held and shuts the TPM down.
func (s *Server) stop() error {
	s.turn <- struct{}{} // for ever: nothing is served after it
	var err error
	if s.held != nil {
		err = s.held.key.Close()
		s.held.wipe()
		s.held = nil
	}
	err = errors.Join(err, s.device.Shutdown(), s.device.Close())
	outcome := journal.Success
	if err != nil {
		outcome = journal.Failure
	}
	s.journal.Event(eventStop, "keyd", outcome)
	return err
}
