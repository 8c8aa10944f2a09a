package matrix

import (
	"os"
	"strings"
	"testing"
)

const limits = "# Known limits\n\n" + acceptedHeading + "\n\nText.\n\n| row | why |\n|---|---|\n"

func TestAcceptedRowsAreReadFromTheDocument(t *testing.T) {
	got, err := Accept(limits+"| `connected/udp/4/red/app/radio` | a reason |\n| `*/passed/*/black/*/radio` | another |\n\n## Next\n\n| x | y |\n", daemons)
	if err != nil || len(got) != 2 || got[0].Reason != "a reason" || !got[1].covers("locked/passed/6/black/root/radio") || got[1].covers("locked/udp/6/black/root/radio") {
		t.Errorf("%+v, %v", got, err)
	}
	for name, text := range map[string]string{
		"no table":       acceptedHeading + "\n\n",
		"no heading":     "# Known limits\n",
		"no such row":    limits + "| `asleep/udp/4/red/app/radio` | r |\n",
		"an excluded":    limits + "| `connected/udp/4/init/app/radio` | r |\n",
		"without reason": limits + "| `connected/udp/4/red/app/radio` |  |\n",
		"twice":          limits + strings.Repeat("| `connected/udp/4/red/app/radio` | r |\n", 2),
		"one column":     limits + "| `connected/udp/4/red/app/radio` |\n",
	} {
		if got, err := Accept(text, daemons); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
}

// TestTheDocumentItselfCanBeRead: the list is in docs/known-limits.md and nowhere else.
func TestTheDocumentItselfCanBeRead(t *testing.T) {
	text, err := os.ReadFile("../../../docs/known-limits.md")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Accept(string(text), daemons); err != nil {
		t.Error(err)
	}
}
