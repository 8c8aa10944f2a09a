// Command rempart-lab runs handsets and a gateway on this machine, attacks
// them, calls between them and measures them:
//
//	rempart-lab up [--world NAME] [--handsets N] [--state DIR] [--bin DIR] [--image DIR] [--pin PIN] [--offload]
//	rempart-lab down [--world NAME | --all]
//	rempart-lab status [--world NAME] [--json]
//	rempart-lab exec [--world NAME] HANDSET[/red|/black] [--app NAME] -- CMD…
//	rempart-lab phone [--world NAME] HANDSET COMMAND…
//	rempart-lab capture [--world NAME] internet -o FILE [--seconds N]
//	rempart-lab leaktest [--world NAME] [--pin PIN] [--rows TEXT] [--json] [HANDSET]
//	rempart-lab call [--world NAME] A B [--send WAV] [--send-back WAV] [--receive WAV] [--seconds N] [--json]
//	rempart-lab demo [--out DIR] [--handsets N] [--bin DIR] [--world NAME] [--keep]
//	rempart-lab help
//
// It runs at a desk or in CI, as root, and never ships in a handset. The
// machines are package board/netns's; what makes strangers of machines into
// handsets of one authority (keys, policy, images, enrolment) is package
// bringup.
package main
