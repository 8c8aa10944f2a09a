package attack_test

import (
	"bytes"
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"rempart/board/scenario/attack"
)

const (
	startedLine = `{"kind":"constant","family":4,"started":true,"errno":"","sent":0}`
	resultLine  = `{"kind":"constant","family":4,"errno":"","sent":7}`
)

func supervised(t *testing.T, ctx context.Context, kind attack.Kind, script func(attack.Job) string) []attack.Result {
	t.Helper()
	var out bytes.Buffer
	j := attack.Job{Kind: kind, Family: attack.IPv4}
	err := attack.Supervise(ctx, j, &out, func(j attack.Job) *exec.Cmd { return exec.Command("/bin/sh", "-c", script(j)) })
	if err != nil {
		t.Fatal(err)
	}
	var all []attack.Result
	for line := range strings.Lines(out.String()) {
		r, err := attack.ParseResult([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

func TestAKillIsAResult(t *testing.T) {
	got := supervised(t, t.Context(), attack.Packet, func(attack.Job) string { return "kill -9 $$" })
	if len(got) != 1 || got[0].Errno != "SIGKILL" || got[0].Sent != 0 {
		t.Errorf("%+v", got)
	}
}

func TestOtherWaysAreTriedAfterAKill(t *testing.T) {
	got := supervised(t, t.Context(), attack.Constant, func(j attack.Job) string {
		if !j.NoPacket {
			return "echo '" + startedLine + "'; kill -9 $$"
		}
		return "echo '" + startedLine + "'; echo '" + resultLine + "'"
	})
	if len(got) != 3 || !got[0].Started || !got[1].Started || got[2].Sent != 7 {
		t.Errorf("%+v", got)
	}
}

func TestAnOrdinaryEndIsPassedThroughAndCancelEndsTheSender(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	got := supervised(t, ctx, attack.Constant, func(attack.Job) string {
		return "end() { echo '" + resultLine + "'; exit 0; }; trap end TERM; echo '" + startedLine + "'; while :; do sleep 0.01; done"
	})
	if len(got) != 2 || got[1].Sent != 7 {
		t.Errorf("%+v", got)
	}
}
