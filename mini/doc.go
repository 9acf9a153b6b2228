// Package mini is a text-to-image world so small that the whole experiment – pre-training, unlearning, fine-tuning,
// measuring – takes minutes on two cores. Its pictures are drawings of one coloured shape each, and an innocent thing, a
// red star, stands in for harm.
//
// The package draws the pictures and writes their captions ([Sets], [WriteWorld], [HarmPrompts]), makes a model
// directory in diffusers' layout ([TrainVAE], [NewModelDir]) and trains a detector that tells what a picture shows
// ([TrainDetector]). Everything it writes is ordinary: image folders, prompt lists, a pipeline and a weights file, which
// the rest of the program reads like any others. All of it is a function of the seed.
package mini

// Side is the height and width of the pictures in pixels.
const Side = 16

// Progress is told how far a piece of work is: units done of total, and a note such as "loss 0.123". It may be nil.
type Progress func(done, total int, note string)

func (p Progress) report(done, total int, note string) {
	if p != nil {
		p(done, total, note)
	}
}
