package weights

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"unicode/utf8"
)

// headerEntry is what a safetensors header says of one tensor. Offsets count from the end of the header; parseHeader
// has checked that begin ≤ end and that the range has exactly the size of shape × dtype.
type headerEntry struct {
	dtype      DType
	shape      []int
	begin, end uint64
}

// parseHeader reads a header strictly: JSON of exactly the expected form, without duplicate or unknown keys.
func parseHeader(header []byte) (map[string]headerEntry, map[string]string, error) {
	if header[0] != '{' {
		return nil, nil, fmt.Errorf("the header starts with %q instead of '{', so this is not a safetensors file or it is damaged", header[0])
	}
	if !utf8.Valid(header) {
		return nil, nil, errors.New("the header is not valid UTF-8")
	}
	r := newJSONReader(header)
	entries := map[string]headerEntry{}
	var metadata map[string]string
	err := r.object("the header", func(name string) error {
		if name == "__metadata__" {
			metadata = map[string]string{}
			return r.object("__metadata__", func(key string) (err error) {
				metadata[key], err = r.text("__metadata__ value of " + strconv.Quote(key))
				return err
			})
		}
		e, err := r.entry(fmt.Sprintf("tensor %q", name))
		entries[name] = e
		return err
	})
	if err == nil {
		err = r.end(" ")
	}
	if err != nil {
		return nil, nil, err
	}
	return entries, metadata, nil
}

func (r *jsonReader) entry(what string) (headerEntry, error) {
	var e headerEntry
	var seen struct{ dtype, shape, offsets bool }
	err := r.object(what, func(key string) error {
		switch key {
		case "dtype":
			seen.dtype = true
			name, err := r.text(what + ": dtype")
			if err != nil {
				return err
			}
			if e.dtype, err = ParseDType(name); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		case "shape":
			seen.shape = true
			return r.naturals(what+": shape", maxRank, func(n uint64) error {
				if n > math.MaxInt {
					return fmt.Errorf("%s: shape: %d is too large for a dimension", what, n)
				}
				e.shape = append(e.shape, int(n))
				return nil
			})
		case "data_offsets":
			seen.offsets = true
			var offsets []uint64
			err := r.naturals(what+": data_offsets", 2, func(n uint64) error {
				offsets = append(offsets, n)
				return nil
			})
			if err != nil {
				return err
			}
			if len(offsets) != 2 {
				return fmt.Errorf("%s: data_offsets has %d numbers instead of 2", what, len(offsets))
			}
			e.begin, e.end = offsets[0], offsets[1]
			return nil
		}
		return fmt.Errorf("%s: unknown field %q", what, key)
	})
	if err != nil {
		return e, err
	}
	if !seen.dtype || !seen.shape || !seen.offsets {
		return e, fmt.Errorf("%s: one of the fields dtype, shape and data_offsets is missing", what)
	}
	if e.begin > e.end {
		return e, fmt.Errorf("%s: data_offsets [%d, %d] end before they begin", what, e.begin, e.end)
	}
	n, ok := elements(e.shape)
	if !ok {
		return e, fmt.Errorf("%s: shape %v has more elements than can be counted", what, e.shape)
	}
	if size := uint64(n) * uint64(e.dtype.Size()); size != e.end-e.begin {
		return e, fmt.Errorf("%s: shape %v of %s takes %d bytes, but data_offsets [%d, %d] span %d", what, e.shape, e.dtype, size,
			e.begin, e.end, e.end-e.begin)
	}
	return e, nil
}

// jsonReader walks through JSON of a known form, and refuses duplicate keys, which encoding/json would accept.
type jsonReader struct {
	data []byte
	dec  *json.Decoder
}

func newJSONReader(data []byte) *jsonReader {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	return &jsonReader{data, dec}
}

func (r *jsonReader) token(what string) (json.Token, error) {
	token, err := r.dec.Token()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("%s: the JSON text ends too early", what)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: not valid JSON: %w", what, err)
	}
	return token, nil
}

// object reads an object; member reads the value that belongs to a key.
func (r *jsonReader) object(what string, member func(key string) error) error {
	token, err := r.token(what)
	if err != nil {
		return err
	}
	if token != json.Delim('{') {
		return fmt.Errorf("%s: a JSON object is expected, but there is %s", what, describe(token))
	}
	seen := map[string]bool{}
	for {
		token, err := r.token(what)
		if err != nil {
			return err
		}
		if token == json.Delim('}') {
			return nil
		}
		key, ok := token.(string)
		if !ok {
			return fmt.Errorf("%s: a key is expected, but there is %s", what, describe(token))
		}
		if seen[key] {
			return fmt.Errorf("%s: the key %q occurs twice", what, key)
		}
		seen[key] = true
		if err := member(key); err != nil {
			return err
		}
	}
}

// naturals reads an array of at most most whole numbers, none negative.
func (r *jsonReader) naturals(what string, most int, add func(uint64) error) error {
	token, err := r.token(what)
	if err != nil {
		return err
	}
	if token != json.Delim('[') {
		return fmt.Errorf("%s: a list of numbers is expected, but there is %s", what, describe(token))
	}
	for count := 0; ; count++ {
		token, err := r.token(what)
		if err != nil {
			return err
		}
		if token == json.Delim(']') {
			return nil
		}
		if count == most {
			return fmt.Errorf("%s: more than %d numbers", what, most)
		}
		number, ok := token.(json.Number)
		if !ok {
			return fmt.Errorf("%s: a number is expected, but there is %s", what, describe(token))
		}
		n, err := strconv.ParseUint(number.String(), 10, 64)
		if err != nil {
			return fmt.Errorf("%s: %.40s is not a whole number from 0 to 2⁶⁴−1", what, number)
		}
		if err := add(n); err != nil {
			return err
		}
	}
}

func (r *jsonReader) text(what string) (string, error) {
	token, err := r.token(what)
	if err != nil {
		return "", err
	}
	s, ok := token.(string)
	if !ok {
		return "", fmt.Errorf("%s: a text is expected, but there is %s", what, describe(token))
	}
	return s, nil
}

// end returns an error unless only the bytes in padding follow.
func (r *jsonReader) end(padding string) error {
	if rest := bytes.TrimLeft(r.data[r.dec.InputOffset():], padding); len(rest) > 0 {
		return fmt.Errorf("the JSON object is followed by %d bytes that do not belong there", len(rest))
	}
	return nil
}

func describe(token json.Token) string {
	switch token := token.(type) {
	case json.Delim:
		return "'" + token.String() + "'"
	case string:
		return fmt.Sprintf("the text %.40q", token)
	case json.Number:
		return fmt.Sprintf("the number %.40s", token)
	case bool:
		return strconv.FormatBool(token)
	}
	return "null"
}
