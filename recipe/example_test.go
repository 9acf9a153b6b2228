package recipe_test

import (
	"fmt"
	"time"

	"github.com/resalign/resalign/recipe"
)

func Example() {
	type settings struct {
		Steps  int           `toml:"steps"`
		Limit  time.Duration `toml:"limit"`
		Method struct {
			Lambda float64 `toml:"lambda"`
		} `toml:"method"`
	}
	presets := map[string][]byte{"quick": []byte("steps = 10\nlimit = \"1m\"\n")}
	file := []byte("preset = \"quick\"\n[method]\nlambda = 1\n")

	var s settings
	layers := recipe.Layers{Presets: presets, Assignments: []string{"limit=90s"}}
	if err := recipe.LoadBytes("run.toml", file, layers, &s); err != nil {
		panic(err)
	}
	text, err := recipe.Encode(s)
	if err != nil {
		panic(err)
	}
	fmt.Print(string(text))
	fmt.Println(recipe.DecodeBytes("run.toml", []byte("[method]\nlamda = 1\n"), &s))
	// Output:
	// steps = 10
	// limit = "1m30s"
	//
	// [method]
	// lambda = 1.0
	// run.toml, line 2: method.lamda is not a known key; did you mean "lambda"?
}
