package bringup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"rempart/board/netns"
	"rempart/boot/stage"
	"rempart/internal/atomicfile"
	"rempart/keystore/client"
	"rempart/tools/lab/authority"
)

// Up brings a started world to life: a gateway and handsets, booted, enrolled,
// unlocked and in their tunnels. progress gets one line per step, from several
// goroutines, never two at once; nil for none. When Up fails, the world is as
// far as it came: the caller takes it down.
func Up(ctx context.Context, w *netns.World, o Options, progress func(string)) error {
	o, err := o.Complete()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	l := &lab{w: w, o: o, start: time.Now(), progress: progress}
	in, fresh, err := openIntegrator(ctx, o)
	if err != nil {
		return err
	}
	l.in = in
	if fresh {
		l.say("lab: keys of the image and policy roles and a device authority made in %s", filepath.Join(o.State, "keys"))
	}
	prepared := l.prepare(ctx)
	tunnelKey, err := l.gateway(ctx)
	if err := errors.Join(err, <-prepared); err != nil {
		return err
	}
	if o.Image == "" {
		_, changed, err := in.image(ctx, stage.Handset, tunnelKey)
		if err != nil {
			return err
		}
		l.sayImage(stage.Handset, changed)
	}
	return l.handsets(ctx)
}

// lab is one bringing up.
type lab struct {
	w     *netns.World
	o     Options
	in    *integrator
	start time.Time

	mu       sync.Mutex
	progress func(string)
}

// say reports one step with the time since the start.
func (l *lab) say(format string, args ...any) {
	if l.progress == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.progress(fmt.Sprintf("%7.3f s  %s", time.Since(l.start).Seconds(), fmt.Sprintf(format, args...)))
}

func (l *lab) sayImage(role string, changed bool) {
	if changed {
		l.say("lab: image of the %s made, policy signed, boot approved", role)
	} else {
		l.say("lab: image of the %s is as it was", role)
	}
}

// prepare makes the handsets known and has their TPMs manufactured while the
// gateway boots.
func (l *lab) prepare(ctx context.Context) <-chan error {
	image := l.o.Image
	if image == "" {
		image = l.in.folder(stage.Handset)
	}
	done := make(chan error, 1)
	go func() {
		for _, h := range Handsets(l.o.Handsets) {
			if _, err := l.w.Add(ctx, netns.Spec{Name: h.Name, Role: stage.Handset, Number: h.Number, Image: image, Offload: l.o.Offload, DHCP: l.o.DHCP}); err != nil {
				done <- err
				return
			}
			if err := l.w.Prepare(ctx, h.Name); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	return done
}

// boot switches a machine on and waits for its keystore.
func (l *lab) boot(ctx context.Context, name string) (PhoneStatus, error) {
	m, err := l.w.PowerOn(ctx, name)
	if err != nil {
		return PhoneStatus{}, err
	}
	l.say("%s: TPM and init started (pid %d)", name, m.PID)
	status, err := keystoreReady(ctx, l.w, name)
	if err != nil {
		return status, err
	}
	l.say("%s: booted and locked, keystore %s", name, status.Keystore.State)
	return status, nil
}

// certificateFile is where the lab keeps what its authority issued.
func (l *lab) certificateFile(name string) string {
	return filepath.Join(l.o.State, "certificates", name+".pem")
}

// enrol makes a machine one of the authority's, unless it is one.
func (l *lab) enrol(ctx context.Context, name string, number int, status PhoneStatus) error {
	if status.Keystore.Certificate {
		return nil
	}
	// The PIN is typed, not given as an argument that every process could read.
	args := []string{"enrol", "--name", name}
	if status.Keystore.State != client.Empty {
		// Stopped between the request and the certificate: ask for it again.
		args = []string{"enrol", "--again"}
	}
	out, err := l.w.Phone(ctx, name, []byte(l.o.PIN+"\n"), args...)
	if err != nil {
		return fmt.Errorf("cannot enrol %s: %w", name, err)
	}
	var request client.Enrolment
	if err := json.Unmarshal(out, &request); err != nil {
		return fmt.Errorf("cannot enrol %s: its request: %w", name, err)
	}
	now := time.Now()
	grant := authority.Grant{
		Name: name, URI: "sip:" + name + "@" + Domain, Level: Level, Inner: Inner(number),
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(2, 0, 0), // clocks differ
	}
	if name == GatewayName {
		grant.URI = "sip:" + Domain
	}
	der, err := l.in.authority.Issue(request.CSR, grant)
	if err != nil {
		return fmt.Errorf("cannot enrol %s: %w", name, err)
	}
	chain := certificatePEM(der, l.in.authority.Root())
	if _, err := l.w.Phone(ctx, name, chain, "enrol", "--certificate", "-"); err != nil {
		return fmt.Errorf("cannot enrol %s: %w", name, err)
	}
	if err := os.MkdirAll(filepath.Dir(l.certificateFile(name)), 0o755); err != nil {
		return fmt.Errorf("cannot keep the certificate of %s: %w", name, err)
	}
	if err := atomicfile.Write(l.certificateFile(name), chain, 0o644); err != nil {
		return fmt.Errorf("cannot keep the certificate of %s: %w", name, err)
	}
	l.say("%s: enrolled as %s, level %s", name, grant.URI, grant.Level)
	return nil
}

// gateway brings the gateway up and returns its tunnel's public key.
func (l *lab) gateway(ctx context.Context) ([]byte, error) {
	image, changed, err := l.in.image(ctx, stage.Gateway, nil)
	if err != nil {
		return nil, err
	}
	l.sayImage(stage.Gateway, changed)
	if _, err := l.w.Add(ctx, netns.Spec{
		Name: GatewayName, Role: stage.Gateway, Number: gatewayNumber, Image: image, Offload: l.o.Offload,
	}); err != nil {
		return nil, err
	}
	status, err := l.boot(ctx, GatewayName)
	if err != nil {
		return nil, err
	}
	if err := l.enrol(ctx, GatewayName, gatewayNumber, status); err != nil {
		return nil, err
	}
	if err := unlock(ctx, l.w, GatewayName, l.o.PIN); err != nil {
		return nil, err
	}
	l.say("%s: unlocked", GatewayName)
	id, err := l.certified(GatewayName)
	if err != nil {
		return nil, err
	}
	return id.TunnelKey[:], nil
}

// handsets brings up all handsets at once.
func (l *lab) handsets(ctx context.Context) error {
	all := Handsets(l.o.Handsets)
	errs := make([]error, len(all))
	var wait sync.WaitGroup
	for i, h := range all {
		wait.Go(func() { errs[i] = l.handset(ctx, h) })
	}
	wait.Wait()
	return errors.Join(errs...)
}

// handset brings up one handset.
func (l *lab) handset(ctx context.Context, h Handset) error {
	status, err := l.boot(ctx, h.Name)
	if err != nil {
		return err
	}
	if err := l.enrol(ctx, h.Name, h.Number, status); err != nil {
		return err
	}
	if err := l.introduce(ctx, h.Name); err != nil {
		return err
	}
	if err := unlock(ctx, l.w, h.Name, l.o.PIN); err != nil {
		return err
	}
	l.say("%s: unlocked", h.Name)
	if err := tunnelUp(ctx, l.w, h.Name); err != nil {
		return err
	}
	l.say("%s: tunnel up", h.Name)
	return nil
}
