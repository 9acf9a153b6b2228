package protocol

import (
	"fmt"
	"strings"
)

// Clusters for which jobs can be written.
const (
	Kubernetes = "k8s"
	Slurm      = "slurm"
)

// Jobs is the description of an array of jobs, one for each shard, that work in one shared folder. The command is that of
// one shard without its --shard; the last shard to finish writes the report. A job that is killed goes on where it was
// when it is started again.
//
// Kubernetes gets an Indexed Job, whose image and claim the user fills in, Slurm an array.
func Jobs(cluster string, shards int, command []string) (string, error) {
	if shards < 1 || shards > maxShards {
		return "", fmt.Errorf("%d jobs cannot be written; choose a number from 1 to %d", shards, maxShards)
	}
	var words []string
	for _, w := range command {
		words = append(words, quoted(w))
	}
	line := strings.Join(words, " ")
	switch cluster {
	case Kubernetes:
		return fmt.Sprintf(kubernetesJob, shards, shards, yamlText(fmt.Sprintf(`exec %s --shard "$JOB_COMPLETION_INDEX/%d"`, line, shards))), nil
	case Slurm:
		return fmt.Sprintf(slurmJob, shards-1, line, shards), nil
	}
	return "", fmt.Errorf("jobs for %q cannot be written; use %s or %s", cluster, Kubernetes, Slurm)
}

// maxShards bounds what a typing mistake can ask for; Slurm's own limit is often 1001.
const maxShards = 10_000

const kubernetesJob = `# One pod for each shard of the audit, all in one folder. Fill in the image and the claim; the recipe and everything that
# it names must be readable at the same paths in the pods. The last pod to finish writes the report.
apiVersion: batch/v1
kind: Job
metadata:
  generateName: resalign-audit-
spec:
  completionMode: Indexed
  completions: %d
  parallelism: %d
  backoffLimitPerIndex: 20 # a pod that was evicted goes on where it was
  template:
    spec:
      restartPolicy: Never
      containers:
        - name: audit
          image: resalign:latest # an image with the program and a shell
          workingDir: /work
          command: ["/bin/sh", "-c"]
          args:
            - %s
          resources:
            requests: {cpu: "8", memory: 32Gi}
          volumeMounts:
            - {name: shared, mountPath: /work}
      volumes:
        - name: shared
          persistentVolumeClaim: {claimName: resalign} # ReadWriteMany
`

const slurmJob = `#!/bin/sh
# One task for each shard of the audit, all in one folder that every node sees. The last one to finish writes the report.
#SBATCH --job-name=resalign-audit
#SBATCH --array=0-%d
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=resalign-audit-%%A-%%a.log
exec srun %s --shard "$SLURM_ARRAY_TASK_ID/%d"
`

// quoted is a word of a command line of the shell.
func quoted(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:=@%+,", r)
	}
	if word != "" && strings.IndexFunc(word, func(r rune) bool { return !plain(r) }) < 0 {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// yamlText is a text in single quotation marks.
func yamlText(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
