package archtest

import (
	"encoding/json"
	"errors"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "rempart"

// update rewrites deps/*.txt; the diff is for review.
var update = flag.Bool("update", false, "rewrite the committed dependency lists")

func goList(t *testing.T, args ...string) map[string]Package {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Standard,Imports,TestImports,XTestImports,Deps"}, args...)...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	pkgs := map[string]Package{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p Package
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs[p.ImportPath] = p
	}
}

func law(t *testing.T) []Rule {
	t.Helper()
	f, err := os.Open("law.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rules, err := ParseLaw(f)
	if err != nil {
		t.Fatal(err)
	}
	if len(rules) < 25 {
		t.Fatalf("the law has %d rules; some have vanished", len(rules))
	}
	return rules
}

func TestImportLaw(t *testing.T) {
	for _, breach := range Check(law(t), module, goList(t, "-deps", "./...")) {
		t.Error(breach)
	}
}

// TestPureRoomsAskNoClock looks for what an import list cannot show.
func TestPureRoomsAskNoClock(t *testing.T) {
	for _, r := range law(t) {
		if r.Verb != "pure" {
			continue
		}
		dir := filepath.Join("../..", strings.TrimPrefix(r.From[0], module))
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: no files, %v", dir, err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "After", "Sleep", "NewTimer", "NewTicker"}, s.Sel.Name) {
						t.Errorf("%s: time.%s in a pure package", fset.Position(n.Pos()), s.Sel.Name)
					}
				}
				return true
			})
		}
	}
}

// TestDependencyListsAreCommitted compares what each program is linked from with deps/<program>.txt.
func TestDependencyListsAreCommitted(t *testing.T) {
	mains, err := filepath.Glob("../../daemons/*/main.go")
	if err != nil || len(mains) < 7 {
		t.Fatalf("%d daemons, %v", len(mains), err)
	}
	for _, m := range mains {
		name := filepath.Base(filepath.Dir(m))
		pkgs := goList(t, "-deps", "./daemons/"+name)
		var names []string
		for p, info := range pkgs {
			if !info.Standard {
				names = append(names, p)
			}
		}
		slices.Sort(names)
		got := "# Packages outside the standard library that " + name + " is linked from. Rewritten by: go test ./internal/archtest -update\n" + strings.Join(names, "\n") + "\n"
		file := filepath.Join("deps", name+".txt")
		if *update {
			if err := errors.Join(os.MkdirAll("deps", 0o755), os.WriteFile(file, []byte(got), 0o644)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if string(want) != got {
			t.Errorf("%s does not list what %s is linked from: %s", file, name, diff(string(want), got))
		}
	}
}

func diff(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	var out []string
	for _, l := range g {
		if !slices.Contains(w, l) {
			out = append(out, "+"+l)
		}
	}
	for _, l := range w {
		if !slices.Contains(g, l) {
			out = append(out, "-"+l)
		}
	}
	return strings.Join(out, " ")
}

// TestCheckSeesEveryKindOfBreach is the twin of TestImportLaw: a law that nothing can break proves nothing.
func TestCheckSeesEveryKindOfBreach(t *testing.T) {
	pkgs := map[string]Package{
		"rempart/boot/a":     {ImportPath: "rempart/boot/a", Imports: []string{"rempart/vpn/b", "os"}, Deps: []string{"encoding/json", "rempart/vpn/b"}},
		"rempart/vpn/b":      {ImportPath: "rempart/vpn/b", TestImports: []string{"example.org/tpm/x"}},
		"rempart/vpn/help":   {ImportPath: "rempart/vpn/help", Imports: []string{"rempart/boot/a"}},
		"rempart/odd/c":      {ImportPath: "rempart/odd/c"},
		"example.org/tpm/x":  {ImportPath: "example.org/tpm/x"},
		"rempart/boot/fine":  {ImportPath: "rempart/boot/fine", Imports: []string{"strings"}},
		"rempart/boot/outer": {ImportPath: "rempart/boot/outer", Imports: []string{"rempart/boot/a"}},
	}
	for text, want := range map[string]string{
		"order boot < vpn # r":                              "rempart/boot/a imports rempart/vpn/b",
		"order boot < vpn < gone # r":                       "rempart/gone does not exist",
		"order boot < vpn # rooms":                          "rempart/odd/c is in no room",
		"deny rempart/boot -> encoding/json # r":            "rempart/boot/a reaches encoding/json",
		"deny rempart/gone -> os # r":                       "rempart/gone does not exist",
		"only rempart/boot imports example.org/tpm # r":     "rempart/vpn/b imports example.org/tpm/x",
		"only rempart/boot/none imports example.org/tpm # ": "",
		"pure rempart/boot/a # r":                           "rempart/boot/a imports os",
		"pure rempart/boot/outer # r":                       "rempart/boot/outer imports rempart/boot/a, which imports os",
		"pure rempart/boot/gone # r":                        "does not exist",
		"support rempart/boot/a # r":                        "rempart/vpn/help imports rempart/boot/a outside a test",
	} {
		rules, err := ParseLaw(strings.NewReader(text))
		if want == "" {
			if err == nil {
				t.Errorf("%q: a rule without a reason passed", text)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := strings.Join(Check(rules, module, pkgs), "\n"); !strings.Contains(got, want) {
			t.Errorf("%q found %q, want %q", text, got, want)
		}
	}
	for _, text := range []string{"order boot vpn # r", "deny a b # r", "permit a # r", "only a b # r"} {
		if _, err := ParseLaw(strings.NewReader(text)); err == nil {
			t.Errorf("accepted %q", text)
		}
	}
}

// TestNoForbiddenNames: a package that cannot be named without these belongs to someone.
func TestNoForbiddenNames(t *testing.T) {
	for p := range goList(t, "./...") {
		switch name := p[strings.LastIndex(p, "/")+1:]; name {
		case "util", "utils", "common", "helper", "helpers", "misc":
			t.Errorf("package %s: name the room or do without", p)
		}
	}
}
