// Package archtest holds the import law as text (law.txt) and as a test, and each program's committed dependency list
// (deps/*.txt), so that a new package in a program is a line in a review.
package archtest

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Rule is one line of the law.
type Rule struct {
	Line   int
	Verb   string   // order, deny, only, pure, support
	From   []string // order: the rooms; deny: who; only: the importers; pure, support: the package
	To     string   // deny, only: the imported
	Reason string
}

// ParseLaw reads the law; a line it cannot read and a rule without a reason are errors.
func ParseLaw(r io.Reader) ([]Rule, error) {
	var rules []Rule
	in := bufio.NewScanner(r)
	for n := 1; in.Scan(); n++ {
		text, reason, _ := strings.Cut(in.Text(), "#")
		f := strings.Fields(text)
		if len(f) == 0 {
			continue
		}
		rule := Rule{Line: n, Verb: f[0], Reason: strings.TrimSpace(reason)}
		switch {
		case rule.Reason == "":
			return nil, fmt.Errorf("line %d: a rule without a reason", n)
		case f[0] == "order" && len(f) >= 4:
			for i, w := range f[1:] {
				if i%2 == 1 != (w == "<") {
					return nil, fmt.Errorf("line %d: order is rooms joined by <", n)
				}
				if w != "<" {
					rule.From = append(rule.From, w)
				}
			}
		case f[0] == "deny" && len(f) == 4 && f[2] == "->":
			rule.From, rule.To = []string{f[1]}, f[3]
		case f[0] == "only" && len(f) == 4 && f[2] == "imports":
			rule.From, rule.To = strings.Split(f[1], ","), f[3]
		case (f[0] == "pure" || f[0] == "support") && len(f) == 2:
			rule.From = []string{f[1]}
		default:
			return nil, fmt.Errorf("line %d: cannot read %q", n, strings.TrimSpace(text))
		}
		rules = append(rules, rule)
	}
	return rules, in.Err()
}

// Package is what `go list -json` says of one package.
type Package struct {
	ImportPath   string
	Standard     bool
	Imports      []string
	TestImports  []string
	XTestImports []string
	Deps         []string
}

// impure is what a pure package may not reach through its own imports.
var impure = []string{"os", "os/exec", "os/signal", "syscall", "net", "net/http", "crypto/tls", "golang.org/x/sys", "io/ioutil", "log", "log/slog"}

// Check returns every breach of rules in pkgs (the module's packages and all their dependencies).
func Check(rules []Rule, module string, pkgs map[string]Package) []string {
	var out []string
	say := func(r Rule, format string, args ...any) {
		out = append(out, fmt.Sprintf("law line %d: %s (%s)", r.Line, fmt.Sprintf(format, args...), r.Reason))
	}
	exists := func(r Rule, name string) {
		for p := range pkgs {
			if under(p, name) {
				return
			}
		}
		say(r, "%s does not exist: the law names something that is gone", name)
	}
	own := func(yield func(Package)) {
		for _, name := range slices.Sorted(keys(pkgs)) {
			if under(name, module) {
				yield(pkgs[name])
			}
		}
	}
	for _, r := range rules {
		switch r.Verb {
		case "order":
			room := func(p string) int {
				rest, ok := strings.CutPrefix(p, module+"/")
				if !ok {
					return -1
				}
				first, _, _ := strings.Cut(rest, "/")
				return slices.Index(r.From, first)
			}
			for _, name := range r.From {
				exists(r, module+"/"+name)
			}
			own(func(p Package) {
				at := room(p.ImportPath)
				if at < 0 && p.ImportPath != module {
					say(r, "%s is in no room", p.ImportPath)
				}
				for _, i := range p.Imports {
					if room(i) > at {
						say(r, "%s imports %s", p.ImportPath, i)
					}
				}
			})
		case "deny":
			exists(r, r.From[0])
			if under(r.To, module) {
				exists(r, r.To)
			}
			own(func(p Package) {
				if !under(p.ImportPath, r.From[0]) {
					return
				}
				for _, d := range append(slices.Clone(p.Deps), p.Imports...) {
					if under(d, r.To) {
						say(r, "%s reaches %s", p.ImportPath, d)
						break
					}
				}
			})
		case "only":
			exists(r, r.To)
			for _, f := range r.From {
				exists(r, f)
			}
			own(func(p Package) {
				if under(p.ImportPath, r.To) || slices.ContainsFunc(r.From, func(f string) bool { return under(p.ImportPath, f) }) {
					return
				}
				for _, i := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
					if under(i, r.To) {
						say(r, "%s imports %s", p.ImportPath, i)
						break
					}
				}
			})
		case "pure":
			p, ok := pkgs[r.From[0]]
			if !ok {
				exists(r, r.From[0])
				continue
			}
			for _, i := range p.Imports {
				for _, bad := range impure {
					if i == bad || bad == "golang.org/x/sys" && under(i, bad) {
						say(r, "%s imports %s", p.ImportPath, i)
					}
				}
				// A pure package's own helpers must be pure as well.
				if q, ok := pkgs[i]; ok && under(i, module) {
					for _, j := range q.Imports {
						if slices.Contains(impure, j) {
							say(r, "%s imports %s, which imports %s", p.ImportPath, i, j)
						}
					}
				}
			}
		case "support":
			exists(r, r.From[0])
			own(func(p Package) {
				for _, i := range p.Imports {
					if under(i, r.From[0]) && !strings.HasSuffix(p.ImportPath, "test") {
						say(r, "%s imports %s outside a test", p.ImportPath, i)
					}
				}
			})
		}
	}
	return out
}

func under(p, root string) bool { return p == root || strings.HasPrefix(p, root+"/") }

func keys(m map[string]Package) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}
