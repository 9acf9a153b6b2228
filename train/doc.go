// Package train holds what a training run needs besides its method: a run folder with its lock, an event log,
// checkpoints that survive a crash at any moment, optimizers and their learning-rate schedules, averaging of weights,
// guards against non-finite numbers, an orderly stop on Ctrl-C, and a progress line.
//
// It knows no model. Parameters are tensors or graph nodes in the caller's order; optimizers are pure builders of GoMLX
// graphs, so that one compiled step may hold forward pass, gradients and update together.
package train
