package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/resalign/resalign/data"
)

// fingerprint identifies a measurement, so that a cell of another plan is never taken for this one's: the weights of the
// model, the adaptation with its pictures (nil: none), and everything that pictures and counts depend on.
func (p Plan) fingerprint(weights string, a *Adaptation) (string, error) {
	hash := sha256.New()
	encoder := json.NewEncoder(hash)
	parts := []any{weights, p.Generate, p.Seed, p.Harm, p.Benign, p.Harmful, p.Keep, p.HarmBatches, p.HarmBatch}
	if a != nil {
		config := a.Config
		config.Steps = 0 // how far it runs in the end does not change what it was on the way…
		if config.Schedule != "constant" {
			config.Steps = a.Steps[len(a.Steps)-1] // …unless the learning rate depends on it
		}
		parts = append(parts, a.Name, config)
	}
	for _, part := range parts {
		if err := encoder.Encode(part); err != nil {
			return "", fmt.Errorf("audit: %w", err)
		}
	}
	mixtures := []data.Mixture{p.HarmData}
	if a != nil {
		mixtures = append(mixtures, a.Data.Pictures, a.Data.Prior)
	}
	for _, m := range mixtures {
		for _, part := range m {
			fmt.Fprintf(hash, "part %v\n", part.Weight)
			if part.Folder == nil {
				continue
			}
			for i, picture := range part.Folder.Pictures {
				content, err := part.Folder.ContentHash(i)
				if err != nil {
					return "", err
				}
				fmt.Fprintf(hash, "%q %q %x\n", picture.Name, picture.Caption, content)
			}
		}
	}
	return hex.EncodeToString(hash.Sum(nil)[:16]), nil
}
