package train_test

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/weights"
)

// A run that is killed after step 5 and resumed from its checkpoint of step 4 ends like one that was not.
func Example() {
	parent, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(parent)
	folder := filepath.Join(parent, "run")

	run, err := train.CreateRun(folder, []byte("steps = 8\n"), train.Session{Program: "v1"})
	if err == nil {
		err = work(run, 5)
	}
	if err == nil {
		run, err = train.ResumeRun(folder, nil, train.Session{Program: "v1"})
	}
	if err == nil {
		err = work(run, 8)
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	events, err := train.ReadEvents(filepath.Join(folder, "events.jsonl"))
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, e := range events {
		weight, _ := e.Number("weight")
		fmt.Print(e.Step, ":", weight, " ")
	}
	fmt.Println()
	// Output: 1:0.5 2:0.25 3:0.125 4:0.0625 5:0.03125 6:0.015625 7:0.0078125 8:0.00390625
}

// work halves a weight in every step and saves every second step.
func work(run *train.RunDir, until int) error {
	defer run.Close()
	checkpoints, err := train.OpenCheckpoints(run.CheckpointsPath(), 2)
	if err != nil {
		return err
	}
	step, weight := 0, []float32{1}
	latest, _, err := checkpoints.Latest()
	if err != nil {
		return err
	}
	if latest != nil {
		saved, err := latest.Tensors()
		if err != nil {
			return err
		}
		defer saved.Close()
		tensor, err := saved.Tensor("weight")
		if err != nil {
			return err
		}
		if weight, err = tensor.Float32(); err != nil {
			return err
		}
		step = latest.Step
	}
	log, err := train.OpenEventLog(run.EventsPath(), step)
	if err != nil {
		return err
	}
	defer log.Close()
	for step++; step <= until; step++ {
		weight[0] /= 2
		if err := log.Append(train.Event{Step: step, Kind: "halved", Fields: map[string]any{"weight": weight[0]}}); err != nil {
			return err
		}
		if step%2 == 0 {
			if err := log.Sync(); err != nil {
				return err
			}
			tensors := []*weights.Tensor{weights.NewFloat32("weight", []int{1}, weight)}
			if err := checkpoints.Save(step, tensors, nil); err != nil {
				return err
			}
		}
	}
	return nil
}
