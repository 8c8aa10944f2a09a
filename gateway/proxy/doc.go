// Package proxy is the gateway's SIP side: registrar and proxy for calls by name.
//
// Who speaks is decided once, by the certificate of the TLS connection a message
// came on, read by keystore/client/identity. What a message says of its sender is
// then only compared with that, byte for byte: From of every request and the
// address of record of every REGISTER. A forwarded message is not the received
// one with lines changed but a new one written from the few things this network
// uses, so nothing a handset adds reaches another handset.
//
// Responses come back only from the connection the request was sent down. All
// tables and messages are bounded, and the proxy never dials: a party is reached
// down the connection it opened, or not at all.
package proxy
