package main

import (
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/egress"
	"rempart/vpn/enforce"
	"rempart/vpn/watch"
)

// withWatcher gives the phone a watchd that says nothing by itself; its end is p.watcher.theirs.
func (p *phone) withWatcher(t *testing.T) *watcher {
	t.Helper()
	if p.own == nil {
		self := selfNS(t)
		p.own, p.red, p.void = self, self, self
	}
	if _, err := p.openWatcher(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.closeWatcher)
	return p.watcher
}

func withRadioUp(t *testing.T) *phone {
	t.Helper()
	p := withRadio(t)
	if err := p.blackDo(func() error { return link.SetUp("wwan0") }); err != nil {
		t.Fatal(err)
	}
	return p
}

// told is what watchd has been told so far.
func told(t *testing.T, w *watcher) (all []watch.Orders) {
	t.Helper()
	b := make([]byte, watch.MaxOrders)
	for {
		n, _, err := unix.Recvfrom(int(w.theirs.Fd()), b, unix.MSG_DONTWAIT)
		if err != nil {
			return all
		}
		o, err := watch.ParseOrders(b[:n])
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
}

func lastOf(t *testing.T, w *watcher) watch.Orders {
	t.Helper()
	all := told(t, w)
	if len(all) == 0 {
		t.Fatal("watchd was told nothing")
	}
	return all[len(all)-1]
}

// TestOrdersComeBeforeWhatLoosens: what init does itself must never look like a difference.
func TestOrdersComeBeforeWhatLoosens(t *testing.T) {
	p := newPhone(mono(), nil, nil, nil)
	p.root, p.gate, p.pulse = t.TempDir(), willing(t), willing(t)
	p.behind(t)
	p.readHooks = func(string, egress.LevelTable, ...uint32) (enforce.LevelReport, error) {
		return enforce.LevelReport{}, nil
	}
	w := p.withWatcher(t)
	w.good = true
	egressd := exec.Command("sleep", "60")
	if err := egressd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		egressd.Process.Kill()
		egressd.Wait()
	})
	d := p.sup.daemon("egressd")
	d.pid, d.started = egressd.Process.Pid, true
	p.release(t.Context(), make(chan string, 1))
	if o := lastOf(t, w); o.Closed || o.Severed || o.Down || o.Generation == 0 {
		t.Errorf("released: %+v", o)
	}
	p.close("a death")
	if o := lastOf(t, w); !o.Closed || o.Severed {
		t.Errorf("closed: %+v", o)
	}
	// No egressd runs: the gate is severed, and watchd hears of it before it happens.
	d.pid = 0
	p.close("egressd died")
	if o := lastOf(t, w); !o.Severed {
		t.Errorf("severed: %+v", o)
	}
	p.lose("a difference")
	if o := lastOf(t, w); !o.Down {
		t.Errorf("lost: %+v", o)
	}
}

// TestSilentWatcherTakesTheRadiosDown: two missing beats are as good as a death, and the radios go first.
func TestSilentWatcherTakesTheRadiosDown(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "the beat that is in time")
	p := withRadioUp(t)
	w := p.withWatcher(t)
	if p.beat(time.Second) || p.watcher != w || !p.radioIsUp(t) {
		t.Fatal("a watcher that was heard in time was let go")
	}
	if p.wake(); !lastOf(t, w).Beat {
		t.Error("no sign of life of init")
	}
	w.heard = time.Now().Add(-watch.Silence - time.Millisecond)
	if p.beat(watch.Silence + 1) {
		t.Error("a watcher was blamed for init's own pause")
	}
	w.heard = time.Now().Add(-watch.Silence - time.Millisecond)
	if !p.beat(time.Second) || p.radioIsUp(t) || !p.report.Closed || p.watcher != nil {
		t.Errorf("silent: radio up %v, closed %v", p.radioIsUp(t), p.report.Closed)
	}
}

// TestDeadWatcherTakesTheRadiosDown, and they stay down until the next one has read all back.
func TestDeadWatcherTakesTheRadiosDown(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "TestALostPhoneIsNotReleased")
	p := withRadioUp(t)
	p.withWatcher(t).good = true
	if err := p.died(death{name: "watchd"}, make(chan string, 1)); err != nil {
		t.Fatal(err)
	}
	if p.radioIsUp(t) || !p.report.Closed || p.watched() {
		t.Errorf("radio up %v, closed %v", p.radioIsUp(t), p.report.Closed)
	}
	w := p.withWatcher(t)
	p.release(t.Context(), make(chan string, 1))
	if !p.report.Closed || p.radioIsUp(t) {
		t.Error("released before the watcher has read anything back")
	}
	again := make(chan string, 1)
	if p.hear(heard{&watcher{}, watch.Report{Kind: watch.Good, Generation: w.generation}}, again); w.good {
		t.Error("an earlier watcher's word counts")
	}
	if p.tell(); !p.hear(heard{w, watch.Report{Kind: watch.Good, Generation: w.generation}}, again) || !p.watched() {
		t.Error("the watcher's word does not count")
	}
	select {
	case <-again:
	case <-time.After(time.Second):
		t.Error("nobody tries to release the phone")
	}
}

// TestDifferenceStays: the radios are down until a restart, whatever the watcher says later.
func TestDifferenceStays(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "TestDeadWatcherTakesTheRadiosDown")
	p := withRadioUp(t)
	w := p.withWatcher(t)
	w.good = true
	again := make(chan string, 1)
	p.hear(heard{w, watch.Report{Kind: watch.Difference, Text: "no floor"}}, again)
	if p.radioIsUp(t) || p.lost != "the watcher: no floor" {
		t.Errorf("radio up %v, lost %q", p.radioIsUp(t), p.lost)
	}
	p.hear(heard{w, watch.Report{Kind: watch.Good, Generation: w.generation}}, again)
	p.release(t.Context(), again)
	if p.radioIsUp(t) || !p.report.Closed {
		t.Error("a lost phone was released")
	}
}
