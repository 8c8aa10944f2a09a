package netns

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
)

// groupProvider is the control group of the network's own services.
const groupProvider = "provider"

// routerLocal6 is the router's link-local address, which it has only where machines lease their addresses.
var routerLocal6 = netip.MustParsePrefix("fe80::fe/64")

// Provider is what the network tells machines that lease their addresses, beside an address, a router and a time: nothing,
// unless it is a hostile network.
type Provider struct {
	// Options are further options of dnsmasq, as on its command line.
	Options []string `json:"options,omitempty"`
	// Range replaces the range of addresses, "FIRST,LAST,MASK,SECONDS", and with it every fixed lease.
	Range string `json:"range,omitempty"`
	// Router replaces the router that DHCP names; the board's own answers ARP for it if it is one of its addresses.
	Router string `json:"router,omitempty"`
	// Advertise are further lines of radvd's interface block.
	Advertise []string `json:"advertise,omitempty"`
	// RouterAddresses are put on the router's device, so that it answers for them.
	RouterAddresses []netip.Prefix `json:"router_addresses,omitempty"`
}

// provider runs dnsmasq and radvd in the internet's namespace. The first machine that leases its address starts it; then the
// router speaks ARP and ND, as one on the air does.
type provider struct {
	k       *keeper
	speaks  bool
	what    Provider
	running []*exec.Cmd
}

// speak lets the router resolve neighbours and answer for itself. Its kernel then also reports its groups (MLD), as any host
// on an IPv6 link does: captures see that from the router's link address.
func (p *provider) speak() error {
	if p.speaks {
		return nil
	}
	err := errors.Join(link.SetSpeaking(bridgeName), link.AddAddr(bridgeName, routerLocal6))
	if err != nil {
		return fmt.Errorf("cannot let the router speak: %w", err)
	}
	p.speaks = true
	return nil
}

// provide starts the services, or starts them anew with what they are to tell now. It needs the keeper's lock.
func (p *provider) provide(what Provider) error {
	if err := p.speak(); err != nil {
		return err
	}
	if err := p.stop(); err != nil {
		return err
	}
	for _, a := range what.RouterAddresses {
		if err := link.AddAddr(bridgeName, a); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	p.what = what
	dir := filepath.Join(runtimeDir(p.k.spec.World), groupProvider)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot make a folder for the provider: %w", err)
	}
	conf := filepath.Join(dir, "radvd.conf")
	if err := os.WriteFile(conf, []byte(p.advertisement()), 0o644); err != nil {
		return fmt.Errorf("cannot configure radvd: %w", err)
	}
	if err := p.start(dir, "dnsmasq", p.dnsmasq(dir)...); err != nil {
		return err
	}
	return p.start(dir, "radvd", "--nodaemon", "--config", conf, "--pidfile", filepath.Join(dir, "radvd.pid"), "--logmethod", "stderr")
}

// dnsmasq returns its command line: DHCP for the link, no DNS, no file of the desk, and no probing of addresses.
func (p *provider) dnsmasq(dir string) []string {
	at := func(name string) string { return filepath.Join(dir, name) }
	args := []string{"--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--port=0", "--interface=" + bridgeName, "--bind-interfaces", "--no-ping",
		"--dhcp-authoritative", "--dhcp-leasefile=" + at("leases"), "--pid-file=" + at("dnsmasq.pid"), "--log-facility=-", "--log-dhcp", "--leasefile-ro"}
	router := router4.Addr().String()
	if p.what.Router != "" {
		router = p.what.Router
	}
	args = append(args, "--dhcp-option=3,"+router)
	if p.what.Range != "" {
		args = append(args, "--dhcp-range="+p.what.Range)
	} else {
		args = append(args, "--dhcp-range="+router4.Masked().Addr().String()+",static,255.255.255.0,3600")
		for _, m := range p.k.machines {
			if m.spec.DHCP {
				args = append(args, "--dhcp-host="+m.radio.MAC+","+m.radio.V4.Addr().String())
			}
		}
	}
	return append(args, p.what.Options...)
}

// advertisement is radvd's configuration.
func (p *provider) advertisement() string {
	prefix := router6.Masked().String()
	return "interface " + bridgeName + " {\n\tAdvSendAdvert on;\n\tMinRtrAdvInterval 200;\n\tMaxRtrAdvInterval 600;\n\tMinDelayBetweenRAs 3;\n\tAdvDefaultLifetime 3600;\n" +
		"\tprefix " + prefix + " { AdvOnLink on; AdvAutonomous on; AdvValidLifetime 7200; AdvPreferredLifetime 3600; };\n\t" +
		strings.Join(p.what.Advertise, "\n\t") + "\n};\n"
}

// start starts one service in the provider's control group.
func (p *provider) start(dir, name string, args ...string) error {
	group, err := makeGroup(p.k.h.path(p.k.spec.World, groupProvider))
	if err != nil {
		return err
	}
	defer group.Close()
	log, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return fmt.Errorf("cannot start %s: %w", name, err)
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start %s: %w", name, err)
	}
	p.running = append(p.running, cmd)
	// A configuration that it refuses ends it at once.
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		said, _ := os.ReadFile(log.Name()) // what there is is better than nothing
		return fmt.Errorf("cannot start %s: %w: %s", name, errors.Join(err, errors.New("it ended")), lastLines(string(said), 3))
	case <-time.After(30 * time.Millisecond):
		return nil
	}
}

func (p *provider) stop() error {
	for _, cmd := range p.running {
		_ = cmd.Process.Kill() // one that has ended is ended
	}
	p.running = nil
	// A group that was killed once may kill whoever is born in it later (seen on Linux 6.18): the next ones get a new one.
	group := p.k.h.path(p.k.spec.World, groupProvider)
	return errors.Join(killGroup(group), removeGroup(group))
}

// Provide makes the network tell something else from now on. Leases that machines have stay theirs until they ask again.
func (w *World) Provide(ctx context.Context, p Provider) error {
	return w.call(ctx, http.MethodPost, "/v1/provider", p, nil)
}
