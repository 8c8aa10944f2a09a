package link

import (
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/proof"
)

func TestNoticesTellOfEachChange(t *testing.T) {
	proof.NeedRoot(t)
	proof.Need(t, "tc", "nft", "ip")
	ns, err := Create("")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	handed, err := FromFile(ns.File())
	if err != nil {
		t.Fatal(err)
	}
	var fds []int
	if err := handed.Do(func() (err error) { fds, err = Notices(); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	heard := func() (any bool) {
		t.Helper()
		for _, fd := range fds {
			h, err := Heard(fd)
			if err != nil {
				t.Fatal(err)
			}
			any = any || h
		}
		return any
	}
	run := func(name string, args ...string) func() error {
		return func() error { return exec.Command(name, args...).Run() }
	}
	if heard() {
		t.Error("a notice before any change")
	}
	for _, c := range []struct {
		name string
		do   func() error
	}{
		{"a device", func() error { return AddVeth(Port{Name: "one"}, Port{Name: "two"}) }},
		{"up", func() error { return SetUp("one") }},
		{"clsact", run("tc", "qdisc", "add", "dev", "one", "clsact")},
		{"clsact gone", run("tc", "qdisc", "del", "dev", "one", "clsact")},
		{"an nft table", run("nft", "add", "table", "inet", "x")},
		{"an IPsec policy", run("ip", "xfrm", "policy", "add", "src", "10.0.0.1", "dst", "10.0.0.2", "dir", "out", "action", "block")},
		{"the IPsec default", run("ip", "xfrm", "policy", "setdefault", "out", "block")},
		{"down", func() error { return SetDown("one") }},
	} {
		if err := ns.Do(c.do); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		got := false
		for end := time.Now().Add(time.Second); !got && time.Now().Before(end); time.Sleep(time.Millisecond) {
			got = heard()
		}
		if !got {
			t.Errorf("no notice of %s", c.name)
		}
		if heard() {
			t.Logf("%s came with more than one notice", c.name)
		}
	}
}
