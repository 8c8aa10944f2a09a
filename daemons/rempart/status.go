package main

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"text/tabwriter"
	"time"

	"rempart/boot/report"
	"rempart/boot/stage"
	"rempart/internal/sock/httpsock"
	"rempart/keystore/client"
	"rempart/voice/record"
	"rempart/vpn/egress"
	"rempart/vpn/egress/ask"
)

// patience bounds the question to one daemon.
const patience = 3 * time.Second

// Status is everything, as --json shows it. What could not be learned is in
// Errors under the name of who was asked; its own part is then empty.
type Status struct {
	Role      string            `json:"role"`
	Boot      *report.Report    `json:"boot"`
	Keystore  client.Status     `json:"keystore"`
	Tunnel    Tunnel            `json:"tunnel"`
	Gate      *Gate             `json:"gate"`
	Telephone *record.Status    `json:"telephone,omitempty"` // handset
	Gateway   *Gateway          `json:"gateway,omitempty"`   // gateway
	Errors    map[string]string `json:"errors"`
}

// Tunnel is tunneld's GET /v1/status.
type Tunnel struct {
	State         string    `json:"state"`
	Since         time.Time `json:"since,omitzero"`
	Reason        string    `json:"reason,omitempty"`
	Gateway       string    `json:"gateway,omitempty"`
	Endpoint      string    `json:"endpoint,omitempty"`
	LastHandshake time.Time `json:"last_handshake,omitzero"`
	RxBytes       uint64    `json:"rx_bytes"`
	TxBytes       uint64    `json:"tx_bytes"`
	Retries       int       `json:"retries"`
	NextRetry     time.Time `json:"next_retry,omitzero"`
	Peers         int       `json:"peers,omitempty"`
	Connected     int       `json:"connected,omitempty"`
}

// Gate is what egressd says of itself.
type Gate struct {
	Admitted string       `json:"admitted"` // gateway; empty: deny all
	Digest   string       `json:"digest"`   // of the policy in force, hex
	Devices  []GateDevice `json:"devices"`
}

// GateDevice is the gate on one device: frames by direction and reason.
type GateDevice struct {
	Ifindex int               `json:"ifindex"`
	Hook    string            `json:"hook"`
	Egress  map[string]uint64 `json:"egress"`
	Ingress map[string]uint64 `json:"ingress"`
}

// Gateway is gatewayd's GET /v1/status.
type Gateway struct {
	State         string `json:"state"`
	Reason        string `json:"reason,omitempty"`
	Domain        string `json:"domain"`
	Registrations []struct {
		Name    string `json:"name"`
		Source  string `json:"source"`
		Since   int64  `json:"since"`
		Expires int64  `json:"expires"`
	} `json:"registrations"`
	Peers []struct {
		Name  string       `json:"name"`
		URI   string       `json:"uri"`
		Level string       `json:"level"`
		Inner []netip.Addr `json:"inner"`
	} `json:"peers"`
	Faults []struct {
		File   string `json:"file"`
		Reason string `json:"reason"`
	} `json:"faults"`
}

// gather asks everybody. It never fails: what is missing is in Errors.
func gather(ctx context.Context, e env) Status {
	s := Status{Errors: map[string]string{}}
	note := func(who string, err error) {
		if err != nil {
			s.Errors[who] = explain(who, err).Error()
		}
	}
	var err error
	if s.Boot, err = report.Read(e.report); err == nil {
		s.Role = s.Boot.Role
	}
	note("init", err)
	get := func(daemon string, into any) {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		note(daemon, httpsock.Call(ctx, httpsock.Client(e.socket(daemon)), http.MethodGet, "/v1/status", nil, into))
	}
	get("keyd", &s.Keystore)
	get("tunneld", &s.Tunnel)
	if s.Role == stage.Gateway {
		s.Gateway = &Gateway{}
		get("gatewayd", s.Gateway)
	} else {
		s.Telephone = &record.Status{}
		get("voiced", s.Telephone)
	}
	s.Gate, err = askGate(ctx, e)
	note("egressd", err)
	return s
}

func askGate(ctx context.Context, e env) (*Gate, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := ask.Dial(e.socket("egressd"))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	got, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	g := &Gate{Admitted: got.Admitted, Digest: hex.EncodeToString(got.Digest[:]), Devices: []GateDevice{}}
	for _, d := range got.Devices {
		dev := GateDevice{Ifindex: d.Ifindex, Hook: d.Hook.String(), Egress: map[string]uint64{}, Ingress: map[string]uint64{}}
		for r := egress.Reason(0); r < egress.Reasons; r++ {
			dev.Egress[r.String()], dev.Ingress[r.String()] = d.Counters[egress.Egress][r], d.Counters[egress.Ingress][r]
		}
		g.Devices = append(g.Devices, dev)
	}
	return g, nil
}

// status shows it.
func status(ctx context.Context, args []string, e env) error {
	var asJSON bool
	if _, err := parse("status", args, 0, func(f *flag.FlagSet) { f.BoolVar(&asJSON, "json", false, "") }); err != nil {
		return err
	}
	s := gather(ctx, e)
	if asJSON {
		return errors.Join(writeJSON(e.stdout, s), s.nobody())
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	s.show(w, e)
	if err := w.Flush(); err != nil {
		return fmt.Errorf("cannot write the status: %w", err)
	}
	return s.nobody()
}

// nobody is the error of a status that nobody answered.
func (s Status) nobody() error {
	return when(s.Boot == nil && s.Errors["keyd"] != "", "run this on the handset, as its user", "there is no handset here")
}

func (s Status) show(w io.Writer, e env) {
	line := func(what, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", what, fmt.Sprintf(format, args...)) }
	if b := s.Boot; b != nil {
		state := "ready"
		if b.ReadyNS == 0 {
			state = "booting"
		}
		if b.Closed {
			state = "closed: " + b.Reason
		}
		line("boot", "%s, %s", b.Role, state)
		if b.Policy != nil {
			line("policy", "%s, serial %d", b.Policy.Name, b.Policy.Serial)
		}
		for _, d := range b.Devices {
			gate := "gate not in force"
			if d.InForce {
				gate = "gate in force"
			}
			line("device", "%s: floor %v, %s, up %v", d.Name, d.Floor, gate, d.Up)
		}
		for _, l := range b.Backstop {
			state := "not in force"
			if l.InForce {
				state = "in force"
			}
			line("layer", "%s: %s, %s%s", l.Name, state, l.State, dropped(l))
		}
		for _, d := range b.Daemons {
			if !d.Running {
				line("daemon", "%s is down: %s", d.Name, d.LastExit)
			} else if d.Restarts > 0 {
				line("daemon", "%s was started again, %d since the boot: %s", d.Name, d.Restarts, d.LastExit)
			}
		}
	}
	if s.Errors["keyd"] == "" {
		line("keystore", "%s", reasoned(string(s.Keystore.State), s.Keystore.Reason))
		if s.Keystore.Name != "" {
			line("identity", "%s, certificate %v", s.Keystore.Name, s.Keystore.Certificate)
		}
	}
	if s.Errors["tunneld"] == "" {
		line("tunnel", "%s", reasoned(s.Tunnel.State, s.Tunnel.Reason))
		if !s.Tunnel.Since.IsZero() {
			line("", "since %s, retries %d", s.Tunnel.Since.Format(time.RFC3339), s.Tunnel.Retries)
		}
	}
	if g := s.Gate; g != nil {
		admitted := "deny all"
		if g.Admitted != "" {
			admitted = "admits " + g.Admitted
		}
		line("gate", "%s, %d devices, %d frames dropped on the way out", admitted, len(g.Devices), g.dropped())
	}
	if t := s.Telephone; t != nil && s.Errors["voiced"] == "" {
		line("telephone", "%s", reasoned(t.Registration.State, t.Registration.Reason))
		if t.Registration.Since != 0 {
			line("", "for %s", age(e.now()-t.Registration.Since))
		}
		if t.Current != nil {
			line("call", "%s", callLine(*t.Current))
		} else if t.Last != nil {
			line("last call", "%s", callLine(*t.Last))
		}
	}
	if g := s.Gateway; g != nil && s.Errors["gatewayd"] == "" {
		line("gateway", "%s, %d peers, %d registered", reasoned(g.State, g.Reason), len(g.Peers), len(g.Registrations))
		for _, f := range g.Faults {
			line("", "%s was passed over: %s", f.File, f.Reason)
		}
	}
	for _, who := range []string{"init", "egressd", "watchd", "keyd", "tunneld", "voiced", "gatewayd"} {
		if err := s.Errors[who]; err != "" {
			line(who, "%s", err)
		}
	}
}

func (g *Gate) dropped() (n uint64) {
	for _, d := range g.Devices {
		for reason, count := range d.Egress {
			if reason != egress.Admitted.String() {
				n += count
			}
		}
	}
	return n
}

// dropped is what a layer has dropped, if it counts.
func dropped(l report.Layer) string {
	if l.Drops == nil {
		return ""
	}
	var n uint64
	for _, d := range l.Drops {
		n += d
	}
	return fmt.Sprintf(", %d packets dropped since its last change", n)
}

func reasoned(state, reason string) string {
	if reason == "" {
		return state
	}
	return state + ": " + reason
}

func age(ns int64) string { return time.Duration(ns).Round(time.Second).String() }

func callLine(r record.Record) string {
	l := fmt.Sprintf("%s %s, %s", r.Direction, r.Peer, reasoned(r.State, r.Explanation))
	if r.SAS != "" {
		l += fmt.Sprintf(", level %s, SAS %s", r.Level, r.SAS)
	}
	return l
}
