package manifest

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
)

func (s *settler) levelList(levels []string) {
	s.count("levels", len(levels), 1, maxLevels)
	seen := map[string]bool{}
	for i, level := range levels {
		path := fmt.Sprintf("levels[%d]", i)
		s.name(path, level, maxName)
		s.unique(seen, path, level)
	}
}

// level returns the rank of a level and notes one that the list has not.
func (s *settler) level(path, level string) (int, bool) {
	rank := slices.Index(s.levels, level)
	switch {
	case level == "":
		s.fault(path, "is missing")
		return 0, false
	case rank < 0:
		s.fault(path, "level %q is not in levels", level)
	}
	return rank, rank >= 0
}

func (s *settler) apps(apps []App) {
	s.count("apps", len(apps), 0, maxApps)
	seen := map[string]bool{}
	for i, app := range apps {
		path := fmt.Sprintf("apps[%d]", i)
		s.name(path+".name", app.Name, maxName)
		s.unique(seen, path+".name", app.Name)
		reads, ok := s.level(path+".reads", app.Reads)
		writes, ok2 := s.level(path+".writes", app.Writes)
		if ok && ok2 && writes < reads {
			s.fault(path+".writes", "%q is below %q, the level it reads: writing down needs a guard, and this version has none",
				app.Writes, app.Reads)
		}
	}
}

func (s *settler) networks(texts []networkText) []Network {
	s.count("networks", len(texts), 1, maxNetworks)
	seen := map[string]bool{}
	var all []netip.Prefix // of every network, for overlaps
	var networks []Network
	for i, text := range texts {
		path := fmt.Sprintf("networks[%d]", i)
		s.name(path+".name", text.Name, maxDevice)
		s.unique(seen, path+".name", text.Name)
		s.level(path+".accredited", text.Accredited)
		s.count(path+".inner", len(text.Inner), 1, maxPrefixes)
		n := Network{Name: text.Name, Accredited: text.Accredited}
		for j, inner := range text.Inner {
			at := fmt.Sprintf("%s.inner[%d]", path, j)
			prefix, ok := s.prefix(at, inner)
			if !ok {
				continue
			}
			for _, other := range all {
				if other.Overlaps(prefix) {
					s.fault(at, "%s overlaps %s", prefix, other)
				}
			}
			all = append(all, prefix)
			n.Inner = append(n.Inner, prefix)
		}
		networks = append(networks, n)
	}
	return networks
}

func (s *settler) prefix(path, text string) (netip.Prefix, bool) {
	prefix, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		s.fault(path, "%q is not an address prefix such as 10.77.0.0/16", text)
	case prefix.Masked() != prefix:
		s.fault(path, "%q has bits behind its length, want %s", text, prefix.Masked())
	case prefix.Bits() == 0:
		s.fault(path, "%q is every address: a tunnel network has addresses of its own", text)
	case prefix.String() != text:
		s.fault(path, "%q is not the canonical spelling, want %s", text, prefix)
	case !ordinary(prefix.Addr()):
		s.fault(path, "%q is not a unicast network", text)
	default:
		return prefix, true
	}
	return netip.Prefix{}, false
}

func (s *settler) addr(path, text string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		s.fault(path, "%q is not an IP address", text)
	case addr.Zone() != "" || addr.Is4In6():
		s.fault(path, "%q has a zone or is IPv4 inside IPv6", text)
	case addr.String() != text:
		s.fault(path, "%q is not the canonical spelling, want %s", text, addr)
	case !ordinary(addr):
		s.fault(path, "%q is not a unicast address of a host", text)
	default:
		return addr, true
	}
	return netip.Addr{}, false
}

// ordinary reports whether a packet could be meant for one host at addr,
// somewhere else. It is as strict as the gate (vpn/egress): a policy that
// signs must also compile.
func ordinary(addr netip.Addr) bool {
	if addr.IsLinkLocalUnicast() {
		return false
	}
	if addr.Is4() {
		b := addr.As4()
		return b[0] != 0 && b[0] != 127 && b[0] < 224 // this network, loopback, multicast and reserved: RFC 6890
	}
	b := addr.As16()
	return b[0] != 0xff && [8]byte(b[:8]) != [8]byte{} // multicast; unspecified, loopback and IPv4 inside IPv6
}

func (s *settler) gateways(texts []gatewayText, role string, networks []Network) []Gateway {
	if s.count("gateways", len(texts), 1, maxGateways) && role == RoleGateway && len(texts) != 1 {
		s.fault("gateways", "has %d entries, want one in role %s: itself", len(texts), RoleGateway)
	}
	names, used := map[string]bool{}, map[string]bool{}
	keys := map[string]bool{}
	var gateways []Gateway
	for i, text := range texts {
		path := fmt.Sprintf("gateways[%d]", i)
		g := Gateway{Name: text.Name}
		s.name(path+".name", text.Name, maxName)
		s.unique(names, path+".name", text.Name)
		s.count(path+".addresses", len(text.Addresses), 1, maxAddresses)
		for j, address := range text.Addresses {
			at := fmt.Sprintf("%s.addresses[%d]", path, j)
			if addr, ok := s.addr(at, address); ok {
				s.unique(used, at, address)
				if n, inside := networkOf(networks, addr); inside {
					s.fault(at, "%s lies inside network %s: the way to the tunnel cannot lead through it", addr, n)
				}
				g.Addresses = append(g.Addresses, addr)
			}
		}
		s.tunnelKey(path+".tunnel_key", text.TunnelKey, role, &g.TunnelKey)
		s.unique(keys, path+".tunnel_key", text.TunnelKey)
		s.count(path+".inner", len(text.Inner), 1, maxAddresses)
		for j, inner := range text.Inner {
			at := fmt.Sprintf("%s.inner[%d]", path, j)
			if addr, ok := s.addr(at, inner); ok {
				s.unique(used, at, inner)
				if _, inside := networkOf(networks, addr); !inside {
					s.fault(at, "%s lies in none of the networks", addr)
				}
				g.Inner = append(g.Inner, addr)
			}
		}
		g.Services = s.services(path+".services", text.Services)
		gateways = append(gateways, g)
	}
	return gateways
}

func networkOf(networks []Network, addr netip.Addr) (string, bool) {
	for _, n := range networks {
		for _, prefix := range n.Inner {
			if prefix.Contains(addr) {
				return n.Name, true
			}
		}
	}
	return "", false
}

func (s *settler) tunnelKey(path, text, role string, key *Key32) {
	if text == "" {
		if role != RoleGateway {
			s.fault(path, "is missing: without the gateway's WireGuard key there is no tunnel to it")
		}
		return
	}
	if err := key.UnmarshalText([]byte(text)); err != nil {
		s.fault(path, "%q is not a WireGuard public key: 32 bytes in base64", text)
	} else if key.IsZero() {
		s.fault(path, "is all zeros")
	}
}

func (s *settler) services(path string, texts []serviceText) []Service {
	if !s.count(path, len(texts), 1, maxServices) {
		return nil
	}
	seen := map[string]bool{}
	tunnels := 0
	var services []Service
	for i, text := range texts {
		at := fmt.Sprintf("%s[%d]", path, i)
		want, known := map[string]string{PurposeTunnel: "udp", PurposeAttestation: "tcp", PurposeIKE: "udp"}[text.Purpose]
		switch {
		case text.Protocol != "udp" && text.Protocol != "tcp":
			s.fault(at+".protocol", "is %q, want \"udp\" or \"tcp\"", text.Protocol)
		case known && text.Protocol != want:
			s.fault(at+".protocol", "is %q, but %s is carried by %s", text.Protocol, text.Purpose, want)
		}
		if !known {
			s.fault(at+".purpose", "is %q, want %q, %q or %q", text.Purpose, PurposeTunnel, PurposeAttestation, PurposeIKE)
		}
		if text.Port < 1 || text.Port > 65535 {
			s.fault(at+".port", "is %d, want 1 to 65535", text.Port)
		}
		s.unique(seen, at, fmt.Sprintf("%s port %d", text.Protocol, text.Port))
		if text.Purpose == PurposeTunnel {
			tunnels++
		}
		services = append(services, Service{Protocol: text.Protocol, Port: uint16(text.Port), Purpose: text.Purpose})
	}
	if tunnels != 1 {
		s.fault(path, "has %d services of purpose %q, want one", tunnels, PurposeTunnel)
	}
	return services
}

// keys holds each role to readable keys and every key to one role.
func (s *settler) keys(k Keys) {
	holders := map[string]string{} // SHA-256 of the public key → where it was first
	one := func(path string, spki []byte) {
		id := sha256.Sum256(spki)
		name := hex.EncodeToString(id[:])
		if before, used := holders[name]; used {
			s.fault(path, "is the same key as %s: every role has its own", before)
			return
		}
		holders[name] = path
	}
	roles := []struct {
		path  string
		texts []string
		least int
	}{{"keys.image", k.Image, 1}, {"keys.policy", k.Policy, 1}, {"keys.gateway", k.Gateway, 0}}
	for _, role := range roles {
		s.count(role.path, len(role.texts), role.least, maxKeys)
		for i, text := range role.texts {
			path := fmt.Sprintf("%s[%d]", role.path, i)
			key, err := ParsePublicKey(text)
			if err != nil {
				s.fault(path, "%s", err)
				continue
			}
			if spki, err := x509.MarshalPKIXPublicKey(key); err == nil {
				one(path, spki)
			}
		}
	}
	s.count("keys.authority", len(k.Authority), 1, maxKeys)
	for i, text := range k.Authority {
		path := fmt.Sprintf("keys.authority[%d]", i)
		cert, err := parseAuthority(text)
		if err != nil {
			s.fault(path, "%s", err)
			continue
		}
		one(path, cert.RawSubjectPublicKeyInfo)
	}
}
