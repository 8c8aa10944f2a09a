package main

import (
	"net"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/frame"
	"rempart/internal/proof"
	"rempart/vpn/egress"
	"rempart/vpn/egress/ask"
	"rempart/vpn/enforce"
)

// egressdThat is two connections to an egressd that does whatever it is asked, once wait has returned true. False: never.
func (p *phone) egressdThat(t *testing.T, wait func(egress.Op) bool) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for {
					b, err := frame.Read(c, egress.MaxRequest)
					if err != nil {
						return
					}
					r, err := egress.ParseRequest(b)
					if err != nil {
						return
					}
					if !wait(r.Op) {
						continue
					}
					b, err = egress.MarshalStatus(egress.Status{Digest: egress.DenyAll().Digest()})
					if err != nil || frame.Write(c, b) != nil {
						return
					}
				}
			}()
		}
	}()
	for _, to := range []**ask.Client{&p.gate, &p.pulse} {
		c, err := ask.Dial(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		*to = c
	}
}

// withProcess is a phone that holds a process that sleeps for its egressd.
func withProcess(t *testing.T) (*phone, *exec.Cmd) {
	t.Helper()
	p := newPhone(mono(), nil, nil, nil)
	p.root = t.TempDir()
	p.behind(t)
	p.readHooks = func(string, egress.LevelTable, ...uint32) (enforce.LevelReport, error) {
		return enforce.LevelReport{}, nil
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	d := p.sup.daemon("egressd")
	d.pid, d.started = cmd.Process.Pid, true
	p.report.Closed, p.opened = false, true
	return p, cmd
}

// killed tells whether the process was, without reaping it.
func killed(t *testing.T, cmd *exec.Cmd) bool {
	t.Helper()
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	return info.Signo == int32(unix.SIGCHLD)
}

// TestASlowEgressdIsNotADeadOne: what takes longer than a status may, on a busy machine, is waited for.
func TestASlowEgressdIsNotADeadOne(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "TestAHangingEgressdIsFoundInTime")
	p, cmd := withProcess(t)
	p.egressdThat(t, func(op egress.Op) bool {
		if op != egress.OpStatus {
			time.Sleep(askTimeout + 2*pulseEvery)
		}
		return true
	})
	before := p.progress.Load()
	p.close("voiced died")
	if p.severed || killed(t, cmd) || p.opened {
		t.Errorf("severed %v, opened %v", p.severed, p.opened)
	}
	if p.levelsUnknown {
		t.Error("the level table was not put in force")
	}
	if p.progress.Load() == before {
		t.Error("init counts as hanging while it is answered")
	}
	if loadTimeout >= stuckAfter {
		t.Errorf("one question may take %s, init counts as hanging after %s", loadTimeout, stuckAfter)
	}
}

// TestAHangingEgressdIsFoundInTime: who does not tell its status is not waited for, whatever it was asked, and does not come back.
func TestAHangingEgressdIsFoundInTime(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "TestASlowEgressdIsNotADeadOne")
	for name, hangs := range map[string]egress.Op{"at the table": egress.OpTable, "at the levels": egress.OpLevels} {
		p, cmd := withProcess(t)
		var hung atomic.Bool
		p.egressdThat(t, func(op egress.Op) bool {
			if op == hangs {
				hung.Store(true)
			}
			return !hung.Load()
		})
		at := time.Now()
		p.close("voiced died")
		if took := time.Since(at); took > pulseEvery+askTimeout+time.Second {
			t.Errorf("%s: found after %s", name, took)
		}
		if !p.severed {
			t.Errorf("%s: the gate stands", name)
		}
		for end := time.Now().Add(5 * time.Second); !killed(t, cmd); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: it may come back to life", name)
			}
		}
	}
}

// TestAStoppedEgressdIsAsked: the kernel tells its parent. One that goes on is left alone.
func TestAStoppedEgressdIsAsked(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "the stop that is over")
	p, cmd := withProcess(t)
	var answers atomic.Bool
	answers.Store(true)
	p.egressdThat(t, func(egress.Op) bool { return answers.Load() })
	again := make(chan string, 1)
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		other.Process.Kill()
		other.Wait()
	})
	told := func() bool {
		for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			p.sup.reapOne()
			select {
			case <-p.sup.stops:
				return true
			default:
			}
		}
		return false
	}
	if err := other.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if told() {
		t.Error("the stop of another process was told")
	}
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if !told() {
		t.Fatal("a stop was not told")
	}
	if p.doubt("it was stopped", again) || p.report.Closed {
		t.Fatal("one that answers was ended")
	}
	answers.Store(false)
	if at := time.Now(); !p.doubt("it was stopped", again) || !p.report.Closed || !p.severed || time.Since(at) > 2*askTimeout {
		t.Errorf("closed %v, severed %v, after %s", p.report.Closed, p.severed, time.Since(at))
	}
	if p.doubt("it was stopped", again) {
		t.Error("a closed phone was closed again")
	}
}
