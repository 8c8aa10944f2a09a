package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"rempart/boot/manifest"
	"rempart/internal/run"
)

// documentHelp says what each field of the document is for. The document is
// strict JSON and has no room for comments; this is where they are.
const documentHelp = `The policy document: JSON, at most 64 KiB, no unknown field, no field twice.

  version    1
  serial     1 to 63. Count up by one when what was signed before must no longer be used:
             the first unlock under a serial revokes every lower one in that TPM, for ever.
  role       "handset" or "gateway": the one that boots with this document.
  name       of this policy, for people.
  domain     the SIP domain of all names: lower-case ASCII, two labels at least.
  levels     the levels of information, lowest first. Certificates name one of them.
  apps       who may use a network at all. An app is a cgroup: voiced, gatewayd, or NAME
             for /apps/NAME.
    reads    the highest level it may read.
    writes   the level of what it writes; not below reads, since that needs a guard.
  networks   the tunnel networks. An app sends only to networks at or above what it reads
             and writes, and receives only from networks at or below what it may read.
    name        of the device in red, for example wg0.
    accredited  the level the network is accredited for.
    inner       the prefixes inside the tunnel; they must not overlap.
  gateways   where the tunnel may go. In role gateway: one entry, which is itself.
    addresses   its addresses on the open internet, IPv4 and IPv6.
    tunnel_key  its WireGuard public key; left out in role gateway (it is in its TPM).
    inner       its addresses inside the tunnel.
    services    all that may be reached at addresses, each a protocol (udp, tcp), a port
                and a purpose: "tunnel" (udp, exactly one), "attestation" (tcp) or "ike"
                (udp). Nothing else leaves the handset.
  keys       PEM, one key per string, line ends as \n. No key may have two roles.
    image      ECDSA P-256 public keys that approve boots (rempart-policy approve).
    policy     ECDSA P-256 public keys that sign policies (rempart-policy sign).
    authority  root certificates of the device authority that certifies handsets.
    gateway    ECDSA P-256 public keys of the gateways; may be empty.

An address has one spelling only (RFC 5952), and names are lower-case letters, digits and
inner hyphens, so that no two readers can take one for another.
`

func initDocument(args []string, stdout, stderr io.Writer) error {
	flags := flags("init")
	role := flags.String("role", manifest.RoleHandset, "handset or gateway")
	serial := flags.Int("serial", 1, "serial, 1 to 63")
	var keys [4]*string
	for i, name := range []string{"image-key", "policy-key", "authority", "gateway-key"} {
		keys[i] = flags.String(name, "", "PEM file of the role's public key or certificate")
	}
	tunnelKey := flags.String("tunnel-key", "", "WireGuard public key of the gateway")
	if _, err := parse(flags, args, 0); err != nil {
		return err
	}
	if *role != manifest.RoleHandset && *role != manifest.RoleGateway {
		return run.Hint(fmt.Errorf("unknown role %q", *role), "a role is %s or %s", manifest.RoleHandset, manifest.RoleGateway)
	}
	p := example(*role)
	p.Serial = *serial
	if *tunnelKey != "" {
		if err := p.Gateways[0].TunnelKey.UnmarshalText([]byte(*tunnelKey)); err != nil {
			return run.Hint(err, "wg pubkey prints one: 44 characters of base64")
		}
	}
	for i, list := range []*[]string{&p.Keys.Image, &p.Keys.Policy, &p.Keys.Authority, &p.Keys.Gateway} {
		*list = []string{}
		if *keys[i] == "" {
			continue
		}
		text, err := readFile(*keys[i], maxKeyFile)
		if err != nil {
			return err
		}
		if strings.Contains(string(text), "PRIVATE KEY") {
			return run.Hint(fmt.Errorf("%s is a private key", *keys[i]), "a policy holds public keys: give %s.pub", *keys[i])
		}
		*list = append(*list, string(text))
	}
	document, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot write the document: %w", err)
	}
	document = append(document, '\n')
	if _, err := stdout.Write(document); err != nil {
		return fmt.Errorf("cannot write the document: %w", err)
	}
	for _, fault := range manifest.Faults(manifest.Check(document)) {
		fmt.Fprintf(stderr, "%s: still to do: %v\n", program, fault)
	}
	return nil
}

// example is the document that init writes: the addresses are those set aside
// for documentation (RFC 5737, RFC 3849) and for private use.
func example(role string) *manifest.Policy {
	daemon := map[string]string{manifest.RoleHandset: "voiced", manifest.RoleGateway: "gatewayd"}[role]
	return &manifest.Policy{
		Version: manifest.Version, Serial: manifest.MinSerial, Role: role, Name: "example", Domain: "handsets.example",
		Levels: []string{"public", "restricted", "secret"},
		Apps:   []manifest.App{{Name: daemon, Reads: "restricted", Writes: "restricted"}},
		Networks: []manifest.Network{{Name: "wg0", Accredited: "restricted",
			Inner: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")}}},
		Gateways: []manifest.Gateway{{Name: "gateway",
			Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:113::1")},
			Inner:     []netip.Addr{netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd77::1")},
			Services:  []manifest.Service{{Protocol: "udp", Port: 51820, Purpose: manifest.PurposeTunnel}}}},
	}
}
