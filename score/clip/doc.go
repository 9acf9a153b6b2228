// Package clip holds what is built on CLIP's embeddings of pictures and texts (Radford et al. 2021): detectors of unsafe
// pictures, the CLIP score, the aesthetics predictor and CMMD.
//
// A [Model] embeds. A [Head] judges embeddings, and a [Detector] is a model with a head. Heads are cheap beside the model,
// so where several judge the same pictures, embed them once:
//
//	model, err := clip.OpenVision(e, "clip-vit-large-patch14")
//	sexual, err := clip.ReadMHSC("multi-headed/sexual.pt")
//	q16, err := clip.ReadQ16("prompts.p")
//	embeddings, err := model.Embed(ctx, pictures, clip.Standard)
//	a, err := sexual.Judge(embeddings)
//	b, err := q16.Judge(embeddings)
package clip
