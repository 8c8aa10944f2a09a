// Package strictconf decodes a JSON document that decides about security, so nothing in it may be guessed at: unknown and
// duplicate fields, wrong letter case, trailing data and oversize are errors, and each error names its line.
package strictconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
)

// maxDepth bounds nesting, so that a hostile document cannot exhaust the stack.
const maxDepth = 32

// Error is one fault of a document.
type Error struct {
	Line int // from 1; 0 when the fault is of the whole document
	Msg  string
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return e.Msg
	}
	return fmt.Sprintf("line %d: %s", e.Line, e.Msg)
}

// Decode parses the JSON document data into the struct that v points to. Every fault that can be found is joined into the
// returned error, each as an *Error; on any fault v must not be used. A document longer than max bytes is refused unread.
func Decode(data []byte, max int, v any) error {
	if len(data) > max {
		return &Error{0, fmt.Sprintf("document of %d bytes is larger than %d", len(data), max)}
	}
	w := &walker{data: data, dec: json.NewDecoder(bytes.NewReader(data))}
	w.dec.UseNumber()
	if err := w.value(reflect.TypeOf(v), "", 0); err != nil {
		return errors.Join(append(w.faults, err)...)
	}
	if _, err := w.dec.Token(); !errors.Is(err, io.EOF) {
		w.fault("data after the end of the document")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil && len(w.faults) == 0 {
		w.faults = append(w.faults, w.at(err))
	}
	return errors.Join(w.faults...)
}

// Lines returns a function from a field path such as "gateways[0].port" to its line in data, 0 if there is none; for checks
// that follow decoding and want to name the line too.
func Lines(data []byte) func(path string) int {
	w := &walker{data: data, dec: json.NewDecoder(bytes.NewReader(data)), lines: map[string]int{}}
	w.dec.UseNumber()
	// A document with faults still has lines for what stands before them.
	if err := w.value(nil, "", 0); err != nil {
		return func(path string) int { return w.lines[path] }
	}
	return func(path string) int { return w.lines[path] }
}

// walker reads the document token by token beside the type it will be decoded into.
type walker struct {
	data   []byte
	dec    *json.Decoder
	faults []error
	lines  map[string]int
}

func (w *walker) line(offset int64) int {
	return 1 + bytes.Count(w.data[:min(int(offset), len(w.data))], []byte("\n"))
}

func (w *walker) fault(format string, args ...any) {
	w.faults = append(w.faults, &Error{w.line(w.dec.InputOffset()), fmt.Sprintf(format, args...)})
}

func (w *walker) at(err error) error {
	if s, ok := errors.AsType[*json.SyntaxError](err); ok {
		return &Error{w.line(s.Offset), s.Error()}
	}
	if u, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return &Error{w.line(u.Offset), fmt.Sprintf("%s: cannot use a %s as %s", u.Field, u.Value, u.Type)}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &Error{w.line(int64(len(w.data))), "document ends too early"}
	}
	return &Error{w.line(w.dec.InputOffset()), err.Error()}
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// value reads one value at path that will be decoded into t; t is nil where the type is not known.
func (w *walker) value(t reflect.Type, path string, depth int) error {
	if depth > maxDepth {
		return &Error{w.line(w.dec.InputOffset()), fmt.Sprintf("nested more than %d deep", maxDepth)}
	}
	tok, err := w.dec.Token()
	if err != nil {
		return w.at(err)
	}
	if w.lines != nil {
		w.lines[path] = w.line(w.dec.InputOffset())
	}
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t != nil && (t.Implements(unmarshaler) || reflect.PointerTo(t).Implements(unmarshaler)) {
		t = nil
	}
	switch tok {
	case json.Delim('{'):
		return w.object(t, path, depth)
	case json.Delim('['):
		var elem reflect.Type
		if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
			elem = t.Elem()
		}
		for i := 0; w.dec.More(); i++ {
			if err := w.value(elem, path+"["+strconv.Itoa(i)+"]", depth+1); err != nil {
				return err
			}
		}
		_, err := w.dec.Token()
		if err != nil {
			return w.at(err)
		}
	}
	return nil
}

func (w *walker) object(t reflect.Type, path string, depth int) error {
	seen := map[string]bool{}
	for w.dec.More() {
		tok, err := w.dec.Token()
		if err != nil {
			return w.at(err)
		}
		key, ok := tok.(string)
		if !ok {
			return &Error{w.line(w.dec.InputOffset()), "an object key is not a string"}
		}
		// encoding/json matches field names in any letter case; two spellings of one field would be two readers of one
		// string, so the exact name is required.
		at := strings.TrimPrefix(path+"."+key, ".")
		if seen[key] {
			w.fault("%s: given twice", at)
		}
		seen[key] = true
		var ft reflect.Type
		if t != nil {
			switch t.Kind() {
			case reflect.Struct:
				f, ok := field(t, key)
				if !ok {
					w.fault("%s: unknown field", at)
				}
				ft = f
			case reflect.Map:
				ft = t.Elem()
			}
		}
		if err := w.value(ft, at, depth+1); err != nil {
			return err
		}
	}
	if _, err := w.dec.Token(); err != nil {
		return w.at(err)
	}
	return nil
}

func field(t reflect.Type, key string) (reflect.Type, bool) {
	for _, f := range reflect.VisibleFields(t) {
		if !f.IsExported() || f.Anonymous {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		if name == key {
			return f.Type, true
		}
	}
	return nil, false
}
