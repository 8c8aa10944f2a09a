package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"

	"rempart/internal/atomicfile"
)

// Write writes summary.json and report.html into the folder, which must exist.
// Finish must have been called.
func Write(dir string, s *Summary) error {
	if s.Version != Version {
		return fmt.Errorf("cannot write report: it was not finished")
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot write summary: %w", err)
	}
	var page bytes.Buffer
	if err := HTML(&page, s); err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(dir, "summary.json"), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("cannot write summary: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(dir, "report.html"), page.Bytes(), 0o644); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	return nil
}
