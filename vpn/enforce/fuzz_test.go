package enforce

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"rempart/internal/proof"
	"rempart/vpn/egress"
	"rempart/vpn/egress/egresstest"
)

// How many frames TestProgramEqualsModel tries: in CI and at a desk, and by `make gate-fuzz`.
const (
	fuzzFrames   = 1_000_000
	fuzzVariable = "GATE_FUZZ_FRAMES"
	seedVariable = "GATE_FUZZ_SEED"
)

// An epoch is what one loaded gate and one model see, in so short a time that the gate
// forgets no first fragment for its age. (The model does in TestFragmentsFollowTheirFirst,
// the program in TestFragmentsAge.)
const (
	epochFrames = 20_000
	epochLasts  = egress.FragmentLife / 2
)

// TestProgramEqualsModel tries random frames near a policy, legal and damaged, on the
// loaded program and on the model, from three cgroups: the class's own, that of another
// class, a stranger's. Verdict and, by the counters, reason must be the same.
func TestProgramEqualsModel(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "TestAMissingClassIsNoticed")
	proof.NeedRoot(t)
	frames, seed := fuzzFrames, uint64(time.Now().UnixNano())
	if text := os.Getenv(fuzzVariable); text != "" {
		var err error
		if frames, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	if text := os.Getenv(seedVariable); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d frames, seed %d", frames, seed)
	own, other, stranger := cgroup(t, "own"), cgroup(t, "other"), cgroup(t, "stranger")
	children := []*exec.Cmd{}
	for i, dir := range []string{own, other, stranger} {
		children = append(children, fuzzChild(t, dir, cgroupID(t, own), cgroupID(t, other), seed+uint64(i), frames/3+1, ""))
	}
	total, refused := egress.Counters{}, 0
	for i, cmd := range children {
		err := cmd.Wait()
		out := fmt.Sprint(cmd.Stdout)
		if err != nil {
			t.Errorf("from %s, seed %d: %v\n%s", []string{"own", "other", "stranger"}[i], seed+uint64(i), err, out)
			continue
		}
		fields := strings.Fields(out)
		for d := range total {
			for r := range total[d] {
				n, err := strconv.ParseUint(fields[d*int(egress.Reasons)+r], 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				total[d][r] += n
			}
		}
		n, err := strconv.Atoi(fields[len(fields)-1])
		if err != nil {
			t.Fatal(err)
		}
		refused += n
	}
	for d := range total {
		for r, n := range total[d] {
			if n == 0 && !unreachable(egress.Direction(d), egress.Reason(r)) && frames >= fuzzFrames {
				t.Errorf("no frame with %v %v in %d: the generator is blind there", egress.Direction(d), egress.Reason(r), frames)
			}
		}
	}
	t.Logf("%v, %d refused by the test run", total, refused)
}

// unreachable: an incoming frame has no sender here, without link facts there is no rate,
// this gate is not the closed one (TestDenyAllAdmitsNothing), and a test run takes no frame that is too short (TestShortFrames).
func unreachable(d egress.Direction, r egress.Reason) bool {
	return d == egress.Ingress && (r == egress.Mark || r == egress.Cgroup) || r == egress.LinkRate || r == egress.Closed || r == egress.Short
}

// TestAMissingClassIsNoticed: the comparison with a program that lacks one class must end
// in a disagreement.
func TestAMissingClassIsNoticed(t *testing.T) {
	proof.NeedRoot(t)
	own, other := cgroup(t, "own"), cgroup(t, "other")
	for i := range egresstest.Policy(1, 2).Classes {
		cmd := fuzzChild(t, own, cgroupID(t, own), cgroupID(t, other), 1, 2*epochFrames, strconv.Itoa(i))
		if err := cmd.Wait(); err == nil || !strings.Contains(fmt.Sprint(cmd.Stdout), "disagree") {
			t.Errorf("without class %d: %v, %v", i, err, cmd.Stdout)
		}
	}
}

func fuzzChild(t *testing.T, dir string, own, other, seed uint64, frames int, without string) *exec.Cmd {
	t.Helper()
	cg, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer cg.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "ENFORCE_CHILD=fuzz", fmt.Sprintf("FUZZ=%d %d %d %d %d", cgroupID(t, dir), own, other, seed, frames), "WITHOUT="+without)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd())}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// childFuzz compares frames from this process's cgroup and prints how often each reason
// was given, or the first disagreement.
func childFuzz() {
	var cgroup, own, other, seed uint64
	var frames int
	_, err := fmt.Sscan(os.Getenv("FUZZ"), &cgroup, &own, &other, &seed, &frames)
	fail(err)
	policy := egresstest.Policy(own, other)
	loaded := policy
	if text := os.Getenv("WITHOUT"); text != "" {
		i, err := strconv.Atoi(text)
		fail(err)
		loaded.Classes = append(policy.Classes[:i:i], policy.Classes[i+1:]...)
	}
	var total egress.Counters
	refused := 0
	for epoch := uint64(0); frames > 0; epoch++ {
		e := epochOf{policy: policy, loaded: loaded, cgroup: cgroup, seed: seed, epoch: epoch, frames: min(frames, epochFrames)}
		tried, err := e.run(false)
		if errors.Is(err, errCounters) {
			_, err = e.run(true) // again, to find the frame
		}
		fail(err)
		frames -= tried
		refused += e.refused
		for d := range total {
			for r := range total[d] {
				total[d][r] += e.want[d][r]
			}
		}
	}
	for d := range total {
		for _, n := range total[d] {
			fmt.Println(n)
		}
	}
	fmt.Println(refused)
}

// epochOf is one epoch; its frames follow from seed and number.
type epochOf struct {
	policy, loaded egress.Policy
	cgroup         uint64
	seed, epoch    uint64
	frames         int
	want           egress.Counters
	refused        int
}

var errCounters = errors.New("disagree: another number of frames with a reason")

func (e *epochOf) run(oneByOne bool) (tried int, err error) {
	var m memory
	defer func() { err = errors.Join(err, m.close()) }()
	if m.counters, err = newCounters(); err != nil {
		return 0, err
	}
	if m.link, err = newLinkState(); err != nil {
		return 0, err
	}
	in, err := loadInstance(e.loaded, egress.LinkFacts{}, m)
	if err != nil {
		return 0, err
	}
	defer in.close()
	e.want, e.refused = egress.Counters{}, 0
	r := rand.New(rand.NewPCG(e.seed, e.epoch))
	var fragments egress.Fragments
	start := time.Now()
	for ; tried < e.frames && time.Since(start) < epochLasts; tried++ {
		d := egress.Direction(r.IntN(2))
		frame := egresstest.Random(r, d)
		var mark uint32
		if r.IntN(16) == 0 {
			mark = r.Uint32()
		}
		where := fmt.Sprintf("seed %d, epoch %d, frame %d", e.seed, e.epoch, tried)
		code, err := testRun(in.programs[d], frame, mark)
		if err == unix.EINVAL && len(frame) < 14+40 {
			e.refused++ // this kernel's test run takes no frame that ends inside its network header
			continue
		}
		if err != nil {
			return tried, fmt.Errorf("%s: test run of %x: %w", where, frame, err)
		}
		if time.Since(start) >= egress.FragmentLife {
			return tried, nil // this process was kept waiting: the counters hold one frame too many
		}
		v, reason := egress.Decide(e.policy, d, frame, egress.Meta{Cgroup: e.cgroup, Mark: mark, Fragments: &fragments})
		e.want[d][reason]++
		if (code == 0) != bool(v) || code != 0 && code != 2 {
			return tried, fmt.Errorf("%s: disagree: the program says %d to %s", where, code, egresstest.Step{Direction: d, Mark: mark, Want: reason, Frame: frame}.Text())
		}
		if oneByOne {
			if got, err := readCounters(m.counters); err != nil || got != e.want {
				return tried, fmt.Errorf("%s: disagree: the program has another reason for %s: %v", where, egresstest.Step{Direction: d, Mark: mark, Want: reason, Frame: frame}.Text(), err)
			}
		}
	}
	got, err := readCounters(m.counters)
	if err == nil && got != e.want {
		err = errCounters
	}
	return tried, err
}

// testRun is one BPF_PROG_TEST_RUN without the library's copies.
func testRun(p *ebpf.Program, frame []byte, mark uint32) (code uint32, err error) {
	context := [3]uint32{2: mark} // the leading fields of struct __sk_buff
	attr := struct {
		fd, code, sizeIn, sizeOut uint32
		in, out                   uint64
		repeat, duration          uint32
		contextIn, contextOut     uint32
		contextInAt, contextOutAt uint64
		flags, cpu, batch, pad    uint32
	}{fd: uint32(p.FD()), sizeIn: uint32(len(frame)), in: uint64(uintptr(unsafe.Pointer(&frame[0]))), repeat: 1,
		contextIn: uint32(unsafe.Sizeof(context)), contextInAt: uint64(uintptr(unsafe.Pointer(&context)))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_TEST_RUN, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(p)
	runtime.KeepAlive(frame)
	runtime.KeepAlive(&context)
	if errno != 0 {
		return 0, errno
	}
	return attr.code, nil
}

// TestFragmentsAge: the program forgets a first fragment after its life, and when a newer
// one takes its place, as the model does; it never takes a part that it should not.
func TestFragmentsAge(t *testing.T) {
	s := newSubject(t)
	frame := func(id uint16, later bool) []byte {
		f := frameOf(gatewayV4, egress.Ingress, egress.UDP, 51820, 40000, 16)
		f[18], f[19], f[20] = byte(id>>8), byte(id), 0x20
		if later {
			f[20], f[21] = 0, 3
		}
		return f
	}
	verdict := func(f []byte) uint32 {
		code, ok := s.run(egress.Ingress, f, 0)
		if !ok {
			t.Fatal("the test run takes no such frame")
		}
		return code
	}
	if verdict(frame(1, true)) != 2 || verdict(frame(1, false)) != 0 || verdict(frame(1, true)) != 0 || verdict(frame(2, true)) != 2 {
		t.Error("a later fragment does not follow its first one")
	}
	time.Sleep(egress.FragmentLife + 20*time.Millisecond)
	if verdict(frame(1, true)) != 2 {
		t.Error("a later fragment came after the life of its first one and passed")
	}
	for id := range uint16(5000) {
		if verdict(frame(id, false)) != 0 {
			t.Fatalf("first fragment %d is not admitted", id)
		}
	}
	// The newest of those that share a place, as in the model.
	var model egress.Fragments
	decide := func(f []byte) bool {
		v, _ := egress.Decide(s.policy, egress.Ingress, f, egress.Meta{Fragments: &model})
		return bool(v)
	}
	for id := range uint16(5000) {
		decide(frame(id, false))
	}
	kept := 0
	for id := range uint16(6000) {
		passed := verdict(frame(id, true)) == 0
		if passed {
			kept++
		}
		if passed != decide(frame(id, true)) || passed && id >= 5000 {
			t.Errorf("later fragment %d: passed %v", id, passed)
		}
	}
	if kept < 2000 || kept > 4096 {
		t.Errorf("%d of 5000 datagrams are remembered, want most of the places taken", kept)
	}
	s.reload()
	if verdict(frame(4999, true)) != 2 {
		t.Error("a new instance knows a datagram of the old one")
	}
}

// TestCorpusOnTheProgram: each case on a gate that remembers no fragment of another.
func TestCorpusOnTheProgram(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the corpus names the reason of each frame")
	s := newSubject(t)
	s.policy = egresstest.Policy(s.own, s.own+1)
	for _, c := range egresstest.Corpus(t, filepath.Join("..", "egress", "testdata", "frames"), 60) {
		var remembered egress.Fragments
		for i, step := range c.Steps {
			egress.Decide(s.policy, step.Direction, step.Frame, egress.Meta{Cgroup: s.own, Mark: step.Mark, Fragments: &remembered})
			before, err := readCounters(s.counters)
			if err != nil {
				t.Fatal(err)
			}
			code, ok := s.run(step.Direction, step.Frame, step.Mark)
			if !ok && step.Want == egress.Short {
				continue
			}
			after, err := readCounters(s.counters)
			if err != nil || !ok {
				t.Fatalf("%s, frame %d: %v, %v", c.Name, i+1, ok, err)
			}
			if (code == 0) != (step.Want == egress.Admitted) || after[step.Direction][step.Want] != before[step.Direction][step.Want]+1 {
				t.Errorf("%s, frame %d: the program says %d, and not %v", c.Name, i+1, code, step.Want)
			}
		}
		if remembered.Len() > 0 {
			s.reload()
		}
	}
}

// reload replaces the loaded gate by one that remembers nothing.
func (s *subject) reload() {
	s.t.Helper()
	old := s.in
	var err error
	if s.in, err = loadInstance(s.policy, egress.LinkFacts{}, s.memory); err != nil {
		s.t.Fatal(err)
	}
	if err := old.close(); err != nil {
		s.t.Error(err)
	}
}
