package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"rempart/boot/report"
	"rempart/boot/stage"
	"rempart/internal/journal"
	"rempart/internal/link"
	"rempart/internal/sandbox/guard"
)

// quiet turns off what a kernel says on a link by itself (router solicitations, link-local addresses and with them MLD and
// duplicate detection) and what it would take from one (router advertisements, redirects). ARP and ND answers are off too:
// the floor and the gate drop them all; this keeps the drop counters for attackers.
var quiet = map[string]string{
	"net.ipv6.conf.default.accept_ra":            "0",
	"net.ipv6.conf.default.autoconf":             "0",
	"net.ipv6.conf.default.addr_gen_mode":        "1",
	"net.ipv6.conf.default.router_solicitations": "0",
	"net.ipv6.conf.default.dad_transmits":        "0",
	"net.ipv6.conf.default.accept_redirects":     "0",
	"net.ipv6.conf.all.forwarding":               "0",
	"net.ipv4.conf.default.arp_ignore":           "8",
	"net.ipv4.conf.default.accept_redirects":     "0",
	"net.ipv4.conf.default.send_redirects":       "0",
	"net.ipv4.conf.all.arp_ignore":               "8",
	"net.ipv4.conf.all.accept_redirects":         "0",
	"net.ipv4.conf.all.send_redirects":           "0",
	"net.ipv4.conf.all.rp_filter":                "1", // strict: an answer must go the way it came
	"net.ipv4.conf.default.rp_filter":            "1",
	// No device is taken out of the IPsec policies; what the desk has for its own would be inherited.
	"net.ipv4.conf.all.disable_xfrm":       "0",
	"net.ipv4.conf.all.disable_policy":     "0",
	"net.ipv4.conf.default.disable_xfrm":   "0",
	"net.ipv4.conf.default.disable_policy": "0",
	"net.ipv6.conf.all.disable_policy":     "0",
	"net.ipv6.conf.default.disable_policy": "0",
	"net.ipv4.icmp_echo_ignore_all":        "1",
	"net.ipv6.icmp.echo_ignore_all":        "1",
}

// makeColours makes the cgroups, moves init into its own, and makes the namespaces. Init's own namespace stays as a dead end
// for devices that appear while running.
func (p *phone) makeColours(context.Context) (string, error) {
	for _, name := range []string{"init", "egressd", "watchd", "keyd", "linkd", "tunneld", "voiced", "gatewayd", "shell", "apps"} {
		dir := filepath.Join(cgroupDir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		f, err := os.Open(dir)
		if err != nil {
			return "", err
		}
		p.cgroups[name] = f
	}
	if err := os.WriteFile(filepath.Join(cgroupDir, "init/cgroup.procs"), []byte("0"), 0); err != nil {
		return "", fmt.Errorf("cannot enter init's cgroup: %w", err)
	}
	// egressd's pins lie in a folder of its own in there: passing through is all that others may.
	if err := os.Chmod(bpffsDir, 0o711); err != nil {
		return "", err
	}
	own, err := link.Self()
	if err != nil {
		return "", err
	}
	p.own = own
	for name, at := range map[string]**link.NS{"red": &p.red, "black": &p.black, "void": &p.void} {
		ns, err := link.Create(filepath.Join(netnsDir, name))
		if err != nil {
			return "", err
		}
		*at = ns
	}
	for name, ns := range map[string]*link.NS{"init's own": p.own, "red": p.red, "black": p.black, "void": p.void} {
		err := ns.Do(func() error {
			for k, v := range quiet {
				if err := link.Sysctl(k, v); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return "", fmt.Errorf("cannot quieten namespace %s: %w", name, err)
		}
	}
	if err := p.layBackstop(); err != nil {
		return "", err
	}
	if err := p.red.Do(func() error { return link.SetUp("lo") }); err != nil {
		return "", err
	}
	return "red, black and void namespaces, closed by default; every later process is born in its own cgroup", nil
}

// installGuard puts the guard over this handset's cgroup, with this namespace as the dead end where devices are born. A kernel
// that runs neither form leaves the other layers; the report says so, and docs/known-limits.md what each form costs.
func (p *phone) installGuard(context.Context) (string, error) {
	g, err := guard.Install(cgroupDir, filepath.Join(bpffsDir, "guard"))
	if errors.Is(err, guard.ErrNoGuard) {
		p.report.Guard = err.Error()
		p.journal.Event(eventGuard, "none", journal.Failure, "reason", err.Error())
		return "not there: " + err.Error(), nil
	}
	if err != nil {
		return "", err
	}
	p.guard = g
	if err := p.trust(os.Getpid()); err != nil {
		return "", err
	}
	if err := g.ReadBack(); err != nil {
		return "", err
	}
	p.report.Guard = report.GuardInForce + " (" + string(g.Form()) + ")"
	p.journal.Event(eventGuard, string(g.Form()), journal.Success)
	if g.Form() == guard.Calls {
		return "packet sockets, bpf and io_uring are death to all but init, egressd and watchd; new devices carry no one's packets", nil
	}
	return "only init, egressd and watchd may change links, open packet sockets or call bpf", nil
}

// admit names devices of the calling thread's namespace to the guard as ways out. The watcher is told before they are.
func (p *phone) admit(devices ...string) error {
	if p.guard == nil {
		return nil
	}
	for _, do := range []func(int) error{p.guard.Expect, p.guard.Admit} {
		for _, name := range devices {
			i, err := link.Index(name)
			if err != nil {
				return err
			}
			if err := do(i); err != nil {
				return err
			}
		}
		p.tell()
	}
	return nil
}

// trust names a process as supervisor to the guard.
func (p *phone) trust(pid int) error {
	if p.guard == nil {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("cannot name process %d to the guard: %w", pid, err)
	}
	defer unix.Close(fd)
	return p.guard.Trust(fd)
}

// listen makes the listening sockets of daemons. Init keeps them, so that a restarted daemon takes over its callers.
func (p *phone) listen(names ...string) error {
	for _, name := range names {
		path := filepath.Join(runDir, name+".sock")
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return fmt.Errorf("cannot listen for %s: %w", name, err)
		}
		// Anyone may knock: rights go by the peer's uid and cgroup, told by the kernel.
		if err := os.Chmod(path, 0o666); err != nil {
			return err
		}
		p.listeners[name] = ln
	}
	return nil
}

// own makes a folder for one daemon alone.
func own(dir string, uid uint32) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return errors.Join(os.Chmod(dir, 0o700), os.Lchown(dir, int(uid), int(uid)))
}

// roleOf says in words which programs this image starts.
func roleOf(role string) string {
	names, err := stage.Daemons(role)
	if err != nil {
		return role
	}
	return role + ": " + strings.Join(names, ", ")
}
