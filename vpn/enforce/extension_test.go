package enforce

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"rempart/internal/proof"
	"rempart/vpn/egress"
)

// extend puts a program that lets everything through in the place of a whole program.
func extend(t *testing.T, id uint32, function string) link.Link {
	t.Helper()
	target, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	spec, err := object()
	if err != nil {
		t.Fatal(err)
	}
	var fn *btf.Func
	if err := spec.Types.TypeByName(function, &fn); err != nil {
		t.Fatal(err)
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "evil", Type: ebpf.Extension, AttachTarget: target, AttachTo: function, License: "GPL",
		Instructions: asm.Instructions{btf.WithFuncMetadata(asm.Mov.Imm(asm.R0, 0).WithSymbol("evil"), fn), asm.Return()}})
	if errors.Is(err, unix.EPERM) {
		t.Skip("this kernel loads no program that is bound to another one (board/guest runs this test)")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	l, err := link.AttachFreplace(nil, "", p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// A program whose function was replaced reads back as it was, and lets everything through; the extension's link tells.
func TestAnExtensionIsNoticed(t *testing.T) {
	proof.SFR(t, "FPT_TST_EXT.1", "the read-back before the extension")
	w := newWorld(t)
	admitting := egress.Policy{Classes: []egress.Class{{Gateway: "g", Addr: gatewayV4, Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 1}}}
	w.gate(admitting)
	read := func() (r Report) {
		t.Helper()
		w.in(w.black, func() (err error) {
			if r, err = ReadBack(w.ifindex, admitting, egress.LinkFacts{}); err != nil {
				return err
			}
			return r.Err()
		})
		return r
	}
	r := read()
	began := time.Now()
	if err := Unextended(append(r.Programs[:], r.Floors...)...); err != nil || len(r.Floors) != 2 {
		t.Fatalf("floors %v, %v", r.Floors, err)
	}
	took := time.Since(began)
	t.Logf("one walk took %v", took)
	l := extend(t, r.Programs[egress.Egress], "rempart_egress")
	if again := read(); again.Programs != r.Programs || again.Tags != r.Tags {
		t.Errorf("the programs read back as %+v, before as %+v", again, r)
	}
	if err := Unextended(r.Programs[:]...); err == nil || !strings.Contains(err.Error(), `"evil" replaces a function`) {
		t.Errorf("with an extension: %v", err)
	}
	if err := Unextended(append(r.Floors, r.Programs[egress.Ingress])...); err != nil {
		t.Errorf("an extension of another program: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Unextended(r.Programs[:]...); err != nil {
		t.Errorf("after it went: %v", err)
	}
}
