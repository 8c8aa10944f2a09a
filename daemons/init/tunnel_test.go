package main

import (
	"net/netip"
	"strings"
	"testing"

	"rempart/boot/manifest"
)

func TestWishesAreRefusedBeforeAnythingIsSet(t *testing.T) {
	policy := &manifest.Policy{Networks: []manifest.Network{{Name: "wg0", Inner: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}}}}
	one := []netip.Prefix{netip.MustParsePrefix("10.77.0.11/32")}
	for name, c := range map[string]struct {
		p     *phone
		wish  []netip.Prefix
		cause string
	}{
		"outside the network":      {&phone{policy: policy}, []netip.Prefix{netip.MustParsePrefix("203.0.113.9/32")}, "not in the policy's network"},
		"one of two outside":       {&phone{policy: policy}, append(one[:1:1], netip.MustParsePrefix("fd77::11/128")), "fd77::11 is not in"},
		"no such network":          {&phone{policy: &manifest.Policy{}}, one, "no such network"},
		"others than in this boot": {&phone{policy: policy, inner: []netip.Prefix{netip.MustParsePrefix("10.77.0.12/32")}}, one, "it has [10.77.0.12/32] in this boot"},
	} {
		before := c.p.inner
		// There is no red namespace in this test: going on would not end in an error but in a crash.
		if err := c.p.setInner(c.wish); err == nil || !strings.Contains(err.Error(), c.cause) {
			t.Errorf("%s: %v", name, err)
		}
		if len(c.p.inner) != len(before) {
			t.Errorf("%s: the wish was kept", name)
		}
	}
}
