package ask

import "rempart/vpn/egress"

// rereadTries bounds how often a policy that changes while it is read is read again. One that never holds still for as long
// as a reading takes cannot be vouched for.
const rereadTries = 20

// Agreed reads what is in force and compares it with what egressd says. A swap between the answer and the reading is not a
// difference: then egressd's count of changes has moved on, and all is done again. silent is an egressd that does not answer.
func Agreed(status func() (egress.Status, error), read func(egress.Status) error) (difference, silent error) {
	s, err := status()
	for range rereadTries {
		if err != nil {
			return nil, err
		}
		if difference = read(s); difference == nil {
			return nil, nil
		}
		was := s.Changes
		if s, err = status(); err == nil && s.Changes == was {
			return difference, nil
		}
	}
	return difference, nil
}
