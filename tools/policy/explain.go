package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"rempart/boot/manifest"
	"rempart/internal/run"
	"rempart/vpn/levels"
)

func explain(args []string, stdout, _ io.Writer) error {
	paths, err := parse(flags("explain"), args, 1)
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return run.Hint(errors.New("explain needs a file"), "%s help explain shows how to call it", program)
	}
	s, err := readSource(paths[0])
	if err != nil {
		return err
	}
	p, err := manifest.Read(s.document)
	if err != nil {
		return s.refuse()
	}
	var b strings.Builder
	switch {
	case s.bundle == nil:
		fmt.Fprintf(&b, "%s is not signed: no handset takes it as it is.\n\n", s.path)
	default:
		fmt.Fprintf(&b, "%s names key %x as its signer; whether that is true was not checked here.\n\n", s.path, s.bundle.Key[:4])
	}
	whole(&b, p)
	if _, err := io.WriteString(stdout, b.String()); err != nil {
		return fmt.Errorf("cannot print: %w", err)
	}
	return nil
}

func whole(b *strings.Builder, p *manifest.Policy) {
	fmt.Fprintf(b, "Policy %s, serial %d, is for a %s of the domain %s.\n", p.Name, p.Serial, p.Role, p.Domain)
	fmt.Fprintf(b, "The first unlock under it revokes every serial below %d in that TPM, for ever; a TPM that has\n", p.Serial)
	fmt.Fprintf(b, "revoked serial %d opens nothing under it.\n", p.Serial)

	fmt.Fprintf(b, "\nLevels, lowest first: %s.\n", strings.Join(p.Levels, ", "))
	for _, n := range p.Networks {
		fmt.Fprintf(b, "Network %s is accredited for %s and holds %s.\n", n.Name, n.Accredited, list(n.Inner))
		fmt.Fprintf(b, "A call over %s has the lowest of %s and both parties' certified levels.\n", n.Name, n.Accredited)
	}

	b.WriteString("\nWho may send where:\n")
	rule := levels.New(p)
	for _, app := range p.Apps {
		for _, n := range p.Networks {
			sentence(b, app.Name, "send to", n.Name, rule.Send(app.Name, n.Name))
			sentence(b, app.Name, "receive from", n.Name, rule.Receive(app.Name, n.Name))
		}
	}
	b.WriteString("  Any other app has no network, and no level permits a network that is not a tunnel.\n")

	if p.Role == manifest.RoleGateway {
		gatewaySide(b, p)
	} else {
		handsetSide(b, p)
	}

	b.WriteString("\nKeys, each role with its own:\n")
	for _, role := range []struct {
		name, does string
		texts      []string
	}{{"image", "approves boots", p.Keys.Image}, {"policy", "signs policies", p.Keys.Policy},
		{"gateway", "is a gateway's own", p.Keys.Gateway}} {
		for _, text := range role.texts {
			fmt.Fprintf(b, "  %s key %s %s.\n", role.name, keyName(text), role.does)
		}
	}
	fmt.Fprintf(b, "  %d authority certificate(s): who is certified under them is who we talk to.\n", len(p.Keys.Authority))
}

func sentence(b *strings.Builder, app, does, network string, d levels.Decision) {
	may := "may"
	if !d.Allowed {
		may = "may not"
	}
	fmt.Fprintf(b, "  %s %s %s %s: %s.\n", app, may, does, network, d.Why)
}

func handsetSide(b *strings.Builder, p *manifest.Policy) {
	b.WriteString("\nWhat may leave the handset, and only from the tunnel daemon:\n")
	for _, g := range p.Gateways {
		for _, s := range g.Services {
			fmt.Fprintf(b, "  %s port %d of gateway %s (%s), for %s.\n", strings.ToUpper(s.Protocol), s.Port, g.Name, list(g.Addresses), purpose(s.Purpose))
		}
	}
	b.WriteString("  Nothing else, on IPv4 or IPv6, to any address.\n")
	for _, g := range p.Gateways {
		fmt.Fprintf(b, "Gateway %s has the tunnel key %s and is %s inside the tunnel.\n", g.Name, g.TunnelKey, list(g.Inner))
	}
}

func gatewaySide(b *strings.Builder, p *manifest.Policy) {
	g := p.Gateways[0]
	fmt.Fprintf(b, "\nWhat gateway %s answers at %s, and only from the tunnel daemon:\n", g.Name, list(g.Addresses))
	for _, s := range g.Services {
		fmt.Fprintf(b, "  %s port %d, for %s.\n", strings.ToUpper(s.Protocol), s.Port, purpose(s.Purpose))
	}
	b.WriteString("  Nothing else, on IPv4 or IPv6, from any address.\n")
	fmt.Fprintf(b, "Inside the tunnel it is %s.\n", list(g.Inner))
}

func purpose(name string) string {
	return map[string]string{
		manifest.PurposeTunnel:      "the WireGuard tunnel",
		manifest.PurposeAttestation: "attestation and enrolment",
		manifest.PurposeIKE:         "IKE and ESP",
	}[name]
}

func keyName(text string) string {
	key, err := manifest.ParsePublicKey(text)
	if err != nil {
		return "(unreadable)"
	}
	id, err := manifest.KeyID(key)
	if err != nil {
		return "(unreadable)"
	}
	return fmt.Sprintf("%x", id[:4])
}

// list joins values as a person would: a, b and c.
func list[T fmt.Stringer](values []T) string {
	var words []string
	for _, v := range values {
		words = append(words, v.String())
	}
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}
