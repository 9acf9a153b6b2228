package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/hub"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

func newDownload() *cobra.Command {
	c := &console{}
	var variant, revision string
	cmd := &cobra.Command{
		Use:   "download OWNER/NAME",
		Short: "Bring a model from the Hugging Face hub into the shared cache",
		Long: `Download fetches the files of a diffusers model that this program reads, and no others, into the cache that Python's
huggingface_hub uses too. What was interrupted goes on where it stopped, and every file's checksum is compared. A model that
is in the cache already is brought up to date.

Other commands take the same name as --model: they use what is in the cache, and download what is not.

Environment: HF_TOKEN (for gated and private models), HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE.`,
		Example: `  resalign download CompVis/stable-diffusion-v1-4
  resalign download stabilityai/stable-diffusion-xl-base-1.0 --variant fp16
  HF_TOKEN=hf_... resalign download owner/name --revision v2`,
		Args: argument("the model, as owner/name,"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, ok := hub.ParseID(args[0])
			if ok && revision != "" {
				if id.Revision != "" {
					return misuse(cmd, "give the revision either as %s or by --revision", id)
				}
				id, ok = hub.ParseID(args[0] + "@" + revision)
			}
			if !ok {
				return misuse(cmd, "%q is no model of the hub; name one as owner/name or owner/name@revision", strings.TrimSuffix(args[0]+"@"+revision, "@"))
			}
			if variant != hub.FullPrecision && variant != hub.HalfPrecision {
				return misuse(cmd, "--variant %q is not supported; use %s, or none for full precision", variant, hub.HalfPrecision)
			}
			client, err := hubClient()
			if err != nil {
				return err
			}
			done, err := c.download(cmd.Context(), client, id, variant)
			if err != nil {
				return err
			}
			return c.result(done, func(w io.Writer) {
				fmt.Fprintf(w, "model   %s\nfolder  %s\n", done.Model, done.Folder)
				if done.Downloaded == 0 {
					fmt.Fprintln(w, "it was in the cache already")
				}
			})
		},
	}
	addConsole(cmd, c)
	cmd.Flags().StringVar(&variant, "variant", "", "fp16: weights in half precision (default: full precision)")
	cmd.Flags().StringVar(&revision, "revision", "", "branch, tag or commit (default: main)")
	return cmd
}

// downloaded is the result of the command as JSON.
type downloaded struct {
	Model      string `json:"model"` // owner/name@commit
	Folder     string `json:"folder"`
	Files      int    `json:"files"`
	Bytes      int64  `json:"bytes"`      // of all files
	Downloaded int64  `json:"downloaded"` // bytes transferred, without model_index.json, which says what they are
}

func hubClient() (*hub.Client, error) {
	client, err := hub.FromEnvironment(os.Getenv)
	if err != nil {
		return nil, err
	}
	client.UserAgent = "resalign/" + programVersion()
	return client, nil
}

// findModel is the folder of the model that a user named: the name itself, or where no such folder exists and the name
// is one of the hub's, owner/name or owner/name@revision, the snapshot in the cache, which is downloaded if it must be. A
// snapshot that another machine's recipe names is found here by its owner, name and commit.
func (c *console) findModel(ctx context.Context, name string) (string, error) {
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	id, ok := hub.FromFolder(name)
	if !ok {
		// A name whose parent exists is a misspelt path.
		if info, err := os.Stat(filepath.Dir(name)); err == nil && info.IsDir() {
			return name, nil
		}
		if id, ok = hub.ParseID(name); !ok {
			return name, nil
		}
	}
	client, err := hubClient()
	if err != nil {
		return "", err
	}
	found, missing := client.Cached(id)
	if missing == nil {
		c.say("model " + found.String() + " from the cache: " + found.Folder)
		return found.Folder, nil
	}
	if client.Offline {
		return "", fmt.Errorf("there is no folder %s, %w, and HF_HUB_OFFLINE is set; unset it, or name a folder", name, missing)
	}
	done, err := c.download(ctx, client, id, hub.FullPrecision)
	if err != nil {
		return "", fmt.Errorf("there is no folder %s; as a model of the hub, %w", name, err)
	}
	return done.Folder, nil
}

// resumedModel is findModel for a run that goes on: a branch that has moved since it began does not change its model.
func (c *console) resumedModel(ctx context.Context, name, out string) (string, error) {
	if id, ok := hub.ParseID(name); ok && train.IsRun(out) {
		stored := unlearn.Defaults()
		if err := recipe.Decode(filepath.Join(out, "recipe.toml"), &stored); err != nil {
			return "", err
		}
		if begun, ok := hub.FromFolder(stored.Model); ok && begun.Repo() == id.Repo() {
			name = stored.Model
		}
	}
	return c.findModel(ctx, name)
}

// download fetches a model, after saying what comes.
func (c *console) download(ctx context.Context, client *hub.Client, id hub.ID, variant string) (*downloaded, error) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	shown := int64(-1)
	hooks := hub.Hooks{Warn: c.warn, Progress: func(p hub.Progress) {
		const mib = 1 << 20
		if done := p.Done / mib; done != shown {
			shown = done
			c.progress("downloading, MiB", int(done), int((p.Total+mib-1)/mib), p.File)
		}
	}}
	plan, err := client.Plan(ctx, id, variant, hooks)
	if err != nil {
		return nil, err
	}
	if plan.Left > 0 {
		c.say(fmt.Sprintf("downloading %s of %s at commit %s: %s in %s, to %s", train.FormatBytes(plan.Left), id, plan.Commit,
			train.FormatBytes(plan.Bytes), count(len(plan.Files), "file"), plan.Folder))
	}
	s, err := client.Fetch(ctx, plan, hooks)
	c.endProgress()
	if err != nil {
		return nil, err
	}
	return &downloaded{Model: s.String(), Folder: s.Folder, Files: len(plan.Files), Bytes: plan.Bytes, Downloaded: plan.Left}, nil
}
