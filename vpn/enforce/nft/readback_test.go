package nft

import (
	"os/exec"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"rempart/internal/proof"
)

// Every kind of thing that nf_tables can hold and that is not ours is a difference, in any family.
func TestReadBackNoticesWhatIsNotOurs(t *testing.T) {
	proof.SFR(t, "FPT_TST_EXT.1", "the read-back of the table as it was put in force")
	proof.Need(t, "nft")
	w := newWorld(t)
	want := Released("bl0", tunnel, tunneld, own...)
	w.put(want)
	if err := w.differences(want); err != nil {
		t.Fatal(err)
	}
	nft := func(command string) (out []byte, err error) {
		w.in(w.black, func() error { out, err = exec.Command("nft", command).CombinedOutput(); return nil })
		return out, err
	}
	for what, script := range map[string]string{
		"an empty table":                        "table ip x { }",
		"a chain that rewrites":                 "table ip x { chain out { type nat hook output priority 0; dnat to 203.0.113.1; }; }",
		"a hook in front of ours":               "table netdev x { chain e { type filter hook egress device bl0 priority -5; accept; }; }",
		"a hook that sends on to a device":      `table netdev x { chain e { type filter hook egress device lo priority 0; fwd to "bl0"; }; }`,
		"a hook that copies":                    `table netdev x { chain i { type filter hook ingress device bl0 priority 0; dup to "lo"; }; }`,
		"a chain of the bridge":                 "table bridge x { chain f { type filter hook forward priority 0; }; }",
		"a chain of ARP":                        "table arp x { chain o { type filter hook output priority 0; }; }",
		"a set":                                 "table inet x { set s { type ipv4_addr; elements = { 10.0.0.1 }; }; }",
		"a flow table, which passes by forward": `table inet x { flowtable f { hook ingress priority 0; devices = { lo }; }; }`,
		"an object":                             "table inet x { counter c { }; }",
		"a table that is owned by its maker":    "table inet x { flags dormant; }",
	} {
		if out, err := nft(script); err != nil {
			if strings.Contains(script, "flowtable") && strings.Contains(string(out), "No such file") {
				t.Logf("this kernel has no %s", what)
				continue
			}
			t.Fatalf("%s: %v: %s", what, err, out)
		}
		err := w.differences(want)
		if err == nil || !strings.Contains(err.Error(), "in force and not wanted") || strings.Contains(err.Error(), "wanted and not in force") {
			t.Errorf("%s: %v", what, err)
		}
		if out, err := nft("flush ruleset"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := w.differences(want); err != nil {
			t.Fatalf("after %s: %v", what, err)
		}
	}
}

// The older iptables would be in the same path. A kernel that has none has nothing to notice, in CI too.
func TestReadBackNoticesIptables(t *testing.T) {
	proof.SFR(t, "FPT_TST_EXT.1", "the read-back before the table is there")
	w := newWorld(t)
	if err := w.differences(); err != nil {
		t.Fatal(err)
	}
	var errno unix.Errno
	w.in(w.black, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		// IPT_SO_GET_INFO, as "iptables-legacy -t filter -L" asks first: a table is made when it is asked for.
		info := make([]byte, 84) // struct ipt_getinfo
		copy(info, "filter")
		size := uint32(len(info))
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_IP, 64, uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&size)), 0)
		return nil
	})
	if errno == unix.ENOPROTOOPT || errno == unix.ENOENT {
		t.Skipf("this kernel has no iptables of the older kind: %v", errno)
	}
	if errno != 0 {
		t.Fatal(errno)
	}
	if err := w.differences(); err == nil || !strings.Contains(err.Error(), "iptables filter") {
		t.Errorf("error %v", err)
	}
}

// Each part of a table that differs is named: what the owner itself would do wrong.
func TestReadBackNoticesEveryPart(t *testing.T) {
	proof.SFR(t, "FPT_TST_EXT.1", "the read-back of the same table unchanged")
	for what, spoil := range map[string]func(*Table){
		"a rule more":         func(t *Table) { t.chains[0].rules = append(t.chains[0].rules, rule{verdict(verdictAccept)}) },
		"a rule less":         func(t *Table) { t.chains[0].rules = t.chains[0].rules[1:] },
		"two rules exchanged": func(t *Table) { r := t.chains[0].rules; r[0], r[1] = r[1], r[0] },
		"another verdict":     func(t *Table) { r := t.chains[0].rules[0]; r[len(r)-1] = verdict(verdictDrop) },
		"another byte compared": func(t *Table) {
			t.chains[0].rules[0][1] = equal(reg0, 0x86, 0xdd)
		},
		"another expression": func(t *Table) { t.chains[0].rules[0][0] = meta(unix.NFT_META_SKGID, reg0) },
		"a key more":         func(t *Table) { t.sets[0].keys = append(t.sets[0].keys, make([]byte, t.sets[0].size)) },
		"a key less":         func(t *Table) { t.sets[1].keys = nil },
		"another user":       func(t *Table) { *t = Released("bl0", tunnel, somebody, own...) },
		"another priority":   func(t *Table) { t.chains[0].priority = 0 },
		"a chain less":       func(t *Table) { t.chains = t.chains[:1] },
		"another name":       func(t *Table) { t.Name = "rempart-bl1" },
		"no table":           func(t *Table) { *t = Table{Name: "x", family: unix.NFPROTO_NETDEV} },
	} {
		w := newWorld(t)
		have := Released("bl0", tunnel, tunneld, own...)
		spoil(&have)
		w.put(have)
		if err := w.differences(Released("bl0", tunnel, tunneld, own...)); err == nil {
			t.Errorf("%s is not noticed", what)
		}
		if err := w.differences(have); err != nil {
			t.Errorf("%s: not as put in force: %v", what, err)
		}
	}
}

// A table of somebody else's that looks like ours is not ours.
func TestReadBackAsksForTheOwner(t *testing.T) {
	w := newWorld(t)
	w.put(Closed("bl0"))
	w.in(w.black, func() error {
		if err := ReadBack(w.owner.Port()+1, Closed("bl0")); err == nil || !strings.Contains(err.Error(), "owned by port") {
			t.Errorf("error %v", err)
		}
		return ReadBack(0, Closed("bl0"))
	})
}

// The read-back is made again when the rules change meanwhile, and fails if they never hold still.
func TestReadBackWhileTablesChange(t *testing.T) {
	w := newWorld(t)
	a, b := Closed("bl0"), Released("bl0", tunnel, tunneld, own...)
	w.put(a)
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := w.owner.Put(b); err != nil {
				done <- err
				return
			}
			if err := w.owner.Put(a); err != nil {
				done <- err
				return
			}
		}
	}()
	for range 50 {
		if err := w.differences(a); err != nil && w.differences(b) == nil {
			continue // it was the other one by then
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := w.differences(a); err != nil {
		t.Error(err)
	}
}

// What is read is cut to pieces with care: no length that it claims is believed.
func FuzzLines(f *testing.F) {
	for _, m := range append(Released("bl0", tunnel, tunneld, own...).messages(), Red("wg0", []Port{{17, 5004}}, nil).messages()...) {
		f.Add(uint16(m.kind), m.attrs)
	}
	f.Add(uint16(unix.NFT_MSG_NEWRULE), []byte{3, 0, 1, 0})
	f.Add(uint16(unix.NFT_MSG_NEWSETELEM), []byte{8, 0, 3, 0, 255, 255, 1, 0})
	f.Fuzz(func(t *testing.T, kind uint16, attrs []byte) {
		a, err := lines(message{kind: kind, attrs: attrs}, 1)
		b, again := lines(message{kind: kind, attrs: attrs}, 1)
		if (err == nil) != (again == nil) || len(a) != len(b) {
			t.Error("one message reads two ways")
		}
		if _, err := split(attrs); err == nil && len(attrs) >= unix.NLMSG_HDRLEN {
			_, _, _ = counted(attrs)
		}
	})
}

func (t Table) messages() []message { return append(t.skeleton(tableOwned), t.content()...) }
