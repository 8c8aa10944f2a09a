// Package tunnel decides the life of the tunnel and nothing else.
//
// It is pure: a [State] and an [Event] go in, a State and a list of [Effect]
// come out of [Step]. It opens no socket, reads no clock and holds no key; the
// daemon that runs the effects (daemons/tunneld) does. That is what lets a test
// walk every pair of state and event, and a fuzzer walk every order of them.
//
// The law it keeps: the egress policy in force is never looser than the state
// allows. What a state allows is [State.Policy], a pure function of the state.
// An effect that tightens the policy is always the first of its list, and the
// one effect that loosens it, [Admit], is only ever produced on entering
// [Admitting], the first phase that allows it.
package tunnel
