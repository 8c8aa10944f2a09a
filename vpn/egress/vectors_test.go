package egress

// denyAllDigest is SHA-256("rempart egress policy\n" ‖ "RGP1" ‖ 0 ‖ 0), computed elsewhere.
const denyAllDigest = "a2293a5c5ced49e91ee3dac6f1673d52343f1b2cb3c3f5aba6ca417d95c25127"
