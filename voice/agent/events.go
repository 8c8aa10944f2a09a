package agent

import "rempart/internal/journal"

// The audit events of calls (FAU_GEN.1/CSVVOIP, /P2PVVOIP).
const (
	eventCall  = journal.ID("voice.call")
	eventKeys  = journal.ID("voice.keys")
	eventAudio = journal.ID("voice.audio")
	eventStore = journal.ID("voice.store")
)
