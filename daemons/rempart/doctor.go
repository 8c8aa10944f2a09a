package main

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"rempart/boot/eventlog"
	"rempart/boot/manifest"
	"rempart/boot/measure"
	"rempart/boot/report"
	"rempart/boot/stage"
	"rempart/internal/run"
)

// handshakeMax is how old a handshake of a tunnel that is up may be: WireGuard
// makes a new one at least every two minutes, and ends a session after three.
const handshakeMax = 3 * time.Minute

// Finding is one promise and what can be seen of it from here.
type Finding struct {
	Promise string `json:"promise"`
	OK      bool   `json:"ok"`
	// Why says what was seen; Hint what to do about it.
	Why  string `json:"why"`
	Hint string `json:"hint,omitempty"`
}

// doctor checks every promise it can see; any broken one is exit code 1.
func doctor(ctx context.Context, args []string, e env) error {
	var asJSON bool
	if _, err := parse("doctor", args, 0, func(f *flag.FlagSet) { f.BoolVar(&asJSON, "json", false, "") }); err != nil {
		return err
	}
	findings := examine(gather(ctx, e), e, time.Now())
	if asJSON {
		if err := writeJSON(e.stdout, findings); err != nil {
			return err
		}
	}
	wrong := 0
	for _, f := range findings {
		mark := "ok   "
		if !f.OK {
			mark, wrong = "WRONG", wrong+1
		}
		if !asJSON {
			fmt.Fprintf(e.stdout, "%s  %-24s %s\n", mark, f.Promise, f.Why)
			if f.Hint != "" {
				fmt.Fprintf(e.stdout, "       %-24s hint: %s\n", "", f.Hint)
			}
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d checks found something wrong", wrong, len(findings))
	}
	return nil
}

// examine is doctor without output.
func examine(s Status, e env, now time.Time) []Finding {
	var out []Finding
	check := func(promise, good string, problem error) {
		f := Finding{Promise: promise, OK: problem == nil, Why: good}
		if problem != nil {
			f.Why, f.Hint = problem.Error(), run.HintOf(problem)
		}
		out = append(out, f)
	}
	if s.Boot == nil {
		check("boot report", "", run.Hint(errors.New(s.Errors["init"]), "init publishes it; without it nothing else can be judged"))
		return out
	}
	check("boot is complete", fmt.Sprintf("%d steps", len(s.Boot.Steps)), booted(s.Boot))
	for _, d := range s.Boot.Devices {
		check("floor under "+d.Name, "drops everything that the gate does not pass", when(!d.Floor, "restart the handset: a device without a floor must not stay", "there is no floor on %s", d.Name))
		check("gate on "+d.Name, "read back, as it should be", when(!d.InForce, "something changed the gate: restart the handset and look at the journal", "%s", reasoned("the gate is not what it should be", d.Gate)))
	}
	for _, l := range s.Boot.Backstop {
		check(l.Name+" behind the gate", l.State, when(!l.InForce, "if the kernel has no such layer, the others hold without it; else something changed it: restart the handset", "%s is not in force: %s", l.Name, l.State))
	}
	check("guard", s.Boot.Guard, when(!strings.HasPrefix(s.Boot.Guard, report.GuardInForce), "the kernel needs BPF LSM (lsm=…,bpf), or raw tracepoints and cgroup BPF; the other layers hold without it", "the guard is not in force: %s", s.Boot.Guard))
	check("level hooks", s.Boot.Levels, when(!strings.HasPrefix(s.Boot.Levels, report.LevelsInForce), "something changed the level hooks: restart the handset and look at the journal", "the level hooks are not in force: %s", s.Boot.Levels))
	check("gate agrees", "egressd admits what tunneld uses", gateAgrees(s))
	for _, d := range s.Boot.Daemons {
		check(d.Name+" lives", fmt.Sprintf("%d restarts", d.Restarts), when(!d.Running, "init starts it again by itself; if it stays down, the journal says why", "%s is down: %s", d.Name, d.LastExit))
	}
	for who, err := range s.Errors {
		if who != "init" {
			check(who+" answers", "", run.Hint(errors.New(err), "rempart must run as the handset's user in the cgroup /shell"))
		}
	}
	check("keystore is open", string(s.Keystore.State), when(s.Errors["keyd"] == "" && !s.Keystore.Ready(), "rempart unlock", "the keystore is %s", reasoned(string(s.Keystore.State), s.Keystore.Reason)))
	check("tunnel is up", s.Tunnel.State, tunnelGood(s, now))
	check("measured log", "replays to what init says it extended", replay(s.Boot, e))
	if t := s.Telephone; t != nil && s.Errors["voiced"] == "" {
		check("telephone", t.Registration.State, when(t.Registration.State != "registered", "it registers by itself when the tunnel is up and the gateway is there", "%s", reasoned(t.Registration.State, t.Registration.Reason)))
	}
	if g := s.Gateway; g != nil && s.Errors["gatewayd"] == "" {
		check("gateway serves", g.State, when(g.State != "serving", "it serves when keystore and tunnel are there", "%s", reasoned(g.State, g.Reason)))
		for _, f := range g.Faults {
			check("enrolment folder", "", run.Hint(fmt.Errorf("%s was passed over: %s", f.File, f.Reason), "replace or remove the file"))
		}
	}
	return out
}

// when is an error with a hint if bad.
func when(bad bool, hint, format string, args ...any) error {
	if !bad {
		return nil
	}
	return run.Hint(fmt.Errorf(format, args...), "%s", hint)
}

func booted(b *report.Report) error {
	for _, s := range b.Steps {
		if s.Error != "" {
			return run.Hint(fmt.Errorf("step %s failed: %s", s.Name, s.Error), "the console has the whole story")
		}
	}
	if b.Closed {
		return run.Hint(fmt.Errorf("init keeps the handset closed: %s", b.Reason), "restart the handset")
	}
	return when(b.ReadyNS == 0, "wait; a boot takes about a second", "the boot is not finished")
}

// gateAgrees holds what egressd admits against what tunneld uses.
func gateAgrees(s Status) error {
	if s.Gate == nil {
		return run.Hint(errors.New("egressd does not say what it admits"), "without egressd the gate stays as it was; init restarts it")
	}
	const hint = "restart the handset: gate and tunnel must never disagree"
	switch {
	case s.Role == stage.Handset && s.Tunnel.State == "up" && s.Gate.Admitted != s.Tunnel.Gateway:
		return run.Hint(fmt.Errorf("the tunnel uses gateway %q, the gate admits %q", s.Tunnel.Gateway, s.Gate.Admitted), hint)
	case s.Tunnel.State == "locked" && s.Gate.Admitted != "":
		return run.Hint(fmt.Errorf("the tunnel is locked and the gate admits %q", s.Gate.Admitted), hint)
	case s.Boot != nil && len(s.Gate.Devices) < len(s.Boot.Devices):
		return run.Hint(fmt.Errorf("the gate is on %d of %d devices", len(s.Gate.Devices), len(s.Boot.Devices)), hint)
	}
	return nil
}

func tunnelGood(s Status, now time.Time) error {
	if s.Errors["tunneld"] != "" {
		return errors.New("not known")
	}
	want := "up"
	if s.Role == stage.Gateway {
		want = "listening"
	}
	if s.Tunnel.State != want {
		return run.Hint(fmt.Errorf("the tunnel is %s since %s", reasoned(s.Tunnel.State, s.Tunnel.Reason), s.Tunnel.Since.Format(time.RFC3339)),
			"it comes up by itself when the keystore is open and the gateway answers; nothing leaves meanwhile")
	}
	if s.Role == stage.Handset && now.Sub(s.Tunnel.LastHandshake) > handshakeMax {
		return run.Hint(fmt.Errorf("the last handshake was %s ago", now.Sub(s.Tunnel.LastHandshake).Round(time.Second)), "the gateway may be gone; tunneld notices and tries again")
	}
	return nil
}

// maxLog bounds the event log, in bytes.
const maxLog = 1 << 20

// replay holds init's event log, init's report and the files of this image
// against each other. It does not ask the TPM: a lie told by init alone is what a
// quote shows, to somebody else.
func replay(b *report.Report, e env) error {
	f, err := os.Open(e.eventLog)
	if err != nil {
		return fmt.Errorf("cannot read the event log: %w", err)
	}
	defer f.Close()
	log, err := io.ReadAll(io.LimitReader(f, maxLog))
	if err != nil {
		return fmt.Errorf("cannot read the event log: %w", err)
	}
	events, err := eventlog.Parse(log)
	if err != nil {
		return err
	}
	const hint = "the log and what was extended differ: do not trust this boot"
	var claimed []eventlog.Event
	for _, m := range b.Measured {
		d, err := hex.DecodeString(m.Digest)
		if err != nil || len(d) != 32 {
			return run.Hint(fmt.Errorf("init's digest of %s is none", m.Name), hint)
		}
		claimed = append(claimed, eventlog.Event{PCR: m.PCR, Digest: [32]byte(d)})
	}
	logged, said := eventlog.Replay(events), eventlog.Replay(claimed)
	if len(said) == 0 {
		return run.Hint(errors.New("init says that it extended nothing"), hint)
	}
	for pcr, value := range said {
		if logged[pcr] != value {
			return run.Hint(fmt.Errorf("PCR %d replays to %x, init extended %x", pcr, logged[pcr], value), hint)
		}
	}
	return unchangedPolicy(b, e)
}

// unchangedPolicy holds the policy on this image against the measured one.
func unchangedPolicy(b *report.Report, e env) error {
	digest, err := measure.File(e.policy + "/" + manifest.PolicyFile)
	if err != nil {
		return err
	}
	for _, m := range b.Measured {
		if m.Name == "policy" && m.Digest != hex.EncodeToString(digest[:]) {
			return run.Hint(errors.New("the policy on this image is not the one that was measured"), "restart the handset")
		}
	}
	return nil
}
