// Package bringup makes strangers of machines into handsets of one authority:
// it does for a lab, by the same commands and files, what an integrator and a
// device authority do for a product.
//
//	keys      image and policy keys by `rempart-policy key`; the lab's authority
//	policy    `rempart-policy init`, an edit, `sign`
//	images    the daemons, the policy, `rempart-policy approve`
//	enrolment `rempart enrol` on the machine → request → authority → certificate → machine and gateway
//	unlock    `rempart unlock` with the PIN
//
// All of it lives in the world's state folder. The first time makes it, and
// later times use it again: the same TPMs, keys and certificates; policy and
// approval are signed anew only where what they cover has changed.
package bringup
