// Package levels decides which app may talk over which network, and the level
// of a call. It is pure: a decision depends on the signed policy and on the
// arguments, and on nothing else.
//
// The rule, in both directions (confidentiality alone, after Bell and
// LaPadula, MTR-2547; NIAP FDP_IFC_EXT.1 and FDP_ACF_EXT.1):
//
//   - an app sends only to networks accredited at or above everything it may
//     read and everything it writes: no secret leaves downwards;
//   - an app receives only from networks accredited at or below its
//     clearance: nothing reaches it that it may not read.
//
// So an app talks both ways only with networks of exactly its level. What the
// policy does not name is refused.
package levels

import (
	"fmt"

	"rempart/boot/manifest"
)

// Decision is an answer and the reason for it, fit to be shown to a person.
type Decision struct {
	Allowed bool
	Why     string
}

// Lattice is the order of the levels. The levels of a policy are a chain:
// any two can be compared.
type Lattice struct {
	names []string
	ranks map[string]int
}

// Compare returns a negative number where level a is below level b, zero
// where they are the same and a positive number where a is above b; an error
// where one is unknown.
func (l Lattice) Compare(a, b string) (int, error) {
	ra, err := l.rank(a)
	if err != nil {
		return 0, err
	}
	rb, err := l.rank(b)
	if err != nil {
		return 0, err
	}
	return ra - rb, nil
}

// Lowest returns the lowest of the levels; an error where one is unknown or
// there are none.
func (l Lattice) Lowest(levels ...string) (string, error) {
	if len(levels) == 0 {
		return "", fmt.Errorf("cannot take the lowest of no levels")
	}
	lowest, err := l.rank(levels[0])
	if err != nil {
		return "", err
	}
	for _, level := range levels[1:] {
		rank, err := l.rank(level)
		if err != nil {
			return "", err
		}
		lowest = min(lowest, rank)
	}
	return l.names[lowest], nil
}

// Names returns the levels, lowest first.
func (l Lattice) Names() []string { return append([]string(nil), l.names...) }

func (l Lattice) rank(level string) (int, error) {
	rank, ok := l.ranks[level]
	if !ok {
		return 0, fmt.Errorf("level %q is not in the policy", level)
	}
	return rank, nil
}

// Rule is the rule over one policy. The zero Rule refuses everything.
type Rule struct {
	lattice  Lattice
	apps     map[string]manifest.App
	networks map[string]string // name → accredited level
}

// New returns the rule of a policy. A nil policy gives a rule that refuses
// everything. Entries with levels that the policy does not order are kept and
// refused when asked about; names given twice are refused too, since neither
// entry can be preferred.
func New(p *manifest.Policy) *Rule {
	r := &Rule{apps: map[string]manifest.App{}, networks: map[string]string{}}
	if p == nil {
		return r
	}
	r.lattice = Lattice{names: append([]string(nil), p.Levels...), ranks: map[string]int{}}
	for rank, level := range p.Levels {
		if _, twice := r.lattice.ranks[level]; twice {
			return &Rule{} // no order: nothing can be decided
		}
		r.lattice.ranks[level] = rank
	}
	for _, app := range p.Apps {
		if _, twice := r.apps[app.Name]; twice {
			app = manifest.App{Name: app.Name}
		}
		r.apps[app.Name] = app
	}
	for _, n := range p.Networks {
		if _, twice := r.networks[n.Name]; twice {
			n.Accredited = ""
		}
		r.networks[n.Name] = n.Accredited
	}
	return r
}

// Lattice returns the order of the policy's levels.
func (r *Rule) Lattice() Lattice { return r.lattice }

// parties are an app and a network with the ranks of their levels.
type parties struct {
	app                      manifest.App
	accredited               string
	reads, writes, atNetwork int
}

func (r *Rule) find(app, network string) (parties, error) {
	var p parties
	var ok bool
	if p.app, ok = r.apps[app]; !ok {
		return p, fmt.Errorf("app %q is not in the policy", app)
	}
	if p.accredited, ok = r.networks[network]; !ok {
		return p, fmt.Errorf("network %q is not in the policy", network)
	}
	var err error
	if p.reads, err = r.lattice.rank(p.app.Reads); err != nil {
		return p, fmt.Errorf("app %q cannot be placed: %w", app, err)
	}
	if p.writes, err = r.lattice.rank(p.app.Writes); err != nil {
		return p, fmt.Errorf("app %q cannot be placed: %w", app, err)
	}
	if p.atNetwork, err = r.lattice.rank(p.accredited); err != nil {
		return p, fmt.Errorf("network %q cannot be placed: %w", network, err)
	}
	return p, nil
}

// Send decides whether an app may send to a network.
func (r *Rule) Send(app, network string) Decision {
	p, err := r.find(app, network)
	switch {
	case err != nil:
		return Decision{false, err.Error()}
	case p.atNetwork < p.reads:
		return Decision{false, fmt.Sprintf("%s may read %s, and %s is accredited for %s only", app, p.app.Reads, network, p.accredited)}
	case p.atNetwork < p.writes:
		return Decision{false, fmt.Sprintf("%s writes %s, and %s is accredited for %s only", app, p.app.Writes, network, p.accredited)}
	}
	return Decision{true, fmt.Sprintf("%s reads up to %s and writes %s, and %s is accredited for %s", app, p.app.Reads, p.app.Writes, network, p.accredited)}
}

// Receive decides whether an app may receive from a network.
func (r *Rule) Receive(app, network string) Decision {
	p, err := r.find(app, network)
	switch {
	case err != nil:
		return Decision{false, err.Error()}
	case p.atNetwork > p.reads:
		return Decision{false, fmt.Sprintf("%s may read up to %s, and %s carries %s", app, p.app.Reads, network, p.accredited)}
	}
	return Decision{true, fmt.Sprintf("%s may read up to %s, and %s carries %s", app, p.app.Reads, network, p.accredited)}
}

// CallLevel returns the level of a call: the lowest of the levels in both
// certificates and of what the network is accredited for. An unknown level or
// network is an error, and with it no call.
func (r *Rule) CallLevel(certA, certB, network string) (string, error) {
	accredited, ok := r.networks[network]
	if !ok {
		return "", fmt.Errorf("cannot set the call's level: network %q is not in the policy", network)
	}
	level, err := r.lattice.Lowest(certA, certB, accredited)
	if err != nil {
		return "", fmt.Errorf("cannot set the call's level: %w", err)
	}
	return level, nil
}
