package leak

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
	"rempart/board/scenario"
	"rempart/board/scenario/attack"
	"rempart/board/scenario/matrix"
	"rempart/internal/link"
	"rempart/tools/lab/bringup"
	"rempart/vpn/egress"
	"rempart/vpn/egress/ask"
	"rempart/vpn/enforce"
)

// grace is how long init may take to switch the handset off.
const grace = 2 * time.Second

// swaps is how often the state policy-swap admits and closes.
const swaps = 30

// Enter brings the handset to where the state begins.
func (s *stand) Enter(ctx context.Context, state matrix.State) error {
	switch state {
	case matrix.GateOnly:
		return s.gateOnly(ctx)
	case matrix.Locked:
		return s.locked(ctx)
	case matrix.Connecting, matrix.Error, matrix.Reconfiguring:
		return s.connecting(ctx)
	}
	if err := s.up(ctx); err != nil {
		return err
	}
	if d, _, frozen := state.Daemon(); frozen {
		s.frozen = append(s.frozen, d)
		return s.freeze(ctx, s.name, d, true)
	}
	return nil
}

// Happen lets a state pass, or says that the handset has had enough.
func (s *stand) Happen(ctx context.Context, state matrix.State) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if !state.Ends() || state == matrix.Killed("keyd") {
		go s.untilLost(ctx, cancel)
	}
	err := s.happen(ctx, state)
	if errors.Is(context.Cause(ctx), matrix.ErrLost) {
		return matrix.ErrLost
	}
	return err
}

// untilLost looks whether the handset has taken its radios down.
func (s *stand) untilLost(ctx context.Context, lost func(error)) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.lost(ctx) {
			lost(matrix.ErrLost)
			return
		}
	}
}

// lost says that the handset waits for a restart with its radios down.
func (s *stand) lost(ctx context.Context) bool {
	p, err := s.status(ctx)
	return err == nil && p.Boot != nil && p.Boot.Closed && strings.HasPrefix(p.Boot.Reason, "the watcher: ")
}

func (s *stand) happen(ctx context.Context, state matrix.State) error {
	switch state {
	case matrix.Error:
		return s.until(ctx, func(p bringup.PhoneStatus) bool { return p.Tunnel.State == "error" })
	case matrix.Reconfiguring:
		return s.until(ctx, func(p bringup.PhoneStatus) bool {
			return p.Tunnel.Gateway == bringup.SpareName && p.Tunnel.State == "connecting"
		})
	case matrix.Rekeying:
		return s.rekey(ctx)
	case matrix.Swapping:
		return s.swap(ctx)
	case matrix.Restart:
		return errors.Join(s.Restart(ctx), s.WaitUp(ctx))
	case matrix.Shutdown:
		return s.w.PowerOff(ctx, s.name, grace)
	case matrix.KilledInit:
		return s.KillInit(ctx)
	}
	if d, killed, _ := state.Daemon(); killed {
		return errors.Join(s.KillDaemon(ctx, d), s.WaitUp(ctx))
	}
	return fmt.Errorf("nothing happens in state %s", state)
}

// Leave lets the gateway speak again and wakes what Enter froze.
func (s *stand) Leave(ctx context.Context, state matrix.State) error {
	var errs []error
	for _, group := range s.frozen {
		errs = append(errs, s.freeze(ctx, s.name, group, false))
	}
	s.frozen = nil
	return errors.Join(append(errs, s.freeze(ctx, bringup.GatewayName, "", false))...)
}

// up makes sure that the handset is in its tunnel, by a restart if need be.
func (s *stand) up(ctx context.Context) error {
	m, err := s.w.Machine(ctx, s.name)
	if err != nil {
		return err
	}
	if m.State == netns.On && !s.lost(ctx) {
		if err := s.soonUp(ctx); err == nil || ctx.Err() != nil {
			return err
		}
	}
	// What a sender did to the handset, or to its neighbours on the link, may need a second start.
	for range 2 {
		if err = s.Restart(ctx); err == nil {
			err = s.soonUp(ctx)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// soon is how long a handset may take to be in its tunnel before it is started anew.
const soon = 15 * time.Second

func (s *stand) soonUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	return s.WaitUp(ctx)
}

// until asks for the status until it is as wanted.
func (s *stand) until(ctx context.Context, good func(bringup.PhoneStatus) bool) error {
	var last error
	for {
		p, err := s.status(ctx)
		if err == nil && good(p) {
			return nil
		}
		if last = err; err == nil {
			last = fmt.Errorf("keystore %s, tunnel %s to %q (%s)", p.Keystore.State, p.Tunnel.State, p.Tunnel.Gateway, p.Tunnel.Reason)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s did not come that far: %w; last: %w", s.name, ctx.Err(), last)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// locked restarts the handset and gives no PIN: its radios are up behind a gate that denies all.
func (s *stand) locked(ctx context.Context) error {
	if err := s.Restart(ctx); err != nil {
		return err
	}
	if err := s.until(ctx, func(p bringup.PhoneStatus) bool { return p.Keystore.State == "sealed" && p.Gate != nil }); err != nil {
		return err
	}
	if err := s.inBlack(ctx, func(radio netns.Radio) error { return awaitDevice(ctx, radio.Device, true) }); err != nil {
		return err
	}
	return s.inRed(ctx, func() error { return awaitDevice(ctx, matrix.TunnelDevice, false) })
}

// awaitDevice waits until a device is there, and up if that is asked for.
func awaitDevice(ctx context.Context, device string, up bool) error {
	for {
		is, err := isUp(device)
		if err == nil && (is || !up) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s did not come up: %w", device, errors.Join(ctx.Err(), err))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// connecting unlocks a handset whose gateway does not answer.
func (s *stand) connecting(ctx context.Context) error {
	if err := s.locked(ctx); err != nil {
		return err
	}
	if err := s.freeze(ctx, bringup.GatewayName, "", true); err != nil {
		return err
	}
	if _, err := s.w.Phone(ctx, s.name, []byte(s.options.PIN+"\n"), "unlock"); err != nil {
		return err
	}
	return s.until(ctx, func(p bringup.PhoneStatus) bool { return p.Tunnel.State == "connecting" })
}

// gateOnlyTries is how often the moment between the gate and the radios is looked for.
const gateOnlyTries = 8

// gateOnly holds a boot between the gate and the radios by freezing init there. Then it does what the boot would have done
// next, as whoever got that far might: the radio is set up and has its addresses and routes.
func (s *stand) gateOnly(ctx context.Context) error {
	for range gateOnlyTries {
		// Its init may be frozen from an earlier try, or stripped.
		if err := s.Restart(ctx); err != nil {
			return err
		}
		early, err := s.freezeAtGate(ctx)
		if err != nil {
			return err
		}
		if !early {
			if err := s.Leave(ctx, matrix.GateOnly); err != nil {
				return err
			}
			continue
		}
		m, err := s.w.Machine(ctx, s.name)
		if err != nil {
			return err
		}
		return s.inBlack(ctx, func(radio netns.Radio) error { return configure(radio.Device, m, 0) })
	}
	return fmt.Errorf("the radio was up before init could be frozen, %d times", gateOnlyTries)
}

// freezeAtGate freezes init as soon as the gate is attached, and says whether that was before the radio came up.
func (s *stand) freezeAtGate(ctx context.Context) (early bool, err error) {
	for {
		err := s.inBlack(ctx, func(radio netns.Radio) error {
			index, err := link.Index(radio.Device)
			if err != nil {
				return err
			}
			r, err := enforce.ReadBack(index, egress.DenyAll(), egress.LinkFacts{})
			if err != nil {
				return err
			}
			return r.Err()
		})
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("the gate did not come into force: %w; last: %w", ctx.Err(), err)
		case <-time.After(time.Millisecond):
		}
	}
	if err := s.freeze(ctx, s.name, "init", true); err != nil {
		return false, err
	}
	s.frozen = append(s.frozen, "init")
	up := false
	err = s.inBlack(ctx, func(radio netns.Radio) (err error) { up, err = isUp(radio.Device); return err })
	return !up, err
}

// inBlack does something in the handset's black namespace.
func (s *stand) inBlack(ctx context.Context, do func(netns.Radio) error) error {
	m, err := s.w.Machine(ctx, s.name)
	if err != nil {
		return err
	}
	black, err := link.Open(m.Paths.Black)
	if err != nil {
		return err
	}
	defer black.Close()
	return black.Do(func() error { return do(m.Radio) })
}

// inRed does something in the handset's red namespace.
func (s *stand) inRed(ctx context.Context, do func() error) error {
	m, err := s.w.Machine(ctx, s.name)
	if err != nil {
		return err
	}
	red, err := link.Open(m.Paths.Red)
	if err != nil {
		return err
	}
	defer red.Close()
	return red.Do(do)
}

func isUp(device string) (bool, error) {
	all, err := link.List()
	if err != nil {
		return false, err
	}
	for _, d := range all {
		if d.Name == device {
			return d.Up, nil
		}
	}
	return false, fmt.Errorf("there is no device %s", device)
}

// swap admits and closes in tunneld's place, with the true one stopped.
func (s *stand) swap(ctx context.Context) (err error) {
	gateway := ""
	// What the senders do may have closed the phone for a moment.
	if err := s.until(ctx, func(p bringup.PhoneStatus) bool {
		if p.Gate != nil {
			gateway = p.Gate.Admitted
		}
		return gateway != ""
	}); err != nil {
		return fmt.Errorf("cannot swap: %w", err)
	}
	// Not by the control group: the other process is in it as well.
	if err := s.signal(ctx, "tunneld", unix.SIGSTOP); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.signal(context.WithoutCancel(ctx), "tunneld", unix.SIGCONT)) }()
	cmd, err := s.w.InPlaceOf(ctx, s.name, "tunneld", s.self, "swap", fmt.Sprint(swaps), gateway)
	if err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot swap: %w: %s", err, out)
	}
	return nil
}

// Swap is what the process in tunneld's place does.
func Swap(ctx context.Context, times int, gateway string) error {
	c, err := ask.Dial(egressdSocket)
	if err != nil {
		return err
	}
	defer c.Close()
	for range times {
		if _, err := c.Admit(ctx, gateway); err != nil {
			return err
		}
		if _, err := c.CloseGate(ctx); err != nil {
			return err
		}
	}
	return nil
}

// egressdSocket is where a handset's egressd is asked.
const egressdSocket = "/run/rempart/egressd.sock"

// rekey silences the gateway while red sends into the tunnel, until the handset counts it as gone and forces a new handshake,
// and lets the gateway answer that.
func (s *stand) rekey(ctx context.Context) error {
	before, err := s.status(ctx)
	if err != nil {
		return err
	}
	if err := s.freeze(ctx, bringup.GatewayName, "", true); err != nil {
		return err
	}
	j := attack.Job{Kind: attack.UDP, Family: attack.IPv4, Target: s.site.Inner4, For: time.Minute}
	if _, err := rand.Read(j.Marker[:]); err != nil {
		return err
	}
	p, err := s.board.Start(ctx, scenario.Command{Where: scenario.Red, App: App, Argv: append([]string{s.self, "attempt"}, j.Args()...)})
	if err != nil {
		return err
	}
	defer p.Close()
	// That state lasts for seconds, and a busy machine may show the next one first.
	if err := s.until(ctx, func(p bringup.PhoneStatus) bool { return p.Tunnel.State != "" && p.Tunnel.State != "up" }); err != nil {
		return err
	}
	if err := s.freeze(ctx, bringup.GatewayName, "", false); err != nil {
		return err
	}
	return s.until(ctx, func(p bringup.PhoneStatus) bool {
		return p.Tunnel.State == "up" && p.Tunnel.LastHandshake.After(before.Tunnel.LastHandshake)
	})
}
