// Package sip is the handset's half of calls by name: a user agent over
// github.com/emiago/sipgo that knows one server, the gateway, and one path to
// it, a mutual TLS 1.3 connection through the tunnel (SIP over TLS, RFC 3261
// §26.2; NIAP PP-Module VVoIP FTP_ITC.1/CONTROL).
//
// The message parser is sipgo's; nothing here reads SIP from bytes. What this
// package adds is a narrow profile: one connection that the handset opens and
// that requests come back down (the idea of RFC 5626), addresses of record of
// one spelling only, a session description of eleven fixed lines, and no name
// resolution or dialling by the library whatever a message says.
package sip
