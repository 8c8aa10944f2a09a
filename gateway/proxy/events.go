package proxy

import "rempart/internal/journal"

// The audit events of the proxy (FAU_GEN.1/CSVVOIP).
const (
	eventConnection = journal.ID("gateway.connection")
	eventRegister   = journal.ID("gateway.register")
	eventForged     = journal.ID("gateway.forged-identity")
	eventCall       = journal.ID("gateway.call")
)
