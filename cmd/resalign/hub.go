package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/hub"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

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
	done, err := c.download(ctx, client, func(h hub.Hooks) (*hub.Plan, error) { return client.Plan(ctx, id, hub.FullPrecision, h) })
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

// findFile finds a file of a data set or a model of the hub, or a model's folder where file is empty: in the cache, or
// where it is not there and download allows it, on the hub.
func (c *console) findFile(ctx context.Context, id hub.ID, file string, download bool) (string, error) {
	client, err := hubClient()
	if err != nil {
		return "", err
	}
	cached := func() (string, error) {
		if file == "" {
			found, err := client.CachedModel(id)
			return found.Folder, err
		}
		return client.CachedFile(id, file)
	}
	path, missing := cached()
	switch {
	case missing == nil || !download:
		return path, missing
	case client.Offline:
		return "", fmt.Errorf("%w, and HF_HUB_OFFLINE is set", missing)
	}
	var include []string
	if file != "" {
		include = []string{file}
	}
	if _, err := c.download(ctx, client, func(h hub.Hooks) (*hub.Plan, error) {
		return client.PlanRepository(ctx, id, hub.FullPrecision, include, h)
	}); err != nil {
		return "", err
	}
	return cached()
}
