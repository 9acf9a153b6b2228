// Package weights reads and writes model weights: safetensors files, PyTorch files (nothing in them is executed), the
// component folders of a diffusers pipeline, and LoRA adapters.
//
// Every reader returns a [Source]: named tensors behind one interface, mapped into memory and converted only when asked
// for. A file that breaks its format's rules is refused with one sentence that names the file, the field and the fix;
// no file, however broken, makes the package panic or allocate more than the file's own size justifies.
package weights
