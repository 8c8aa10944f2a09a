package leak

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"rempart/board/netns"
	"rempart/board/scenario/matrix"
	"rempart/internal/proof"
	"rempart/tools/report"
)

// limitsText is the document with the accepted rows.
func limitsText(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../../docs/known-limits.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestLeakMatrix is the promise: a part of the matrix that holds every value of each axis and every pair of values, and every
// layer alone. `make leakmatrix` runs all of it.
func TestLeakMatrix(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "each row's own twin in the report")
	dir := bin(t)
	out := os.Getenv("REMPART_OUT")
	if out == "" {
		out = t.TempDir()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	m, err := Matrix(ctx, MatrixOptions{Out: out, Bin: dir, World: "matrixtest", Accepted: limitsText(t), Pairwise: true, Seed: 1,
		Log: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	if err := report.NewTerminal(t.Output()).Matrix(m); err != nil {
		t.Error(err)
	}
	if err := report.WriteMatrix(out, m); err != nil {
		t.Error(err)
	}
	if err := m.Err(); err != nil {
		t.Errorf("the promise does not hold:\n%v", err)
	}
	held := map[string]bool{}
	for _, r := range m.Rows {
		held[string(r.State)], held[r.Sender], held[string(r.Place)] = true, true, true
	}
	for _, a := range m.Axes[:4] {
		for _, v := range a.Values {
			if a.Name != "family" && !held[v] {
				t.Errorf("%s %s was not tried", a.Name, v)
			}
		}
	}
	if names, err := netns.Worlds(); err != nil || slices.Contains(names, "matrixtest") || slices.Contains(names, "matrixtest-twin") {
		t.Errorf("worlds left: %v, %v", names, err)
	}
	for _, f := range []string{"handset.pcapng", "twin.pcapng", "matrix.json", "matrix.html"} {
		if info, err := os.Stat(filepath.Join(out, f)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", f, err)
		}
	}
}

func TestMatrixPicksWhatIsAskedFor(t *testing.T) {
	all, alone, err := MatrixOptions{}.pick()
	if err != nil || len(alone) == 0 {
		t.Fatalf("%d alone rows, %v", len(alone), err)
	}
	part, fewer, err := MatrixOptions{Pairwise: true, Seed: 3}.pick()
	if err != nil || len(part) >= len(all) || len(fewer) >= len(alone) {
		t.Errorf("a part of %d of %d rows, %d of %d alone, %v", len(part), len(all), len(fewer), len(alone), err)
	}
	one, none, err := MatrixOptions{Row: part[0].ID()}.pick()
	if err != nil || len(one) != 1 || one[0] != part[0] || none != nil {
		t.Errorf("%+v, %+v, %v", one, none, err)
	}
	some, _, err := MatrixOptions{State: string(matrix.Locked), Sender: "udp"}.pick()
	if err != nil || len(some) == 0 || slices.ContainsFunc(some, func(r matrix.Row) bool { return r.State != matrix.Locked || r.Sender != "udp" }) {
		t.Errorf("%+v, %v", some, err)
	}
	if _, _, err := (MatrixOptions{State: "asleep"}).pick(); err == nil {
		t.Error("a state that is none was accepted")
	}
	if _, err := Matrix(t.Context(), MatrixOptions{Out: t.TempDir(), Accepted: "nothing"}); err == nil || !strings.Contains(err.Error(), "heading") {
		t.Errorf("without the document: %v", err)
	}
}
