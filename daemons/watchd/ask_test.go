package main

import (
	"testing"
	"time"

	"rempart/internal/proof"
	"rempart/vpn/egress"
	"rempart/vpn/watch"
)

// TestEgressdSleepsWhileAllIsAsItSaid: the kernel is asked at each look, egressd when the kernel says something else.
func TestEgressdSleepsWhileAllIsAsItSaid(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "the swap, which is asked about")
	s := newScene(t)
	open := watch.Orders{Table: gatewayPolicy("gateway"), Devices: s.devices()}
	looks := func(what string, most int) {
		t.Helper()
		before := s.questions()
		for range 10 {
			s.order(open)
			s.hears(watch.Good)
		}
		if n := s.questions() - before; n > most {
			t.Errorf("%s: egressd was asked %d times in 10 looks", what, n)
		}
	}
	s.order(open)
	s.hears(watch.Good)
	looks("deny-all", 0)
	s.mu.Lock() // as egressd: no answer while the policy is exchanged
	s.answers = &egress.Status{Admitted: "gateway", Digest: gatewayPolicy("gateway").Digest(), Changes: 1}
	if err := s.black.Do(func() error { return s.gate.Swap(gatewayPolicy("gateway")) }); err != nil {
		t.Fatal(err)
	}
	s.mu.Unlock()
	before := s.questions()
	s.order(open)
	s.hears(watch.Good)
	if s.questions() == before {
		t.Error("a swap was taken for granted")
	}
	looks("a gateway admitted", 0)
	// What egressd last said allows nothing that is in no row any more.
	s.order(watch.Orders{Table: gatewayPolicy("another"), Devices: s.devices()})
	s.hears(watch.Difference)
	s.wants(false, "a row that the table has lost")
}

// TestEgressdIsAskedWhetherItLives, not often, and soon again once it did not answer.
func TestEgressdIsAskedWhetherItLives(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "TestEgressdSleepsWhileAllIsAsItSaid")
	s := newSceneAsking(t, 500*time.Millisecond)
	open := watch.Orders{Table: gatewayPolicy("gateway"), Devices: s.devices()}
	s.order(open)
	s.hears(watch.Good)
	s.answer(nil)
	time.Sleep(600 * time.Millisecond)
	s.order(open)
	s.hears(watch.NoAnswer)
	s.wants(true, "egressd hangs")
	s.answer(&egress.Status{Digest: egress.DenyAll().Digest()})
	s.hears(watch.Good)
	if askEvery < 15*time.Minute {
		t.Errorf("egressd is woken every %s", askEvery)
	}
}
