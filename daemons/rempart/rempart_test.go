package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"rempart/boot/eventlog"
	"rempart/boot/measure"
	"rempart/boot/report"
	"rempart/internal/run"
	"rempart/internal/sock/httpsock"
	"rempart/keystore/client"
	"rempart/voice/record"
)

// phone is the folder of sockets and files that the command finds on a handset.
// Behind the sockets are the daemons' protocols, spoken by the test.
type phone struct {
	t              *testing.T
	e              env
	stdout, stderr bytes.Buffer
}

func newPhone(t *testing.T) *phone {
	dir := t.TempDir()
	p := &phone{t: t}
	p.e = env{stdin: strings.NewReader(""), stdout: &p.stdout, stderr: &p.stderr, sockets: dir, report: filepath.Join(dir, "status.json"),
		eventLog: filepath.Join(dir, "eventlog"), policy: dir, cgroups: filepath.Join(dir, "cgroup"), rule: signedPolicy, now: func() int64 { return 60e9 }}
	return p
}

func (p *phone) serve(daemon string, h http.Handler) {
	p.t.Helper()
	ln, err := net.Listen("unix", p.e.socket(daemon))
	if err != nil {
		p.t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(ln)
	p.t.Cleanup(func() { srv.Close() })
}

// run is one command as typed; it returns the exit code.
func (p *phone) run(stdin string, args ...string) int {
	p.stdout.Reset()
	p.stderr.Reset()
	p.e.stdin = strings.NewReader(stdin)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return exit(&p.stderr, rempart(ctx, args, p.e))
}

func TestCommandLine(t *testing.T) {
	p := newPhone(t)
	for _, row := range []struct {
		args string
		code int
	}{
		{"", 2}, {"fly", 2}, {"status more", 2}, {"status --yaml", 2}, {"call", 2}, {"call b c", 2}, {"call b --seconds -1", 2}, {"call b --seconds x", 2},
		{"enrol", 2}, {"enrol --name a --again", 2}, {"hangup now", 2}, {"doctor you", 2}, {"level a b c", 2}, {"level --yaml", 2}, {"drops all", 2},
		{"status", 1}, {"status --json", 1}, {"call b", 1}, {"hangup", 1}, {"answer", 1}, {"doctor", 1}, {"level", 1}, {"drops", 1}, {"drops --follow", 1}, {"help", 0},
	} {
		if code := p.run("", strings.Fields(row.args)...); code != row.code {
			t.Errorf("rempart %s: exit %d, want %d", row.args, code, row.code)
		}
		said := p.stderr.String()
		if i := strings.Index(said, "rempart: "); row.code != 0 && (i < 0 || strings.Count(said[i:], "\n") > 2) {
			t.Errorf("rempart %s said %q: want one line and a hint", row.args, said)
		}
	}
}

func TestPIN(t *testing.T) {
	p := newPhone(t)
	var got string
	answer := func(w http.ResponseWriter, r *http.Request) {
		var req client.UnlockRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		got = string(req.PIN)
		switch got {
		case "2468":
			httpsock.Write(w, client.Status{State: client.Open})
		case "9999":
			httpsock.WriteError(w, &httpsock.Error{Status: client.StatusLockout, Message: "locked out", Facts: map[string]int64{client.FactLockoutSeconds: 90}})
		default:
			httpsock.WriteError(w, &httpsock.Error{Status: client.StatusWrongPIN, Message: "wrong", Facts: map[string]int64{client.FactTriesLeft: 4}})
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/unlock", answer)
	p.serve("keyd", mux)
	if code := p.run("2468\n", "unlock"); code != 0 || got != "2468" || p.stdout.String() != "keystore is open\n" {
		t.Errorf("exit %d, PIN %q, said %q %q", code, got, &p.stdout, &p.stderr)
	}
	if code := p.run("1111\r\n", "unlock"); code != 1 || got != "1111" || !strings.Contains(p.stderr.String(), "takes 4 more") {
		t.Errorf("exit %d, PIN %q, said %q", code, got, &p.stderr)
	}
	if code := p.run("9999", "unlock"); code != 1 || !strings.Contains(p.stderr.String(), "1m30s") {
		t.Errorf("exit %d, said %q", code, &p.stderr)
	}
	got = ""
	for _, pin := range []string{"", "12\n", strings.Repeat("1", 65) + "\n", "\xff\xff\xff\xff\n"} {
		if code := p.run(pin, "unlock"); code != 1 || got != "" || strings.Contains(p.stderr.String(), "1111") {
			t.Errorf("PIN %q: exit %d, sent %q, said %q", pin, code, got, &p.stderr)
		}
	}
	file := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(file, []byte("2468\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := p.run("", "unlock", "--pin-file", file); code != 0 || got != "2468" {
		t.Errorf("a PIN from a file: exit %d, %q", code, &p.stderr)
	}
}

func TestEnrol(t *testing.T) {
	p := newPhone(t)
	var chain client.Chain
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/enrol", func(w http.ResponseWriter, r *http.Request) {
		var req client.EnrolRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil || req.Name != "a" || string(req.PIN) != "2468" {
			t.Errorf("%v %v", req.Name, err)
		}
		httpsock.Write(w, client.Enrolment{CSR: []byte("csr"), TunnelKey: make([]byte, 32)})
	})
	mux.HandleFunc("GET /v1/csr", func(w http.ResponseWriter, _ *http.Request) {
		httpsock.Write(w, client.Enrolment{CSR: []byte("csr"), TunnelKey: make([]byte, 32)})
	})
	mux.HandleFunc("PUT /v1/certificate", func(_ http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&chain); err != nil {
			t.Error(err)
		}
	})
	p.serve("keyd", mux)
	for _, args := range [][]string{{"enrol", "--name", "a"}, {"enrol", "--again"}} {
		var e client.Enrolment
		if code := p.run("2468\n", args...); code != 0 || json.Unmarshal(p.stdout.Bytes(), &e) != nil || string(e.CSR) != "csr" {
			t.Errorf("%v: exit %d, %q %q", args, code, &p.stdout, &p.stderr)
		}
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("leaf")})) + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("root")}))
	if code := p.run(text, "enrol", "--certificate", "-"); code != 0 || len(chain.Chain) != 2 || string(chain.Chain[0]) != "leaf" {
		t.Errorf("exit %d, chain %q, %q", code, chain.Chain, &p.stderr)
	}
	for _, bad := range []string{"", "not pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("k")})), strings.Repeat("x", maxChainFile+1), strings.Repeat(text, 3)} {
		if code := p.run(bad, "enrol", "--certificate", "-"); code != 1 {
			t.Errorf("%.20q was taken for a certificate", bad)
		}
	}
}

// voiced plays one call: ringing, active until it is hung up, ended.
type voiced struct {
	mu     sync.Mutex
	looks  int
	hung   bool
	refuse string
	last   record.Record
}

func (v *voiced) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/calls", func(w http.ResponseWriter, _ *http.Request) {
		if v.refuse == "busy" {
			httpsock.WriteError(w, &httpsock.Error{Status: 409, Message: "this handset is in a call already", Hint: "rempart hangup ends it"})
			return
		}
		httpsock.Write(w, map[string]string{"id": "1"})
	})
	mux.HandleFunc("GET /v1/calls/1", func(w http.ResponseWriter, _ *http.Request) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.looks++
		r := record.Record{ID: "1", Peer: "b", PeerURI: "sip:b@handsets.example", DialNS: 1e9, State: "ringing"}
		switch {
		case v.refuse != "":
			r.State, r.Reason, r.Explanation, r.EndedNS = "failed", v.refuse, "the callee is in another call", 2e9
		case v.hung:
			r.State, r.Reason, r.Explanation, r.EndedNS = "ended", "hung_up_here", "hung up here", 3e9
		case v.looks > 2:
			r.State = "active"
		}
		if v.refuse == "" && v.looks > 2 {
			r.Level, r.SAS, r.Started, r.FirstAudioNS, r.BytesPerPacket = "restricted", "abcd", 1.2e9, 1.3e9, 88
		}
		v.last = r
		httpsock.Write(w, r)
	})
	mux.HandleFunc("DELETE /v1/calls/1", func(w http.ResponseWriter, _ *http.Request) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.hung = true
		w.WriteHeader(204)
	})
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		v.mu.Lock()
		defer v.mu.Unlock()
		s := record.Status{Registration: record.Registration{State: "registered"}}
		if !v.hung {
			s.Current = &record.Record{ID: "1", Direction: "outgoing", Peer: "b", State: "active"}
		}
		httpsock.Write(w, s)
	})
	return mux
}

func TestCall(t *testing.T) {
	p, v := newPhone(t), &voiced{}
	p.serve("voiced", v.routes())
	if code := p.run("", "call", "b", "--seconds", "0.1"); code != 0 || !v.hung {
		t.Errorf("exit %d, hung up %v: %q", code, v.hung, &p.stderr)
	}
	for _, want := range []string{"ringing", "active", "SAS abcd", "level restricted", "first sound", "ended", "300 ms from dial"} {
		if !strings.Contains(p.stdout.String(), want) {
			t.Errorf("%q is not in\n%s", want, &p.stdout)
		}
	}
	v.hung, v.looks = false, 0
	var r record.Record
	if code := p.run("", "call", "--json", "--seconds", "0.1", "b"); code != 0 || json.Unmarshal(p.stdout.Bytes(), &r) != nil || r.SAS != "abcd" || !r.Over() {
		t.Errorf("exit %d: %q %q", code, &p.stdout, &p.stderr)
	}
	v.hung = false
	if code := p.run("", "hangup"); code != 0 || !v.hung {
		t.Errorf("hangup: exit %d, %q", code, &p.stderr)
	}
	if code := p.run("", "hangup"); code != 1 || !strings.Contains(p.stderr.String(), "there is no call") {
		t.Errorf("a second hangup: exit %d, %q", code, &p.stderr)
	}
	v.refuse = "refused"
	if code := p.run("", "call", "b"); code != 1 || !strings.Contains(p.stdout.String(), "none was opened") || !strings.Contains(p.stderr.String(), "in another call") {
		t.Errorf("a refused call: exit %d, %q %q", code, &p.stdout, &p.stderr)
	}
	v.refuse = "busy"
	if code := p.run("", "call", "b"); code != 1 || !strings.Contains(p.stderr.String(), "hint: rempart hangup") {
		t.Errorf("a busy handset: exit %d, %q", code, &p.stderr)
	}
	// The end of the command hangs up.
	v.refuse, v.hung, v.looks = "", false, 0
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if err := rempart(ctx, []string{"call", "b"}, p.e); err != nil || !v.hung {
		t.Errorf("after Ctrl-C: %v, hung up %v", err, v.hung)
	}
}

// healthy is a handset on which everything is as it should be.
func healthy(t *testing.T, p *phone) Status {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.e.policy, "policy"), []byte("the policy"), 0o600); err != nil {
		t.Fatal(err)
	}
	digest, err := measure.File(filepath.Join(p.e.policy, "policy"))
	if err != nil {
		t.Fatal(err)
	}
	log, err := eventlog.Marshal([]eventlog.Event{{PCR: 13, Digest: digest, Data: []byte("policy")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.e.eventLog, log, 0o600); err != nil {
		t.Fatal(err)
	}
	return Status{Role: "handset", Errors: map[string]string{},
		Boot: &report.Report{ReadyNS: 1, Role: "handset", Guard: "in force (system calls)", Levels: "in force: 4 processes may", Steps: []report.Step{{Name: "floor"}},
			Measured: []report.Measured{{Name: "policy", PCR: 13, Digest: fmt.Sprintf("%x", digest)}},
			Devices:  []report.Device{{Name: "wwan0", Floor: true, InForce: true, Up: true}},
			Backstop: []report.Layer{{Name: "nft", State: "drops all on wwan0", InForce: true, Drops: map[string]uint64{"rempart-wwan0 egress": 3, "rempart-red input": 4}},
				{Name: "xfrm", State: "blocks by default", InForce: true}},
			Daemons: []report.Daemon{{Name: "keyd", Running: true}}},
		Keystore:  client.Status{State: client.Capped},
		Tunnel:    Tunnel{State: "up", Gateway: "gateway", LastHandshake: time.Now()},
		Gate:      &Gate{Admitted: "gateway", Devices: []GateDevice{{Ifindex: 2}}},
		Telephone: &record.Status{Registration: record.Registration{State: "registered"}}}
}

// TestDoctor breaks one promise at a time and wants exactly that one reported.
func TestDoctor(t *testing.T) {
	for promise, breaks := range map[string]func(*Status, *phone){
		"":                    func(*Status, *phone) {},
		"boot report":         func(s *Status, _ *phone) { s.Boot, s.Errors["init"] = nil, "cannot reach init" },
		"boot is complete":    func(s *Status, _ *phone) { s.Boot.Closed, s.Boot.Reason = true, "tpm gone" },
		"floor under wwan0":   func(s *Status, _ *phone) { s.Boot.Devices[0].Floor = false },
		"gate on wwan0":       func(s *Status, _ *phone) { s.Boot.Devices[0].InForce = false },
		"nft behind the gate": func(s *Status, _ *phone) { s.Boot.Backstop[0].InForce = false },
		"xfrm behind the gate": func(s *Status, _ *phone) {
			s.Boot.Backstop[1] = report.Layer{Name: "xfrm", State: "the kernel has no IPsec policies"}
		},
		"guard":            func(s *Status, _ *phone) { s.Boot.Guard = "no bpf" },
		"level hooks":      func(s *Status, _ *phone) { s.Boot.Levels = "level_egress: no hook" },
		"gate agrees":      func(s *Status, _ *phone) { s.Gate.Admitted = "another" },
		"keyd lives":       func(s *Status, _ *phone) { s.Boot.Daemons[0].Running = false },
		"egressd answers":  func(s *Status, _ *phone) { s.Errors["egressd"] = "gone" },
		"keystore is open": func(s *Status, _ *phone) { s.Keystore.State = client.Sealed },
		"tunnel is up":     func(s *Status, _ *phone) { s.Tunnel.LastHandshake = time.Now().Add(-time.Hour) },
		"telephone":        func(s *Status, _ *phone) { s.Telephone.Registration.State = "unregistered" },
		"measured log": func(_ *Status, p *phone) {
			if err := os.WriteFile(filepath.Join(p.e.policy, "policy"), []byte("another policy"), 0o600); err != nil {
				panic(err)
			}
		},
	} {
		p := newPhone(t)
		s := healthy(t, p)
		breaks(&s, p)
		var wrong []string
		for _, f := range examine(s, p.e, time.Now()) {
			if f.Why == "" {
				t.Errorf("%q: %q says nothing", promise, f.Promise)
			}
			if !f.OK {
				wrong = append(wrong, f.Promise)
				if f.Hint == "" {
					t.Errorf("%q has no hint", f.Promise)
				}
			}
		}
		if strings.Join(wrong, ",") != promise {
			t.Errorf("%q broken: doctor found %q", promise, wrong)
		}
	}
}

func TestDoctorReplay(t *testing.T) {
	p := newPhone(t)
	s := healthy(t, p)
	for name, breaks := range map[string]func(){
		"another digest": func() { s.Boot.Measured[0].Digest = strings.Repeat("ab", 32) },
		"no digest":      func() { s.Boot.Measured[0].Digest = "xyz" },
		"nothing":        func() { s.Boot.Measured = nil },
		"a broken log":   func() { os.WriteFile(p.e.eventLog, []byte("x"), 0o600) },
		"no log":         func() { os.Remove(p.e.eventLog) },
	} {
		s = healthy(t, p)
		breaks()
		if replay(s.Boot, p.e) == nil {
			t.Errorf("%s was not noticed", name)
		}
	}
}

func TestStatus(t *testing.T) {
	p, v := newPhone(t), &voiced{}
	p.serve("voiced", v.routes())
	s := healthy(t, p)
	b, err := s.Boot.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.e.report, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := p.run("", "status"); code != 0 {
		t.Errorf("exit %d: %q", code, &p.stderr)
	}
	for _, want := range []string{"handset, ready", "gate in force", "nft: in force, drops all on wwan0, 7 packets dropped", "xfrm: in force, blocks by default\n", "registered", "outgoing b, active", "cannot reach keyd"} {
		if !strings.Contains(p.stdout.String(), want) {
			t.Errorf("%q is not in\n%s", want, &p.stdout)
		}
	}
	var got Status
	if code := p.run("", "status", "--json"); code != 0 || json.Unmarshal(p.stdout.Bytes(), &got) != nil || got.Errors["keyd"] == "" || got.Telephone.Current == nil {
		t.Errorf("exit %d: %q", code, &p.stdout)
	}
	// What every error of a socket becomes.
	for _, err := range []error{os.ErrNotExist, os.ErrPermission, &net.OpError{Op: "dial", Err: errors.New("x")}} {
		if explained := explain("keyd", err); run.HintOf(explained) == "" {
			t.Errorf("%v has no hint: %v", err, explained)
		}
	}
}

func TestStatusTellsOfDaemonsThatDied(t *testing.T) {
	var out bytes.Buffer
	s := Status{Boot: &report.Report{ReadyNS: 1, Role: "handset", Daemons: []report.Daemon{
		{Name: "keyd", Running: true}, {Name: "voiced", Running: true, Restarts: 2, LastExit: "killed by SIGKILL"}, {Name: "tunneld", LastExit: "exit code 1"},
	}}}
	s.show(&out, env{})
	for _, want := range []string{"voiced was started again, 2 since the boot: killed by SIGKILL\n", "tunneld is down: exit code 1\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("status does not say %q:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "keyd was") {
		t.Errorf("status says that keyd died:\n%s", &out)
	}
}
