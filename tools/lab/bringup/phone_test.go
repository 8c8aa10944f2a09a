package bringup

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFinalWords(t *testing.T) {
	const noise = "time=2026-01-01T00:00:00Z daemon=init event=phone.end subject=\"init: no\" outcome=success\nkeyd: an error of another\nhint: of keyd\n"
	for name, c := range map[string]struct{ console, said, hint string }{
		"error and hint":  {noise + "init: cannot boot\nhint: mend it\n", "init: cannot boot", "mend it"},
		"error alone":     {noise + "init: cannot boot", "init: cannot boot", "its console tells more"},
		"nothing of init": {noise, "", ""},
		"empty":           {"", "", ""},
		"the last counts": {"init: a\nhint: x\ninit: b\nhint: y\n", "init: b", "y"},
	} {
		path := filepath.Join(t.TempDir(), "console.log")
		if err := os.WriteFile(path, []byte(c.console), 0o600); err != nil {
			t.Fatal(err)
		}
		if said, hint := finalWords(path); said != c.said || hint != c.hint {
			t.Errorf("%s: %q, hint %q, want %q and %q", name, said, hint, c.said, c.hint)
		}
	}
	if said, hint := finalWords(filepath.Join(t.TempDir(), "none")); said != "" || hint != "" {
		t.Errorf("no console: %q, %q", said, hint)
	}
}
