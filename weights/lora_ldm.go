package weights

import (
	"fmt"
	"strconv"
	"strings"
)

// ldmLayout is what determines the names of a UNet's layers in the original code of latent diffusion
// (ldm/modules/diffusionmodules/openaimodel.py), where blocks are counted through: input_blocks.4 is the fourth block on the
// way down, resnet and attention together, and a downsampler is a block of its own.
type ldmLayout struct {
	down, up []ldmLevel
}

type ldmLevel struct {
	resnets            int
	attention, sampler bool
}

// sdxlLayout is that of Stable Diffusion XL.
var sdxlLayout = ldmLayout{
	down: []ldmLevel{{2, false, true}, {2, true, true}, {2, true, false}},
	up:   []ldmLevel{{3, true, true}, {3, true, true}, {3, false, false}},
}

// ldmLayoutOf finds the layout in the modules of diffusers' UNet.
func ldmLayoutOf(modules map[string][]int) ldmLayout {
	count := func(way, sampler string) []ldmLevel {
		has := func(level int, part string) bool {
			_, ok := modules[fmt.Sprintf("%s.%d.%s", way, level, part)]
			return ok
		}
		var levels []ldmLevel
		for i := 0; has(i, "resnets.0.conv1"); i++ {
			l := ldmLevel{attention: has(i, "attentions.0.proj_in"), sampler: has(i, sampler)}
			for has(i, fmt.Sprintf("resnets.%d.conv1", l.resnets)) {
				l.resnets++
			}
			levels = append(levels, l)
		}
		return levels
	}
	return ldmLayout{down: count("down_blocks", "downsamplers.0.conv"), up: count("up_blocks", "upsamplers.0.conv")}
}

var ldmSingles = map[string]string{
	"conv_in":                 "input_blocks.0.0",
	"conv_out":                "out.2",
	"time_embedding.linear_1": "time_embed.0",
	"time_embedding.linear_2": "time_embed.2",
	"add_embedding.linear_1":  "label_emb.0.0",
	"add_embedding.linear_2":  "label_emb.0.2",
	"mid_block.resnets.0":     "middle_block.0",
	"mid_block.attentions.0":  "middle_block.1",
	"mid_block.resnets.1":     "middle_block.2",
}

var ldmResnetParts = map[string]string{
	"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}

// name returns the original name of a module of diffusers' UNet.
func (l ldmLayout) name(module string) (string, bool) {
	if original, ok := ldmSingles[module]; ok {
		return original, true
	}
	parts := strings.Split(module, ".")
	if len(parts) >= 4 && parts[0] == "mid_block" {
		block, ok := ldmSingles[strings.Join(parts[:3], ".")]
		return ldmInside(block, parts[1], parts[3:], ok)
	}
	if len(parts) < 5 {
		return "", false
	}
	level, err1 := strconv.Atoi(parts[1])
	index, err2 := strconv.Atoi(parts[3])
	if err1 != nil || err2 != nil {
		return "", false
	}
	block, ok := l.block(parts[0], level, parts[2], index)
	return ldmInside(block, parts[2], parts[4:], ok)
}

// ldmInside appends what comes below a block.
func ldmInside(block, kind string, rest []string, ok bool) (string, bool) {
	tail := strings.Join(rest, ".")
	switch kind {
	case "resnets":
		var known bool
		tail, known = ldmResnetParts[tail]
		ok = ok && known
	case "downsamplers":
		tail = "op" // conv in diffusers
	}
	return block + "." + tail, ok
}

// block returns the original name of a resnet, an attention or a sampler: its number and its place in the block.
func (l ldmLayout) block(way string, level int, kind string, index int) (string, bool) {
	levels, prefix, number := l.down, "input_blocks", 1 // conv_in is the first
	if way == "up_blocks" {
		levels, prefix, number = l.up, "output_blocks", 0
	} else if way != "down_blocks" {
		return "", false
	}
	if level < 0 || level >= len(levels) {
		return "", false
	}
	for _, before := range levels[:level] {
		number += before.resnets
		if way == "down_blocks" && before.sampler {
			number++
		}
	}
	at, place := levels[level], 0
	switch kind {
	case "resnets", "attentions":
		if index < 0 || index >= at.resnets || (kind == "attentions" && !at.attention) {
			return "", false
		}
		number += index
		if kind == "attentions" {
			place = 1
		}
	case "downsamplers":
		number += at.resnets
	case "upsamplers": // at the end of the level's last block
		number += at.resnets - 1
		place = 1
		if at.attention {
			place = 2
		}
	default:
		return "", false
	}
	return fmt.Sprintf("%s.%d.%d", prefix, number, place), true
}
