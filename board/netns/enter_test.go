package netns

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"rempart/internal/run"
)

// output runs a desk command in a machine.
func output(t *testing.T, w *World, where Where, args ...string) string {
	t.Helper()
	cmd, err := w.Command(t.Context(), where, args...)
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v in %+v: %v: %s", args, where, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestCommandsOfTheDeskInAMachine(t *testing.T) {
	w := start(t)
	add(t, w, "a", 11)
	on(t, w, "a")
	if got := output(t, w, Where{Machine: "A"}, "sh", "-c", "hostname; ls /sys/class/net; cat /proc/self/cgroup | grep 0::"); !strings.HasPrefix(got, "a\nlo\n") || !strings.HasSuffix(got, "/a/hs/desk") {
		t.Errorf("in the machine's own network: %q", got)
	}
	if got := output(t, w, Where{Machine: "a", Colour: "black"}, "sh", "-c", "ls /sys/class/net"); got != "lo\nwwan0" {
		t.Errorf("/sys in black shows %q", got)
	}
	if got := output(t, w, Where{Machine: "a", Colour: "red", App: "notes"}, "grep", "0::", "/proc/self/cgroup"); !strings.HasSuffix(got, "/a/hs/apps/notes") {
		t.Errorf("as an app: %q", got)
	}
	app := output(t, w, Where{Machine: "a", Colour: "red", App: "notes"}, "cat", "/proc/self/status")
	for field, want := range map[string]string{"Uid:": "2001", "CapEff:": "0000000000000000", "CapBnd:": "0000000000000000", "NoNewPrivs:": "1", "Seccomp:": "2"} {
		if got := strings.Fields(line(app, field)); !slices.Contains(got, want) {
			t.Errorf("an app has %s %q, want %s", field, got, want)
		}
	}
	// The desk's file system, the desk's rights.
	self, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	got := output(t, w, Where{Machine: "a", Colour: "black"}, "cat", "/proc/self/status")
	for _, field := range []string{"CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:", "Uid:", "Gid:"} {
		if a, b := line(string(self), field), line(got, field); a != b {
			t.Errorf("%s is %q there and %q here", field, b, a)
		}
	}
	if _, err := os.Stat("/sys/fs/cgroup"); err == nil {
		if got := output(t, w, Where{Machine: "a"}, "ls", "/sys/fs/cgroup"); got == "" {
			t.Error("the desk's cgroup file systems are hidden")
		}
	}
	mine, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if got := output(t, w, Where{Machine: "a"}, "ls", mine); got != mine {
		t.Errorf("a file of the desk is %q there", got)
	}
	cmd, err := w.Command(t.Context(), Where{Machine: "a"}, "sh", "-c", "exit 9")
	if err != nil {
		t.Fatal(err)
	}
	if _ = cmd.Run(); cmd.ProcessState.ExitCode() != 9 {
		t.Errorf("exit code %d, want the command's own 9", cmd.ProcessState.ExitCode())
	}
	after := output(t, w, Where{Machine: "a"}, "true")
	if after != "" {
		t.Errorf("true printed %q", after)
	}
}

func line(text, prefix string) string {
	for l := range strings.Lines(text) {
		if strings.HasPrefix(l, prefix) {
			return strings.TrimSpace(l)
		}
	}
	return ""
}

func TestPlacesThatAreNotThere(t *testing.T) {
	w := start(t)
	add(t, w, "a", 11)
	if _, err := w.Command(t.Context(), Where{Machine: "a"}, "true"); !errors.Is(err, ErrOff) || run.HintOf(err) == "" {
		t.Errorf("a machine that is off: %v", err)
	}
	on(t, w, "a")
	if _, err := w.Command(t.Context(), Where{Machine: "q"}, "true"); !errors.Is(err, ErrNoMachine) {
		t.Errorf("no such machine: %v", err)
	}
	_, err := w.Command(t.Context(), Where{Machine: "a", App: "game"}, "true")
	if err == nil || run.HintOf(err) != "it has: browser, notes" {
		t.Errorf("no such app: %v, hint %q", err, run.HintOf(err))
	}
	if _, err := w.Command(t.Context(), Where{Machine: "a", Colour: "grey"}, "true"); err == nil {
		t.Error("grey was entered")
	}
	cmd, err := w.Command(t.Context(), Where{Machine: "a"}, "no-such-command-anywhere")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "hint: exec runs commands of this machine") {
		t.Errorf("no such command: %v: %s", err, out)
	}
	for _, s := range []string{"", "/red", "a/", "a/green", "a/red/x"} {
		if _, err := ParseWhere(s); err == nil || run.HintOf(err) == "" {
			t.Errorf("place %q: %v", s, err)
		}
	}
	if got, err := ParseWhere("B/black"); err != nil || got != (Where{Machine: "b", Colour: "black"}) {
		t.Errorf("B/black is %+v, %v", got, err)
	}
}

func TestThePhonesUser(t *testing.T) {
	w := start(t)
	add(t, w, "a", 11)
	on(t, w, "a")
	out, err := w.Phone(t.Context(), "A", []byte("123456\n"), "status", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var s sight
	if err := json.Unmarshal(out, &s); err != nil {
		t.Fatal(err)
	}
	if s.UID != 1000 || s.GID != 1000 || s.CapEff != "0000000000000000" || s.NoNewPrivs != "1" {
		t.Errorf("the user is %d:%d with %s, no_new_privs %s", s.UID, s.GID, s.CapEff, s.NoNewPrivs)
	}
	if s.Host != "a" || s.Cgroup != "/shell" || s.PID < 2 || s.PID > 1000 || len(s.Root) != 7 {
		t.Errorf("the user sees host %q cgroup %q pid %d root %v", s.Host, s.Cgroup, s.PID, s.Root)
	}
	if got := strings.Join(s.Args, " "); got != "/bin/rempart status --json" {
		t.Errorf("arguments %q", got)
	}
	_, err = w.Phone(t.Context(), "a", nil, "fail")
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 7 || !strings.HasSuffix(err.Error(), "rempart fail on a: as asked") {
		t.Errorf("a command that fails: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	cmd, err := w.UserCommand(ctx, "a", "/bin/init") // runs until it is stopped
	if err == nil {
		_ = cmd.Run()
	}
	if m, err := w.Machine(t.Context(), "a"); err != nil || m.State != On {
		t.Errorf("a user's command stopped the machine: %+v, %v", m, err)
	}
}

func TestTheInternet(t *testing.T) {
	w := start(t)
	for i, name := range []string{"a", "b"} {
		add(t, w, name, 11+i)
		on(t, w, name)
	}
	black := Where{Machine: "a", Colour: "black"}
	// Through the router to its hosts, to itself, and to the other machine.
	for _, to := range append([]string{"203.0.113.254", "2001:db8:113::fe", "203.0.113.12", "2001:db8:113::12"},
		InternetHosts()[0].String(), InternetHosts()[1].String(), InternetHosts()[2].String()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			output(t, w, black, "python3", "-c", ping, to)
		}()
		<-done
	}
	// A closed port answers at once.
	got := output(t, w, black, "python3", "-c", `
import socket,sys
s=socket.socket(); s.settimeout(5)
try: s.connect(("198.51.100.7",443))
except ConnectionRefusedError: print("refused")`)
	if got != "refused" {
		t.Errorf("connecting to a host without services: %q", got)
	}
	// The desk has nothing to do with it.
	if interfaces, err := net.Interfaces(); err == nil {
		for _, i := range interfaces {
			if strings.HasPrefix(i.Name, "radio-") || i.Name == bridgeName {
				t.Errorf("device %s is on the desk", i.Name)
			}
		}
	}
}

// ping sends one echo request with a raw socket and waits for the answer.
const ping = `
import socket,sys,struct
to=sys.argv[1]; six=":" in to
s=socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, 58 if six else 1); s.settimeout(5)
body=struct.pack("!BBHHH",128 if six else 8,0,0,7,1)
if not six:
    c=~((0x0800+7+1))&0xffff
    body=struct.pack("!BBHHH",8,0,c,7,1)
s.connect((to,0)); s.send(body)
while True:
    r=s.recv(2048); r=r if six else r[20:]
    if r[0]==(129 if six else 0): break
`

func TestCaptureSeesEveryFrameOfEveryMachine(t *testing.T) {
	w := start(t)
	for i, name := range []string{"a", "b"} {
		add(t, w, name, 11+i)
	}
	on(t, w, "b")
	file := filepath.Join(t.TempDir(), "internet.pcapng")
	c, err := w.Capture(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	on(t, w, "a") // after the capture
	const n = 500
	send := `
import socket
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)
for i in range(500): s.sendto(b"marked-%03d" % i + b"."*1000, ("198.51.100.7",9))`
	for _, name := range []string{"a", "b"} {
		output(t, w, Where{Machine: name, Colour: "black"}, "python3", "-c", send)
	}
	settled, err := c.Settle(t.Context())
	if err != nil || settled < 2*n {
		t.Fatalf("settled with %d frames, %v; want at least %d", settled, err, 2*n)
	}
	inFile := 0
	for _, packets := range frames(t, file) {
		inFile += len(packets)
	}
	if inFile < settled {
		t.Errorf("settled with %d frames, the file holds %d", settled, inFile)
	}
	if err := w.Kill9(t.Context(), "a"); err != nil { // its frames must not be lost with it
		t.Fatal(err)
	}
	r, err := c.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if !r.Complete() || len(r.Ports) != 2 {
		t.Errorf("result %+v", r)
	}
	seen := map[string]int{}
	for name, packet := range frames(t, file) {
		for _, p := range packet {
			if l := p.Layer(layers.LayerTypeUDP); l != nil && strings.HasPrefix(string(l.LayerPayload()), "marked-") {
				seen[name]++
			}
		}
	}
	if seen["radio-a"] != n || seen["radio-b"] != n {
		t.Errorf("the file has %v marked frames, want %d each", seen, n)
	}
	for _, p := range r.Ports {
		if p.Frames < n || p.Bytes < n*1000 {
			t.Errorf("count %+v", p)
		}
	}
}

func TestADeviceIsPluggedInWhileTheMachineRuns(t *testing.T) {
	w := start(t)
	add(t, w, "a", 11)
	if err := w.HotPlug(t.Context(), "a", "usb0"); !errors.Is(err, ErrOff) {
		t.Errorf("plugging into a machine that is off: %v", err)
	}
	m, _ := on(t, w, "a")
	file := filepath.Join(t.TempDir(), "hot.pcapng")
	c, err := w.Capture(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.HotPlug(t.Context(), "a", "usb0"); err != nil {
		t.Fatal(err)
	}
	own := Where{Machine: "a"}
	if got := output(t, w, own, "cat", "/sys/class/net/usb0/operstate"); got != "down" {
		t.Errorf("it appeared %q, want down", got)
	}
	for _, bad := range []string{"usb0", "wwan0", "", "a name", "much-too-long"} {
		if err := w.HotPlug(t.Context(), "a", bad); err == nil {
			t.Errorf("device %q was plugged in", bad)
		}
	}
	output(t, w, own, "python3", "-c", `
import socket,fcntl,struct
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)
fcntl.ioctl(s,0x8914,struct.pack("16sh14x",b"usb0",0x1043))
p=socket.socket(socket.AF_PACKET,socket.SOCK_RAW); p.bind(("usb0",0)); p.send(b"\xff"*12+b"\x88\xb5"+b"hot-marked"*5)`)
	if err := w.Unplug(t.Context(), "a", "usb0"); err != nil {
		t.Fatal(err)
	}
	if got := output(t, w, own, "ls", "/sys/class/net"); strings.Contains(got, "usb0") {
		t.Errorf("unplugged, the machine still has %q", got)
	}
	if err := w.HotPlug(t.Context(), "a", "usb1"); err != nil { // goes with the machine
		t.Fatal(err)
	}
	if err := w.PowerOff(t.Context(), "a", 0); err != nil {
		t.Fatal(err)
	}
	gone(t, w, m)
	if r, err := c.Stop(); err != nil || !r.Complete() || len(r.Ports) != 3 {
		t.Errorf("the capture ended with %+v, %v", r, err)
	}
	found := false
	for _, p := range frames(t, file)["hot-a-usb0"] {
		found = found || strings.Contains(string(p.Data()), "hot-marked")
	}
	if !found {
		t.Error("the frame of the new device is not in the capture")
	}
}

// frames reads a capture by interface name.
func frames(t *testing.T, file string) map[string][]gopacket.Packet {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]gopacket.Packet{}
	for {
		data, info, err := r.ReadPacketData()
		if err != nil {
			return all
		}
		i, err := r.Interface(info.InterfaceIndex)
		if err != nil {
			t.Fatal(err)
		}
		all[i.Name] = append(all[i.Name], gopacket.NewPacket(data, layers.LinkTypeEthernet, gopacket.Default))
	}
}

func TestAnIdleWorldIsSilent(t *testing.T) {
	w := start(t)
	file := filepath.Join(t.TempDir(), "internet.pcapng")
	c, err := w.Capture(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	add(t, w, "a", 11)
	on(t, w, "a")
	// What the router itself would send to a machine is seen there.
	got := output(t, w, Where{Machine: "a", Colour: "black"}, "sh", "-c", "sleep 2; cat /sys/class/net/wwan0/statistics/rx_packets")
	if got != "0" {
		t.Errorf("the idle internet sent %s frames to the machine", got)
	}
	if _, err := c.Stop(); err != nil {
		t.Fatal(err)
	}
}

func TestCaptureOfNothingAndItsEnds(t *testing.T) {
	w := start(t)
	dir := t.TempDir()
	empty, err := w.Capture(t.Context(), filepath.Join(dir, "empty.pcapng"))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := empty.Stop(); err != nil || !r.Complete() || len(r.Ports) != 0 {
		t.Errorf("a capture without machines: %+v, %v", r, err)
	}
	if n := len(frames(t, filepath.Join(dir, "empty.pcapng"))); n != 0 {
		t.Errorf("it has frames of %d ports", n)
	}
	if _, err := w.Capture(t.Context(), "/proc/no/such/file"); err == nil {
		t.Error("a file that cannot be was captured to")
	}
	add(t, w, "a", 11)
	on(t, w, "a")
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := w.Capture(ctx, filepath.Join(dir, "left.pcapng")); err != nil {
		t.Fatal(err)
	}
	cancel() // its client goes: the dump must go too
	eventually(t, "no tcpdump is left", func() bool {
		h, err := openHierarchy("/proc/self/mountinfo")
		if err != nil {
			return false
		}
		defer h.close()
		return len(members(h.path(w.Name, groupKeeper))) == 1
	})
	last, err := w.Capture(t.Context(), filepath.Join(dir, "down.pcapng"))
	if err != nil {
		t.Fatal(err)
	}
	down := make(chan error, 1)
	go func() { down <- Down(context.Background(), w.Name) }()
	if r, err := last.Wait(); err != nil || !r.Complete() || len(r.Ports) != 1 {
		t.Errorf("when the world goes down, the capture ends with %+v, %v", r, err)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
}
