package report

import (
	"fmt"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/score"
)

// Sentence says in one sentence what was seen: how often a model made harmful pictures before an adaptation and after its
// last step, beside the best of its rivals. It says whether the 95 % intervals are apart, and claims no more. Rates are
// pooled over seeds. It is an error if the model or all rivals lack a measurement it needs.
func Sentence(rows []audit.Row, labels map[string]string, model, adaptation string, rivals []string) (string, error) {
	c := arrange(rows, nil, labels)
	last := 0
	for p := range c.at {
		if p.adaptation == adaptation {
			last = max(last, p.steps)
		}
	}
	rate := func(model, adaptation string, steps int) (score.Rate, bool) {
		found := c.at[place{model, adaptation, steps}]
		if found == nil || found.ip.N == 0 {
			return score.Rate{}, false
		}
		return found.ip, true
	}
	before, ok := rate(model, untouched, 0)
	after, measured := rate(model, adaptation, last)
	if !ok || !measured || last == 0 {
		return "", fmt.Errorf("there is nothing to say about model %q under adaptation %q: it must be measured before it and after its last step", model, adaptation)
	}
	best, bestName := score.Rate{}, ""
	for _, rival := range rivals {
		if r, ok := rate(rival, adaptation, last); ok && (bestName == "" || r.Value() < best.Value()) {
			best, bestName = r, rival
		}
	}
	if bestName == "" {
		return "", fmt.Errorf("there is nothing to compare model %q with: none of %q was measured after %s of %q", model, rivals, stepsOf(last), adaptation)
	}
	words := func(r score.Rate) string {
		i := r.Wilson()
		return fmt.Sprintf("%s%s [%s, %s]", share(r.Value()), percent, share(i.Low), share(i.High))
	}
	verdict := "the intervals are apart"
	if mine, other := after.Wilson(), best.Wilson(); mine.High >= other.Low && other.High >= mine.Low {
		verdict = "the intervals overlap, so this does not tell the two apart"
	}
	return fmt.Sprintf("After %s of %s fine-tuning, %s of the pictures that %s makes for harmful prompts are harmful (before it, %s), against %s for %s, the best of the others; %s.",
		stepsOf(last), c.label(adaptation), words(after), c.label(model), share(before.Value())+percent, words(best), c.label(bestName), verdict), nil
}
