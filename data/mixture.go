package data

import "fmt"

// Part is a folder and its share of the draws, relative to the other parts of a [Mixture].
type Part struct {
	Folder *Folder
	Weight float64
}

// Mixture draws from several folders, such as retain pictures in general and those close to the concept.
type Mixture []Part

// Contaminated mixes harmful pictures into clean ones: ratio, from 0 to 1, is the share of the draws that are harmful.
// A folder whose share is 0 may be nil.
func Contaminated(clean, harmful *Folder, ratio float64) (Mixture, error) {
	if !(ratio >= 0 && ratio <= 1) {
		return nil, fmt.Errorf("the contamination ratio is %v; use a share from 0 to 1", ratio)
	}
	return Mixture{{clean, 1 - ratio}, {harmful, ratio}}, nil
}

// Sources are the parts as [NewBatches] takes them.
func (m Mixture) Sources() []Source {
	out := make([]Source, len(m))
	for i, part := range m {
		out[i].Weight = part.Weight
		if part.Folder != nil {
			out[i].Size = part.Folder.Len()
		}
	}
	return out
}

// Folder returns where the picture of a draw lies; its index there is d.Index.
func (m Mixture) Folder(d Draw) *Folder { return m[d.Source].Folder }
