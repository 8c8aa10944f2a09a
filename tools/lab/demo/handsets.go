package demo

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
	"rempart/board/scenario/watch"
	"rempart/boot/eventlog"
	"rempart/boot/predict"
	bootreport "rempart/boot/report"
	"rempart/boot/stage"
	"rempart/keystore/client"
	"rempart/keystore/client/identity"
	"rempart/tools/lab/bringup"
	"rempart/tools/lab/leak"
	"rempart/tools/report"
)

// The steps of a boot that a person's PIN and the gateway take part in.
const (
	stepPIN    = "PIN, keystore opened"
	stepTunnel = "tunnel up"
)

// facts are all that is known of one machine at one moment.
type facts struct {
	machine     netns.Machine
	status      bringup.PhoneStatus
	findings    []report.Finding
	log         []byte           // its event log
	predicted   map[int][32]byte // PCRs computed from its image
	certificate *x509.Certificate
	ekIssuer    string
	rules       watch.Rules
	wall        time.Time // at the moment of the status
	monotonic   int64     // at the same moment, CLOCK_MONOTONIC ns
}

// check asks every machine about itself.
func (s *show) check(ctx context.Context, state string) (string, error) {
	status, err := s.w.Status(ctx)
	if err != nil {
		return "", err
	}
	// A machine that did not come up was told of by the bring-up.
	machines := slices.DeleteFunc(slices.Clone(status.Machines), func(m netns.Machine) bool { return m.State != netns.On })
	if len(machines) == 0 {
		return "", errors.New("no machine is on")
	}
	all := make([]report.Handset, len(machines))
	errs := make([]error, len(machines))
	var wait sync.WaitGroup
	for i, m := range machines {
		wait.Go(func() {
			f, err := s.ask(ctx, status, m, state)
			all[i], errs[i] = f.handset(), err
		})
	}
	wait.Wait()
	slices.SortFunc(all, func(x, y report.Handset) int { // handsets first
		return cmp.Or(cmp.Compare(y.Role, x.Role), cmp.Compare(x.Name, y.Name))
	})
	s.sum.Handsets = all
	good, findings := 0, 0
	for _, h := range all {
		for _, f := range h.Doctor {
			findings++
			if f.OK {
				good++
			}
		}
	}
	return fmt.Sprintf("%d of %d checks of `rempart doctor` on %d machines are as they should be", good, findings, len(all)), errors.Join(errs...)
}

// ask learns the facts of one machine. What could not be learned is in the
// error, and its part of the facts is empty, which no check takes for good.
func (s *show) ask(ctx context.Context, status *netns.Status, m netns.Machine, state string) (facts, error) {
	f := facts{machine: m, rules: leak.Rules(status)}
	var errs []error
	var err error
	if f.status, err = bringup.StatusOf(ctx, s.w, m.Name); err != nil {
		errs = append(errs, err)
	}
	f.wall, f.monotonic = time.Now(), monotonic()
	// Doctor fails when something is wrong, and still tells.
	out, derr := s.w.Phone(ctx, m.Name, nil, "doctor", "--json")
	if err := json.Unmarshal(out, &f.findings); err != nil {
		errs = append(errs, fmt.Errorf("cannot read what doctor found on %s: %w", m.Name, errors.Join(err, derr)))
	}
	if f.log, err = readLog(m); err != nil {
		errs = append(errs, err)
	}
	if f.predicted, err = predict.PCRs(predict.Image{Dir: m.Image}); err != nil {
		errs = append(errs, err)
	}
	if f.certificate, err = readCertificate(filepath.Join(state, "certificates", m.Name+".pem")); err != nil {
		errs = append(errs, err)
	}
	f.ekIssuer = ekIssuer(m.Paths.TPM)
	return f, errors.Join(errs...)
}

// handset puts the facts into the report's terms. It believes nothing that is
// not there.
func (f facts) handset() report.Handset {
	h := report.Handset{Name: f.machine.Name, Role: f.machine.Role, Doctor: f.findings, Measured: []report.Measurement{}, Boot: []report.Step{}}
	for _, d := range h.Doctor {
		if d.Promise == "measured log" {
			h.LogReplays = d.OK
		}
	}
	h.TPM = f.tpm()
	h.Predicted = f.asPredicted()
	if b := f.status.Boot; b != nil {
		for _, m := range b.Measured {
			h.Measured = append(h.Measured, report.Measurement{PCR: m.PCR, Stage: m.Name, Digest: m.Digest})
		}
		h.Boot = f.boot(b)
	}
	h.Gate = f.gate()
	t := f.status.Tunnel
	h.Tunnel = report.Tunnel{State: t.State, Peer: t.Gateway, Endpoint: t.Endpoint, RX: t.RxBytes, TX: t.TxBytes}
	if f.machine.Role == stage.Gateway {
		h.Tunnel.Peer = fmt.Sprintf("%d handsets", t.Connected)
	}
	if !t.LastHandshake.IsZero() {
		h.Tunnel.Handshake = max(0, f.wall.Sub(t.LastHandshake).Seconds())
	}
	return h
}

func (f facts) tpm() report.TPM {
	t := report.TPM{Manufacturer: "swtpm, a TPM 2.0 in software", EKIssuer: cmp.Or(f.ekIssuer, "nobody known"), Vault: string(f.status.Keystore.State), Tries: f.status.Keystore.TriesLeft}
	if f.certificate == nil {
		return t
	}
	print := sha256.Sum256(f.certificate.Raw)
	t.Keys = append(t.Keys, report.Key{Name: "identity key", Kind: "ECDSA P-256 (LDevID)", Where: "made in the TPM, never leaves it",
		Print: "certificate " + hex.EncodeToString(print[:8])})
	if id, err := identity.ParseIdentity(f.certificate); err == nil {
		t.Keys = append(t.Keys, report.Key{Name: "tunnel key", Kind: "X25519", Where: "sealed by the TPM to this boot and the PIN",
			Print: "public " + base64.StdEncoding.EncodeToString(id.TunnelKey[:])[:16]})
	}
	// It has no public half to show.
	t.Keys = append(t.Keys, report.Key{Name: "storage key", Kind: "AES-256", Where: "sealed by the TPM to this boot and the PIN"})
	return t
}

// asPredicted holds the event log of this boot against the image. That the TPM
// has the same values is what its opening of the keys shows: it opens them for
// no others.
func (f facts) asPredicted() bool {
	events, err := eventlog.Parse(f.log)
	if err != nil || f.predicted == nil || f.status.Keystore.State != client.Capped {
		return false
	}
	values := eventlog.Replay(events)
	if _, ok := values[stage.PCRStages]; !ok {
		return false
	}
	for pcr, v := range values {
		if f.predicted[pcr] != v {
			return false
		}
	}
	return true
}

// boot is the timeline of the last boot, in milliseconds from init's first
// line.
func (f facts) boot(b *bootreport.Report) []report.Step {
	ms := func(ns int64) float64 { return float64(ns-b.StartedNS) / 1e6 }
	steps := []report.Step{}
	ready := 0.0
	for _, s := range b.Steps {
		st := report.Step{Name: s.Name, Start: ms(s.StartNS), OK: s.Error == "", Detail: cmp.Or(s.Error, s.Detail)}
		if s.EndNS > 0 {
			st.Took = float64(s.EndNS-s.StartNS) / 1e6
		}
		steps = append(steps, st)
		ready = max(ready, st.Start+st.Took)
	}
	// What daemons say is wall clock time.
	since := func(at time.Time) float64 { return ms(f.monotonic - f.wall.Sub(at).Nanoseconds()) }
	if f.status.Keystore.State != client.Capped {
		return steps
	}
	opened := since(f.status.Keystore.Since)
	if opened < ready {
		return steps // opened before the last daemon ran: no step of its own
	}
	steps = append(steps, report.Step{Name: stepPIN, Start: ready, Took: opened - ready, OK: true})
	if up := since(f.status.Tunnel.Since); f.machine.Role == stage.Handset && f.status.Tunnel.State == "up" && up >= opened {
		if d, ok := b.Daemon("tunneld"); ok && d.Restarts == 0 {
			steps = append(steps, report.Step{Name: stepTunnel, Start: opened, Took: up - opened, OK: true})
		}
	}
	return steps
}

// gate is what init read back from the kernel, and what the gate counted.
func (f facts) gate() report.Gate {
	g := report.Gate{ReadBack: []string{}, Drops: map[string]uint64{}, Policy: "denies all", Classes: []string{}}
	if b := f.status.Boot; b != nil && len(b.Devices) > 0 {
		g.Floor, g.InForce = true, true
		var names []string
		for _, d := range b.Devices {
			names = append(names, d.Name)
			g.Floor, g.InForce = g.Floor && d.Floor, g.InForce && d.InForce
			if !d.InForce {
				g.ReadBack = append(g.ReadBack, d.Name+": "+d.Gate)
			}
		}
		g.Device = strings.Join(names, ", ")
	}
	s := f.status.Gate
	if s == nil {
		return g
	}
	g.Digest = s.Digest
	if s.Admitted != "" {
		g.Policy = "admits the tunnel alone"
		for _, c := range f.rules.Classes {
			g.Classes = append(g.Classes, fmt.Sprintf("UDP %s port %d, %s", c.Gateway, c.Port, c.Name))
		}
	}
	for _, d := range s.Devices {
		for _, counts := range []map[string]uint64{d.Egress, d.Ingress} {
			for reason, n := range counts {
				if reason == "admitted" {
					g.Passed += n
				} else {
					g.Drops[reason] += n
				}
			}
		}
	}
	return g
}

// readLog reads the event log that init published.
func readLog(m netns.Machine) ([]byte, error) {
	// The machine's own folder: a link in it must not lead to the desk's files.
	root, err := os.OpenRoot(m.Paths.Root)
	if err != nil {
		return nil, fmt.Errorf("cannot read the event log of %s: %w", m.Name, err)
	}
	defer root.Close()
	f, err := root.Open(strings.TrimPrefix(bootreport.EventLogPath, "/"))
	if err != nil {
		return nil, fmt.Errorf("cannot read the event log of %s: %w", m.Name, err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, eventlog.MaxLog+1))
}

// readCertificate reads the first certificate of a PEM file.
func readCertificate(path string) (*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read a certificate: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("cannot read %s: no certificate in it", path)
	}
	return x509.ParseCertificate(block.Bytes)
}

// ekIssuer is who certified the TPM's endorsement key, "" if nobody did.
func ekIssuer(tpm string) string {
	files, _ := filepath.Glob(filepath.Join(tpm, "certificates", "ek-*.crt")) // the pattern is well formed
	for _, name := range files {
		der, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		if c, err := x509.ParseCertificate(der); err == nil {
			return c.Issuer.CommonName
		}
	}
	return ""
}

func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}
