// Command rempart-policy writes, checks, signs and explains the policy of a
// handset or gateway, and approves the boot of an image:
//
//	rempart-policy init [-role handset|gateway] […] > policy.json
//	rempart-policy key -o FILE
//	rempart-policy check FILE…
//	rempart-policy explain FILE
//	rempart-policy sign -key FILE -in policy.json -out policy
//	rempart-policy approve -key IMAGEKEY -image DIR -out approval
//	rempart-policy help [COMMAND|document]
//
// It runs at the integrator's desk or in CI, never on a handset. Its keys are
// PEM files (PKCS #8, ECDSA P-256) that only their owner may read; a vendor
// who holds them in a token signs with package manifest and a crypto.Signer
// of his own.
//
// Exit code 0 means done; 1 means that it said why not, in one line per fault
// and a hint.
package main
