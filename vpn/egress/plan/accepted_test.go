package plan

import (
	"os"
	"testing"

	"rempart/boot/manifest"
	"rempart/vpn/egress"
)

// document returns the document of one of package manifest's vectors.
func document(t testing.TB, vector string) []byte {
	t.Helper()
	bundle, err := os.ReadFile("../../../boot/manifest/testdata/vectors/" + vector)
	if err != nil {
		t.Fatal(err)
	}
	e, err := manifest.Parse(bundle)
	if err != nil {
		t.Fatal(err)
	}
	return e.Document
}

// FuzzWhatIsAcceptedCompiles: a policy that passes the check at the desk must
// not be refused by the gate in the field, and the table names gateways,
// services and tunneld only.
func FuzzWhatIsAcceptedCompiles(f *testing.F) {
	f.Add(document(f, "accepted--handset.bundle"))
	f.Add(document(f, "accepted--gateway.bundle"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		p, err := manifest.Read(doc)
		if err != nil {
			return
		}
		table, err := Compile(p, cgroup)
		if err != nil {
			t.Fatalf("accepted and does not compile: %v\n%s", err, doc)
		}
		if len(table.Classes) == 0 || len(table.Classes) > egress.MaxClasses {
			t.Fatalf("%d classes from\n%s", len(table.Classes), doc)
		}
		for _, c := range table.Classes {
			if c.Cgroup != cgroup || c.Responder() != (p.Role == manifest.RoleGateway) {
				t.Fatalf("class %v from\n%s", c, doc)
			}
			known := false
			for _, g := range p.Gateways {
				for _, addr := range g.Addresses {
					known = known || g.Name == c.Gateway && (c.Responder() || addr == c.Addr)
				}
			}
			if !known {
				t.Fatalf("class %v is of no gateway in\n%s", c, doc)
			}
		}
	})
}
