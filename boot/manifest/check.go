package manifest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"rempart/internal/strictconf"
)

// The largest lists a policy may hold. They are far above what a policy
// needs and keep every walk over one short; maxAddresses × maxServices ×
// maxGateways also bounds the gate's table.
const (
	maxLevels    = 16
	maxApps      = 64
	maxNetworks  = 4
	maxPrefixes  = 8
	maxGateways  = 8
	maxAddresses = 4
	maxServices  = 8
	maxKeys      = 4
)

// document is the policy as text: strictconf settles the JSON, and this
// package settles what each text means, so that every fault has its line.
type document struct {
	Version  int           `json:"version"`
	Serial   int           `json:"serial"`
	Role     string        `json:"role"`
	Name     string        `json:"name"`
	Domain   string        `json:"domain"`
	Levels   []string      `json:"levels"`
	Apps     []App         `json:"apps"`
	Networks []networkText `json:"networks"`
	Gateways []gatewayText `json:"gateways"`
	Keys     Keys          `json:"keys"`
}

type networkText struct {
	Name       string   `json:"name"`
	Accredited string   `json:"accredited"`
	Inner      []string `json:"inner"`
}

type gatewayText struct {
	Name      string        `json:"name"`
	Addresses []string      `json:"addresses"`
	TunnelKey string        `json:"tunnel_key"`
	Inner     []string      `json:"inner"`
	Services  []serviceText `json:"services"`
}

type serviceText struct {
	Protocol string `json:"protocol"`
	Port     int    `json:"port"`
	Purpose  string `json:"purpose"`
}

// Check reads a policy document and returns every fault that it can find,
// each an [strictconf.Error] with its line, in the order of the lines; nil
// if there is none. The joined error wraps [ErrTooLarge], [ErrVersion],
// [ErrGarbled] (not such a JSON document at all) or [ErrInvalid].
func Check(doc []byte) error {
	_, err := readDocument(doc)
	return err
}

// Read returns the policy of a document that passes [Check]. It says nothing
// about who wrote the document: it is for tools at a desk, and a handset uses
// [Open].
func Read(doc []byte) (*Policy, error) { return readDocument(doc) }

// Faults returns the single faults of an error of [Check] or [Open], in the
// order of their lines.
func Faults(err error) []*strictconf.Error {
	var faults []*strictconf.Error
	var walk func(error)
	walk = func(err error) {
		switch e := err.(type) {
		case nil:
		case *strictconf.Error:
			faults = append(faults, e)
		case interface{ Unwrap() []error }:
			for _, inner := range e.Unwrap() {
				walk(inner)
			}
		default:
			walk(errors.Unwrap(err))
		}
	}
	walk(err)
	slices.SortStableFunc(faults, func(a, b *strictconf.Error) int { return cmp.Compare(a.Line, b.Line) })
	return faults
}

// readDocument is the only reader of a document: what it accepts is what
// [Check] accepts and what [Open] returns.
func readDocument(doc []byte) (*Policy, error) {
	if len(doc) > MaxDocument {
		return nil, fmt.Errorf("%w: the document has %d bytes, at most %d are read", ErrTooLarge, len(doc), MaxDocument)
	}
	if err := checkVersion(doc); err != nil {
		return nil, err
	}
	var d document
	if err := strictconf.Decode(doc, MaxDocument, &d); err != nil {
		faults := []error{err}
		// Where the JSON alone can be read (fields unknown or given twice),
		// the rest of the document is checked as well: one round of repair.
		var lenient document
		if json.Unmarshal(doc, &lenient) == nil {
			_, more := settle(&lenient, strictconf.Lines(doc))
			faults = append(faults, more...)
		}
		return nil, joined(ErrGarbled, faults)
	}
	p, faults := settle(&d, strictconf.Lines(doc))
	if len(faults) != 0 {
		return nil, joined(ErrInvalid, faults)
	}
	return p, nil
}

// joined returns the faults in the order of their lines, one per line of text.
func joined(reason error, faults []error) error {
	var sorted []error
	for _, f := range Faults(errors.Join(faults...)) {
		sorted = append(sorted, f)
	}
	return fmt.Errorf("%w: %w", reason, errors.Join(sorted...))
}

// settler turns texts into values and collects what cannot be.
type settler struct {
	line   func(path string) int
	faults []error
	levels []string
}

func settle(d *document, line func(string) int) (*Policy, []error) {
	s := &settler{line: line, levels: d.Levels}
	p := &Policy{Version: d.Version, Serial: d.Serial, Role: d.Role, Name: d.Name, Domain: d.Domain,
		Levels: d.Levels, Apps: d.Apps, Keys: d.Keys}
	if d.Version != Version {
		s.fault("version", "is %d, want %d", d.Version, Version)
	}
	if d.Serial < MinSerial || d.Serial > MaxSerial {
		s.fault("serial", "is %d, want %d to %d", d.Serial, MinSerial, MaxSerial)
	}
	if d.Role != RoleHandset && d.Role != RoleGateway {
		s.fault("role", "is %q, want %q or %q", d.Role, RoleHandset, RoleGateway)
	}
	s.name("name", d.Name, maxName)
	s.domain("domain", d.Domain)
	s.levelList(d.Levels)
	s.apps(d.Apps)
	p.Networks = s.networks(d.Networks)
	p.Gateways = s.gateways(d.Gateways, d.Role, p.Networks)
	s.keys(d.Keys)
	return p, s.faults
}

// fault notes a fault of the value at path. Where the value is missing, the
// line is that of the nearest value around it.
func (s *settler) fault(path, format string, args ...any) {
	line, at := s.line(path), path
	for line == 0 && at != "" {
		at = at[:max(strings.LastIndexAny(at, ".["), 0)]
		line = s.line(at)
	}
	s.faults = append(s.faults, &strictconf.Error{Line: max(line, 1), Msg: path + ": " + fmt.Sprintf(format, args...)})
}

// count holds a list to its bounds and reports whether it is within them.
func (s *settler) count(path string, n, low, high int) bool {
	switch {
	case n < low:
		s.fault(path, "is missing or empty, want %d at least", low)
	case n > high:
		s.fault(path, "has %d entries, at most %d are read", n, high)
	default:
		return true
	}
	return false
}

// unique notes a value that was there before.
func (s *settler) unique(seen map[string]bool, path, value string) {
	if value != "" && seen[value] {
		s.fault(path, "%q is given twice", value)
	}
	seen[value] = true
}

const (
	maxName   = 32
	maxDevice = 15 // IFNAMSIZ without its zero byte, Linux if.h
	maxDomain = 253
	maxLabel  = 63 // RFC 1035 §2.3.4
)

// name holds a name to what is safe in a path, a cgroup, a log line and a
// terminal: a lower-case letter, then letters, digits and inner hyphens.
func (s *settler) name(path, name string, longest int) {
	if fault := nameFault(name, longest); fault != "" {
		s.fault(path, "%q %s", name, fault)
	}
}

func nameFault(name string, longest int) string {
	switch {
	case name == "":
		return "is missing"
	case len(name) > longest:
		return fmt.Sprintf("is longer than %d bytes", longest)
	case name[0] < 'a' || name[0] > 'z':
		return "does not begin with a lower-case letter"
	case !ldh(name):
		return "has more than lower-case letters, digits and inner hyphens"
	}
	return ""
}

// ldh reports whether s is letters (lower case), digits and hyphens, with no
// hyphen first or last.
func ldh(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return s != "" && s[0] != '-' && s[len(s)-1] != '-'
}

// domain holds the SIP domain to one spelling that no two readers can take
// differently: lower-case ASCII labels (RFC 1123 §2.1), two at least, no
// trailing dot, no A-labels of other scripts, not an address.
func (s *settler) domain(path, domain string) {
	if domain == "" {
		s.fault(path, "is missing")
		return
	}
	if len(domain) > maxDomain {
		s.fault(path, "is longer than %d bytes", maxDomain)
		return
	}
	if _, err := netip.ParseAddr(domain); err == nil {
		s.fault(path, "%q is an address, want a domain name", domain)
		return
	}
	labels := strings.Split(domain, ".")
	if len(labels) < 2 {
		s.fault(path, "%q has one label, want two at least", domain)
	}
	for _, label := range labels {
		switch {
		case len(label) > maxLabel:
			s.fault(path, "%q has a label of more than %d bytes", domain, maxLabel)
			return
		case !ldh(label):
			s.fault(path, "%q is not lower-case ASCII labels between single dots", domain)
			return
		case strings.HasPrefix(label, "xn--"):
			s.fault(path, "%q has a label of another script (xn--), which a person cannot compare", domain)
			return
		}
	}
	if last := labels[len(labels)-1]; last[0] >= '0' && last[0] <= '9' {
		s.fault(path, "%q ends in a label that begins with a digit", domain)
	}
}
