package levels

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"rempart/boot/manifest"
	"rempart/internal/proof"
)

var names = []string{"public", "restricted", "secret", "top"}

// everything is a policy with an app for every pair of levels and a network
// for every level, and one of each that is not in the order.
func everything() *manifest.Policy {
	p := &manifest.Policy{Levels: names}
	for _, reads := range append(names[:4:4], "cosmic", "") {
		for _, writes := range append(names[:4:4], "cosmic", "") {
			p.Apps = append(p.Apps, manifest.App{Name: "app-" + reads + "-" + writes, Reads: reads, Writes: writes})
		}
		p.Networks = append(p.Networks, manifest.Network{Name: "net-" + reads, Accredited: reads})
	}
	return p
}

// TestRuleOverEveryCombination holds the rule to its words for every app and
// network: an oracle that reads levels as numbers in the list.
func TestRuleOverEveryCombination(t *testing.T) {
	proof.SFR(t, "FDP_ACF_EXT.1", "")
	p := everything()
	r := New(p)
	rank := func(level string) int { return slices.Index(names, level) }
	for _, app := range p.Apps {
		for _, n := range p.Networks {
			reads, writes, at := rank(app.Reads), rank(app.Writes), rank(n.Accredited)
			known := reads >= 0 && writes >= 0 && at >= 0
			send, receive := r.Send(app.Name, n.Name), r.Receive(app.Name, n.Name)
			if want := known && at >= reads && at >= writes; send.Allowed != want {
				t.Errorf("Send(%s, %s) = %+v, want %v", app.Name, n.Name, send, want)
			}
			if want := known && at <= reads; receive.Allowed != want {
				t.Errorf("Receive(%s, %s) = %+v, want %v", app.Name, n.Name, receive, want)
			}
			if send.Allowed && receive.Allowed && at != reads {
				t.Errorf("%s talks both ways with %s, which is of another level", app.Name, n.Name)
			}
			if send.Why == "" || receive.Why == "" {
				t.Errorf("%s and %s: a decision without a reason", app.Name, n.Name)
			}
		}
	}
}

// TestNoPathDownwards follows information through any chain of sends and
// receives: it never arrives below where it began.
func TestNoPathDownwards(t *testing.T) {
	p := everything()
	r := New(p)
	for _, app := range p.Apps {
		for _, from := range p.Networks {
			for _, to := range p.Networks {
				if !r.Receive(app.Name, from.Name).Allowed || !r.Send(app.Name, to.Name).Allowed {
					continue
				}
				if c, err := r.Lattice().Compare(from.Accredited, to.Accredited); err != nil || c > 0 {
					t.Errorf("%s carries from %s down to %s (%v)", app.Name, from.Name, to.Name, err)
				}
			}
		}
	}
}

func TestUnknownIsRefused(t *testing.T) {
	r := New(everything())
	for _, c := range [][2]string{{"nobody", "net-public"}, {"app-public-public", "wwan0"}, {"", ""}, {"app-public-public", ""}} {
		for _, d := range []Decision{r.Send(c[0], c[1]), r.Receive(c[0], c[1])} {
			if d.Allowed || !strings.Contains(d.Why, "is not in the policy") {
				t.Errorf("%s and %s: %+v", c[0], c[1], d)
			}
		}
	}
	var zero Rule
	for name, r := range map[string]*Rule{"zero": &zero, "nil policy": New(nil), "empty policy": New(&manifest.Policy{})} {
		if r.Send("voiced", "wg0").Allowed || r.Receive("voiced", "wg0").Allowed {
			t.Errorf("%s: allowed", name)
		}
		if level, err := r.CallLevel("public", "public", "wg0"); err == nil {
			t.Errorf("%s: a call of level %s", name, level)
		}
	}
}

// TestTwiceIsRefused: [manifest.Check] refuses such policies; if one came in
// another way, neither of two entries may win.
func TestTwiceIsRefused(t *testing.T) {
	base := func() *manifest.Policy {
		return &manifest.Policy{Levels: []string{"public", "secret"},
			Apps:     []manifest.App{{Name: "voiced", Reads: "public", Writes: "public"}},
			Networks: []manifest.Network{{Name: "wg0", Accredited: "public"}}}
	}
	if !New(base()).Send("voiced", "wg0").Allowed {
		t.Fatal("the base policy does not allow what it should")
	}
	for name, change := range map[string]func(*manifest.Policy){
		"level":   func(p *manifest.Policy) { p.Levels = append(p.Levels, "public") },
		"app":     func(p *manifest.Policy) { p.Apps = append(p.Apps, p.Apps[0]) },
		"network": func(p *manifest.Policy) { p.Networks = append(p.Networks, p.Networks[0]) },
	} {
		p := base()
		change(p)
		if d := New(p).Send("voiced", "wg0"); d.Allowed {
			t.Errorf("%s given twice: %+v", name, d)
		}
		if d := New(p).Receive("voiced", "wg0"); d.Allowed {
			t.Errorf("%s given twice: %+v", name, d)
		}
	}
}

func TestReasonsAreForPeople(t *testing.T) {
	r := New(everything())
	for _, c := range []struct {
		got  Decision
		want string
	}{
		{r.Send("app-secret-secret", "net-restricted"), "app-secret-secret may read secret, and net-restricted is accredited for restricted only"},
		{r.Send("app-public-secret", "net-restricted"), "app-public-secret writes secret, and net-restricted is accredited for restricted only"},
		{r.Send("app-public-public", "net-secret"), "app-public-public reads up to public and writes public, and net-secret is accredited for secret"},
		{r.Receive("app-public-public", "net-secret"), "app-public-public may read up to public, and net-secret carries secret"},
		{r.Send("app-cosmic-public", "net-secret"), `app "app-cosmic-public" cannot be placed: level "cosmic" is not in the policy`},
		{r.Send("app-public-public", "net-cosmic"), `network "net-cosmic" cannot be placed: level "cosmic" is not in the policy`},
	} {
		if c.got.Why != c.want {
			t.Errorf("reason %q, want %q", c.got.Why, c.want)
		}
	}
}

func TestCallLevelOverEveryCombination(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "")
	r := New(everything())
	all := append(names[:4:4], "cosmic", "")
	for _, a := range all {
		for _, b := range all {
			for _, n := range all {
				ranks := []int{slices.Index(names, a), slices.Index(names, b), slices.Index(names, n)}
				got, err := r.CallLevel(a, b, "net-"+n)
				if slices.Min(ranks) < 0 {
					if err == nil || got != "" {
						t.Errorf("CallLevel(%q, %q, %q) = %q, %v; want an error", a, b, n, got, err)
					}
					continue
				}
				if want := names[slices.Min(ranks)]; err != nil || got != want {
					t.Errorf("CallLevel(%q, %q, %q) = %q, %v; want %q", a, b, n, got, err, want)
				}
				if back, _ := r.CallLevel(b, a, "net-"+n); back != got {
					t.Errorf("the two sides of %q and %q compute %q and %q", a, b, got, back)
				}
			}
		}
	}
	if level, err := r.CallLevel("public", "public", "wwan0"); err == nil {
		t.Errorf("a call over no network has level %q", level)
	}
}

func TestLattice(t *testing.T) {
	l := New(everything()).Lattice()
	for i, a := range names {
		for j, b := range names {
			got, err := l.Compare(a, b)
			if err != nil || (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("Compare(%s, %s) = %d, %v", a, b, got, err)
			}
		}
	}
	for _, c := range [][2]string{{"cosmic", "public"}, {"public", "cosmic"}} {
		if _, err := l.Compare(c[0], c[1]); err == nil {
			t.Errorf("Compare(%v) gave no error", c)
		}
	}
	if _, err := l.Lowest(); err == nil {
		t.Error("there is a lowest of no levels")
	}
	got := l.Names()
	got[0] = "changed"
	if fmt.Sprint(l.Names()) != fmt.Sprint(names) {
		t.Errorf("a caller changed the order to %v", l.Names())
	}
}
