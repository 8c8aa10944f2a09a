package backstop

import (
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/enforce/nft"
	"rempart/vpn/enforce/xfrm"
)

// BenchmarkSend is what one sendto of 64 bytes takes, admitted and refused, behind each layer and behind what a user would
// write instead: an nft chain at output that lets the gateway through and drops the rest.
func BenchmarkSend(b *testing.B) {
	proof.NeedRoot(b)
	gateway, host := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("198.51.100.7")
	black, err := link.Create("")
	if err != nil {
		b.Fatal(err)
	}
	defer black.Close()
	air, err := link.Create("")
	if err != nil {
		b.Fatal(err)
	}
	defer air.Close()
	in := func(fn func() error) {
		b.Helper()
		if err := black.Do(fn); err != nil {
			b.Fatal(err)
		}
	}
	var owner *nft.Owner
	in(func() (err error) {
		mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
		err = errors.Join(link.AddVeth(link.Port{Name: "wwan0"}, link.Port{Name: "far0", NS: air, MAC: mac}), link.SetUp("lo"), link.SetUp("wwan0"),
			link.AddAddr("wwan0", netip.MustParsePrefix("203.0.113.11/24")), link.AddNeighbour("wwan0", gateway, mac),
			link.AddRoute(link.Route{To: netip.MustParsePrefix("0.0.0.0/0"), Device: "wwan0", Via: gateway}))
		if err != nil {
			return err
		}
		owner, err = nft.Open()
		return err
	})
	if err := air.Do(func() error { return link.SetUp("far0") }); err != nil {
		b.Fatal(err)
	}
	const killSwitch = `table ip user { chain out { type filter hook output priority 0; policy drop; oifname lo accept; ip daddr 203.0.113.1 udp dport 51820 accept; }; }`
	run := func(command ...string) error { return exec.Command(command[0], command[1:]...).Run() }
	released := nft.Released("wwan0", tunnel, 0, netip.MustParseAddr("203.0.113.11"))
	for _, c := range []struct {
		name      string
		lay, lift func() error
	}{
		{"none", func() error { return nil }, func() error { return nil }},
		{"killswitch", func() error { return run("nft", killSwitch) }, func() error { return run("nft", "delete", "table", "ip", "user") }},
		{"nft", func() error { return owner.Put(released) }, func() error { return owner.Remove(released) }},
		{"xfrm", func() error { return xfrm.Put(xfrm.Classes(tunnel)) }, func() error {
			return run("sh", "-c", "ip xfrm policy flush; ip xfrm policy setdefault in accept fwd accept out accept")
		}},
		{"both", func() error { return errors.Join(owner.Put(released), xfrm.Put(xfrm.Classes(tunnel))) }, func() error { return owner.Remove(released) }},
	} {
		in(c.lay)
		for name, to := range map[string]unix.Sockaddr{
			"admitted": &unix.SockaddrInet4{Port: 51820, Addr: gateway.As4()}, "refused": &unix.SockaddrInet4{Port: 51820, Addr: host.As4()},
		} {
			b.Run(c.name+"/"+name, func(b *testing.B) {
				in(func() error {
					fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
					if err != nil {
						return err
					}
					defer unix.Close(fd)
					payload := make([]byte, 64)
					b.ResetTimer()
					for range b.N {
						_ = unix.Sendto(fd, payload, 0, to) // admitted or refused: both are measured
					}
					return nil
				})
			})
		}
		in(c.lift)
	}
}
