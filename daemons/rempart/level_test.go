package main

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"rempart/boot/manifest"
	"rempart/internal/proof"
	"rempart/vpn/egress"
	"rempart/vpn/egress/plan"
)

// ruled is a handset with a policy of three levels.
func ruled(t *testing.T) (*phone, *egressd, *manifest.Policy) {
	t.Helper()
	p, g := newPhone(t), &egressd{}
	g.serve(t, p.e.socket("egressd"))
	policy := &manifest.Policy{Role: manifest.RoleHandset, Levels: []string{"public", "restricted", "secret"},
		Apps: []manifest.App{{Name: "mail", Reads: "restricted", Writes: "restricted"}, {Name: "games", Reads: "public", Writes: "public"}},
		Networks: []manifest.Network{{Name: "wg0", Accredited: "public", Inner: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}},
			{Name: "wg1", Accredited: "restricted", Inner: []netip.Prefix{netip.MustParsePrefix("10.78.0.0/16")}}},
		Gateways: []manifest.Gateway{{Name: "gateway", Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.1")}}}}
	p.e.rule = func(string) (*manifest.Policy, error) { return policy, nil }
	open, _, err := plan.Rights(policy)
	if err != nil {
		t.Fatal(err)
	}
	g.status.Rights = open
	return p, g, policy
}

func TestLevelExplains(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the lines that allow")
	p, _, _ := ruled(t)
	for _, row := range []struct {
		args string
		want []string
	}{
		{"level", []string{"public < restricted < secret", "kernel  enforces this", "mail    reads up to restricted, writes restricted", "wg0 (public)", "receives\n", "wg1 (restricted)", "sends and receives", "games"}},
		{"level mail", []string{"to wg0", "to wg1", "sending allowed: mail reads up to restricted"}},
		{"level mail wg0", []string{"sending refused by connect and sendmsg with EPERM, and by the packet hook: mail may read restricted, and wg0 is accredited for public only", "receiving allowed"}},
		{"level games wg1", []string{"sending allowed", "receiving refused by the packet hook, in silence: games may read up to public, and wg1 carries restricted"}},
		{"level evil wg0", []string{"not in the policy", `app "evil" is not in the policy`}},
		{"level mail black", []string{`network "black" is not in the policy`}},
	} {
		if code := p.run("", strings.Fields(row.args)...); code != 0 {
			t.Errorf("rempart %s: %d, %s", row.args, code, &p.stderr)
		}
		for _, w := range row.want {
			if !strings.Contains(p.stdout.String(), w) {
				t.Errorf("rempart %s says\n%swithout %q", row.args, &p.stdout, w)
			}
		}
	}
	if code := p.run("", "level", "mail", "wg0", "--json"); code != 0 {
		t.Fatalf("%d: %s", code, &p.stderr)
	}
	var v LevelView
	if err := json.Unmarshal(p.stdout.Bytes(), &v); err != nil {
		t.Fatal(err)
	}
	if v.Kernel != "open" || len(v.Apps) != 1 || len(v.Apps[0].Networks) != 1 || v.Apps[0].Networks[0].Send.Allowed || !v.Apps[0].Networks[0].Receive.Allowed {
		t.Errorf("%+v", v)
	}
}

// TestLevelSaysWhetherTheKernelAgrees: closed is no fault, another table is.
func TestLevelSaysWhetherTheKernelAgrees(t *testing.T) {
	p, g, policy := ruled(t)
	_, closed, err := plan.Rights(policy)
	if err != nil {
		t.Fatal(err)
	}
	set := func(rights [32]byte) { g.mu.Lock(); g.status.Rights = rights; g.mu.Unlock() }
	set(closed)
	if code := p.run("", "level"); code != 0 || !strings.Contains(p.stdout.String(), "the handset is closed") {
		t.Errorf("closed: %d, %s", code, &p.stdout)
	}
	set((egress.LevelTable{}).Rights())
	if code := p.run("", "level"); code != 1 || !strings.Contains(p.stderr.String(), "another table in force") || !strings.Contains(p.stderr.String(), "hint:") {
		t.Errorf("another table: %d, %s", code, &p.stderr)
	}
	g.die()
	if code := p.run("", "level"); code != 1 || !strings.Contains(p.stdout.String(), "mail") || !strings.Contains(p.stderr.String(), "egressd") {
		t.Errorf("no egressd: %d, %s%s", code, &p.stdout, &p.stderr)
	}
}
