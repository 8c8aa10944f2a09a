package hostilenet

import (
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
	"rempart/internal/proof"
)

// moved: the network gives another address while the handset runs, and the one who asks for it is killed on the way. The old
// address and its routes go, the tunnel comes back over the new one, and nothing leaves beside it meanwhile.
func (n *network) moved(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the tunnel over the new address")
	before, _ := n.lease(t)
	if err := n.w.Provide(t.Context(), netns.Provider{}); err != nil {
		t.Fatal(err)
	}
	host := netip.MustParseAddr("198.51.100.7")
	tries := n.attempts(t, attack.Job{Kind: attack.UDP, Family: attack.IPv4, Target: host, Count: 1})
	home := netip.MustParsePrefix("203.0.113.0/24")
	n.observe(t, tries.markers, func() {
		n.killLinkd(t)
		tries.run()
		n.waitUp(t, home.Contains)
		tries.run()
	}, func() watch.Rules { return n.rules(t) })
	after, routes := n.lease(t)
	for _, a := range before {
		for _, b := range after {
			if a == b && a.Addr().Is4() {
				t.Errorf("%s is still there", a)
			}
		}
	}
	for _, r := range routes {
		if strings.Contains(r, "198.51.100.") {
			t.Errorf("route %s is still there", r)
		}
	}
}

func (n *network) killLinkd(t *testing.T) {
	t.Helper()
	pids, err := os.ReadFile(filepath.Join(n.handset(t).Paths.Cgroup, "linkd", "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range strings.Fields(string(pids)) {
		pid, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if len(pids) == 0 {
		t.Fatal("linkd does not run")
	}
}
