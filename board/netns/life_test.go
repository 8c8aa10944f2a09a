package netns

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/internal/run"
)

func TestPowerCycleKeepsTPMAndState(t *testing.T) {
	w := start(t)
	add(t, w, "a", 11)
	m, _ := on(t, w, "a")
	if _, err := w.PowerOn(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), "it is on") {
		t.Errorf("switching on twice: %v", err)
	}
	permanent := filepath.Join(m.Paths.TPM, "tpm2-00.permall")
	before, err := os.Stat(permanent)
	if err != nil {
		t.Fatal(err)
	}
	certs, _ := filepath.Glob(filepath.Join(m.Paths.TPM, "certificates", "*"))
	if len(certs) < 2 {
		t.Errorf("the TPM came with certificates %v, want EK and platform", certs)
	}
	if err := w.PowerOff(t.Context(), "a", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(m.Paths.State, "bye")); err != nil {
		t.Errorf("init was not asked to end: %v", err)
	}
	if m, _ = w.Machine(t.Context(), "a"); m.State != Off || m.PID != 0 {
		t.Errorf("after power-off the machine is %+v", m)
	}
	if err := w.PowerOff(t.Context(), "a", 0); err != nil {
		t.Errorf("switching off twice: %v", err)
	}
	again, _ := on(t, w, "a")
	after, err := os.Stat(permanent)
	if err != nil || before.Size() == 0 || after.Size() == 0 {
		t.Errorf("the TPM's state: %v, %v", after, err)
	}
	next, err := w.Restart(t.Context(), "a", time.Second)
	if err != nil || next.PID == again.PID || next.State != On {
		t.Errorf("restart gave %+v, %v", next, err)
	}
	if _, err := os.Stat(m.Paths.Console + ".1"); err != nil {
		t.Errorf("the console of the boot before is not kept: %v", err)
	}
}

// gone fails the test unless the machine of which m was seen on has left
// nothing running.
func gone(t *testing.T, w *World, m Machine) {
	t.Helper()
	eventually(t, m.Name+" is off", func() bool {
		now, err := w.Machine(t.Context(), m.Name)
		return err == nil && now.State == Off
	})
	if _, err := os.Stat(filepath.Dir(m.Paths.Cgroup)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its control group is left: %v", err)
	}
	ns, err := link.OpenPID(status(t, w).Keeper)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := ns.Do(func() error { _, err := link.Index(m.Radio.Port); return err }); err == nil {
		t.Error("its port is left")
	}
}

func status(t *testing.T, w *World) *Status {
	t.Helper()
	s, err := w.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestInitDeathIsPowerOffForExecedProcessesToo(t *testing.T) {
	w := start(t)
	add(t, w, "a", 11)
	m, _ := on(t, w, "a")
	desk, err := w.Command(t.Context(), Where{Machine: "a", Colour: "black"}, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	if err := desk.Start(); err != nil {
		t.Fatal(err)
	}
	group := filepath.Join(m.Paths.Cgroup, "desk")
	eventually(t, "the process is in /desk", func() bool { return inGroup(desk.Process.Pid, group) })
	if err := w.Kill9(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := desk.Wait(); err == nil || desk.ProcessState.Sys().(interface{ Signal() unix.Signal }).Signal() != unix.SIGKILL {
		t.Errorf("the desk's process ended with %v, want killed", err)
	}
	gone(t, w, m)
	if now, _ := w.Machine(t.Context(), "a"); !strings.Contains(now.Reason, "killed") {
		t.Errorf("reason %q does not tell of a kill", now.Reason)
	}
	if err := w.Kill9(t.Context(), "a"); !errors.Is(err, ErrOff) {
		t.Errorf("killing it again: %v, want %v", err, ErrOff)
	}
}

func TestPinsOutliveInitUntilNothingIsLeftToSend(t *testing.T) {
	w := start(t)
	add(t, w, "a", 11)
	m, _ := on(t, w, "a")
	pins := pinsOf(m.Paths.Cgroup)
	if pins == nil {
		t.Fatal("the machine's pins were not found through its control group")
	}
	defer pins.Close()
	if _, err := os.Stat(pins.Name() + "/gate"); err != nil {
		t.Fatal(err)
	}
	if err := w.Kill9(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	// This descriptor is what the keeper holds: the pin is in force through it.
	var st unix.Stat_t
	if err := unix.Fstatat(int(pins.Fd()), "gate", &st, 0); err != nil {
		t.Errorf("an open file system does not hold its pins: %v", err)
	}
}

func TestFailuresToStartAreToldAndLeaveNothing(t *testing.T) {
	w := start(t)
	add(t, w, "a", 11)
	m, _ := on(t, w, "a")
	if err := w.PowerOff(t.Context(), "a", 0); err != nil {
		t.Fatal(err)
	}
	// init that ends at once
	refuse := filepath.Join(m.Paths.State, "refuse")
	if err := os.WriteFile(refuse, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.PowerOn(t.Context(), "a"); err != nil {
		t.Errorf("an init that ends later is not a failure of the board: %v", err)
	}
	gone(t, w, m)
	console, err := os.ReadFile(m.Paths.Console)
	if err != nil || !strings.Contains(string(console), "refused as asked") {
		t.Errorf("the console says %q, %v", console, err)
	}
	os.Remove(refuse)
	// images that cannot work
	bad := t.TempDir()
	for i, c := range []struct {
		name, want string
		make       func() error
	}{
		{"empty", "bin/init", func() error { return nil }},
		{"bare", "no folder /dev", func() error {
			return errors.Join(os.Mkdir(bad+"/bin", 0o755), os.WriteFile(bad+"/bin/init", []byte("no program\n"), 0o755))
		}},
		{"nobin", "cannot start /bin/init: exec format error", func() (err error) {
			for _, d := range mountPoints {
				err = errors.Join(err, os.Mkdir(filepath.Join(bad, d), 0o755))
			}
			return err
		}},
	} {
		if err := c.make(); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Add(t.Context(), Spec{Name: c.name, Role: "handset", Number: 20 + i, Image: bad}); err != nil {
			t.Fatal(err)
		}
		_, err := w.PowerOn(t.Context(), c.name)
		if err == nil || !strings.Contains(err.Error(), c.want) || run.HintOf(err) == "" {
			t.Errorf("%s: error %v (hint %q), want %q with a hint", c.name, err, run.HintOf(err), c.want)
		}
		now, _ := w.Machine(t.Context(), c.name)
		now.Paths.Cgroup = filepath.Join(filepath.Dir(filepath.Dir(m.Paths.Cgroup)), c.name, "hs")
		gone(t, w, now)
	}
}

func TestMachinesAreCheckedWhenAdded(t *testing.T) {
	w := start(t)
	add(t, w, "a", 11)
	for _, c := range []struct {
		spec Spec
		want string
	}{
		{Spec{Name: "a", Role: "handset", Number: 12, Image: "/x"}, "has one of that name"},
		{Spec{Name: "b", Role: "handset", Number: 11, Image: "/x"}, "machine a has number 11"},
		{Spec{Name: "b", Role: "handset", Number: 251, Image: "/x"}, "between 1 and 250"},
		{Spec{Name: "b", Role: "phone", Number: 12, Image: "/x"}, "neither handset nor gateway"},
		{Spec{Name: "b", Role: "handset", Number: 12, Image: "x"}, "not an absolute path"},
		{Spec{Name: "../b", Role: "handset", Number: 12, Image: "/x"}, "lower-case letters"},
		{Spec{Name: "keeper", Role: "handset", Number: 12, Image: "/x"}, "uses that name"},
		{Spec{Name: "a-name-of-18-bytes", Role: "handset", Number: 12, Image: "/x"}, "at most 9"},
	} {
		if _, err := w.Add(t.Context(), c.spec); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want %q", c.spec, err, c.want)
		}
	}
	if _, err := w.PowerOn(t.Context(), "z"); !errors.Is(err, ErrNoMachine) || !strings.Contains(err.Error(), "which has: a") {
		t.Errorf("an unknown machine: %v", err)
	}
	if _, err := w.Machine(t.Context(), "z"); !errors.Is(err, ErrNoMachine) || run.HintOf(err) != "it has: a" {
		t.Errorf("an unknown machine: %v, hint %q", err, run.HintOf(err))
	}
}

func TestOneWorldOnAStateFolder(t *testing.T) {
	w := start(t)
	state, other := status(t, w).State, worldName()
	if _, err := Start(t.Context(), other, state); err == nil || !strings.HasSuffix(err.Error(), "the state folder "+state+" is in use") || run.HintOf(err) == "" {
		t.Errorf("a second world on one state folder: %v, hint %q", err, run.HintOf(err))
	}
	nothingLeft(t, other)
	if err := Down(t.Context(), w.Name); err != nil {
		t.Fatal(err)
	}
	startNamed(t, other, state)
}

func TestOneWorldOfAName(t *testing.T) {
	w := start(t)
	_, err := Start(t.Context(), w.Name, t.TempDir())
	if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(run.HintOf(err), "down --world "+w.Name) {
		t.Errorf("a second one: %v, hint %q", err, run.HintOf(err))
	}
	if _, err := Start(t.Context(), "No Good", ""); err == nil || run.HintOf(err) == "" {
		t.Errorf("a bad name: %v", err)
	}
	if _, err := Open("nowhere"); !errors.Is(err, ErrNoWorld) || run.HintOf(err) == "" {
		t.Errorf("opening no world: %v", err)
	}
	names, err := Worlds()
	if err != nil || !strings.Contains(strings.Join(names, " "), w.Name) {
		t.Errorf("worlds are %v, %v", names, err)
	}
}

func TestTwoWorldsSideBySide(t *testing.T) {
	one, two := start(t), start(t)
	machines := make([]Machine, 2)
	var wait sync.WaitGroup
	for i, w := range []*World{one, two} {
		add(t, w, "a", 11) // same name, same addresses
		wait.Go(func() { machines[i], _ = on(t, w, "a") })
	}
	wait.Wait()
	if err := Down(t.Context(), one.Name); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, one.Name)
	if m, err := two.Machine(t.Context(), "a"); err != nil || m.State != On || m.PID != machines[1].PID {
		t.Errorf("with the other world gone, this one's machine is %+v, %v", m, err)
	}
}

// waitGone waits until a world's lock is free: all of it was cleaned.
func waitGone(t *testing.T, world string) {
	t.Helper()
	eventually(t, "world "+world+" is gone", func() bool {
		_, err := os.Stat(lockPath(world))
		return errors.Is(err, os.ErrNotExist) && len(left(world)) == 0
	})
	nothingLeft(t, world)
}

func TestKillOfTheKeeper(t *testing.T) {
	w := start(t)
	add(t, w, "a", 11)
	m, _ := on(t, w, "a")
	desk, err := w.Command(t.Context(), Where{Machine: "a"}, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	if err := desk.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process is inside", func() bool { return inGroup(desk.Process.Pid, m.Paths.Cgroup) })
	if err := unix.Kill(status(t, w).Keeper, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := desk.Wait(); err == nil {
		t.Error("the desk's process was not killed")
	}
	waitGone(t, w.Name)
}

func TestKillOfTheJanitor(t *testing.T) {
	w := start(t)
	add(t, w, "a", 11)
	m, _ := on(t, w, "a")
	first := status(t, w).Janitor
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another janitor", func() bool { return status(t, w).Janitor != first })
	if now, err := w.Machine(t.Context(), "a"); err != nil || now.PID != m.PID {
		t.Errorf("the machine did not go on: %+v, %v", now, err)
	}
	// The new one does its work.
	if err := unix.Kill(status(t, w).Keeper, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitGone(t, w.Name)
}

func TestKillOfBothIsRepairedByDownAndByStart(t *testing.T) {
	for _, repair := range []string{"down", "start"} {
		w := start(t)
		add(t, w, "a", 11)
		on(t, w, "a")
		s := status(t, w)
		// Stopped first, so that neither can react to the other's death.
		for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGKILL} {
			for _, pid := range []int{s.Keeper, s.Janitor} {
				if err := unix.Kill(pid, sig); err != nil {
					t.Fatal(err)
				}
			}
		}
		h, err := openHierarchy("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "both are dead", func() bool {
			return len(members(h.path(w.Name, groupKeeper)))+len(members(h.path(w.Name, groupJanitor))) == 0
		})
		if len(members(h.path(w.Name, "a"))) == 0 {
			t.Error("nothing is left to repair: the test shows nothing")
		}
		h.close()
		if repair == "down" {
			for range 2 { // idempotent
				if err := Down(t.Context(), w.Name); err != nil {
					t.Error(err)
				}
			}
		} else {
			next, err := Start(t.Context(), w.Name, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if m := status(t, next).Machines; len(m) != 0 {
				t.Errorf("the new world has %+v", m)
			}
			next.Release()
			waitGone(t, w.Name)
		}
		nothingLeft(t, w.Name)
	}
}

func TestWorldGoesWithItsStarterUnlessKept(t *testing.T) {
	w := start(t)
	add(t, w, "a", 11)
	on(t, w, "a")
	w.Release()
	waitGone(t, w.Name)

	kept := start(t)
	if err := kept.Keep(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept.Release()
	time.Sleep(100 * time.Millisecond)
	again, err := Open(kept.Name)
	if err != nil {
		t.Fatal(err)
	}
	if s := status(t, again); s.World != kept.Name {
		t.Errorf("the kept world is %+v", s)
	}
}

func TestHierarchyOfItsOwnWhereNoneIsMounted(t *testing.T) {
	w := start(t) // for its checks of what is needed
	none := filepath.Join(t.TempDir(), "mountinfo")
	if err := os.WriteFile(none, []byte("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := openHierarchy(none)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	if len(members(h.path(w.Name, groupKeeper))) != 1 {
		t.Errorf("through %s the keeper is not to be seen", h.root)
	}
	group, err := makeGroup(h.path(w.Name, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	cmd := exec.CommandContext(context.Background(), "sleep", "1000")
	cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dead := make(chan error, 1)
	go func() { dead <- cmd.Wait() }()
	if err := errors.Join(killGroup(group.Name()), <-dead); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the process ended with %v", err)
	}
	if err := removeGroup(group.Name()); err != nil {
		t.Error(err)
	}
}
