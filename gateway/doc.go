// Package gateway is the room of the other end: who may use the tunnel (peers),
// who can be called (registrar), how calls go from one to the other (proxy), and
// the small protected service that shows it (directory). The process is
// daemons/gatewayd.
package gateway
