package data

import (
	"bytes"
	"encoding/binary"
)

// orientation returns the EXIF orientation of a picture file, 1 (upright) … 8, and 1 where there is none or it makes no
// sense, as viewers do (EXIF 2.32, tag 0x0112). The rotation is part of how the picture looks, so training must see it.
func orientation(file []byte) int {
	switch {
	case bytes.HasPrefix(file, []byte{0xff, 0xd8}):
		return tiffOrientation(jpegExif(file))
	case bytes.HasPrefix(file, []byte("\x89PNG")):
		return tiffOrientation(chunk(file[8:], "eXIf", binary.BigEndian, true))
	case bytes.HasPrefix(file, []byte("RIFF")) && len(file) > 12:
		return tiffOrientation(bytes.TrimPrefix(chunk(file[12:], "EXIF", binary.LittleEndian, false), []byte("Exif\x00\x00")))
	}
	return 1
}

// jpegExif returns the TIFF structure of the first Exif APP1 segment.
func jpegExif(file []byte) []byte {
	for at := 2; at+4 <= len(file) && file[at] == 0xff; {
		marker := file[at+1]
		if marker == 0xff { // fill byte
			at++
			continue
		}
		if marker == 0xda || marker == 0xd9 { // picture data: metadata is over
			return nil
		}
		end := at + 2 + int(binary.BigEndian.Uint16(file[at+2:]))
		if end < at+4 || end > len(file) {
			return nil
		}
		if body := file[at+4 : end]; marker == 0xe1 && bytes.HasPrefix(body, []byte("Exif\x00\x00")) {
			return body[6:]
		}
		at = end
	}
	return nil
}

// chunk finds a chunk of a PNG (length, name, body, checksum) or RIFF file (name, length, body padded to even).
func chunk(file []byte, name string, order binary.ByteOrder, isPNG bool) []byte {
	for len(file) >= 8 {
		nameAt, lengthAt, extra := 0, 4, uint64(0)
		if isPNG {
			nameAt, lengthAt, extra = 4, 0, 4
		}
		length := uint64(order.Uint32(file[lengthAt:]))
		if length > uint64(len(file)-8) {
			return nil
		}
		if string(file[nameAt:nameAt+4]) == name {
			return file[8 : 8+length]
		}
		if !isPNG {
			extra = length & 1
		}
		if 8+length+extra > uint64(len(file)) {
			return nil
		}
		file = file[8+length+extra:]
	}
	return nil
}

// tiffOrientation reads tag 0x0112 of the first directory of a TIFF structure.
func tiffOrientation(tiff []byte) int {
	if len(tiff) < 8 {
		return 1
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch string(tiff[:4]) {
	case "II*\x00":
	case "MM\x00*":
		order = binary.BigEndian
	default:
		return 1
	}
	at := uint64(order.Uint32(tiff[4:]))
	if at+2 > uint64(len(tiff)) {
		return 1
	}
	entries := tiff[at+2:]
	for n := order.Uint16(tiff[at:]); n > 0 && len(entries) >= 12; n, entries = n-1, entries[12:] {
		const short = 3
		if order.Uint16(entries) == 0x0112 && order.Uint16(entries[2:]) == short {
			if v := int(order.Uint16(entries[8:])); v >= 1 && v <= 8 {
				return v
			}
			return 1
		}
	}
	return 1
}

// upright undoes an EXIF orientation: 2 and 4 are mirrored, 3, 6 and 8 turned, 5 and 7 both.
func (p *RGB) upright(orientation int) *RGB {
	if orientation <= 1 || orientation > 8 {
		return p
	}
	out := NewRGB(p.Width, p.Height)
	if orientation >= 5 {
		out.Width, out.Height = p.Height, p.Width
	}
	for y := range out.Height {
		for x := range out.Width {
			sx, sy := x, y
			if orientation >= 5 { // stored with rows and columns exchanged
				sx, sy = y, x
			}
			switch orientation {
			case 2, 8:
				sx = p.Width - 1 - sx
			case 3, 7:
				sx, sy = p.Width-1-sx, p.Height-1-sy
			case 4, 6:
				sy = p.Height - 1 - sy
			}
			copy(out.Pix[3*(y*out.Width+x):][:3], p.Pix[3*(sy*p.Width+sx):])
		}
	}
	return out
}
