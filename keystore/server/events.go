package server

import "rempart/internal/journal"

// The audit events of the keystore.
const (
	eventStart       = journal.ID("keystore.start")
	eventEnrol       = journal.ID("keystore.enrol")
	eventCertificate = journal.ID("keystore.certificate")
	eventUnlock      = journal.ID("keystore.unlock")
	eventFloor       = journal.ID("keystore.floor")
	eventCap         = journal.ID("keystore.cap")
	eventTunnelKey   = journal.ID("keystore.tunnel-key")
	eventSign        = journal.ID("keystore.sign")
	eventStorage     = journal.ID("keystore.storage")
	eventRefused     = journal.ID("keystore.access")
	eventFailed      = journal.ID("keystore.failed")
	eventStop        = journal.ID("keystore.stop")
)
