package wireguard

import "rempart/internal/journal"

// EventTrouble is a failure that wireguard-go reported: what it could not do
// and why, at most [logBurst] in a minute.
const EventTrouble = journal.ID("wireguard.trouble")
