package main

import (
	"bytes"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/proof"
)

// Every bound of the issue is there for both families, on the way that tunneld sends.
func TestSendPairsAreTheIssues(t *testing.T) {
	limits := map[float64]int{}
	for _, p := range sendPairs() {
		limits[p.limit]++
		family := p.what[len(p.what)-4:]
		if product := wayOf(family); p.limit >= 1 && !strings.Contains(p.what, ", "+product+",") {
			t.Errorf("%s has a bound", p.what)
		}
		for _, arm := range []string{p.ours, p.theirs} {
			if !strings.HasSuffix(arm, family) {
				t.Errorf("%s compares %s", p.what, arm)
			}
		}
		if p.ours == p.theirs || !strings.HasPrefix(p.theirs, "nft") || strings.HasPrefix(p.ours, "nft") {
			t.Errorf("%s compares %q with %q", p.what, p.ours, p.theirs)
		}
	}
	if len(limits) != 4 || limits[0.4] != 2 || limits[1] != 2 || limits[1.25] != 2 {
		t.Errorf("limits %v", limits)
	}
}

func wayOf(family string) string {
	if family == "IPv4" {
		return wayConnected
	}
	return wayUnconnected
}

// The bound is on the median of the rounds' ratios, not on the ratio of the medians.
func TestAddPairsJudgesEachRound(t *testing.T) {
	samples := map[string][]float64{"ours": {50, 900, 40}, "theirs": {100, 1000, 200}}
	r := &result{}
	addPairs(r, samples, []sendPair{{"a", "ours", "theirs", 0.6}, {"b", "ours", "theirs", 0.4}, {"c", "ours", "theirs", 0}})
	if len(r.Figures) != 3 || r.Figures[0].P50 != 0.5 || !slices.Equal(r.Figures[0].Samples, []float64{0.5, 0.9, 0.2}) {
		t.Fatalf("%+v", r.Figures)
	}
	if !r.Figures[0].Kept || r.Figures[1].Kept || !r.Figures[2].Kept || r.Figures[2].Bound.String() != "-" {
		t.Errorf("%+v", r.Figures)
	}
	r = &result{}
	if addPairs(r, nil, sendPairs()); len(r.Figures) != len(sendPairs()) || r.Figures[0].Kept {
		t.Errorf("what was not measured is kept: %+v", r.Figures)
	}
}

func TestSockaddr(t *testing.T) {
	four := sockaddr(netip.MustParseAddrPort("203.0.113.1:51820"))
	if !bytes.Equal(four, []byte{unix.AF_INET, 0, 0xca, 0x6c, 203, 0, 113, 1, 0, 0, 0, 0, 0, 0, 0, 0}) || len(four) != unix.SizeofSockaddrInet4 {
		t.Errorf("IPv4: %x", four)
	}
	six := sockaddr(netip.MustParseAddrPort("[2001:db8::1]:51820"))
	if len(six) != unix.SizeofSockaddrInet6 || !bytes.HasPrefix(six, []byte{unix.AF_INET6, 0, 0xca, 0x6c, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8}) || six[23] != 1 || six[24] != 0 {
		t.Errorf("IPv6: %x", six)
	}
}

func TestNewBlockIsTheMean(t *testing.T) {
	if b := newBlock(3, "arm", 20*time.Microsecond, 10); b.NS != 2000 || b.Round != 3 || b.Arm != "arm" {
		t.Errorf("%+v", b)
	}
}

// A send that does not end as it must ends the run: a figure of sends that were refused is no figure of admitted ones.
func TestASendThatEndsOtherwiseIsAnError(t *testing.T) {
	a, err := (&place{}).newArm("loopback", netip.MustParseAddrPort("127.0.0.1:9"), false, unix.EPERM)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	if _, err := a.send(1); err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("a send that passed where none must: %v", err)
	}
	a.want = 0
	if took, err := a.send(10); err != nil || took <= 0 {
		t.Errorf("%v, %v", took, err)
	}
}

// nothingStays checks that this process is in its control group again, and that none of its own is left there.
func nothingStays(t *testing.T, own string) {
	t.Helper()
	now, err := ownCgroupDir()
	if err != nil || now != own {
		t.Errorf("now in %s, before in %s, %v", now, own, err)
	}
	left, err := filepath.Glob(filepath.Join(own, fmt.Sprintf("rempart-bench-%d*", os.Getpid())))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// Each place does what its name says: every arm ends as it must, two rounds of few sends, and nothing stays.
func TestSendArms(t *testing.T) {
	proof.NeedRoot(t)
	own, err := ownCgroupDir()
	if err != nil {
		t.Fatal(err)
	}
	arms, closeArms, err := sendArms()
	defer func() {
		if err := closeArms(); err != nil {
			t.Error(err)
		}
		nothingStays(t, own)
	}()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, a := range arms {
		names = append(names, a.name)
	}
	for _, p := range sendPairs() {
		if !slices.Contains(names, p.ours) || !slices.Contains(names, p.theirs) {
			t.Errorf("%s: no such arms", p.what)
		}
	}
	blocks, err := sendAll(t.Context(), arms, 2, 100)
	if err != nil {
		t.Fatal(err)
	}
	if len(blocks) != 2*(len(arms)+1) || blocks[1].Arm != names[0] || blocks[len(blocks)-1].Arm != names[0] {
		t.Errorf("%d blocks of %d arms: %+v", len(blocks), len(arms), blocks)
	}
	for _, b := range blocks {
		if b.NS <= 0 || math.IsInf(b.NS, 0) {
			t.Errorf("%+v", b)
		}
	}
}
