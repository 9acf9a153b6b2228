// Command resalign unlearns concepts from Stable Diffusion models so that they stay unlearned, and checks that they do.
//
// It holds flags and output; what the commands do is in the packages beside it. Exit codes: 0 done, 1 failed, 2 wrong
// usage, 70 a bug in this program, 130 interrupted.
package main

import (
	"context"
	"os"
)

func main() { os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)) }
