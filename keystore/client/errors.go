package client

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"rempart/internal/sock/httpsock"
)

// What a caller may branch on. Each is found with errors.Is or errors.As.
var (
	// ErrLocked means that the PIN was not given in this boot.
	ErrLocked = errors.New("keystore is locked")
	// ErrNotProvisioned means that the handset was not enrolled, or has no
	// certificate yet.
	ErrNotProvisioned = errors.New("keystore is not provisioned")
	// ErrTPMGone means that keyd lost the TPM. It will not come back in this
	// boot.
	ErrTPMGone = errors.New("tpm is gone")
	// ErrRefused means that keyd will not do this for this process, or not in
	// this state of the image.
	ErrRefused = errors.New("keystore refused")
)

// ErrWrongPIN means that the PIN is wrong.
type ErrWrongPIN struct {
	// TriesLeft is how many more wrong PINs the TPM takes before it locks out.
	TriesLeft int
}

func (e ErrWrongPIN) Error() string {
	return fmt.Sprintf("wrong pin, %d tries left", e.TriesLeft)
}

// ErrLockout means that the TPM takes no PIN now, not even the right one.
type ErrLockout struct {
	// For is how long until the TPM takes one more try. It counts only while
	// the TPM is powered.
	For time.Duration
}

func (e ErrLockout) Error() string {
	return fmt.Sprintf("tpm is locked out, one more try in %s", e.For)
}

// The HTTP status of each refusal.
const (
	StatusLocked         = http.StatusLocked
	StatusNotProvisioned = http.StatusPreconditionFailed
	StatusTPMGone        = http.StatusServiceUnavailable
	StatusRefused        = http.StatusForbidden
	StatusWrongPIN       = http.StatusForbidden // with FactTriesLeft
	StatusLockout        = http.StatusTooManyRequests
)

// typed gives a refusal by keyd its type. Other errors stay as they are.
func typed(err error) error {
	var refusal *httpsock.Error
	if !errors.As(err, &refusal) {
		return err
	}
	var kind error
	switch refusal.Status {
	case StatusLocked:
		kind = ErrLocked
	case StatusNotProvisioned:
		kind = ErrNotProvisioned
	case StatusTPMGone:
		kind = ErrTPMGone
	case StatusLockout:
		return ErrLockout{For: time.Duration(refusal.Facts[FactLockoutSeconds]) * time.Second}
	case StatusRefused:
		if left, ok := refusal.Facts[FactTriesLeft]; ok {
			return ErrWrongPIN{TriesLeft: int(left)}
		}
		kind = ErrRefused
	default:
		return err
	}
	return &refused{kind: kind, cause: refusal}
}

// refused is one of the sentinels with keyd's own words. The words are the
// message: they say more.
type refused struct {
	kind  error
	cause *httpsock.Error
}

func (r *refused) Error() string   { return r.cause.Message }
func (r *refused) Unwrap() []error { return []error{r.kind, r.cause} }
