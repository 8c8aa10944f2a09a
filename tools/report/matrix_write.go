package report

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"rempart/board/scenario/matrix"
	"rempart/internal/atomicfile"
)

// WriteMatrix writes matrix.json into the folder, which must exist.
func WriteMatrix(dir string, m *matrix.Report) error {
	b, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return fmt.Errorf("cannot write the matrix: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(dir, "matrix.json"), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("cannot write the matrix: %w", err)
	}
	return nil
}
