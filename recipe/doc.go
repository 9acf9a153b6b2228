// Package recipe is a strict layer of TOML over Go structs.
//
// A struct with toml tags is the schema. A recipe file may only hold what the struct names: an unknown key is an error
// with the nearest known name, a value of the wrong type says what is expected, and all problems of a file are reported
// together with their lines. Values left out keep what the struct held before, so defaults are set in Go. A preset fills
// the struct before the file does, assignments from the command line after it ([Load]), and [Encode] writes the result so
// that a run can be repeated from it alone.
//
// Fields may be booleans, numbers, strings, [time.Duration] (written "90s"), types that read and write text
// (encoding.TextUnmarshaler and TextMarshaler), structs, slices, arrays, maps with string keys, and pointers to these; a
// nil pointer is a value not given. A field without a tag goes by its name in lower case; the tag "-" hides it, and an
// embedded struct without a tag lends its fields.
package recipe
