package matrix

import (
	"fmt"
	"io"
	"strings"

	"rempart/board/scenario"
	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
)

// Try is how one attempt ended, on the handset or on its twin.
type Try struct {
	Verdict scenario.Verdict `json:"verdict"`
	// Detail is the errno, or what went wrong.
	Detail string `json:"detail,omitempty"`
	// Sent is how many sends the handset's kernel accepted.
	Sent int `json:"sent"`
	// Seen is in how many frames outside the marker was; Frame is the first,
	// by its number in the capture.
	Seen  int    `json:"seen"`
	Frame int    `json:"frame,omitempty"`
	What  string `json:"what,omitempty"`
	// Marker is what the attempt carried.
	Marker string `json:"marker,omitempty"`
	// Ran is the board that it ran on; "" is nowhere.
	Ran string `json:"ran,omitempty"`
}

// evidence is all that a verdict rests on.
type evidence struct {
	row       Row
	result    *attack.Result // nil: the sender's last line is missing
	began     bool           // the sender was at work
	tunnelled bool           // the tunnel's device took as much as was sent in red
	err       error          // of the whole crowd
}

// judge says how an attempt ended. What was seen outside is before all else,
// and is judged by the caller when the capture has settled.
func judge(e evidence) (scenario.Verdict, string) {
	switch r := e.result; {
	case r == nil && e.row.State.Ends() && e.began:
		return scenario.Dropped, "ended with the handset"
	case r == nil && e.err != nil:
		return scenario.Broken, brief(e.err)
	case r == nil:
		return scenario.Broken, "the sender gave no result"
	case r.Sent == 0 && r.Errno != "":
		return scenario.Refused, r.Errno
	case r.Sent == 0 && !e.row.State.Lasts():
		return scenario.Dropped, "no send in that time"
	case r.Sent == 0:
		return scenario.Broken, "the sender sent nothing and was refused nothing"
	case e.row.Place == Red && e.tunnelled:
		return scenario.Tunnelled, r.Errno
	default:
		return scenario.Dropped, r.Errno
	}
}

// brief is an error's first line: every row of a crowd that failed has it.
func brief(err error) string {
	text := strings.ReplaceAll(err.Error(), io.EOF.Error()+"\n", "")
	text, _, _ = strings.Cut(text, "\n")
	return text[:min(len(text), 200)]
}

// see puts what the watcher saw over the verdict.
func (t *Try) see(w *watch.Watcher, m attack.Marker) {
	n, where := w.Seen(watch.Marker(m))
	t.Marker = m.String()
	if n <= t.Seen {
		return
	}
	t.Seen, t.Verdict, t.Detail = n, scenario.Leaked, fmt.Sprintf("%d frames", n)
	if len(where) > 0 {
		t.Frame, t.What = where[0].Frame, where[0].What
	}
}

// lacking are the errnos by which a kernel says that it cannot do a thing at
// all: then the row belongs on another kernel.
var lacking = map[string]bool{"EPROTONOSUPPORT": true, "EAFNOSUPPORT": true, "ESOCKTNOSUPPORT": true, "EOPNOTSUPP": true, "ENOSYS": true,
	"ENOPROTOOPT": true}

// lacks says that the kernel of the twin, which nothing hinders, does not have
// what the row needs.
func (t Try) lacks() bool { return t.Verdict == scenario.Refused && lacking[t.Detail] }
