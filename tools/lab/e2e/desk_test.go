package e2e_test

import (
	"path/filepath"
	"testing"
)

// desk: what a person at the desk gets wrong. Each is one line and a hint.
func desk(t *testing.T, w *world) {
	lab := "rempart-lab: "
	w.tryUp(t).says(t, lab+"cannot start world "+w.name+": it is running", "`rempart-lab down --world "+w.name+"` takes it down, another --world runs beside it")
	beside := &world{name: w.name + "2", state: w.state, bin: w.bin}
	beside.tryUp(t).says(t, lab+"cannot start world "+beside.name+": the state folder "+w.state+" is in use", "another world runs on it: give this one a --state of its own")
	none := &world{name: w.name + "3", state: t.TempDir(), bin: w.bin}
	for _, verb := range [][]string{{"status"}, {"exec", "a", "--", "true"}, {"phone", "a", "status"}, {"capture", "internet", "-o", "/dev/null"}} {
		none.lab(t, verb[0], verb[1:]...).says(t, lab+"cannot reach world "+none.name+": world is not running", "start it: `rempart-lab up --world "+none.name+"`")
	}
	w.lab(t, "exec", "z", "--", "true").says(t, lab+`cannot find machine "z" in world `+w.name+": no such machine", "it has: a, b, c, gateway")
	w.lab(t, "exec", "a", "--app", "nope", "--", "true").says(t, lab+`cannot run as app "nope": a has no such app`, "it has: games, notes, voiced")
	w.lab(t, "exec", "a/green", "--", "true").says(t, lab+`cannot read "a/green" as a place`, "it is HANDSET, HANDSET/red or HANDSET/black")
	w.lab(t, "exec", "a", "--", "no-such-command").says(t, lab+`cannot run no-such-command: exec: "no-such-command": executable file not found in $PATH`, "exec runs commands of this machine")
	if s := w.lab(t, "exec", "a/red", "--app", "notes", "--", "sh", "-c", "echo out; echo err >&2; exit 7"); s.code != 7 || s.out != "out\n" || s.err != "err\n" {
		t.Errorf("exec does not pass on what its command does: %s", s)
	}
	nobody := func(args ...string) said {
		t.Helper()
		// The programs may lie where nobody may go.
		return command(t, "", "setpriv", append([]string{"--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all",
			"--bounding-set=-all", "--no-new-privs", "--", filepath.Join(w.bin, "rempart-lab")}, args...)...)
	}
	if s := nobody("help"); s.code != 0 {
		t.Logf("not shown here: nobody may not run %s", w.bin)
		return
	}
	nobody("up", "--world", "e2enobody", "--state", "/tmp/e2enobody").says(t, lab+"cannot run a world: not root", "namespaces and control groups need root: use sudo")
	nobody("down", "--world", w.name).says(t, lab+"cannot take a world down: not root", "use sudo")
	nobody("exec", "--world", w.name, "a", "--", "true").says(t, lab+"cannot reach world "+w.name+": not root", "use sudo")
}
