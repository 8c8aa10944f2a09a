// Gatewayd is the gateway's process in red: it registers handsets, passes calls
// by name between them, tells the tunnel who its peers are, and serves the
// directory.
//
// It lives on the gateway's inner addresses, uid 905, with no capability (init
// lets it bind ports 80 and 5061). It holds no key: its identity key signs in the
// TPM, through keyd, and it issues nothing. What it parses from outside is TLS,
// SIP and HTTP from handsets that have come through the tunnel, and certificate
// files from its enrolment folder; each is bounded.
//
// When it dies the tunnel and the calls that are on go on without it: sound and
// keys never pass through it. init starts it again and handsets register anew.
package main
