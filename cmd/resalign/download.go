package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/hub"
	"github.com/resalign/resalign/train"
)

func newDownload() *cobra.Command {
	c := &console{}
	var (
		dataset           string
		variant, revision string
		include           []string
	)
	cmd := &cobra.Command{
		Use:   "download OWNER/NAME | --dataset OWNER/NAME",
		Short: "Bring a model or a list of prompts from the Hugging Face hub into the shared cache",
		Long: `Download fetches the files that this program reads, and no others, into the cache that Python's huggingface_hub uses too.
What was interrupted goes on where it stopped, and every file's checksum is compared. What is in the cache already is
brought up to date.

Of a diffusers model these are its configurations, vocabularies and one set of weights; of a transformers model, such as
the CLIP of detectors and metrics, the same; of other models the ONNX files. Of a data set they are the lists that prompts
can be read from: .csv, .jsonl, .json and .txt. --include chooses other files.

Other commands take the same names: a model as --model, CLIP in --detector mhsc:OWNER/NAME,HEADS, a data set as dataset of
an audit's prompts. They use what is in the cache, and download what is not.

Environment: HF_TOKEN (for gated and private repositories), HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE.`,
		Example: `  resalign download CompVis/stable-diffusion-v1-4
  resalign download stabilityai/stable-diffusion-xl-base-1.0 --variant fp16
  resalign download openai/clip-vit-large-patch14
  resalign download --dataset AIML-TUDA/i2p
  HF_TOKEN=hf_... resalign download owner/name --revision v2 --include "*.pth"`,
		Args: func(cmd *cobra.Command, args []string) error {
			if dataset == "" {
				return argument("the model, as owner/name (or a data set, as --dataset owner/name),")(cmd, args)
			}
			if len(args) > 0 {
				return misuse(cmd, "%q is a model and --dataset %s a data set; download one after the other", args[0], dataset)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			what, name := "data set", dataset
			if dataset == "" {
				what, name = "model", args[0]
			}
			id, ok := hub.ParseID(name)
			if ok && revision != "" {
				if id.Revision != "" {
					return misuse(cmd, "give the revision either as %s or by --revision", id)
				}
				id, ok = hub.ParseID(name + "@" + revision)
			}
			switch {
			case !ok:
				return misuse(cmd, "%q is no %s of the hub; name one as owner/name or owner/name@revision", strings.TrimSuffix(name+"@"+revision, "@"), what)
			case variant != hub.FullPrecision && variant != hub.HalfPrecision:
				return misuse(cmd, "--variant %q is not supported; use %s, or none for full precision", variant, hub.HalfPrecision)
			case variant != hub.FullPrecision && (dataset != "" || len(include) > 0):
				return misuse(cmd, "--variant chooses among the weights of a model; leave it out with --dataset and --include")
			}
			id.Dataset = dataset != ""
			client, err := hubClient()
			if err != nil {
				return err
			}
			done, err := c.download(cmd.Context(), client, func(h hub.Hooks) (*hub.Plan, error) {
				return client.PlanRepository(cmd.Context(), id, variant, include, h)
			})
			if err != nil {
				return err
			}
			return c.result(done, func(w io.Writer) { done.write(w, id.Dataset || len(include) > 0) })
		},
	}
	addConsole(cmd, c)
	f := cmd.Flags()
	f.StringVar(&dataset, "dataset", "", "the data set, as owner/name, in place of a model")
	f.StringArrayVar(&include, "include", nil, "fetch the files of this name or pattern instead, such as *.csv (may be repeated)")
	f.StringVar(&variant, "variant", "", "fp16: weights in half precision (default: full precision)")
	f.StringVar(&revision, "revision", "", "branch, tag or commit (default: main)")
	return cmd
}

// downloaded is the result of the command as JSON.
type downloaded struct {
	Model      string   `json:"model,omitempty"`   // owner/name@commit
	Dataset    string   `json:"dataset,omitempty"` // the same of a data set
	Folder     string   `json:"folder"`
	Files      int      `json:"files"`
	Names      []string `json:"names"`
	Bytes      int64    `json:"bytes"`      // of all files
	Downloaded int64    `json:"downloaded"` // bytes transferred, without model_index.json, which says what they are
}

func (d *downloaded) write(w io.Writer, list bool) {
	what, name := "model   ", d.Model
	if d.Dataset != "" {
		what, name = "data set", d.Dataset
	}
	fmt.Fprintf(w, "%s  %s\nfolder    %s\n", what, name, d.Folder)
	for _, file := range d.Names {
		if list {
			fmt.Fprintf(w, "file      %s\n", printable(file))
		}
	}
	if d.Downloaded == 0 {
		fmt.Fprintln(w, "it was in the cache already")
	}
}

// download fetches what is planned, after saying what comes.
func (c *console) download(ctx context.Context, client *hub.Client, planned func(hub.Hooks) (*hub.Plan, error)) (*downloaded, error) {
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
	plan, err := planned(hooks)
	if err != nil {
		return nil, err
	}
	if plan.Left > 0 {
		c.say(fmt.Sprintf("downloading %s of %s at commit %s: %s in %s, to %s", train.FormatBytes(plan.Left), plan.ID, plan.Commit,
			train.FormatBytes(plan.Bytes), count(len(plan.Files), "file"), plan.Folder))
	}
	s, err := client.Fetch(ctx, plan, hooks)
	c.endProgress()
	if err != nil {
		return nil, err
	}
	done := &downloaded{Folder: s.Folder, Files: len(plan.Files), Bytes: plan.Bytes, Downloaded: plan.Left}
	for _, f := range plan.Files {
		done.Names = append(done.Names, f.Path)
	}
	if s.ID.Dataset {
		done.Dataset = s.String()
	} else {
		done.Model = s.String()
	}
	return done, nil
}
