package bringup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"rempart/board/netns"
	"rempart/boot/report"
	"rempart/internal/run"
	"rempart/keystore/client"
	"rempart/voice/record"
)

// PhoneStatus is what `rempart status --json` tells, as far as a lab looks at
// it. What could not be learned is in Errors, under the name of who was asked.
type PhoneStatus struct {
	Boot      *report.Report    `json:"boot,omitempty"`
	Keystore  client.Status     `json:"keystore"`
	Tunnel    Tunnel            `json:"tunnel"`
	Gate      *Gate             `json:"gate,omitempty"`
	Telephone *record.Status    `json:"telephone,omitempty"` // a handset's
	Errors    map[string]string `json:"errors,omitempty"`
}

// Tunnel is the state of a machine's tunnel.
type Tunnel struct {
	State         string    `json:"state"`
	Since         time.Time `json:"since,omitzero"`
	Reason        string    `json:"reason,omitempty"`
	Gateway       string    `json:"gateway,omitempty"`
	Endpoint      string    `json:"endpoint,omitempty"`
	LastHandshake time.Time `json:"last_handshake,omitzero"`
	RxBytes       uint64    `json:"rx_bytes,omitempty"`
	TxBytes       uint64    `json:"tx_bytes,omitempty"`
	Peers         int       `json:"peers,omitempty"`
	Connected     int       `json:"connected,omitempty"`
}

// Gate is what egressd says of itself: the gateway it admits ("" for deny
// all), the digest of the policy in force, and frames by reason.
type Gate struct {
	Admitted string `json:"admitted"`
	Digest   string `json:"digest"`
	Devices  []struct {
		Egress  map[string]uint64 `json:"egress"`
		Ingress map[string]uint64 `json:"ingress"`
	} `json:"devices"`
}

// stateUp is the tunnel's state in which packets pass.
const stateUp = "up"

// StatusOf asks a machine, as its user would.
func StatusOf(ctx context.Context, w *netns.World, name string) (PhoneStatus, error) {
	out, err := w.Phone(ctx, name, nil, "status", "--json")
	// Status fails when something is wrong on the phone, and still tells.
	var s PhoneStatus
	if err != nil && len(out) == 0 {
		return s, err
	}
	if jerr := json.Unmarshal(out, &s); jerr != nil {
		return s, errors.Join(fmt.Errorf("cannot read the status of %s: %w", name, jerr), err)
	}
	return s, nil
}

// waitFor asks a machine until its status is good. A machine that goes off in
// between is an error at once.
func waitFor(ctx context.Context, w *netns.World, name, what string, good func(PhoneStatus) (bool, error)) (PhoneStatus, error) {
	var last error
	for pause := 5 * time.Millisecond; ; pause = min(pause*3/2, 100*time.Millisecond) {
		s, err := StatusOf(ctx, w, name)
		if err == nil {
			ok, gerr := good(s)
			if ok || gerr != nil {
				return s, gerr
			}
			err = fmt.Errorf("keystore %s %s, tunnel %s %s", s.Keystore.State, s.Keystore.Reason, s.Tunnel.State, s.Tunnel.Reason)
		}
		if ctx.Err() == nil { // an error that the end of the wait made tells nothing
			last = err
		}
		if errors.Is(err, netns.ErrOff) {
			return s, stopped(ctx, w, name, what, err)
		}
		if errors.Is(err, netns.ErrNoMachine) {
			return s, fmt.Errorf("%s did not get %s: %w", name, what, err)
		}
		select {
		case <-ctx.Done():
			err := fmt.Errorf("%s did not get %s in time: %w", name, what, errors.Join(context.Cause(ctx), last))
			return s, run.Hint(err, "%s", lastWords(context.WithoutCancel(ctx), w, name))
		case <-time.After(pause):
		}
	}
}

// stopped is the error of a machine that went off by itself: what its init said at the end, in init's own words, since it
// alone knows the reason.
func stopped(ctx context.Context, w *netns.World, name, what string, off error) error {
	m, err := w.Machine(ctx, name)
	if err != nil {
		return errors.Join(fmt.Errorf("%s did not get %s: %w", name, what, off), err)
	}
	said, hint := finalWords(m.Paths.Console)
	// The keeper may still be copying the last lines.
	for tries := 0; said == "" && tries < 10 && ctx.Err() == nil; tries++ {
		time.Sleep(20 * time.Millisecond)
		said, hint = finalWords(m.Paths.Console)
	}
	if said == "" {
		return run.Hint(fmt.Errorf("%s did not get %s: %w", name, what, off), "%s", lastWords(ctx, w, name))
	}
	return run.Hint(fmt.Errorf("%s did not get %s: %w: %s", name, what, netns.ErrOff, said), "%s (%s)", hint, m.Paths.Console)
}

// finalWords returns the error line that init ended with and its hint (package run's form), or "" where a console has none.
func finalWords(console string) (said, hint string) {
	text, err := os.ReadFile(console)
	if err != nil {
		return "", ""
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "init: ") {
			said, hint = line, "its console tells more"
		} else if rest, ok := strings.CutPrefix(line, "hint: "); ok && said != "" {
			hint = rest
		}
	}
	return said, hint
}

// lastWords returns where a machine's console is and how it ends.
func lastWords(ctx context.Context, w *netns.World, name string) string {
	m, err := w.Machine(ctx, name)
	if err != nil {
		return "its console is in the state folder"
	}
	console, err := os.ReadFile(m.Paths.Console)
	if err != nil {
		return "its console cannot be read: " + err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(console)), "\n")
	return m.Paths.Console + " ends with: " + strings.Join(lines[max(0, len(lines)-4):], " | ")
}

// keystoreReady waits until keyd knows its state.
func keystoreReady(ctx context.Context, w *netns.World, name string) (PhoneStatus, error) {
	return waitFor(ctx, w, name, "ready for its user", func(s PhoneStatus) (bool, error) {
		if s.Keystore.State == client.Failed {
			return false, fmt.Errorf("keystore of %s failed: %s", name, s.Keystore.Reason)
		}
		return s.Keystore.State != "", nil
	})
}

// tunnelUp waits for the tunnel.
func tunnelUp(ctx context.Context, w *netns.World, name string) error {
	_, err := waitFor(ctx, w, name, "in its tunnel", func(s PhoneStatus) (bool, error) { return s.Tunnel.State == stateUp, nil })
	return err
}

// unlock gives the PIN, as the person who holds the machine would.
func unlock(ctx context.Context, w *netns.World, name, pin string) error {
	_, err := w.Phone(ctx, name, []byte(pin+"\n"), "unlock")
	if err == nil {
		return nil
	}
	hint := run.HintOf(err)
	if strings.Contains(err.Error(), "wrong PIN") {
		hint = "--pin is the PIN that this state folder was enrolled with; " + hint
	}
	return run.Hint(fmt.Errorf("cannot unlock %s: %w", name, err), "%s", hint)
}
