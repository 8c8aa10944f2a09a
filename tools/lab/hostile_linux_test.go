package main

import (
	"strings"
	"testing"

	"rempart/board/scenario/hostile"
)

func TestRowsOfTheGuestAreReadAsTheyCome(t *testing.T) {
	var rows []string
	l := &rowLines{tell: func(r hostile.Row) { rows = append(rows, r.Name) }}
	for _, part := range []string{`{"na`, "me\":\"one\",\"held\":true}\n{\"name\":\"two\"}\n", `{"name":"three"}`} {
		if n, err := l.Write([]byte(part)); err != nil || n != len(part) {
			t.Fatalf("%d, %v", n, err)
		}
	}
	if got := strings.Join(rows, " "); got != "one two" {
		t.Errorf("rows %q; the third has not ended", got)
	}
	if _, err := l.Write([]byte("\nno row\n")); err == nil {
		t.Error("a line that is no row was taken")
	}
}

func TestHostileRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, args := range [][]string{{"word"}, {"--", "x"}, {"--here", "5"}, {"--here", "4", "--kinds", "smoke"}} {
		if err := hostileCommand().run(t.Context(), args, streams{}); err == nil {
			t.Errorf("hostile %v was taken", args)
		}
	}
}
