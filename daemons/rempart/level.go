package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"rempart/boot/manifest"
	"rempart/boot/manifest/load"
	"rempart/internal/run"
	"rempart/vpn/egress/ask"
	"rempart/vpn/egress/plan"
	"rempart/vpn/levels"
)

// LevelView is the level rule of the signed policy, as --json shows it.
type LevelView struct {
	Levels []string   `json:"levels"` // lowest first
	Apps   []AppLevel `json:"apps"`
	// Kernel says whether the kernel has the table that this policy leads to: "open",
	// "closed" (nobody may send or receive), or in words what is the matter.
	Kernel string `json:"kernel"`
}

// AppLevel is what one app may do.
type AppLevel struct {
	Name     string         `json:"name"`
	Reads    string         `json:"reads"`
	Writes   string         `json:"writes"`
	Networks []NetworkLevel `json:"networks"`
}

// NetworkLevel is the decision about one app and one network.
type NetworkLevel struct {
	Name       string   `json:"name"`
	Accredited string   `json:"accredited"`
	Send       Decision `json:"send"`
	Receive    Decision `json:"receive"`
}

// Decision is one answer and its reason.
type Decision struct {
	Allowed bool   `json:"allowed"`
	Why     string `json:"why"`
}

// The words of a kernel that agrees.
const (
	kernelOpen   = "open"
	kernelClosed = "closed"
)

// signedPolicy reads the policy of an image.
func signedPolicy(dir string) (*manifest.Policy, error) {
	p, _, err := load.Policy(dir)
	if err != nil {
		return nil, run.Hint(err, "run this on the handset")
	}
	return p, nil
}

// level shows the level rule: all of it, of one app, or of one app and network.
func level(ctx context.Context, args []string, e env) error {
	var asJSON bool
	words, err := parse("level", args, 2, func(f *flag.FlagSet) { f.BoolVar(&asJSON, "json", false, "") })
	if err != nil {
		return err
	}
	p, err := e.rule(e.policy)
	if err != nil {
		return err
	}
	v := LevelView{Levels: p.Levels, Apps: decideAll(p, words), Kernel: kernelAgrees(ctx, p, e)}
	if asJSON {
		if err := writeJSON(e.stdout, v); err != nil {
			return err
		}
	} else if err := v.show(e.stdout, len(words) > 0); err != nil {
		return fmt.Errorf("cannot write the levels: %w", err)
	}
	if v.Kernel != kernelOpen && v.Kernel != kernelClosed {
		return run.Hint(errors.New("the kernel's level table is not known to be the signed policy's: "+v.Kernel), "rempart doctor says more")
	}
	return nil
}

// decideAll asks the rule about every app and network, or about those of the words,
// whether the policy names them or not.
func decideAll(p *manifest.Policy, words []string) []AppLevel {
	rule := levels.New(p)
	apps, networks := p.Apps, p.Networks
	if len(words) > 0 {
		i := slices.IndexFunc(p.Apps, func(a manifest.App) bool { return a.Name == words[0] })
		apps = []manifest.App{{Name: words[0]}}
		if i >= 0 {
			apps[0] = p.Apps[i]
		}
	}
	if len(words) > 1 {
		n, ok := p.Network(words[1])
		if !ok {
			n = manifest.Network{Name: words[1]}
		}
		networks = []manifest.Network{n}
	}
	out := []AppLevel{}
	for _, a := range apps {
		one := AppLevel{Name: a.Name, Reads: a.Reads, Writes: a.Writes, Networks: []NetworkLevel{}}
		for _, n := range networks {
			send, receive := rule.Send(a.Name, n.Name), rule.Receive(a.Name, n.Name)
			one.Networks = append(one.Networks, NetworkLevel{n.Name, n.Accredited, Decision(send), Decision(receive)})
		}
		out = append(out, one)
	}
	return out
}

// kernelAgrees asks egressd which table is in force.
func kernelAgrees(ctx context.Context, p *manifest.Policy, e env) string {
	open, closed, err := plan.Rights(p)
	if err != nil {
		return err.Error()
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := ask.Dial(e.socket("egressd"))
	if err != nil {
		return explain("egressd", err).Error()
	}
	defer c.Close()
	s, err := c.Status(ctx)
	switch {
	case err != nil:
		return explain("egressd", err).Error()
	case s.Rights == open:
		return kernelOpen
	case s.Rights == closed:
		return kernelClosed
	}
	return "egressd has another table in force"
}

func (v LevelView) show(w io.Writer, explained bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "levels\t%s\n", strings.Join(v.Levels, " < "))
	switch v.Kernel {
	case kernelOpen:
		fmt.Fprintf(t, "kernel\tenforces this\n")
	case kernelClosed:
		fmt.Fprintf(t, "kernel\tthe handset is closed: nobody may send or receive\n")
	default:
		fmt.Fprintf(t, "kernel\t%s\n", v.Kernel)
	}
	for _, a := range v.Apps {
		fmt.Fprintf(t, "%s\t%s\n", a.Name, a.levels())
		for _, n := range a.Networks {
			if explained {
				fmt.Fprintf(t, "\tto %s\t%s\n", n.Name, n.Send.text("sending", "by connect and sendmsg with EPERM, and by the packet hook"))
				fmt.Fprintf(t, "\tfrom %s\t%s\n", n.Name, n.Receive.text("receiving", "by the packet hook, in silence"))
				continue
			}
			fmt.Fprintf(t, "\t%s (%s)\t%s\n", n.Name, n.Accredited, n.may())
		}
	}
	return t.Flush()
}

func (a AppLevel) levels() string {
	if a.Reads == "" {
		return "not in the policy"
	}
	return "reads up to " + a.Reads + ", writes " + a.Writes
}

func (n NetworkLevel) may() string {
	switch {
	case n.Send.Allowed && n.Receive.Allowed:
		return "sends and receives"
	case n.Send.Allowed:
		return "sends"
	case n.Receive.Allowed:
		return "receives"
	}
	return "nothing"
}

func (d Decision) text(what, by string) string {
	if d.Allowed {
		return what + " allowed: " + d.Why
	}
	return what + " refused " + by + ": " + d.Why
}
