package enforce

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"rempart/vpn/egress"
)

// childAttach attaches the gate, puts a policy in force, and dies by SIGKILL.
func childAttach() {
	ifindex, err := strconv.Atoi(os.Getenv("IFINDEX"))
	fail(err)
	data, err := os.ReadFile(os.Getenv("POLICY"))
	fail(err)
	p, err := egress.Parse(data)
	fail(err)
	var options []Option
	if os.Getenv("CLSACT") != "" {
		options = append(options, WithoutTCX())
	}
	g, err := Attach(ifindex, os.Getenv("PINS"), options...)
	fail(err)
	fail(g.Swap(p))
	fail(unix.Kill(os.Getpid(), unix.SIGKILL))
	select {}
}

// childReadBack prints the differences that another process sees.
func childReadBack() {
	ifindex, err := strconv.Atoi(os.Getenv("IFINDEX"))
	fail(err)
	data, err := os.ReadFile(os.Getenv("POLICY"))
	fail(err)
	p, err := egress.Parse(data)
	fail(err)
	r, err := ReadBack(ifindex, p, egress.LinkFacts{})
	fail(err)
	for _, d := range r.Differences {
		fmt.Println(d)
	}
}
