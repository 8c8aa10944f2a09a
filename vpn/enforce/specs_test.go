package enforce

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"rempart/vpn/egress"
)

// passSpec is what an attacker would put in the gate's place.
func passSpec() *ebpf.ProgramSpec {
	return &ebpf.ProgramSpec{Name: "evil", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}}
}

func xdpSpec() *ebpf.ProgramSpec {
	return &ebpf.ProgramSpec{Name: "evil", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}}
}

// TestOrderOpensNothingEarly walks the steps between policies and checks, after
// each, that a direction has only what the old or the new policy gives it, and that
// egress has something new only when ingress has it already.
func TestOrderOpensNothingEarly(t *testing.T) {
	own := modelPolicy(7).Classes
	policies := []egress.Policy{egress.DenyAll(), {Classes: own[:1]}, {Classes: own[:3]}, {Classes: own[2:5]}, {Classes: own}}
	for i, old := range policies {
		for j, new := range policies {
			force := [2]egress.Policy{old, old}
			for _, s := range order(old, new) {
				force[s.direction] = new
				if s.deny {
					force[s.direction] = egress.DenyAll()
				}
				out, in := force[egress.Egress], force[egress.Ingress]
				if !out.Within(old) && !out.Within(new) || !in.Within(old) && !in.Within(new) {
					t.Errorf("%d to %d: a direction has neither policy", i, j)
				}
				if !out.Within(in) && !out.Within(old) {
					t.Errorf("%d to %d: egress opened before ingress", i, j)
				}
			}
			if !force[0].Equal(new) || !force[1].Equal(new) {
				t.Errorf("%d to %d: ends elsewhere", i, j)
			}
		}
	}
}
