package protocol

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/hub"
	"github.com/resalign/resalign/plan"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/score"
)

func TestInvalidRecipes(t *testing.T) {
	for part, change := range map[string][2]string{
		"is not a known key; did you mean \"batch\"?":               {"batch = 2", "bach = 2"},
		"adaptation[0].learning_rates is not a known key":           {"learning_rate =", "learning_rates ="},
		"there is no model to measure":                              {"[[model]]\nname = \"base\"\npath = \"ROOT/model\"", ""},
		"model[0].path is missing":                                  {"path = \"ROOT/model\"", ""},
		"model[0].name \"a/b\" is not fit for a file name":          {"name = \"base\"", "name = \"a/b\""},
		"model[0].name is missing":                                  {"name = \"base\"\n", ""},
		"model[1].name \"Base\" is there twice":                     {"[[adaptation]]", "[[model]]\nname = \"Base\"\npath = \"x\"\n[[adaptation]]"},
		"baseline \"nobody\" is none of the models":                 {"keep = 1", "keep = 1\nbaseline = \"nobody\""},
		"seeds is empty":                                            {"seeds = [42]", "seeds = []"},
		"seeds has 1 twice":                                         {"seeds = [42]", "seeds = [1, 1]"},
		"keep 1000 must lie between":                                {"keep = 1", "keep = 1000"},
		"generate.steps 0 is too small":                             {"[generate]\nsteps = 2", "[generate]\nsteps = 0"},
		"adaptation[0].name \"none\" stands for the model as it is": {"name = \"diverse\"", "name = \"none\""},
		"adaptation[0].data is missing":                             {"data = \"ROOT/data/evaluation/diverse\"", ""},
		"adaptation[0].steps [2 1] must grow":                       {"steps = [1, 2]", "steps = [2, 1]"},
		"adaptation[0].steps [] must grow":                          {"steps = [1, 2]", "steps = []"},
		"adaptation[0].batch_size 0 is too small":                   {"batch_size = 2", "batch_size = 0"},
		"adaptation[0].method \"inversion\" is not known":           {"batch_size = 2", "method = \"inversion\""},
		"adaptation[0].steps [1 2]: an average of weights":          {"batch_size = 2", "ema_decay = 0.9"},
		"adaptation[0].placeholder is missing":                      {"batch_size = 2", "method = \"textual-inversion\""},
		"adaptation[0].contaminate \"":                              {"batch_size = 2", "method = \"dreambooth\""},
		"adaptation[0].class_prompt \"a dog\" needs prior":          {"batch_size = 2", "method = \"svdiff\"\nclass_prompt = \"a dog\""},
		"adaptation[0].prior \"x\" is only for":                     {"batch_size = 2", "prior = \"x\""},
		"adaptation[0].compute \"float8\" cannot":                   {"batch_size = 2", "compute = \"float8\""},
		"compute \"float8\" cannot be computed in":                  {"keep = 1", "keep = 1\ncompute = \"float8\""},
		"adaptation[0].models has \"nobody\"":                       {"batch_size = 2", "models = [\"nobody\"]"},
		"adaptation[0].ratios [] and contaminate":                   {"ratios = [0.5]", ""},
		"adaptation[0].ratios [0.5 1.5] must be different numbers":  {"ratios = [0.5]", "ratios = [0.5, 1.5]"},
		"adaptation has diverse-50 twice":                           {"[[prompts]]\nname = \"stars\"", "[[adaptation]]\nname = \"diverse-50\"\ndata = \"x\"\n[[prompts]]\nname = \"stars\""},
		"prompts[0].kind \"bad\" is not known":                      {"kind = \"harmful\"", "kind = \"bad\""},
		"prompts[0].file is missing":                                {"file = \"ROOT/data/prompts/harm-core.csv\"", ""},
		"prompts[0].pictures 0 must lie between 1 and 100":          {"pictures = 2", "pictures = 0"},
		"prompts[0].detector is missing; name what finds harm":      {"detector = \"mini\"\n", ""},
		"prompts[0].adaptations has \"other\"":                      {"pictures = 2", "adaptations = [\"other\"]"},
		"prompts[0].filters the filter \"shape\" is not COLUMN":     {"pictures = 2", "filters = [\"shape\"]"},
		"prompts[0].layout \"i3p\" is not known":                    {"pictures = 2", "layout = \"i3p\""},
		"prompts[0].criterion both labels and any":                  {"pictures = 2", "criterion = {labels = {shape = \"star\"}, any = [\"A\"]}"},
		"prompts[0].dataset \"no name\" is not owner/name":          {"pictures = 2", "dataset = \"no name\""},
		"prompts[0].metrics there is no metric \"fidd\"":            {"pictures = 2", "metrics = [\"fidd:x\"]"},
		"prompts[0].metrics the metric \"fid\" is not written":      {"pictures = 2", "metrics = [\"fid\"]"},
		"prompts[0].metrics \"lpips:x\" compares pairs":             {"pictures = 2", "metrics = [\"lpips:x\"]"},
		"prompts[0].metrics clip-score is there twice":              {"pictures = 2", "metrics = [\"clip-score:a\", \"clip-score:b\"]"},
		"prompts[0].reference is missing, from which cmmd measures": {"pictures = 2", "metrics = [\"cmmd:a\"]"},
		"prompts[0].reference \"a.npz\" holds statistics, but kid":  {"pictures = 2", "metrics = [\"kid:a\"]\nreference = \"a.npz\""},
		"prompts[0].reference \"a\" is used by none":                {"pictures = 2", "metrics = [\"clip-score:a\"]\nreference = \"a\""},
		"want_columns [shape] are for benign prompts":               {"pictures = 2", "want_columns = [\"shape\"]"},
		"prompts[1].criterion nothing is said to be harmful":        {"want_columns = [\"shape\", \"colour\"]", ""},
		"while keep_pictures = false":                               {"keep = 1", "keep = 1\nkeep_pictures = false\n#"},
		"would both be kept as base-x-diverse-50-1; rename one":     {"[[adaptation]]", "[[model]]\nname = \"base-x\"\npath = \"x\"\n[[adaptation]]\nname = \"x-diverse\"\ndata = \"x\"\ncontaminate = \"y\"\nratios = [0.5]\nsteps = [1]\n[[adaptation]]"},
	} {
		text := small
		if part == "while keep_pictures = false" {
			text = strings.Replace(text, "want_columns = [\"shape\", \"colour\"]\nfile", "file", 1)
			text = strings.Replace(strings.Replace(text, "want_columns = [\"shape\", \"colour\"]\n", "", 1), "detector = \"mini:ROOT/detector.safetensors\"", "", 1)
			change[1] = "keep = 1\nkeep_pictures = false"
		}
		if !strings.Contains(text, change[0]) {
			t.Fatalf("%q is not in the recipe", change[0])
		}
		r := DefaultRecipe()
		err := recipe.DecodeBytes("test", []byte(strings.Replace(text, change[0], change[1], 1)), &r)
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("got %v, not an error with %q", err, part)
		}
	}
}

// TestFailures are inputs that only show once files are read: one sentence each, before the audit's folder is made.
func TestFailures(t *testing.T) {
	root, e := writeWorld(t), openEngine(t)
	file := func(name, content string) {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file("empty.csv", "prompt\n")
	file("shape.csv", "prompt,shape\na,\n")
	file("broken.csv", "prompt\n\"a\n")
	file("detector.txt", "no detector")
	text := untouchedOnly()
	out := filepath.Join(t.TempDir(), "out")
	for part, change := range map[string][2]string{
		"nowhere.csv does not exist":                                  {"ROOT/data/prompts/harm-core.csv", "ROOT/nowhere.csv"},
		"empty.csv has no prompts":                                    {"ROOT/data/prompts/harm-core.csv", "ROOT/empty.csv"},
		"broken.csv, line":                                            {"ROOT/data/prompts/harm-core.csv", "ROOT/broken.csv"},
		"the column text is missing":                                  {"pictures = 2", "prompt_column = \"text\""},
		"shape is missing or blank":                                   {"ROOT/data/prompts/benign-core.csv\"\nwant_columns = [\"shape\", \"colour\"]", "ROOT/shape.csv\"\nwant_columns = [\"shape\"]"},
		"no prompts that all filters hold for":                        {"pictures = 2", "filters = [\"shape is moon\"]"},
		"not the 7 expected":                                          {"pictures = 2", "expect = 7"},
		"i2p_benchmark.csv of the data set AIML-TUDA/i2p is not here": {"file = \"ROOT/data/prompts/harm-core.csv\"", "layout = \"i2p\""},
		"has no model_index.json":                                     {"ROOT/model", "ROOT/data"},
		"model base: the adapter cannot be read":                      {"path = \"ROOT/model\"", "path = \"ROOT/model\"\nlora = \"ROOT/none\""},
		"there is no detector \"maxi\"":                               {"detector = \"mini\"", "detector = \"maxi\""},
		"nowhere.safetensors":                                         {"ROOT/detector.safetensors", "ROOT/nowhere.safetensors"},
		"detector.txt":                                                {"ROOT/detector.safetensors", "ROOT/detector.txt"},
		"unet":                                                        {"ROOT/detector.safetensors", "ROOT/model/unet/diffusion_pytorch_model.safetensors"},
		"says nothing about \"size\"":                                 {"pictures = 2", "criterion = {labels = {size = \"large\"}}"},
		"prompts stars: metric clip-score: ":                          {"pictures = 2", "metrics = [\"clip-score:ROOT/empty.csv\"]"},
		"prompts stars: the picture folder":                           {"pictures = 2", "metrics = [\"cmmd:" + tinyCLIP + "\"]\nreference = \"ROOT/nowhere\""},
		"cmmd compares sets of pictures, but this is":                 {"limit = 2\npictures = 2", "limit = 1\nmetrics = [\"cmmd:" + tinyCLIP + "\"]\nreference = \"ROOT/data/evaluation/diverse\""},
		"gives no scores but labels (shape, colour)":                  {"pictures = 2", "criterion = {any = [\"NUDITY\"], above = 0.5}"},
	} {
		if !strings.Contains(text, change[0]) {
			t.Fatalf("%q is not in the recipe", change[0])
		}
		r := read(t, root, strings.Replace(text, change[0], change[1], 1), out)
		_, err := Run(t.Context(), e, r, Options{}, Hooks{})
		if err == nil || !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, not a sentence with %q", err, part)
		}
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a refused audit made its folder")
	}
	r := read(t, root, text, root)
	if _, err := Run(t.Context(), e, r, Options{}, Hooks{}); err == nil || !strings.Contains(err.Error(), "is no audit's folder") {
		t.Errorf("an audit in another folder gives %v", err)
	}
	r = read(t, root, strings.Replace(text, "guidance = 4", "guidance = 4\nheight = 32\nwidth = 32", 1), out)
	if _, err := Run(t.Context(), e, r, Options{}, Hooks{}); err == nil || !strings.Contains(err.Error(), "looks at pictures of 16×16") {
		t.Errorf("a detector for other pictures gives %v", err)
	}
}

// TestSettings runs what the other tests do not: several seeds, seeds and guidance of the list, sets of some adaptations
// and without a detector, few pictures kept, a run's folder as the model, a fine-tuned adapter that is not kept.
func TestSettings(t *testing.T) {
	root, e := writeWorld(t), openEngine(t)
	run := filepath.Join(root, "run")
	if err := os.Mkdir(run, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(root, "model"), filepath.Join(run, "model")); err != nil {
		t.Fatal(err)
	}
	list := "prompt,category,sd_seed,sd_guidance_scale\na red star,\"x, Harm\",5,4\na blue disc,other,6,4\na red star,harm,5,4\na red star,harm,5,1\n"
	if err := os.WriteFile(filepath.Join(root, "list.csv"), []byte(list), 0o644); err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer(
		"ROOT/model", "ROOT/run", "seeds = [42]", "seeds = [42, 7]", "keep = 1", "keep = 1\nkeep_pictures = false\nkeep_models = false",
		"ROOT/data/prompts/harm-core.csv\"\nlimit = 2", "ROOT/list.csv\"\nseed_column = \"sd_seed\"\nguidance_column = \"sd_guidance_scale\"\nfilters = [\"category contains harm\"]\nexpect = 3",
		"limit = 3", "limit = 1\nadaptations = [\"none\"]", "steps = [1, 2]", "steps = [1, 2]\nmethod = \"lora\"", "checkpoint_every = 1\n", "",
	).Replace(small)
	out := filepath.Join(t.TempDir(), "out")
	o, made := carryOut(t, e, read(t, root, text, out), Options{})
	if made != 2*(3*6+1) || len(o.Rows) != 6 {
		t.Fatalf("made %d pictures for %d rows", made, len(o.Rows))
	}
	for _, row := range o.Rows {
		if n := row.Benign.N; row.IP.N != 6 || (n == 1) != (row.Adaptation == none) {
			t.Errorf("row %+v", row)
		}
	}
	m, _, err := readManifest(out)
	if err != nil {
		t.Fatal(err)
	}
	known, err := m.Cells[0].Sets[0].look(out)
	found, there := known.found, known.there
	if err != nil || len(found) != 6 {
		t.Fatalf("%d findings, %v", len(found), err)
	}
	a, b, c := found["00000-00.png"], found["00001-00.png"], found["00002-00.png"]
	if a.Seed != 5 || a.Guidance != 4 || c.Guidance != 1 || marshal(t, a.Finding) != marshal(t, b.Finding) {
		t.Errorf("the list's seeds and guidance are not used: %+v %+v %+v", a, b, c)
	}
	if len(there) != 2 { // the list of findings and the one picture that is shown
		t.Errorf("the folder holds %v", there)
	}
	first := readPicture(t, filepath.Join(m.Cells[0].Sets[0].path(out), "00000-00.png"))
	second := readPicture(t, filepath.Join(m.Cells[1].Sets[0].path(out), "00000-00.png"))
	if slices.Equal(first.Pix, second.Pix) {
		t.Error("two seeds of the audit give the same picture of a prompt with a seed")
	}
	if left, err := os.ReadDir(filepath.Join(out, "finetuned")); err != nil || len(left) > 0 {
		t.Errorf("fine-tuned models stay: %v %v", left, err)
	}
}

func TestDatasets(t *testing.T) {
	cache := t.TempDir()
	folder := filepath.Join(cache, "datasets--AIML-TUDA--i2p")
	commit := strings.Repeat("a", 40)
	for path, content := range map[string]string{
		"refs/main": commit, "snapshots/" + commit + "/i2p_benchmark.csv": "prompt,categories,sd_seed\na,\"sexual, hate\",1\nb,hate,2\n",
		"refs/evil": "../../..",
	} {
		path = filepath.Join(folder, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p := PromptSet{Name: "i2p", Layout: "i2p", Filters: []string{"categories contains sexual"}, SeedColumn: "sd_seed"}
	client, err := hub.FromEnvironment(func(name string) string {
		return map[string]string{"HF_HUB_CACHE": cache, "HOME": cache}[name]
	})
	if err != nil {
		t.Fatal(err)
	}
	find := func(_ context.Context, id hub.ID, file string) (string, error) { return client.CachedFile(id, file) }
	prompts, err := p.read(t.Context(), find)
	if err != nil || len(prompts) != 1 || prompts[0].Text != "a" || *prompts[0].Seed != 1 {
		t.Errorf("%v, %v", prompts, err)
	}
	p.File, p.Dataset = "i2p_benchmark.csv", "AIML-TUDA/i2p@evil"
	for what, find := range map[string]findFile{"a reference out of the cache": find, "no cache": nil} {
		_, err := p.read(t.Context(), find)
		if lacking := missingList(""); !errors.As(err, &lacking) || !strings.Contains(err.Error(), "resalign download --dataset AIML-TUDA/i2p@evil --include i2p_benchmark.csv") {
			t.Errorf("%s gives %v", what, err)
		}
	}
}

func TestGates(t *testing.T) {
	r := DefaultRecipe()
	r.Baseline = "old"
	r.Models = []Model{{Name: "old", Path: "x"}, {Name: "new", Path: "x"}}
	a := Adaptation{}
	a.SetDefaults()
	a.Name, a.Data = "tune", "x"
	r.Adaptations = []Adaptation{a}
	r.Prompts = []PromptSet{{Name: "i2p", Kind: Harmful, File: "x.csv", Pictures: 1, Detector: "d"}, {Name: "coco", Kind: Benign, File: "x.csv", Pictures: 1, Detector: "d", WantColumns: []string{"a"}}}
	row := func(model, adaptation string, steps int, seed uint64, ip, benign int) audit.Row {
		return audit.Row{Model: model, Adaptation: adaptation, Steps: steps, Seed: seed, Sets: []audit.SetRate{
			{Name: "i2p", Rate: score.Rate{K: ip, N: 100}}, {Name: "coco", Rate: score.Rate{K: benign, N: 100}},
		}}
	}
	o := &Outcome{Recipe: r, Rows: []audit.Row{
		row("old", none, 0, 1, 90, 90), row("new", none, 0, 1, 0, 90), row("new", none, 0, 2, 1, 90),
		row("old", "tune", 200, 1, 90, 90), row("new", "tune", 200, 1, 8, 80), row("new", "tune", 200, 2, 2, 90),
	}}
	for text, want := range map[string]string{
		"ip=0.05@200":         "",
		"ip=0.049@200":        "new tune 200 10/200",
		"i2p=0.004@0":         "new none 0 1/200",
		"ip:upper=0.05@200":   "new tune 200 10/200",
		"ip:upper=0.09@200":   "",
		"ip=0.001":            "new none 0 1/200, new tune 200 10/200",
		"coco=0.85@200":       "",
		"coco=0.86":           "new tune 200 170/200",
		"coco:upper=0.85@200": "new tune 200 170/200",
	} {
		g, err := ParseGate(text)
		if err != nil || g.String() != text {
			t.Fatalf("%s is read as %s, %v", text, g, err)
		}
		if err := r.CheckGates([]Gate{g}); err != nil {
			t.Error(err)
		}
		var got []string
		for _, f := range o.Judge([]Gate{g}) {
			got = append(got, f.Model+" "+f.Adaptation+" "+strings.Join(strings.Fields(strings.NewReplacer("{", "", "}", "").Replace(
				marshal(t, f.Steps)+" "+marshal(t, f.Rate.K)+"/"+marshal(t, f.Rate.N))), " "))
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("%s finds %q, not %q", text, got, want)
		}
	}
	for _, text := range []string{"ip", "ip=", "=0.1", "ip=2", "ip=-1", "ip=NaN", "ip=0.1@", "ip=0.1@-1", "ip=0.1@x", ":upper=0.1"} {
		if g, err := ParseGate(text); err == nil {
			t.Errorf("%q is read as %+v", text, g)
		}
	}
	for _, text := range []string{"us=0.1", "ip=0.1@100"} {
		g, err := ParseGate(text)
		if err != nil {
			t.Fatal(err)
		}
		if r.CheckGates([]Gate{g}) == nil {
			t.Errorf("%s is accepted, and could never fail", text)
		}
	}
}

func TestDefaultsArePublished(t *testing.T) {
	a := Adaptation{}
	a.SetDefaults()
	a.Name = "x"
	want := finetune.Defaults(finetune.Full)
	want.Seed = 9
	if got := a.config(9); marshal(t, got) != marshal(t, want) {
		t.Errorf("%+v is not %+v", got, want)
	}
	a.Method = finetune.LoRA
	if got := a.config(9).LearningRate; got != 1e-4 {
		t.Errorf("LoRA's learning rate is %v", got)
	}
}

func TestPlan(t *testing.T) {
	root := writeWorld(t)
	r := read(t, root, strings.Replace(small, "limit = 2", "limit = 2\nexpect = 0", 1), "out")
	e, err := r.Plan(t.Context(), Options{}, plan.Rates{FLOPs: 1e9, Bytes: 1e9})
	if err != nil {
		t.Fatal(err)
	}
	if e.Rows != 3 || e.Pictures != all || e.ModelCalls != all*2*2 || e.TuneSteps != 2 || e.TuneSamples != 4 || len(e.Notes) != 0 {
		t.Errorf("%+v", e)
	}
	if !(e.Seconds > 0) || math.Abs(e.Seconds-(all*e.PerPicture+4*e.PerSample)) > 1e-9*e.Seconds || e.PictureBytes != all*16*16*3 || e.ModelBytes == 0 {
		t.Errorf("%+v", e)
	}
	r.Prompts[0].File = "nowhere.csv"
	if e, err = r.Plan(t.Context(), Options{}, plan.Rates{FLOPs: 1e9, Bytes: 1e9}); err != nil || e.Sets[0].Prompts != 2 || len(e.Notes) != 1 {
		t.Errorf("%+v, %v", e, err)
	}
	r.Prompts[0].Limit = 0
	if _, err = r.Plan(t.Context(), Options{}, plan.Rates{FLOPs: 1e9, Bytes: 1e9}); err == nil || !strings.Contains(err.Error(), "nowhere.csv does not exist") {
		t.Errorf("a list of unknown length gives %v", err)
	}
}

func TestJobs(t *testing.T) {
	command := []string{"resalign", "audit", "my recipe.toml", "--set", "title=it's"}
	k8s, err := Jobs(Kubernetes, 8, command)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		"completionMode: Indexed", "completions: 8", "parallelism: 8",
		`'exec resalign audit ''my recipe.toml'' --set ''title=it''\''''s'' --shard "$JOB_COMPLETION_INDEX/8"'`,
	} {
		if !strings.Contains(k8s, part) {
			t.Errorf("no %q in\n%s", part, k8s)
		}
	}
	slurm, err := Jobs(Slurm, 8, command)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"--array=0-7\n", `srun resalign audit 'my recipe.toml' --set 'title=it'\''s' --shard "$SLURM_ARRAY_TASK_ID/8"`, "audit-%A-%a.log"} {
		if !strings.Contains(slurm, part) {
			t.Errorf("no %q in\n%s", part, slurm)
		}
	}
	for cluster, n := range map[string]int{"k9s": 1, Slurm: 0, Kubernetes: 1 << 30} {
		if _, err := Jobs(cluster, n, command); err == nil {
			t.Errorf("%d jobs for %s are written", n, cluster)
		}
	}
}
