package jpeg

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Markers (T.81, table B.1).
const (
	markerTEM   = 0x01
	markerSOF0  = 0xc0 // baseline
	markerSOF1  = 0xc1 // extended sequential
	markerSOF2  = 0xc2 // progressive
	markerDHT   = 0xc4
	markerJPG   = 0xc8
	markerDAC   = 0xcc
	markerSOF15 = 0xcf
	markerRST0  = 0xd0
	markerRST7  = 0xd7
	markerSOI   = 0xd8
	markerEOI   = 0xd9
	markerSOS   = 0xda
	markerDQT   = 0xdb
	markerDNL   = 0xdc
	markerDRI   = 0xdd
	markerDHP   = 0xde
	markerEXP   = 0xdf
	markerAPP0  = 0xe0
	markerAPP14 = 0xee
)

// unsupported are the frames that are refused, by marker.
var unsupported = map[byte]string{
	0xc3: "lossless", 0xc5: "hierarchical", 0xc6: "hierarchical", 0xc7: "hierarchical", markerJPG: "extended (JPG)",
	0xc9: "arithmetic-coded", 0xca: "arithmetic-coded", 0xcb: "arithmetic-coded lossless", 0xcd: "arithmetic-coded hierarchical",
	0xce: "arithmetic-coded hierarchical", markerSOF15: "arithmetic-coded hierarchical", markerDHP: "hierarchical", markerEXP: "hierarchical",
}

// noAdobe says that there is no Adobe segment.
const noAdobe = -1

// decoder goes through a file segment by segment.
type decoder struct {
	Header
	file       []byte
	at         int // of the next segment
	components []*component
	maxH, maxV int            // largest sampling factors
	quantizers [4]*[64]uint16 // by destination, in zigzag order
	huffman    [2][4]*huffman // DC and AC, by destination
	interval   int            // MCUs between restart markers, 0 for none
	jfif       bool           // there is a JFIF segment
	adobe      int            // the transform that an Adobe segment names, or noAdobe
	scans      int
}

func open(file []byte) (*decoder, error) {
	if len(file) < 2 || file[0] != 0xff || file[1] != markerSOI {
		return nil, errors.New("the file is no JPEG")
	}
	return &decoder{file: file, at: 2, adobe: noAdobe}, nil
}

// segment reads the next segment and, after a scan's header, its picture data.
func (d *decoder) segment() (ended bool, err error) {
	marker, err := d.marker()
	if err != nil {
		return false, err
	}
	switch {
	case marker == markerEOI && d.components != nil:
		return true, nil
	case marker == markerEOI:
		return false, errors.New("the file has no picture")
	case marker == markerSOI:
		return false, errors.New("the file is damaged: a second picture begins within the first")
	case marker == markerTEM, markerRST0 <= marker && marker <= markerRST7:
		return false, nil // without a body
	case marker == markerDNL:
		return false, errors.New("the picture's height is told by a DNL segment, which is not supported")
	case unsupported[marker] != "":
		return false, fmt.Errorf("the file is %s JPEG, which is not supported; only baseline and progressive Huffman coding is", unsupported[marker])
	}
	body, err := d.body()
	if err != nil {
		return false, err
	}
	switch marker {
	case markerSOF0, markerSOF1, markerSOF2:
		err = d.startFrame(body, marker == markerSOF2)
	case markerDHT:
		err = d.defineHuffman(body)
	case markerDQT:
		err = d.defineQuantizers(body)
	case markerDRI:
		if len(body) != 2 {
			return false, errors.New("the file is damaged: its restart interval has a wrong length")
		}
		d.interval = int(binary.BigEndian.Uint16(body))
	case markerSOS:
		err = d.scan(body)
	case markerAPP0:
		d.jfif = d.jfif || len(body) >= 14 && string(body[:5]) == "JFIF\x00"
	case markerAPP14:
		if len(body) >= 12 && string(body[:5]) == "Adobe" {
			d.adobe = int(body[11])
		}
	}
	return false, err
}

// marker reads the next marker.
func (d *decoder) marker() (marker byte, err error) {
	marker, d.at, err = nextMarker(d.file, d.at)
	return marker, err
}

// nextMarker finds the first marker at or behind a place, and the place behind it. Stray bytes before it, which some
// cameras leave behind picture data, are skipped.
func nextMarker(file []byte, at int) (marker byte, behind int, err error) {
	for ; at+1 < len(file); at++ {
		if marker = file[at+1]; file[at] == 0xff && marker != 0 && marker != 0xff {
			return marker, at + 2, nil
		}
	}
	return 0, at, ErrTruncated
}

// body reads what a segment holds after its length.
func (d *decoder) body() ([]byte, error) {
	if d.at+2 > len(d.file) {
		return nil, ErrTruncated
	}
	length := int(binary.BigEndian.Uint16(d.file[d.at:]))
	if length < 2 {
		return nil, errors.New("the file is damaged: a segment has no room for its own length")
	}
	if d.at+length > len(d.file) {
		return nil, ErrTruncated
	}
	body := d.file[d.at+2 : d.at+length]
	d.at += length
	return body, nil
}

// defineQuantizers reads tables of quantizer steps (T.81, B.2.4.1).
func (d *decoder) defineQuantizers(body []byte) error {
	for len(body) > 0 {
		wide, to := int(body[0]>>4), body[0]&15
		size := 64 << wide
		if wide > 1 || to > 3 || len(body) < 1+size {
			return errors.New("the file is damaged: its quantization tables are malformed")
		}
		table := new([64]uint16)
		for k := range table {
			if wide == 1 {
				table[k] = binary.BigEndian.Uint16(body[1+2*k:])
			} else {
				table[k] = uint16(body[1+k])
			}
		}
		d.quantizers[to] = table
		body = body[1+size:]
	}
	return nil
}

// defineHuffman reads tables of Huffman codes (T.81, B.2.4.2).
func (d *decoder) defineHuffman(body []byte) error {
	for len(body) > 0 {
		if len(body) < 17 || body[0]>>4 > 1 || body[0]&15 > 3 {
			return errors.New("the file is damaged: its Huffman tables are malformed")
		}
		class, to := body[0]>>4, body[0]&15
		counts, total := [16]uint8(body[1:17]), 0
		for _, n := range counts {
			total += int(n)
		}
		if total > 256 || len(body) < 17+total {
			return errors.New("the file is damaged: its Huffman tables are malformed")
		}
		table, err := newHuffman(counts, body[17:17+total])
		if err != nil {
			return err
		}
		d.huffman[class][to] = table
		body = body[17+total:]
	}
	return nil
}
